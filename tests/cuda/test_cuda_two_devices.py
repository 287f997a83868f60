"""Several GPUs in one process: each training and forecast runs on its requested device."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from registered_models import made_adapter
from small_trainings import simulated_bars, simulated_windows, small_recipe

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.backtest.backtest import run_backtest
from kronos_pipeline.evaluation.forecasting.future import forecast_ahead
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.model.loading import load_base
from kronos_pipeline.model.lora import load_adapter
from kronos_pipeline.training.trainer import KronosTrainer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]

QUICK = {"epochs": 1, "evaluations_per_epoch": 1, "stride": 8, "precision": "fp32"}


def quick(base: Path, device: str) -> Recipe:
    return small_recipe(base, **{**QUICK, "device": device})


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "checkpoint"])
def test_trainings_on_the_second_gpu_the_first_and_the_cpu_in_turn(tiny_base: Path, tmp_path: Path, lora: bool) -> None:
    for turn, device in enumerate(("cuda:1", "cuda:0", "cpu", "cuda:1")):
        recipe = quick(tiny_base, device)
        windows = simulated_windows(recipe)
        trainer = KronosTrainer(recipe, tmp_path / f"{turn}", say=lambda _: None)
        result = trainer.train_adapter(windows, "AAPL") if lora else trainer.train_checkpoint(windows)
        assert trainer.device == torch.device(device)
        assert result.summary["device"].split()[0] == device
        assert np.isfinite(result.summary["selection_loss"])
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ


def test_each_device_forecasts_what_the_cpu_forecasts(tiny_base: Path, tmp_path: Path) -> None:
    recipe, bars = quick(tiny_base, "cuda"), simulated_bars("AAPL")
    folder = made_adapter(tmp_path / "adapter", recipe)
    means: dict[str, pd.Series] = {}
    for device in ("cpu", "cuda:1", "cuda:0", "cuda:1"):
        base = load_base(find_base_model(str(tiny_base)), torch.device(device))
        for name, model in (("base", base), ("adapter", load_adapter(folder, base))):
            mean = forecast_ahead(bars, model, plain_sampling(recipe), recipe)["mean"]
            np.testing.assert_allclose(mean, means.setdefault(name, mean), rtol=1e-4, err_msg=f"{name} on {device}")
    assert not np.allclose(means["base"], means["adapter"], rtol=1e-4)


def test_a_trainer_is_on_the_device_of_the_base_model_that_it_is_given(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(find_base_model(str(tiny_base)), torch.device("cuda:1"))
    trainer = KronosTrainer(quick(tiny_base, "auto"), tmp_path, base=base, say=lambda _: None)
    assert trainer.device == base.device
    trainer.train_adapter(simulated_windows(trainer.recipe), "AAPL")


def test_a_backtest_goes_on_on_another_gpu(tiny_base: Path, tmp_path: Path) -> None:
    bars, lines = {"AAPL": simulated_bars("AAPL", 110)}, list[str]()
    for device in ("cuda:1", "cuda:0"):
        recipe = quick(tiny_base, device).model_copy(update={"adapter": "lora", "backtest_origins": 1})
        base = load_base(find_base_model(str(tiny_base)), torch.device(device))
        run_backtest(ArtifactLayout(tmp_path), bars, recipe, base, say=lines.append)
    assert sum("(1 are kept from before)" in line for line in lines) == 1
