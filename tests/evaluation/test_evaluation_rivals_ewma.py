from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from volatile_tickers import garch_returns

from kronos_pipeline.evaluation.rivals.ewma import DECAYS, choose_decay, ewma_variance


@given(st.integers(0, 1000), st.integers(1, 300), st.sampled_from(DECAYS))
def test_the_variance_is_the_weighted_mean_of_the_squares_so_far(seed: int, count: int, decay: float) -> None:
    returns = np.random.default_rng(seed).normal(0, 0.02, count)
    variance = ewma_variance(returns, decay)
    for bar in {0, count // 2, count - 1}:
        weights = decay ** np.arange(bar, -1, -1)
        assert variance[bar] == pytest.approx(np.average(returns[: bar + 1] ** 2, weights=weights), rel=1e-9)


def test_after_many_bars_the_variance_follows_the_recursion_of_riskmetrics() -> None:
    returns = garch_returns(600)[0]
    variance = ewma_variance(returns, 0.94)
    expected = 0.94 * variance[499:-1] + 0.06 * returns[500:] ** 2
    np.testing.assert_allclose(variance[500:], expected, rtol=1e-9)


@given(st.integers(0, 1000), st.integers(1, 199))
def test_no_variance_depends_on_a_later_return(seed: int, known: int) -> None:
    returns = np.random.default_rng(seed).normal(0, 0.02, 200)
    changed = np.where(np.arange(200) < known, returns, 9.0)
    np.testing.assert_array_equal(ewma_variance(returns, 0.94)[:known], ewma_variance(changed, 0.94)[:known])


def test_the_decay_is_short_where_volatility_changes_fast_and_long_where_it_is_constant() -> None:
    rng = np.random.default_rng(0)
    levels = 0.02 * np.exp(0.5 * np.sin(np.arange(1200) / 12))  # a wave of 75 bars
    assert choose_decay(rng.normal(0, levels), 300, 1200, 1) <= 0.9
    assert choose_decay(rng.normal(0, 0.02, 1200), 300, 1200, 1) == max(DECAYS)


@pytest.mark.parametrize("horizon", [1, 5, 90])
def test_the_decay_is_that_of_the_lowest_qlike_written_as_a_loop(horizon: int) -> None:
    returns = garch_returns(300, 4)[0]
    first, end = 240, 300
    ahead = min(horizon, end - first)
    losses = {}
    for decay in DECAYS:
        qlikes = []
        for start in range(first, end - ahead + 1):
            forecast = ewma_variance(returns[:start], decay)[-1]
            ratio = np.mean(returns[start : start + ahead] ** 2) / forecast
            qlikes.append(ratio - np.log(ratio) - 1)
        losses[decay] = np.mean(qlikes)
    assert choose_decay(returns, first, end, horizon) == min(losses, key=lambda decay: losses[decay])


@given(st.integers(0, 1000), st.integers(1, 40))
def test_the_decay_depends_on_no_return_after_its_block(seed: int, horizon: int) -> None:
    returns = garch_returns(260, seed)[0]
    changed = np.concatenate([returns[:200], np.full(60, 3.0)])
    assert choose_decay(returns, 140, 200, horizon) == choose_decay(changed, 140, 200, horizon)


@pytest.mark.parametrize(("first", "end"), [(0, 0), (5, 5), (0, 1), (-3, 2)])
def test_a_block_without_returns_gives_the_decay_of_riskmetrics(first: int, end: int) -> None:
    assert choose_decay(np.zeros(9), first, end, 3) == 0.94


def test_a_price_that_never_moves_gives_the_decay_of_riskmetrics() -> None:
    assert choose_decay(np.zeros(100), 40, 100, 5) == 0.94
