from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from volatile_tickers import ALPHA, BETA, FREEDOM, OMEGA, garch_returns

from kronos_pipeline.evaluation.rivals.fits import MIN_RETURNS, FitError, fit_parameters
from kronos_pipeline.evaluation.rivals.garch import Garch, filter_variance, fit_garch, residuals, simulate_garch

GJR = Garch(omega=3e-6, alpha=0.03, gamma=0.1, beta=0.9, start=2e-4)


def written_as_a_loop(garch: Garch, returns: np.ndarray) -> list[float]:
    variances = [garch.omega + (garch.alpha + garch.gamma / 2 + garch.beta) * garch.start]
    for change in returns:
        leverage = garch.gamma if change < 0 else 0.0
        variances.append(garch.omega + (garch.alpha + leverage) * change**2 + garch.beta * variances[-1])
    return variances


def expected_variances(garch: Garch, first: float, horizon: int) -> list[float]:
    """Return the expected variances ahead, from that of the first return."""
    variances = [first]
    while len(variances) < horizon:
        variances.append(garch.omega + garch.persistence * variances[-1])
    return variances


@given(st.integers(0, 1000), st.integers(0, 100))
def test_the_filter_is_the_recursion(seed: int, count: int) -> None:
    returns = np.random.default_rng(seed).normal(0, 0.02, count)
    np.testing.assert_allclose(filter_variance(GJR, returns), written_as_a_loop(GJR, returns), rtol=1e-12)


@given(st.integers(0, 1000), st.integers(1, 99))
def test_no_variance_depends_on_a_later_return(seed: int, known: int) -> None:
    returns = np.random.default_rng(seed).normal(0, 0.02, 100)
    changed = np.where(np.arange(100) < known, returns, 9.0)
    np.testing.assert_array_equal(
        filter_variance(GJR, returns)[: known + 1], filter_variance(GJR, changed)[: known + 1]
    )


def test_the_parameters_of_a_long_simulated_garch_are_recovered() -> None:
    garch = fit_garch(garch_returns(8_000, 1)[0])
    assert garch.alpha == pytest.approx(ALPHA, abs=0.02)
    assert garch.beta == pytest.approx(BETA, abs=0.02)
    assert garch.gamma == 0
    assert garch.omega / (1 - garch.persistence) == pytest.approx(OMEGA / (1 - ALPHA - BETA), rel=0.2)
    assert garch.freedom == pytest.approx(FREEDOM, abs=0.7)


def test_the_leverage_of_a_long_simulated_gjr_garch_is_recovered() -> None:
    garch = fit_garch(garch_returns(8_000, 2, alpha=0.03, gamma=0.1)[0], leverage=True)
    assert garch.gamma == pytest.approx(0.1, abs=0.03)
    assert garch.alpha == pytest.approx(0.03, abs=0.02)
    assert garch.beta == pytest.approx(BETA, abs=0.02)
    assert garch.freedom is None


@pytest.mark.parametrize("leverage", [False, True])
def test_the_forecast_variance_is_that_of_arch(leverage: bool) -> None:
    from arch.univariate import GARCH, Normal, StudentsT, ZeroMean

    returns = garch_returns(800, 3, alpha=0.04, gamma=0.06)[0]
    garch = fit_garch(returns, leverage=leverage)
    scale = np.sqrt(np.mean(returns**2))
    model = ZeroMean(
        returns / scale,
        volatility=GARCH(1, int(leverage), 1),
        distribution=Normal() if leverage else StudentsT(),
        rescale=False,
    )
    weights = [garch.omega / scale**2, garch.alpha, *([garch.gamma] if leverage else []), garch.beta]
    tails = [] if garch.freedom is None else [garch.freedom]
    theirs = model.fix([*weights, *tails]).forecast(horizon=10, reindex=False).variance.to_numpy()[0] * scale**2
    first = filter_variance(garch, returns)[-1]
    np.testing.assert_allclose(expected_variances(garch, first, 10), theirs, rtol=1e-6)


@pytest.mark.parametrize("garch", [GJR, Garch(omega=2e-6, alpha=0.08, gamma=0.0, beta=0.9, start=1e-4)])
def test_the_simulated_returns_have_the_expected_variances(garch: Garch) -> None:
    innovations = np.random.default_rng(0).standard_normal((2, 40_000, 8))
    returns = simulate_garch(garch, np.array([1e-4, 9e-4]), innovations)
    assert returns.shape == (2, 40_000, 8)
    for row, first in enumerate((1e-4, 9e-4)):
        np.testing.assert_allclose((returns[row] ** 2).mean(axis=0), expected_variances(garch, first, 8), rtol=0.04)


def test_the_residuals_of_the_true_parameters_are_the_innovations() -> None:
    returns, variances = garch_returns(3000, 5)
    garch = Garch(OMEGA, ALPHA, 0.0, BETA, start=OMEGA / (1 - ALPHA - BETA))
    estimates = residuals(garch, returns, slice(1000, 3000))
    innovations = (returns / np.sqrt(variances))[1000:]
    np.testing.assert_allclose(estimates, innovations - innovations.mean(), rtol=1e-6, atol=1e-9)
    assert estimates.mean() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("returns", "reason"),
    [
        (np.full(MIN_RETURNS - 1, 0.01), f"a fit needs {MIN_RETURNS} returns, and there are {MIN_RETURNS - 1}"),
        (np.zeros(300), "the close does not move in 300 bars"),
        (np.tile([0.1, -0.1], 150), "the close moves by only 1 distinct amount"),
        (np.where(np.arange(300) % 3, 0.0, np.linspace(-0.1, 0.2, 300)), "the close does not move in 200 of 300 bars"),
    ],
)
def test_returns_that_cannot_be_fitted_are_refused_with_a_reason(returns: np.ndarray, reason: str) -> None:
    with pytest.raises(FitError, match=reason):
        fit_garch(returns)


def test_the_simulation_is_the_recursion() -> None:
    innovations = np.random.default_rng(1).standard_normal((2, 3, 6))
    returns = simulate_garch(GJR, np.array([1e-4, 2e-4]), innovations)
    for cutoff, first in enumerate((1e-4, 2e-4)):
        for path in range(3):
            variance, moves = first, returns[cutoff, path]
            for step in range(6):
                assert moves[step] == pytest.approx(np.sqrt(variance) * innovations[cutoff, path, step], rel=1e-12)
                leverage = GJR.gamma if moves[step] < 0 else 0.0
                variance = GJR.omega + (GJR.alpha + leverage) * moves[step] ** 2 + GJR.beta * variance


def test_a_fit_prints_no_warning_and_leaves_the_filters_of_warnings_as_they_are() -> None:
    from arch.univariate import ZeroMean

    class WarningModel(ZeroMean):
        def fit(self, *arguments: Any, **settings: Any) -> Any:
            warnings.warn("the data are scaled badly", RuntimeWarning, stacklevel=1)
            return super().fit(*arguments, **settings)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        fit_parameters(WarningModel(garch_returns(300)[0] * 100, rescale=False))
        assert list(warnings.filters) == before


@pytest.mark.parametrize("leverage", [False, True])
def test_the_parameters_do_not_depend_on_the_number_of_threads(leverage: bool) -> None:
    returns = garch_returns(640, 3)[0]
    fits = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            fits.append(fit_garch(returns, leverage=leverage))
    assert fits[0] == fits[1]
