"""Properties of windows for any ticker and settings: no look-ahead, no shared target, no lost window."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_tickers import build, cases, recipes, tickers

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import FEATURES, Bars, make_bars
from kronos_pipeline.data.normalisation import lookback_statistics, rolling_statistics
from kronos_pipeline.data.schemas import SPLITS
from kronos_pipeline.data.windows import WindowSet, row_statistics

pytestmark = pytest.mark.slow

CASES = cases(60)


def spans(windows: WindowSet, split: str) -> list[tuple[int, int, int]]:
    return list(windows.of_split(split)[["start", "origin", "end"]].itertuples(index=False, name=None))


@CASES
@given(tickers(), recipes)
def test_statistics_depend_on_no_bar_outside_of_the_lookback(bars: Bars, recipe: Recipe) -> None:
    windows = build(bars, recipe)
    mean, std = row_statistics(windows.rows)

    for row in np.linspace(0, len(windows.rows) - 1, 5).astype(int):
        start, origin = windows.rows[["start", "origin"]].to_numpy()[row]
        known = bars.values[start : origin + 1]
        statistics = rolling_statistics(known, len(known))
        # Equal to the last bit: nothing of a bar elsewhere, not even by rounding.
        np.testing.assert_array_equal(mean[row], statistics[0][0])
        np.testing.assert_array_equal(std[row], statistics[1][0])


@CASES
@given(tickers(), recipes, st.floats(0.1, 10))
def test_no_training_or_selection_row_depends_on_a_holdout_bar(bars: Bars, recipe: Recipe, factor: float) -> None:
    windows = build(bars, recipe)
    frame = bars.frame.copy()
    frame.loc[windows.holdout_start :, list(FEATURES)] *= factor
    frame.loc[windows.holdout_start :, "timestamps"] += pd.Timedelta(days=40)
    changed = build(make_bars("ACME", frame, source="ACME.csv"), recipe)

    for split in ("train", "selection"):
        pd.testing.assert_frame_equal(changed.of_split(split), windows.of_split(split))
    assert changed.training_hash == windows.training_hash


@CASES
@given(tickers(), recipes)
def test_no_target_bar_is_in_two_splits_and_none_leaves_its_block(bars: Bars, recipe: Recipe) -> None:
    windows = build(bars, recipe)
    edges = [0, windows.selection_start, windows.holdout_start, len(bars)]

    for number, split in enumerate(SPLITS):
        for start, origin, end in spans(windows, split):
            assert 0 <= start < origin + 1 < end <= len(bars)
            assert origin - start + 1 == windows.lookback == recipe.lookback
            assert edges[number] <= origin + 1
            assert end <= edges[number + 1]
            if split != "holdout":
                assert end - start == recipe.lookback + recipe.horizon + 1


@CASES
@given(tickers(), recipes)
def test_no_window_crosses_a_hole_or_has_a_flat_lookback(bars: Bars, recipe: Recipe) -> None:
    windows = build(bars, recipe)
    times = bars.frame["timestamps"].to_numpy()
    interval = np.median(np.diff(times))
    close = bars.frame["close"].to_numpy()

    for start, origin, end in spans(windows, "train") + spans(windows, "selection") + spans(windows, "holdout"):
        assert np.diff(times[start:end]).max() <= (recipe.max_gap + 1) * interval
        assert close[start : origin + 1].std() > 0


@CASES
@given(tickers(), recipes)
def test_holdout_bars_are_covered_once_or_counted(bars: Bars, recipe: Recipe) -> None:
    windows = build(bars, recipe)

    targets = [bar for _, origin, end in spans(windows, "holdout") for bar in range(origin + 1, end)]

    assert len(set(targets)) == len(targets)
    excluded = sum(count for reason, count in windows.excluded.items() if reason.startswith("cutoffs"))
    assert recipe.validation_bars is not None
    rolls = -(-recipe.validation_bars // recipe.horizon)
    assert windows.counts()["holdout"] + excluded == rolls
    if not excluded:
        assert sorted(targets) == list(range(windows.holdout_start, len(bars)))


@CASES
@given(tickers(), recipes)
def test_every_window_is_kept_or_counted(bars: Bars, recipe: Recipe) -> None:
    windows = build(bars, recipe.model_copy(update={"stride": 1}))

    reasons = ("hole longer than --max-gap", "flat lookback", "targets in two splits")
    left_out = sum(windows.excluded.get(reason, 0) for reason in reasons)
    span = recipe.lookback + recipe.horizon + 1
    assert recipe.validation_bars is not None
    inside_holdout = max(recipe.validation_bars - recipe.horizon, 0)
    counts = windows.counts()
    assert counts["train"] + counts["selection"] + left_out == len(bars) - span + 1 - inside_holdout


@settings(max_examples=100)
@given(
    st.integers(1, 130),
    st.integers(2, 90),
    st.floats(-12, 12),
    st.floats(-12, 3),
    st.integers(0, 2**32 - 1),
)
def test_rolling_statistics_are_those_of_each_window_alone(
    bars: int, length: int, level: float, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = 10**level * (1 + 10**spread * rng.standard_normal((bars + length, 3)))

    mean, std = rolling_statistics(values, length)

    each = [lookback_statistics(values[start : start + length]) for start in range(bars + 1)]
    assert mean.shape == std.shape == (bars + 1, 3)
    scale = np.abs(values).max()
    np.testing.assert_allclose(mean, [value for value, _ in each], rtol=1e-13, atol=1e-14 * scale)
    np.testing.assert_allclose(std, [value for _, value in each], rtol=1e-7, atol=1e-14 * scale)


@given(st.floats(1e-9, 1e9), st.integers(2, 200))
def test_equal_values_have_a_deviation_of_exactly_zero(value: float, length: int) -> None:
    _, std = rolling_statistics(np.full((length + 3, 1), value), length)
    assert (std == 0).all()
