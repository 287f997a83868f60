from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from holdouts import CLOSE, HandMadeWindows, RecordingSampler, forecast
from hypothesis import given
from hypothesis import strategies as st

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ModelError
from kronos_pipeline.evaluation.forecasting.batching import sampling_seed
from kronos_pipeline.evaluation.forecasting.holdout_table import predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.predictions import COLUMNS, VARIANTS, point_table

CONFIG = Recipe(horizon=4, lookback=8, eval_samples=3, seed=7, temperature=0.9, top_p=0.8)
BASELINES = ["naive", "drift", "seasonal_naive", "ewma"]


def closes(bars: int) -> np.ndarray:
    return 100 + np.cumsum(np.random.default_rng(0).normal(size=bars))


def of(table: pd.DataFrame, model: str) -> pd.DataFrame:
    return table[table["model"] == model].reset_index(drop=True)


def test_each_holdout_bar_has_a_row_per_model_that_knows_the_bars_up_to_its_cutoff() -> None:
    windows = HandMadeWindows(closes(40), holdout=10, horizon=4)
    table = forecast(windows, {"base": 10.0, "adapter": 20.0}, CONFIG).predictions
    frame = windows.bars.frame
    assert tuple(table.columns) == COLUMNS
    origins = np.array([29] * 4 + [33] * 4 + [37] * 2)
    last = frame["close"].iloc[origins].to_numpy()
    steps = np.array([1, 2, 3, 4, 1, 2, 3, 4, 1, 2])
    for model in (*BASELINES, "base", "adapter"):
        rows = of(table, model)
        assert list(rows["ds"]) == list(frame["timestamps"][-10:])
        assert list(rows["y"]) == list(frame["close"][-10:])
        assert list(rows["cutoff"]) == list(frame["timestamps"].iloc[origins])
        assert list(rows["step"]) == list(steps)
        np.testing.assert_array_equal(rows["last"], last)
        assert rows["scale"].unique() == pytest.approx(np.abs(np.diff(windows.close[:30])).mean())
    np.testing.assert_array_equal(of(table, "naive")["mean"], last)
    # The sampler adds the model, the path's number (0, 1, 2: mean 1) and the step to the last close.
    np.testing.assert_allclose(of(table, "base")["mean"], last + 10 + 1 + steps, rtol=1e-12)
    np.testing.assert_allclose(of(table, "adapter")["median"], last + 20 + 1 + steps, rtol=1e-12)


def test_cutoffs_that_a_jump_takes_from_the_holdout_are_told() -> None:
    windows = HandMadeWindows(closes(40), holdout=10, horizon=4)
    assert not any("not scored" in note for note in forecast(windows, {}, CONFIG).notes)
    fewer = replace(windows, excluded={"cutoffs over a jump like an unadjusted split": 2})
    notes = forecast(fewer, {}, CONFIG).notes
    assert "AAPL: 2 cutoffs over a jump like an unadjusted split of the holdout are not scored." in notes


def test_the_baselines_are_their_formulas_from_the_lookback_alone() -> None:
    windows = HandMadeWindows(closes(40), holdout=10, horizon=4)
    table = forecast(windows, {}, CONFIG).predictions
    for number, (_, row) in enumerate(of(table, "drift").iterrows()):
        known = windows.close[29 - 7 : 30] if number < 4 else None
        if known is not None:
            assert row["mean"] == pytest.approx(known[-1] + row["step"] * (known[-1] - known[0]) / 7)
    week = of(table, "seasonal_naive")  # five weekdays: the same weekday of the week before
    np.testing.assert_allclose(week["mean"].iloc[:4], windows.close[25:29])
    random_walk = of(table, "ewma")
    assert (random_walk["hi_90"] >= random_walk["lo_90"]).all()
    assert random_walk["pit"].between(0, 1).all()


def test_a_forecast_of_points_has_no_interval_and_its_crps_is_its_error() -> None:
    table = forecast(HandMadeWindows(closes(40), holdout=10, horizon=4), {"base": 0.0}, CONFIG).predictions
    for model in ("naive", "drift", "seasonal_naive"):
        rows = of(table, model)
        assert rows[["lo_80", "hi_80", "raw_lo_90", "pit"]].isna().all(axis=None)
        np.testing.assert_allclose(rows["crps"], (rows["mean"] - rows["y"]).abs())
    assert of(table, "base").notna().all(axis=None)


def test_a_week_that_is_longer_than_the_lookback_gives_no_seasonal_forecast_and_says_so() -> None:
    windows = HandMadeWindows(closes(400), holdout=10, horizon=4, freq="h")
    result = forecast(windows, {"base": 0.0}, CONFIG)
    assert "seasonal_naive" not in set(result.predictions["model"])
    assert any("AAPL: no seasonal_naive forecast" in note for note in result.notes)


def test_a_roll_is_given_real_bars_up_to_its_cutoff_and_nothing_after() -> None:
    windows = HandMadeWindows(closes(40), holdout=10, horizon=4)
    sampler = RecordingSampler()
    forecast(windows, {"base": 0.0}, CONFIG, sampler=sampler)
    (call,) = sampler.calls
    assert call["history"].shape == (3, 8, 6)
    for roll, origin in enumerate([29, 33, 37]):
        np.testing.assert_array_equal(call["history"][roll, :, CLOSE], windows.close[origin - 7 : origin + 1])
        np.testing.assert_array_equal(call["past"][roll], windows.stamps[origin - 7 : origin + 1])
    np.testing.assert_array_equal(call["ahead"][1], windows.stamps[34:38])
    np.testing.assert_array_equal(call["ahead"][2], windows.stamps[[38, 39, 39, 39]])


@pytest.mark.slow
@pytest.mark.parametrize("changed", range(30, 40))
def test_no_forecast_changes_when_a_bar_after_its_cutoff_does(changed: int) -> None:
    close = closes(40)
    other = close.copy()
    other[changed] += 50
    before, after = (
        forecast(HandMadeWindows(values, holdout=10, horizon=4), {"base": 0.0}, CONFIG).predictions
        for values in (close, other)
    )
    stamps = HandMadeWindows(close, holdout=10, horizon=4).bars.frame["timestamps"]
    unaffected = (before["cutoff"] < stamps[changed]).to_numpy()
    forecasts = ["model", "scale", "mean", "median", "lo_90", "hi_90"]
    pd.testing.assert_frame_equal(before.loc[unaffected, forecasts], after.loc[unaffected, forecasts])


def test_every_model_draws_once_with_the_same_seed_and_its_own_sampling() -> None:
    windows = HandMadeWindows(closes(40), holdout=10, horizon=4)
    sampler = RecordingSampler()
    models = {"base": 0.0, "checkpoint": 1.0, "adapter": 2.0}
    plain = plain_sampling(CONFIG)
    samplings = dict.fromkeys(models, plain) | {"adapter": replace(plain, temperature=0.5, s2_position="first")}
    predict(windows, models, samplings, CONFIG, sampler=sampler)  # type: ignore[arg-type]
    # Three forecasts of each model; models with another position of s2 need a separate call.
    assert [call["models"] for call in sampler.calls] == [[0.0] * 3 + [1.0] * 3, [2.0] * 3]
    assert [list(call["temperature"]) for call in sampler.calls] == [[0.9] * 6, [0.5] * 3]
    assert [call["s2_position"] for call in sampler.calls] == [CONFIG.s2_position, "first"]
    for call in sampler.calls:
        assert set(call["seed"]) == {sampling_seed(7, "AAPL")}
        assert set(call["top_p"]) == {0.8}
        assert call["paths"] == 3


def test_widths_stretch_the_intervals_and_leave_the_raw_ones() -> None:
    windows = HandMadeWindows(closes(40), holdout=10, horizon=4)
    plain = plain_sampling(CONFIG)
    widths = {50: (1.0,) * 4, 80: (1.0, 2.0, 3.0, 4.0), 90: (5.0,) * 4}
    wide = replace(plain, widths=dict.fromkeys(VARIANTS, widths))
    table = predict(windows, {"base": 0.0}, {"base": wide}, CONFIG, sampler=RecordingSampler()).predictions  # type: ignore[arg-type]
    rows = of(table, "base")
    ratios = (rows["hi_80"] - rows["median"]) / (rows["raw_hi_80"] - rows["median"])
    np.testing.assert_allclose(ratios, rows["step"])
    np.testing.assert_allclose(rows["hi_50"], rows["raw_hi_50"])


def test_a_forecast_that_is_not_finite_is_an_error_that_names_the_ticker() -> None:
    windows = HandMadeWindows(closes(40), holdout=10, horizon=4)
    with pytest.raises(ModelError, match="AAPL are not finite"):
        forecast(windows, {"adapter": float("nan")}, CONFIG)


@pytest.mark.slow
@given(holdout=st.integers(1, 60), horizon=st.integers(1, 40), extra=st.integers(0, 5))
def test_rolls_cover_the_holdout_exactly_once(holdout: int, horizon: int, extra: int) -> None:
    windows = HandMadeWindows(closes(9 + extra + holdout), holdout=holdout, horizon=horizon)
    config = CONFIG.model_copy(update={"horizon": horizon})
    table = point_table(forecast(windows, {"base": 0.0}, config).predictions)
    assert list(table["ds"]) == list(windows.bars.frame["timestamps"][-holdout:])
    assert (table["cutoff"] < table["ds"]).all()
    assert table.groupby("cutoff").size().max() <= horizon
    assert table["cutoff"].nunique() == -(-holdout // horizon)
