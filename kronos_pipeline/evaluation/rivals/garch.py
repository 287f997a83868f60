"""GARCH(1,1) with Student t innovations, and GJR-GARCH(1,1) with bootstrapped innovations.

    r_t = sigma_t z_t,  sigma2_t = omega + (alpha + gamma [r_{t-1} < 0]) r_{t-1}^2 + beta sigma2_{t-1}

Bollerslev, A conditionally heteroskedastic time series model for speculative prices and rates of return, Review of
Economics and Statistics 69 (1987); Glosten, Jagannathan and Runkle, Journal of Finance 48 (1993), for gamma. Log
returns have mean 0. The parameters are fitted once, by `arch`; the filter up to a cutoff is the recursion above. `arch`
would bound a filtered variance by numbers of the whole series, and thus let later bars in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from kronos_pipeline.data.bars import FloatArray
from kronos_pipeline.evaluation.rivals.fits import MAX_PERSISTENCE, FitError, check_returns, fit_parameters

_MIN_FREEDOM = 2.1
"""Degrees of freedom of a t below which its variance is a matter of the largest draw."""


@dataclass(frozen=True)
class Garch:
    """Parameters of a GARCH(1,1).

    Attributes:
        omega: constant, in squared log price.
        alpha: weight of the last squared return.
        gamma: additional weight if the last return is negative.
        beta: weight of the last variance.
        start: variance before the first return, in squared log price.
        freedom: degrees of freedom of the t innovations; None of bootstrapped innovations.
    """

    omega: float
    alpha: float
    gamma: float
    beta: float
    start: float
    freedom: float | None = None

    @property
    def persistence(self) -> float:
        """Factor by which a deviation from the long-run variance shrinks per bar."""
        return self.alpha + self.gamma / 2 + self.beta


def fit_garch(returns: FloatArray, *, leverage: bool = False) -> Garch:
    """Fit a GARCH(1,1) with t innovations; with `leverage` a GJR-GARCH(1,1) by Gaussian quasi-maximum likelihood.

    Args:
        returns: log returns, oldest first, `(n,)`.
        leverage: fit gamma.

    Raises:
        FitError: the returns cannot be fitted, the fit fails, or the fitted variance explodes.
    """
    check_returns(returns)
    from arch.univariate import GARCH, Normal, StudentsT, ZeroMean  # imports statsmodels

    variance = float(np.mean(returns**2))
    scaled = returns / np.sqrt(variance)  # the optimisation needs numbers near 1
    volatility = GARCH(p=1, o=int(leverage), q=1)
    distribution = Normal() if leverage else StudentsT()
    fitted = fit_parameters(ZeroMean(scaled, volatility=volatility, distribution=distribution, rescale=False))
    garch = Garch(
        omega=fitted["omega"] * variance,
        alpha=fitted["alpha[1]"],
        gamma=fitted.get("gamma[1]", 0.0),
        beta=fitted["beta[1]"],
        start=float(volatility.backcast(scaled)) * variance,
        freedom=fitted.get("nu"),
    )
    if garch.persistence > MAX_PERSISTENCE:
        raise FitError(f"the fitted variance explodes (persistence {garch.persistence:.4f})")
    if garch.freedom is not None and garch.freedom < _MIN_FREEDOM:
        raise FitError(f"the fitted tails have hardly a variance (t with {garch.freedom:.2f} degrees of freedom)")
    return garch


def filter_variance(garch: Garch, returns: FloatArray) -> FloatArray:
    """Return the variance of each return, given the returns before it, and of the next return, `(n + 1,)`."""
    weights = garch.alpha + garch.gamma * (returns < 0)
    first = garch.omega + garch.persistence * garch.start
    news = np.concatenate([[first], garch.omega + weights * returns**2])
    variance: FloatArray = lfilter([1.0], [1.0, -garch.beta], news)
    return variance


def residuals(garch: Garch, returns: FloatArray, fitted: slice) -> FloatArray:
    """Return the fitted returns over their filtered deviation, centred, so that a bootstrap has no drift.

    Filtered historical simulation: Barone-Adesi, Giannopoulos and Vosper, VaR without correlations for portfolios of
    derivative securities, Journal of Futures Markets 19 (1999).

    Args:
        garch: the parameters.
        returns: log returns from the first bar on.
        fitted: the returns to take.
    """
    end = fitted.stop
    standardised = (returns[:end] / np.sqrt(filter_variance(garch, returns[:end])[:-1]))[fitted]
    centred: FloatArray = standardised - standardised.mean()
    return centred


def simulate_garch(garch: Garch, variance: FloatArray, innovations: FloatArray) -> FloatArray:
    """Simulate log returns, `(cutoffs, paths, horizon)`.

    Args:
        garch: the parameters.
        variance: variance of the first return ahead at each cutoff, `(cutoffs,)`.
        innovations: z of mean 0 and variance 1, `(cutoffs, paths, horizon)`.
    """
    returns = np.empty_like(innovations)
    ahead = np.broadcast_to(variance[:, None], innovations.shape[:2])
    for step in range(innovations.shape[2]):
        returns[..., step] = moves = np.sqrt(ahead) * innovations[..., step]
        ahead = garch.omega + (garch.alpha + garch.gamma * (moves < 0)) * moves**2 + garch.beta * ahead
    return returns
