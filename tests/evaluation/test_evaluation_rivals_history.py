from __future__ import annotations

import numpy as np
from volatile_tickers import garch_ticker

from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.evaluation.rivals.history import FITTED_BARS, draws_of, read_history


def test_returns_and_ranges_belong_to_the_bar_after() -> None:
    bars = garch_ticker(50)
    history = read_history(bars, 40)
    close = bars.frame["close"].to_numpy()
    np.testing.assert_allclose(history.returns, np.diff(np.log(close)))
    assert len(history.ranges) == len(history.without_range) == 49
    assert len(history.fitted_returns) == 39
    np.testing.assert_array_equal(history.fitted_returns, history.returns[:39])


def test_parameters_are_fitted_on_the_newest_bars() -> None:
    history = read_history(garch_ticker(FITTED_BARS + 300), FITTED_BARS + 200)
    assert history.fitted == slice(199, FITTED_BARS + 199)


def test_later_bars_do_not_change_what_counts_as_a_jump() -> None:
    values = garch_ticker(250).frame
    prices = ["open", "high", "low", "close"]
    values.loc[values.index >= 105, prices] /= 2
    split = make_bars("ACME", values, source="ACME.csv")
    history = read_history(split, 110)
    assert history.returns[104] == 0
    assert read_history(split, 110, keep_jumps=True).returns[104] < -0.6
    noise = np.exp(np.random.default_rng(0).normal(0, 0.5, 140))
    values.loc[values.index >= 110, prices] *= noise[:, None]
    wild = read_history(make_bars("ACME", values, source="ACME.csv"), 110)
    np.testing.assert_array_equal(wild.returns[:109], history.returns[:109])
    np.testing.assert_array_equal(wild.ranges[:109], history.ranges[:109])


def test_draws_have_mean_0_and_variance_1() -> None:
    history = read_history(garch_ticker(50), 40)
    draws = draws_of(history, np.array([40, 45]), seed=0, paths=20_000, horizon=2)
    for drawn in (draws.normal(), draws.student(6.0)):
        assert drawn.shape == (2, 20_000, 2)
        np.testing.assert_allclose(drawn.mean(axis=1), 0, atol=0.03)
        np.testing.assert_allclose(drawn.var(axis=1), 1, atol=0.06)
    indices = draws.indices(7)
    assert set(np.unique(indices)) == set(range(7))
