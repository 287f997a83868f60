"""Random walk in log prices without drift, whose normal steps have an exponentially weighted variance.

    sigma2_t = lambda sigma2_{t-1} + (1 - lambda) r2_t,  the variance of every bar after bar t

J.P. Morgan and Reuters, RiskMetrics technical document (1996), section 5.2. The decay lambda is chosen per ticker.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

from kronos_pipeline.data.bars import FloatArray

RISKMETRICS_DECAY = 0.94
"""RiskMetrics' lambda of daily returns."""
DECAYS = (RISKMETRICS_DECAY, 0.80, 0.85, 0.90, 0.97, 0.99)
"""The grid of lambda, RiskMetrics' value for daily returns first: it is taken where nothing tells them apart."""


def ewma_variance(returns: FloatArray, decay: float) -> FloatArray:
    """Return the exponentially weighted variance of log returns around 0 after each return, `(n,)`.

    The recursion starts from 0, and is divided by the sum of its weights. So the first item is the first squared
    return, and no item depends on a later return.

    Args:
        returns: log returns, oldest first, `(n,)`.
        decay: lambda, between 0 and 1; item t weighs a squared return of k bars earlier by lambda^k.
    """
    weighted = lfilter([1 - decay], [1, -decay], returns**2)
    variance: FloatArray = weighted / (1 - decay ** np.arange(1.0, len(returns) + 1))
    return variance


def choose_decay(returns: FloatArray, first: int, end: int, horizon: int) -> float:
    """Choose lambda by the mean QLIKE of forecasts over the returns [first, end).

    A forecast is the variance before `horizon` consecutive returns of the block, or before all of the block if it is
    shorter; the truth is the mean of their squares. QLIKE up to a term that no forecast changes is ln F + RV / F
    (Patton, Volatility forecast comparison using imperfect volatility proxies, Journal of Econometrics 160, 2011).

    Args:
        returns: log returns, oldest first; those from `end` on are not read.
        first: index of the block's first return.
        end: index after the block's last return.
        horizon: bars ahead.

    Returns:
        An item of `DECAYS`; the first if the block has no return, or no price moves before it.
    """
    first = max(first, 1)
    ahead = min(horizon, end - first)
    if ahead < 1:
        return DECAYS[0]
    squared = returns[first:end] ** 2
    realised = np.lib.stride_tricks.sliding_window_view(squared, ahead).mean(axis=1)
    forecasts = np.stack([ewma_variance(returns[:end], decay) for decay in DECAYS])
    forecasts = forecasts[:, first - 1 : first - 1 + len(realised)]
    moving = (forecasts > 0).all(axis=0)
    if not moving.any():
        return DECAYS[0]
    forecasts, realised = forecasts[:, moving], realised[moving]
    losses = np.mean(np.log(forecasts) + realised / forecasts, axis=1)
    return DECAYS[int(losses.argmin())]


def normal_returns(variance: FloatArray, normal: FloatArray) -> FloatArray:
    """Scale standard normal draws to the variance of each cutoff, `(cutoffs, paths, horizon)`.

    Args:
        variance: variance per bar at each cutoff, `(cutoffs,)`.
        normal: the draws, `(cutoffs, paths, horizon)`.
    """
    steps: FloatArray = np.sqrt(variance)[:, None, None] * normal
    return steps
