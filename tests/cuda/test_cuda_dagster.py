"""A materialisation on CUDA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("dagster")

from code_locations import Location, failed_steps

from kronos_pipeline.artifacts import MANIFEST, read_json

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("one_mlflow_store"),
]


def test_an_adapter_is_trained_and_measured_on_the_gpu(tmp_path: Path, tiny_base: Path) -> None:
    location = Location(tmp_path, tiny_base)
    location.write("AAPL", "MSFT")
    result = location.run("retrain_adapter", "AAPL", "MSFT", settings={"device": "cuda"})
    assert result.success, failed_steps(result)
    assert location.materialised("adapter") == location.materialised("holdout_metrics") == {"AAPL", "MSFT"}
    assert location.metadata("adapter", "AAPL")["device"].startswith("cuda:0")
    for ticker in ("AAPL", "MSFT"):
        assert read_json(location.layout.adapter(ticker) / MANIFEST)["device"] == "cuda:0"
        forecasts = pd.read_parquet(location.layout.ticker_forecasts(ticker))
        assert np.isfinite(forecasts.loc[forecasts["model"] == "adapter", "mean"]).all()
