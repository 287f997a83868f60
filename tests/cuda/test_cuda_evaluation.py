"""Holdouts and backtests on CUDA give the same table as on the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from registered_models import made_adapter, made_checkpoint
from small_trainings import simulated_bars, simulated_windows, small_recipe

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.backtest.backtest import Backtest, run_backtest
from kronos_pipeline.evaluation.forecasting.batching import unwrap
from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels
from kronos_pipeline.evaluation.holdout import HoldoutResult, evaluate_tickers
from kronos_pipeline.model.loading import KronosModel, load_base

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TICKERS = ("AAPL", "MSFT")
DEVICES = ("cpu", "cuda")


@pytest.fixture(scope="module")
def recipe(tiny_base: Path) -> Recipe:
    changes: dict[str, Any] = {"epochs": 1, "evaluations_per_epoch": 1, "stride": 4, "eval_samples": 16}
    return small_recipe(tiny_base, precision="fp32", **changes)


@pytest.fixture(scope="module")
def bases(tiny_base: Path) -> dict[str, KronosModel]:
    return {device: load_base(find_base_model(str(tiny_base)), torch.device(device)) for device in DEVICES}


@pytest.fixture(scope="module")
def holdouts(
    recipe: Recipe, bases: dict[str, KronosModel], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, HoldoutResult]]:
    """Evaluate two tickers' holdouts with a checkpoint and an adapter of one of them, by device and ticker."""
    windows = {ticker.ticker: ticker for ticker in simulated_windows(recipe, TICKERS)}
    source = ArtifactLayout(tmp_path_factory.mktemp("made"))
    made_adapter(source.adapter("AAPL"), recipe)
    made_checkpoint(source.best_checkpoint, recipe, TICKERS)
    results = {}
    for device, base in bases.items():
        layout = ArtifactLayout(tmp_path_factory.mktemp("measured") / device)
        shutil.copytree(source.root, layout.root)
        models = TrainedModels(layout, base)
        evaluated = evaluate_tickers(models, windows, dict.fromkeys(TICKERS), recipe, tickers_tested=2)
        results[device] = {ticker: unwrap(result) for ticker, result in evaluated}
    return results


@pytest.mark.parametrize("ticker", TICKERS)
def test_a_holdout_has_the_table_that_the_cpu_gives(holdouts: dict[str, Any], ticker: str) -> None:
    expected, result = (holdouts[device][ticker] for device in DEVICES)
    assert {"base", "checkpoint"} <= set(result.predictions["model"])
    assert ("adapter" in set(result.predictions["model"])) == (ticker == "AAPL")
    pd.testing.assert_frame_equal(result.predictions, expected.predictions, rtol=1e-4)
    (scores,), (right,) = result.evaluation["per_symbol"], expected.evaluation["per_symbol"]
    for model, numbers in right["models"].items():
        for name in ("mae", "rmse", "crps"):
            assert scores["models"][model][name] == pytest.approx(numbers[name], rel=1e-3), (model, name)


def test_what_was_fitted_and_where_is_in_the_manifest(holdouts: dict[str, Any]) -> None:
    expected, manifest = (holdouts[device]["AAPL"].manifest for device in DEVICES)
    assert (expected["device"], expected["precision"], manifest["precision"]) == ("cpu", "fp32", "fp32")
    assert manifest["device"].startswith("cuda")
    for model, right in expected["sampling"]["AAPL"].items():
        assert manifest["sampling"]["AAPL"][model]["temperature"] == right["temperature"], model


def test_a_backtest_trains_and_forecasts_each_fold(
    recipe: Recipe, bases: dict[str, KronosModel], tmp_path: Path
) -> None:
    changes = {"adapter": "lora", "backtest_origins": 2, "learning_rate": 1e-2}
    bars = {"AAPL": simulated_bars("AAPL", 110)}
    lines: list[str] = []

    def backtest(device: str) -> Backtest:
        layout = ArtifactLayout(tmp_path / device)
        changed = recipe.model_copy(update={**changes, "device": device})
        return run_backtest(layout, bars, changed, bases[device], say=lines.append)

    expected, actual = backtest("cpu"), backtest("cuda")
    assert not actual.skipped
    assert actual.predictions["cutoff"].nunique() == 2
    # Dropout draws other numbers on a GPU, so the adapters are others too; all else is as on the CPU.
    same = ["unique_id", "cutoff", "ds", "step", "model", "y"]
    pd.testing.assert_frame_equal(actual.predictions[same], expected.predictions[same])
    adapted, right = (result.predictions["model"].str.startswith("adapter") for result in (actual, expected))
    pd.testing.assert_frame_equal(actual.predictions[~adapted], expected.predictions[~right], rtol=1e-4)
    forecasts = actual.predictions.loc[actual.predictions["model"] == "adapter", "mean"].to_numpy()
    assert np.isfinite(forecasts).all()
    assert (forecasts != actual.predictions.loc[actual.predictions["model"] == "base", "mean"].to_numpy()).any()
    lines.clear()
    repeated = backtest("cuda")
    assert "(2 are kept from before)" in lines[0]
    pd.testing.assert_frame_equal(repeated.predictions, actual.predictions)
