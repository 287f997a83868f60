"""A served model on CUDA, with requests from several threads at once."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pandas as pd
import pytest
import torch
from registered_models import made_adapter
from small_trainings import simulated_bars, small_recipe

from kronos_pipeline.tracking.serving import ServedForecaster

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

REQUESTS = [simulated_bars(bars=60, seed=seed).frame for seed in range(4)]
THREADS = 2


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    return made_adapter(tmp_path / "adapter", small_recipe(tiny_base, precision="fp32"))


def served(device: str, folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> ServedForecaster:
    monkeypatch.setenv("KRONOS_DEVICE", device)
    return ServedForecaster(folder, str(base / "predictor"), str(base / "tokenizer"))


def test_two_threads_at_once_get_the_forecasts_of_the_cpu(
    folder: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [served("cpu", folder, tiny_base, monkeypatch).forecast(bars) for bars in REQUESTS]
    model = served("cuda", folder, tiny_base, monkeypatch)
    start = Barrier(THREADS)

    def ask(_: int) -> list[pd.DataFrame]:
        start.wait(timeout=60)
        return [model.forecast(bars) for bars in REQUESTS]

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(ask, range(THREADS)))
    for forecasts in answers:
        for forecast, expected_forecast in zip(forecasts, expected, strict=True):
            pd.testing.assert_frame_equal(forecast, expected_forecast, rtol=1e-4)


def test_a_model_is_loaded_while_another_is_asked(
    folder: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "simcuda" in sys.modules:
        pytest.skip("a capture of the simulated device is one of all threads")
    model = served("cuda", folder, tiny_base, monkeypatch)
    expected = model.forecast(REQUESTS[0])
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: [model.forecast(bars) for bars in REQUESTS])
        other = served("auto", folder, tiny_base, monkeypatch)
        pd.testing.assert_frame_equal(other.forecast(REQUESTS[0]), expected)
        pd.testing.assert_frame_equal(future.result(timeout=120)[0], expected)
