from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from volatile_tickers import bars_of_returns, garch_ticker

from kronos_pipeline.evaluation.rivals.fits import FitError
from kronos_pipeline.evaluation.rivals.har import LAGS, Har, fit_har, simulate_har
from kronos_pipeline.evaluation.rivals.history import History, read_history

WEIGHTS = np.array([0.3, 0.4, 0.2])
CONSTANT, NOISE, LEVEL = -0.9, 0.5, np.log(1.5)


def har_history(count: int, seed: int = 0) -> History:
    """Simulate a HAR whose range variance is `exp(LEVEL)` times too small for the close."""
    rng = np.random.default_rng(seed)
    logs = np.full(count + 100, CONSTANT / (1 - WEIGHTS.sum()))
    for bar in range(LAGS[-1], len(logs)):
        means = [np.mean(logs[bar - lag : bar]) for lag in LAGS]
        logs[bar] = CONSTANT + WEIGHTS @ means + NOISE * rng.standard_normal()
    ranges = np.exp(logs[100:])
    returns = np.exp(LEVEL / 2) * np.sqrt(ranges) * rng.standard_normal(count)
    known = read_history(garch_ticker(count + 1), count + 1)
    return replace(known, returns=returns, ranges=ranges, fitted=slice(0, count))


def test_the_parameters_of_a_long_simulated_har_are_recovered() -> None:
    har = fit_har(har_history(6_000))
    np.testing.assert_allclose(har.weights, WEIGHTS, atol=0.08)
    assert har.constant / (1 - har.weights.sum()) == pytest.approx(CONSTANT / (1 - WEIGHTS.sum()), rel=0.05)
    assert har.innovations.std() == pytest.approx(NOISE, rel=0.02)


def test_the_mean_ahead_is_that_of_arch() -> None:
    from arch.univariate import HARX

    history = har_history(500)
    har = fit_har(history)
    logs = np.log(history.ranges)
    theirs = HARX(logs, lags=list(LAGS), rescale=False).fit(disp="off").forecast(horizon=4, reindex=False).mean
    for ahead in range(4):
        expected = har.mean_ahead(logs[-LAGS[-1] :])
        assert expected == pytest.approx(theirs.to_numpy()[0, ahead], rel=1e-9)
        logs = np.append(logs, expected)


@pytest.mark.slow
def test_the_paths_have_the_variance_of_the_close_and_not_that_of_the_range() -> None:
    history = har_history(10_000, 1)
    har = fit_har(history)
    recent = np.stack([history.ranges[5000:5022], history.ranges[9000:9022]])
    indices = np.random.default_rng(0).integers(len(har.residuals), size=(2, 10_000, 3))
    returns = simulate_har(har, recent, indices)
    assert returns.shape == (2, 10_000, 3)
    first = np.exp(har.mean_ahead(np.log(recent)) + NOISE**2 / 2 + LEVEL)
    np.testing.assert_allclose((returns[..., 0] ** 2).mean(axis=1), first, rtol=0.1)


def test_a_step_repeats_the_bar_that_it_draws() -> None:
    """Without noise, the recursion can be followed by hand."""
    har = Har(0.1, np.array([0.5, 0.2, 0.1]), 1e-9, innovations=np.array([0.0, 1.0]), residuals=np.array([1.0, -2.0]))
    recent = np.linspace(1e-4, 3e-4, LAGS[-1])[None]
    returns = simulate_har(har, recent, np.array([[[1, 0]]]))[0, 0]
    logs = np.log(recent[0])
    first = 0.1 + 0.5 * logs[-1] + 0.2 * logs[-5:].mean() + 0.1 * logs.mean()
    logs = np.append(logs, first + 1.0)
    second = 0.1 + 0.5 * logs[-1] + 0.2 * logs[-5:].mean() + 0.1 * logs[-22:].mean()
    np.testing.assert_allclose(returns, [-2 * np.exp(first / 2), np.exp(second / 2)])


def test_the_residuals_have_no_drift() -> None:
    assert fit_har(har_history(600)).residuals.mean() == pytest.approx(0, abs=1e-12)


def test_bars_without_range_are_refused() -> None:
    bars = bars_of_returns(np.random.default_rng(0).normal(0, 0.02, 400))
    frame = bars.frame.assign(high=bars.frame["close"], low=bars.frame["close"], open=bars.frame["close"])
    with pytest.raises(FitError, match="the high equals the low in 399 of 399 bars"):
        fit_har(read_history(replace(bars, frame=frame), 400))


def test_some_bars_without_any_move_do_not_make_the_logarithm_infinite() -> None:
    returns = np.random.default_rng(0).normal(0, 0.02, 400)
    returns[::20] = 0.0
    bars = bars_of_returns(returns)
    still = np.concatenate([[False], returns == 0])
    frame = bars.frame.copy()
    frame.loc[still, ["high", "low"]] = frame.loc[still, ["close", "close"]].to_numpy()
    har = fit_har(read_history(replace(bars, frame=frame), 401))
    assert np.isfinite(har.innovations).all()
    assert np.isfinite(har.residuals).all()
