"""Forecast requests: any cutoffs of a ticker, sampled in one batch with the ticker's seed, as valid candles."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from holdouts import CLOSE, HandMadeWindows, RecordingSampler
from small_trainings import simulated_windows, small_recipe

from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ModelError
from kronos_pipeline.evaluation.forecasting.batching import (
    SamplePaths,
    forecast_request,
    sample_requests,
    sampling_seed,
    unwrap,
)
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.model.decode.sample import sample_paths
from kronos_pipeline.model.loading import load_base

RECIPE = Recipe(horizon=4, lookback=8, eval_samples=3, seed=7)
ORIGINS, ENDS = np.array([20, 22, 37]), np.array([25, 27, 40])


def sampled(sampler: Any, **changes: Any) -> SamplePaths:
    windows: Any = HandMadeWindows(100 + np.arange(40.0), holdout=10, horizon=4)
    sampling = replace(plain_sampling(RECIPE), **changes)
    (predictions,) = sample_requests([forecast_request(windows, ORIGINS, ENDS, 0.0, RECIPE, sampling)], sampler)  # type: ignore[arg-type]
    return unwrap(predictions)


def test_each_forecast_knows_its_lookback_and_the_times_up_to_its_end() -> None:
    sampler = RecordingSampler()
    paths = sampled(sampler)
    (request,) = sampler.calls
    close = 100 + np.arange(40.0)
    stamps = HandMadeWindows(close, holdout=10, horizon=4).stamps
    for row, origin in enumerate(ORIGINS):
        np.testing.assert_array_equal(request["history"][row, :, CLOSE], close[origin - 7 : origin + 1])
        np.testing.assert_array_equal(request["past"][row], stamps[origin - 7 : origin + 1])
    np.testing.assert_array_equal(request["ahead"][0], stamps[21:25])
    np.testing.assert_array_equal(request["ahead"][2], stamps[[38, 39, 39, 39]])
    assert paths.closes.shape == (3, 3, 4)
    assert paths.closes[1, 2, 3] == close[22] + 2 + 4


def test_it_draws_as_the_sampling_says_and_with_the_tickers_seed() -> None:
    sampler = RecordingSampler()
    sampled(sampler, temperature=0.7, top_p=0.6, s2_position="first")
    (request,) = sampler.calls
    np.testing.assert_array_equal(request["temperature"], [0.7] * 3)
    np.testing.assert_array_equal(request["top_p"], [0.6] * 3)
    assert (request["paths"], request["s2_position"]) == (3, "first")
    assert request["seed"] == [sampling_seed(7, "AAPL")] * 3


def test_candles_come_out_valid_and_those_that_were_not_are_counted() -> None:
    def crooked(*arguments: Any, **settings: Any) -> np.ndarray:
        paths = RecordingSampler()(*arguments, **settings)
        paths[1, 0, 2, 1] -= 5  # a high below the close
        paths[2, 1, :, 4] = -1  # volumes below zero
        return paths

    paths = sampled(crooked)
    assert (paths.mended, paths.bars) == (1 + 4, 3 * 3 * 4)
    expected = sampled(RecordingSampler()).values
    expected[2, 1, :, 4] = 0
    np.testing.assert_array_equal(paths.values, expected)


def test_a_number_that_is_not_finite_is_an_error_that_counts_the_bars() -> None:
    def broken(*arguments: Any, **settings: Any) -> np.ndarray:
        paths = RecordingSampler()(*arguments, **settings)
        paths[0, 0, 0, 4], paths[1, 1, 1] = np.nan, np.inf
        return paths

    with pytest.raises(ModelError, match="AAPL are not finite numbers in 2 of 36 sampled bars; train it again"):
        sampled(broken)


def test_a_real_model_is_sampled_unless_told_otherwise(tiny_base: Path) -> None:
    recipe = small_recipe(tiny_base, s2_position="first")
    (windows,) = simulated_windows(recipe)
    model = load_base(find_base_model(str(tiny_base)), torch.device("cpu"))
    origins = np.array([60, 70])
    (forecast,) = sample_requests(
        [forecast_request(windows, origins, origins + 6, model, recipe, plain_sampling(recipe))]
    )
    values, cutoffs = windows.bars.values, origins[:, None]
    past, ahead = cutoffs + np.arange(-15, 1), cutoffs + np.arange(1, 6)
    seed = sampling_seed(recipe.seed, "AAPL")
    paths = sample_paths(
        model,
        values[past],
        windows.stamps[past],
        windows.stamps[ahead],
        paths=3,
        temperature=1.0,
        top_p=recipe.top_p,
        seed=seed,
        s2_position="first",
    )
    np.testing.assert_array_equal(unwrap(forecast).closes, paths[..., CLOSE])


@pytest.mark.slow
def test_the_seed_is_the_tickers_own_and_the_same_in_every_process() -> None:
    seeds = {sampling_seed(seed, ticker) for seed in range(5) for ticker in ("AAPL", "MSFT", "BRK.B", "BRK-B")}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**32 for seed in seeds)
    code = "from kronos_pipeline.evaluation.forecasting.batching import sampling_seed; print(sampling_seed(7, 'AAPL'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == sampling_seed(7, "AAPL")
