"""Statistics of sampled paths: intervals with the right coverage, and scores that agree with other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kstest, laplace, norm

from kronos_pipeline.evaluation.forecasting.distributions import (
    crps,
    describe_closes,
    path_statistics,
    pit,
    quantiles,
    raw_intervals,
)
from kronos_pipeline.evaluation.predictions import FEWEST_PATHS, INTERVALS, LEVELS

PRICES = st.floats(0.01, 1e5)


def sample_closes(rows: int, paths: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw paths of the close and the real close from one distribution."""
    values = np.random.default_rng(paths).lognormal(4, 0.3, (rows, paths + 1))
    return values[:, 1:], values[:, 0]


def covered(columns: dict[str, np.ndarray], y: np.ndarray, level: int) -> float:
    return float(((columns[f"lo_{level}"] <= y) & (y <= columns[f"hi_{level}"])).mean())


def plain(rows: int) -> np.ndarray:
    return np.ones((rows, len(LEVELS)))


def test_it_gives_every_column_of_a_prediction_that_sampling_knows() -> None:
    closes, y = sample_closes(7, 5)
    columns = describe_closes(closes, y, plain(7))
    assert set(columns) == {"mean", "median", *INTERVALS, "crps", "pit"}
    assert all(values.shape == (7,) and np.isfinite(values).all() for values in columns.values())


def test_few_closes_by_hand() -> None:
    closes = np.array([[30.0, 10.0, 20.0, 60.0, 40.0, 50.0, 70.0]])  # quarters of 8 lie at the 2nd and the 6th
    columns = describe_closes(closes, np.array([35.0]), plain(1))
    assert {
        name: float(value[0]) for name, value in columns.items() if name in ("mean", "median", "lo_50", "hi_50")
    } == {
        "mean": 40.0,
        "median": 40.0,
        "lo_50": 20.0,
        "hi_50": 60.0,
    }
    assert float(columns["pit"][0]) == 3.5 / 8


@pytest.mark.slow
@pytest.mark.parametrize("paths", [19, 39, 99])
def test_intervals_of_exchangeable_paths_cover_their_level_whatever_the_number_of_paths(paths: int) -> None:
    closes, y = sample_closes(20_000, paths)
    columns = describe_closes(closes, y, plain(len(y)))
    for level in LEVELS:  # four standard errors of a share of 20,000
        assert abs(covered(columns, y, level) - level / 100) < 4 * 0.5 / 20_000**0.5


@pytest.mark.parametrize("paths", [5, 8, 12, FEWEST_PATHS - 1])
def test_beyond_the_outermost_of_few_paths_a_tail_keeps_the_coverage_near_its_level(paths: int) -> None:
    closes, y = sample_closes(20_000, paths)
    lows, highs = raw_intervals(closes)
    assert (lows[:, -1] < closes.min(axis=1)).all()
    assert (highs[:, -1] > closes.max(axis=1)).all()
    columns = describe_closes(closes, y, plain(len(y)))
    for level in (80, 90):
        assert covered(columns, y, level) == pytest.approx(level / 100, abs=0.025)


def test_the_tail_is_that_of_the_laplace_distribution_fitted_to_the_paths() -> None:
    closes = np.array([[1.0, 4.0, 2.0, 9.0, 3.0]])
    location, scale = laplace.fit(closes[0])
    assert (location, scale * 5 / 4) == (3.0, 2.5)
    low, high = quantiles(closes, np.array([0.05, 0.95]))[0]
    beyond = laplace.ppf(1 / 6, 0, 2.5) - laplace.ppf(0.05, 0, 2.5)
    assert (low, high) == (pytest.approx(1 - beyond), pytest.approx(9 + beyond))


@given(arrays(np.float64, (3, 12), elements=PRICES, unique=True), st.floats(1 / 13, 12 / 13))
def test_between_the_outermost_paths_quantiles_have_weibulls_plotting_positions(closes: np.ndarray, p: float) -> None:
    ordered = np.sort(closes, axis=1)
    assume((np.diff(ordered, axis=1) > 2e-6 * ordered[:, 1:]).all())
    expected = np.quantile(closes, p, axis=1, method="weibull")
    np.testing.assert_allclose(quantiles(closes, np.array([p]))[:, 0], expected, rtol=1e-9)


@given(
    closes=arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 33)), elements=st.integers(95, 105)),
    widths=arrays(np.float64, len(LEVELS), elements=st.floats(0.01, 10)),
)
def test_two_levels_are_never_one_unless_all_paths_are_equal(closes: np.ndarray, widths: np.ndarray) -> None:
    """Sampled closes are few different values, so paths are often equal; factors may fall from level to level."""
    rows = len(closes)
    columns = describe_closes(closes, np.full(rows, 100.0), np.tile(widths, (rows, 1)))
    differ = np.ptp(closes, axis=1) > 0
    for raw in ("", "raw_"):
        ends = [columns[f"{raw}lo_{level}"] for level in LEVELS[::-1]]
        ends += [columns["median"], *(columns[f"{raw}hi_{level}"] for level in LEVELS)]
        steps = np.diff(np.stack(ends), axis=0)
        assert (steps[:, differ] > 0).all()
        assert (steps[:, ~differ] == 0).all()


def test_the_pit_of_exchangeable_paths_is_uniform_and_that_of_narrow_ones_is_not() -> None:
    closes, y = sample_closes(2_000, 199)
    assert kstest(pit(closes, y), "uniform").pvalue > 0.01
    narrow = np.median(closes, axis=1)[:, None] + 0.5 * (closes - np.median(closes, axis=1)[:, None])
    assert kstest(pit(narrow, y), "uniform").pvalue < 1e-6


def test_the_pit_knows_above_from_below_and_halves_ties() -> None:
    closes = np.array([[1.0, 2.0, 2.0, 3.0]] * 4)
    np.testing.assert_allclose(pit(closes, np.array([0.0, 2.0, 2.5, 9.0])), [0.1, 0.5, 0.7, 0.9])


@pytest.mark.parametrize("paths", [2, 3, 32])
def test_crps_is_the_fair_estimator(paths: int) -> None:
    closes, y = sample_closes(50, paths)
    expected = scoringrules.crps_ensemble(y, closes, estimator="fair")
    np.testing.assert_allclose(crps(closes, y), expected, rtol=1e-9, atol=1e-9)


def test_crps_of_many_paths_is_that_of_the_distribution_they_stand_for() -> None:
    paths = norm.ppf((np.arange(5_000) + 0.5) / 5_000, 100, 5)
    for y in (80.0, 103.0):
        expected = scoringrules.crps_normal(y, 100, 5)
        assert float(crps(paths[None], np.array([y]))[0]) == pytest.approx(expected, rel=1e-3)


def test_the_mean_crps_does_not_depend_on_the_number_of_paths() -> None:
    values = np.random.default_rng(0).normal(size=(40_000, 33))
    few, many = crps(values[:, :2], values[:, -1]).mean(), crps(values[:, :32], values[:, -1]).mean()
    assert few == pytest.approx(1 / np.pi**0.5, abs=0.02)
    assert many == pytest.approx(1 / np.pi**0.5, abs=0.02)


def test_crps_of_one_path_is_its_absolute_error() -> None:
    np.testing.assert_array_equal(crps(np.array([[3.0], [8.0]]), np.array([5.0, 7.0])), [2.0, 1.0])


def test_a_width_stretches_each_side_around_the_median() -> None:
    closes, y = sample_closes(40, 19)
    widths = np.stack([np.full(40, 0.5), np.full(40, 1.0), np.full(40, 2.0)], axis=1)
    columns = describe_closes(closes, y, widths)
    for level, width in zip(LEVELS, widths.T, strict=True):
        for side in ("lo", "hi"):
            expected = columns["median"] + width * (columns[f"raw_{side}_{level}"] - columns["median"])
            np.testing.assert_allclose(columns[f"{side}_{level}"], expected, rtol=1e-12)


@given(
    closes=arrays(np.float64, (3, 5), elements=PRICES),
    y=arrays(np.float64, 3, elements=PRICES),
    widths=arrays(np.float64, (3, len(LEVELS)), elements=st.floats(0, 10)),
)
def test_an_interval_holds_the_median_and_those_of_lower_levels(
    closes: np.ndarray, y: np.ndarray, widths: np.ndarray
) -> None:
    columns = describe_closes(closes, y, widths)
    slack = 1e-9 * closes.max()
    for prefix in ("", "raw_"):
        inner = (columns["median"], columns["median"])
        for level in LEVELS:
            outer = columns[f"{prefix}lo_{level}"], columns[f"{prefix}hi_{level}"]
            assert (outer[0] <= inner[0] + slack).all()
            assert (outer[1] >= inner[1] - slack).all()
            inner = outer
    assert ((columns["pit"] > 0) & (columns["pit"] < 1)).all()
    assert (columns["crps"] <= np.abs(closes - y[:, None]).mean(axis=1) + slack).all()


def test_the_variance_of_a_step_is_the_mean_squared_log_change_over_the_paths() -> None:
    closes, _ = sample_closes(12, 5)
    closes, last = closes.reshape(3, 5, 4), np.array([50.0, 60.0, 70.0])
    statistics = path_statistics(closes, last)
    for cutoff in range(3):
        for step in range(4):
            before = [last[cutoff]] * 5 if step == 0 else closes[cutoff, :, step - 1]
            changes = [
                math.log(close / previous) for close, previous in zip(closes[cutoff, :, step], before, strict=True)
            ]
            assert statistics["variance"][cutoff, step] == pytest.approx(sum(change**2 for change in changes) / 5)
            above = sum(close > last[cutoff] for close in closes[cutoff, :, step])
            assert statistics["p_up"][cutoff, step] == pytest.approx(above / 5)


def test_a_close_equal_to_the_last_is_half_above_it() -> None:
    closes = np.array([[[100.0], [100.0], [101.0], [99.0]]])
    assert path_statistics(closes, np.array([100.0]))["p_up"].tolist() == [[0.5]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("close", [0.0, -1.0, np.nan, np.inf])
def test_a_sampled_close_that_is_no_price_leaves_the_variance_of_its_step_and_the_next_undefined(close: float) -> None:
    closes = np.full((1, 3, 4), 101.0)
    closes[0, 1, 1] = close
    variance = path_statistics(closes, np.array([100.0]))["variance"]
    assert np.isnan(variance).tolist() == [[False, True, True, False]]


def test_the_rounding_of_a_device_does_not_tell_equal_closes_apart() -> None:
    closes = np.repeat([[100.0, 101.0, 102.0, 105.0]], 5, axis=1)  # four tokens, five paths each
    rounded = closes * (1 + 1e-8 * np.random.default_rng(0).standard_normal(closes.shape))
    probabilities = np.array([0.05, 0.1, 0.25, 0.4, 0.75, 0.95])
    np.testing.assert_allclose(quantiles(rounded, probabilities), quantiles(closes, probabilities), rtol=1e-6)
