from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_tickers import cases
from volatile_tickers import garch_ticker

from kronos_pipeline.data.bars import FloatArray
from kronos_pipeline.evaluation.rivals.measures import (
    garman_klass,
    log_returns,
    range_variance,
    squared_returns,
)

BARS = np.array(
    [[100.0, 104.0, 98.0, 102.0, 0, 0], [103.0, 103.0, 99.0, 100.0, 0, 0], [100.0, 100.0, 100.0, 100.0, 0, 0]]
)
"""Open, high, low, close, volume and amount of three bars."""


def diffusion(bars: int, deviation: float, steps: int = 400) -> FloatArray:
    """Simulate bars of a random walk in log prices without overnight moves; `deviation` is that of a bar."""
    moves = np.random.default_rng(0).normal(0, deviation / np.sqrt(steps), (bars, steps))
    inside = np.cumsum(moves, axis=1)
    start = np.concatenate([[0.0], np.cumsum(inside[:-1, -1])])
    inside = np.concatenate([np.zeros((bars, 1)), inside], axis=1) + start[:, None]
    prices = np.stack([inside[:, 0], inside.max(axis=1), inside.min(axis=1), inside[:, -1]], axis=1)
    return np.concatenate([np.exp(prices), np.zeros((bars, 2))], axis=1)


def test_the_formulas_of_the_papers() -> None:
    np.testing.assert_allclose(log_returns(BARS[:, 3]), [np.log(100 / 102), 0])
    np.testing.assert_allclose(squared_returns(BARS[:, 3]), [np.nan, np.log(100 / 102) ** 2, 0])
    within = 0.5 * np.log(103 / 99) ** 2 - (2 * np.log(2) - 1) * np.log(100 / 103) ** 2
    np.testing.assert_allclose(garman_klass(BARS)[1:], [within, 0])
    np.testing.assert_allclose(range_variance(BARS), [np.nan, np.log(103 / 102) ** 2 + within, 0])


def test_all_measures_are_unbiased_on_a_random_walk_and_ranges_are_less_noisy() -> None:
    values = diffusion(2000, 0.02)
    squared, ranges = squared_returns(values[:, 3])[1:], range_variance(values)[1:]
    # A walk of 400 steps reaches less far than a diffusion, so its ranges are a little small.
    for measure in (squared, ranges):
        assert measure.mean() == pytest.approx(0.02**2, rel=0.1)
    assert ranges.var() < squared.var() / 4


@cases(30)
@given(st.integers(0, 1000), st.sampled_from([0.01, 8.0, 1e4]))
def test_no_measure_is_negative_or_depends_on_the_unit_of_prices(seed: int, unit: float) -> None:
    values = garch_ticker(40, seed).values
    for measure in (garman_klass, range_variance):
        variance = measure(values)
        assert (variance[1:] >= 0).all()
        np.testing.assert_allclose(measure(unit * values)[1:], variance[1:], rtol=1e-6, atol=1e-15)
