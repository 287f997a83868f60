"""Simulated tickers with the volatility of GARCH(1,1) and returns of Student's t: calm and wild times, fat tails."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_pipeline.data.bars import Bars, make_bars

OMEGA, ALPHA, BETA, FREEDOM = 2e-6, 0.08, 0.9, 5.0
"""Parameters of daily equities: a daily standard deviation of 1 percent, shocks with a half-life of 34 days."""
_BURN_IN = 200


def garch_returns(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulate log returns, `(count,)`, and the variance of each given the returns before, `(count,)`.

        variance = omega + alpha (last return)^2 + beta (last variance)      (Bollerslev, 1986)

    and the return divided by its standard deviation has Student's t distribution, scaled to the variance 1 (Bollerslev,
    1987).
    """
    rng = np.random.default_rng(seed)
    shocks = rng.standard_t(FREEDOM, _BURN_IN + count) * ((FREEDOM - 2) / FREEDOM) ** 0.5
    returns, variances = np.empty_like(shocks), np.empty_like(shocks)
    variance = OMEGA / (1 - ALPHA - BETA)
    for bar, shock in enumerate(shocks):
        variances[bar], returns[bar] = variance, variance**0.5 * shock
        variance = OMEGA + ALPHA * returns[bar] ** 2 + BETA * variance
    return returns[_BURN_IN:], variances[_BURN_IN:]


def garch_bars(ticker: str, seed: int, count: int) -> Bars:
    """Simulate daily bars: each opens at the close before, with a range in proportion to its volatility."""
    returns, variances = garch_returns(seed, count)
    close = 100 * np.exp(np.cumsum(returns))
    open_ = np.concatenate([[100.0], close[:-1]])
    reach = 0.5 * np.sqrt(variances) * np.abs(np.random.default_rng([seed, 1]).standard_normal((2, count)))
    volume = 1e6 * np.sqrt(variances / variances.mean())
    frame = pd.DataFrame(
        {
            "timestamps": pd.bdate_range("2020-01-01", periods=count),
            "open": open_,
            "high": np.maximum(open_, close) * np.exp(reach[0]),
            "low": np.minimum(open_, close) * np.exp(-reach[1]),
            "close": close,
            "volume": volume,
            "amount": volume * close,
        }
    )
    return make_bars(ticker, frame, source=f"simulated, seed {seed}")
