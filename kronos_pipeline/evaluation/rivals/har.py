"""Heterogeneous autoregression of the log range variance, with bootstrapped innovations.

    x_t = c + b1 x_{t-1} + b5 mean(x_{t-5} .. x_{t-1}) + b22 mean(x_{t-22} .. x_{t-1}) + e_t,  x = ln(range variance)
    r_t = exp(m_t / 2) u_t,  m_t = x_t - e_t

Corsi, A simple approximate long-memory model of realized volatility, Journal of Financial Econometrics 7 (2009), fitted
by `arch`. Paths draw pairs (e, u) of fitted bars with replacement (filtered historical simulation), so that large moves
come with large ranges. The mean square of u scales the range variance to the variance of the close: it is the factor of
the lowest QLIKE on the fitted bars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kronos_pipeline.data.bar_schedule import IntArray
from kronos_pipeline.data.bars import FloatArray
from kronos_pipeline.evaluation.rivals.fits import MAX_PERSISTENCE, FitError, check_returns, fit_parameters
from kronos_pipeline.evaluation.rivals.history import History

LAGS = (1, 5, 22)
"""Number of bars of each mean; of daily bars a day, a week and a month."""
FLOOR = 1e-3
"""Smallest range variance, as a share of the fitted mean: the log of 0 is not finite."""
MAX_WITHOUT_RANGE = 0.1
"""Largest share of fitted bars whose high equals their low."""


@dataclass(frozen=True)
class Har:
    """Parameters of a HAR.

    Attributes:
        constant: c.
        weights: b1, b5 and b22.
        floor: smallest range variance, in squared log price.
        innovations: e of the fitted bars, `(n,)`.
        residuals: u of the fitted bars, centred, so that a bootstrap has no drift, `(n,)`.
    """

    constant: float
    weights: FloatArray
    floor: float
    innovations: FloatArray
    residuals: FloatArray

    def log_ranges(self, ranges: FloatArray) -> FloatArray:
        """Return x of range variances."""
        logs: FloatArray = np.log(np.maximum(ranges, self.floor))
        return logs

    def mean_ahead(self, recent: FloatArray) -> FloatArray:
        """Return m of the next bar, `(...)`, from x of the newest 22 bars, `(..., 22)`, oldest first."""
        means = [recent[..., -lag:].mean(axis=-1) for lag in LAGS]
        ahead: FloatArray = self.constant + sum(weight * mean for weight, mean in zip(self.weights, means, strict=True))
        return ahead


def fit_har(history: History) -> Har:
    """Fit a HAR on a ticker's fitted bars.

    Raises:
        FitError: the returns cannot be fitted, too many bars have no range, the fit fails, or the fitted variance
            explodes.
    """
    returns = history.fitted_returns
    check_returns(returns)
    without_range = int(history.without_range[history.fitted].sum())
    if without_range > MAX_WITHOUT_RANGE * len(returns):
        raise FitError(f"the high equals the low in {without_range:,} of {len(returns):,} bars")
    from arch.univariate import HARX  # imports statsmodels

    ranges = history.ranges[history.fitted]
    floor = FLOOR * float(ranges.mean())
    logs = np.log(np.maximum(ranges, floor))
    fitted = fit_parameters(HARX(logs, lags=list(LAGS), rescale=False))
    constant, *weights = list(fitted.values())[: 1 + len(LAGS)]
    if sum(weights) > MAX_PERSISTENCE:
        raise FitError(f"the fitted variance explodes (persistence {sum(weights):.4f})")
    har = Har(constant, np.array(weights), floor, np.empty(0), np.empty(0))
    longest = LAGS[-1]
    means = har.mean_ahead(np.lib.stride_tricks.sliding_window_view(logs, longest)[:-1])
    standardised = returns[longest:] * np.exp(-means / 2)
    return Har(constant, np.array(weights), floor, logs[longest:] - means, standardised - standardised.mean())


def simulate_har(har: Har, recent: FloatArray, indices: IntArray) -> FloatArray:
    """Simulate log returns, `(cutoffs, paths, horizon)`.

    Args:
        har: the parameters.
        recent: range variances of the newest 22 bars of each cutoff, oldest first, `(cutoffs, 22)`.
        indices: the fitted bar whose pair (e, u) each step takes, `(cutoffs, paths, horizon)`.
    """
    cutoffs, paths, horizon = indices.shape
    longest = LAGS[-1]
    logs = np.empty((cutoffs, paths, longest + horizon))
    logs[..., :longest] = har.log_ranges(recent)[:, None]
    means = np.empty_like(logs[..., longest:])
    innovations = har.innovations[indices]
    for step in range(horizon):
        means[..., step] = har.mean_ahead(logs[..., step : step + longest])
        logs[..., longest + step] = means[..., step] + innovations[..., step]
    returns: FloatArray = np.exp(means / 2) * har.residuals[indices]
    return returns
