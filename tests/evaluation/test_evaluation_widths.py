"""Recalibrated widths give past intervals their nominal coverage, for few paths and for still markets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kronos_pipeline.evaluation.forecasting import tuning
from kronos_pipeline.evaluation.forecasting.distributions import describe_closes
from kronos_pipeline.evaluation.forecasting.tuning import fit_widths, shrink_widths
from kronos_pipeline.evaluation.predictions import LEVELS

PATHS = 39


def forecasts(bars: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw paths of the close, and a real close with `spread` times their standard deviation."""
    rng = np.random.default_rng(seed)
    return 100 + rng.normal(size=(bars, PATHS)), 100 + spread * rng.normal(size=bars)


def coverage(closes: np.ndarray, y: np.ndarray, widths: np.ndarray) -> list[float]:
    columns = describe_closes(closes, y, widths)
    return [float(((columns[f"lo_{level}"] <= y) & (y <= columns[f"hi_{level}"])).mean()) for level in LEVELS]


@pytest.mark.parametrize("spread", [0.4, 1.0, 3.0])
def test_intervals_that_are_too_narrow_or_too_wide_cover_their_level_on_other_bars(spread: float) -> None:
    widths = fit_widths(*forecasts(400, spread), steps=np.ones(400, int), horizon=1)
    factors = np.array([widths[level][0] for level in LEVELS])
    np.testing.assert_allclose(factors, spread, rtol=0.25)
    closes, y = forecasts(4_000, spread, seed=1)
    np.testing.assert_allclose(coverage(closes, y, np.tile(factors, (4_000, 1))), np.array(LEVELS) / 100, atol=0.06)


@given(bars=st.integers(1, 60), seed=st.integers(0, 5), spread=st.floats(0.1, 5))
def test_the_bars_that_it_was_fitted_on_are_covered(bars: int, seed: int, spread: float) -> None:
    closes, y = forecasts(bars, spread, seed)
    widths = fit_widths(closes, y, np.ones(bars, int), 1)
    # 1e-9 wider, so that the bar which set a factor is not lost to rounding
    factors = np.tile([widths[level][0] * (1 + 1e-9) for level in LEVELS], (bars, 1))
    for covered, level in zip(coverage(closes, y, factors), LEVELS, strict=True):
        assert covered >= min(level / 100, 1)


def test_a_new_bar_is_covered_at_least_as_often_as_the_level_says_however_few_there_were() -> None:
    # With n bars this holds from n = 9 on for 90 percent; the factor's own chance is part of it.
    hits = []
    for seed in range(600):
        closes, y = forecasts(11, 2.0, seed)
        widths = fit_widths(closes[:10], y[:10], np.ones(10, int), 1)
        hits.append(coverage(closes[10:], y[10:], np.array([[widths[level][0] for level in LEVELS]])))
    for covered, level in zip(np.mean(hits, axis=0), LEVELS, strict=True):
        assert covered >= level / 100 - 3 * (level / 100 * (1 - level / 100) / 600) ** 0.5


def test_few_residuals_are_pooled_over_all_steps() -> None:
    closes, y = forecasts(120, 2.0)
    steps = np.tile([1, 2, 3, 4], 30)
    assert fit_widths(closes, y, steps, 4) == {
        level: factors * 4 for level, factors in fit_widths(closes, y, np.ones(120, int), 1).items()
    }


def test_where_there_are_many_a_step_has_its_own_factor_from_the_steps_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "MIN_RESIDUALS", 100)
    parts = [forecasts(100, spread, seed) for seed, spread in enumerate((1.0, 1.0, 4.0))]
    closes, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    steps = np.repeat([1, 2, 3], 100)
    joint = fit_widths(closes, y, steps, 3)
    for step in (1, 2, 3):
        rows = steps == step
        single = fit_widths(closes[rows], y[rows], np.ones(100, int), 1)
        assert [joint[level][step - 1] for level in LEVELS] == [single[level][0] for level in LEVELS]
    monkeypatch.setattr(tuning, "MIN_RESIDUALS", 101)
    nearest = fit_widths(closes, y, steps, 3)  # a step's own 100 are too few now, so the next ones count too
    pooled_rows = steps >= 2
    pooled = fit_widths(closes[pooled_rows], y[pooled_rows], np.ones(200, int), 1)
    assert [nearest[level][2] for level in LEVELS] == [pooled[level][0] for level in LEVELS]


def test_a_step_that_no_residual_has_takes_the_nearest() -> None:
    closes, y = forecasts(50, 2.0)
    widths = fit_widths(closes, y, np.full(50, 2), 5)
    assert all(len(factors) == 5 and len(set(factors)) == 1 for factors in widths.values())


@given(
    closes=arrays(np.float64, (4, 3), elements=st.sampled_from([10.0, 11.0, 12.0])),
    y=arrays(np.float64, 4, elements=st.sampled_from([9.0, 10.0, 11.0, 11.5])),
)
def test_factors_are_finite_and_above_0_where_paths_agree(closes: np.ndarray, y: np.ndarray) -> None:
    widths = np.array(list(fit_widths(closes, y, np.array([1, 1, 2, 2]), 2).values()))
    assert np.isfinite(widths).all()
    assert (widths > 0).all(), "a width of 0 would make one interval of all levels"


def test_one_path_has_no_width_to_stretch() -> None:
    closes, y = np.full((6, 1), 10.0), np.arange(20.0, 26.0)
    assert fit_widths(closes, y, np.ones(6, int), 2) == dict.fromkeys(LEVELS, (1.0, 1.0))


def test_a_bar_that_no_width_reaches_counts_as_missed() -> None:
    # 20 bars, of which 4 have paths that all agree on another close: 80 percent needs all of the others.
    closes, y = forecasts(20, 1.0)
    closes[:4], y[:4] = 50.0, 51.0
    widths = fit_widths(closes, y, np.ones(20, int), 1)
    assert coverage(closes, y, np.tile([widths[level][0] * (1 + 1e-9) for level in LEVELS], (20, 1)))[1] == 0.8


def test_the_fewer_forecasts_a_factor_rests_on_the_nearer_to_1_it_is() -> None:
    widths = {50: (4.0, 1.0), 80: (0.25, 0.0)}
    assert shrink_widths(widths, 1) == {50: (2.0, 1.0), 80: (0.5, 0.0)}
    nearness = [abs(np.log(shrink_widths(widths, forecasts)[50][0])) for forecasts in (1, 2, 5, 50, 10**9)]
    assert nearness == sorted(nearness)
    assert nearness[-1] == pytest.approx(np.log(4.0))
