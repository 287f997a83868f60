from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from holdouts import CLOSE, HandMadeWindows, RecordingSampler
from hypothesis import given
from hypothesis import strategies as st

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ModelError
from kronos_pipeline.evaluation.forecasts import forecast_holdout, sampling_seed

CONFIG = Recipe(horizon=4, lookback=8, eval_samples=3, seed=7, temperature=0.9, top_p=0.8)


def closes(bars: int) -> np.ndarray:
    return 100 + np.cumsum(np.random.default_rng(0).normal(size=bars))


def test_each_holdout_bar_has_one_row_that_knows_the_bars_up_to_its_cutoff() -> None:
    windows = HandMadeWindows(closes(40), holdout=10, horizon=4)
    table = forecast_holdout(windows, {"base": 10.0, "adapter": 20.0}, CONFIG, sampler=RecordingSampler())
    frame = windows.bars.frame
    assert list(table.columns) == ["unique_id", "ds", "cutoff", "y", "naive", "base", "adapter"]
    assert list(table["ds"]) == list(frame["timestamps"][-10:])
    assert list(table["y"]) == list(frame["close"][-10:])
    assert list(table["cutoff"]) == list(frame["timestamps"].iloc[[29] * 4 + [33] * 4 + [37] * 2])
    last_close = frame["close"].iloc[[29] * 4 + [33] * 4 + [37] * 2].to_numpy()
    steps = np.array([1, 2, 3, 4, 1, 2, 3, 4, 1, 2])
    np.testing.assert_array_equal(table["naive"], last_close)
    # The sampler adds the model, the path's number (0, 1, 2: mean 1) and the step to the last close.
    np.testing.assert_allclose(table["base"], last_close + 10 + 1 + steps, rtol=1e-12)
    np.testing.assert_allclose(table["adapter"], last_close + 20 + 1 + steps, rtol=1e-12)


def test_a_roll_is_given_real_bars_up_to_its_cutoff_and_nothing_after() -> None:
    windows = HandMadeWindows(closes(40), holdout=10, horizon=4)
    sampler = RecordingSampler()
    forecast_holdout(windows, {"base": 0.0}, CONFIG, sampler=sampler)
    (call,) = sampler.calls
    assert call["history"].shape == (3, 8, 6)
    assert call["past"].shape == (3, 8, 5)
    assert call["ahead"].shape == (3, 4, 5)
    for roll, origin in enumerate([29, 33, 37]):
        np.testing.assert_array_equal(call["history"][roll, :, CLOSE], windows.close[origin - 7 : origin + 1])
        np.testing.assert_array_equal(call["past"][roll], windows.stamps[origin - 7 : origin + 1])
    np.testing.assert_array_equal(call["ahead"][1], windows.stamps[34:38])
    np.testing.assert_array_equal(call["ahead"][2], windows.stamps[[38, 39, 39, 39]])


@pytest.mark.parametrize("changed", range(30, 40))
def test_no_forecast_changes_when_a_bar_after_its_cutoff_does(changed: int) -> None:
    close = closes(40)
    other = close.copy()
    other[changed] += 50
    before, after = (
        forecast_holdout(
            HandMadeWindows(values, holdout=10, horizon=4), {"base": 0.0}, CONFIG, sampler=RecordingSampler()
        )
        for values in (close, other)
    )
    stamps = HandMadeWindows(close, holdout=10, horizon=4).bars.frame["timestamps"]
    unaware = (before["cutoff"] < stamps[changed]).to_numpy()
    pd.testing.assert_frame_equal(before.loc[unaware, ["naive", "base"]], after.loc[unaware, ["naive", "base"]])


def test_every_model_draws_once_with_the_same_seed_and_settings() -> None:
    windows = HandMadeWindows(closes(40), holdout=10, horizon=4)
    sampler = RecordingSampler()
    forecast_holdout(windows, {"base": 0.0, "checkpoint": 1.0, "adapter": 2.0}, CONFIG, sampler=sampler)
    assert [call["model"] for call in sampler.calls] == [0.0, 1.0, 2.0]
    for call in sampler.calls:
        assert call["seed"] == sampling_seed(7, "AAPL")
        assert (call["paths"], call["temperature"], call["top_p"]) == (3, 0.9, 0.8)


def test_the_seed_is_the_tickers_own_and_the_same_in_every_process() -> None:
    seeds = {sampling_seed(seed, ticker) for seed in range(5) for ticker in ("AAPL", "MSFT", "BRK.B", "BRK-B")}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**32 for seed in seeds)
    code = "from kronos_pipeline.evaluation.forecasts import sampling_seed; print(sampling_seed(7, 'AAPL'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == sampling_seed(7, "AAPL")


def test_a_forecast_that_is_not_finite_is_an_error_that_names_model_and_ticker() -> None:
    windows = HandMadeWindows(closes(40), holdout=10, horizon=4)
    with pytest.raises(ModelError, match="adapter model's forecast of AAPL is not a finite number for 10 of 10"):
        forecast_holdout(windows, {"adapter": float("nan")}, CONFIG, sampler=RecordingSampler())


@given(holdout=st.integers(1, 60), horizon=st.integers(1, 40), extra=st.integers(0, 5))
def test_rolls_cover_the_holdout_exactly_once(holdout: int, horizon: int, extra: int) -> None:
    windows = HandMadeWindows(closes(9 + extra + holdout), holdout=holdout, horizon=horizon)
    config = CONFIG.model_copy(update={"horizon": horizon})
    table = forecast_holdout(windows, {"base": 0.0}, config, sampler=RecordingSampler())
    assert list(table["ds"]) == list(windows.bars.frame["timestamps"][-holdout:])
    assert (table["cutoff"] < table["ds"]).all()
    assert table.groupby("cutoff").size().max() <= horizon
    assert table["cutoff"].nunique() == -(-holdout // horizon)
