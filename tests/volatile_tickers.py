"""Simulated tickers whose volatility is known: GARCH(1,1) with Student t, and candles around their closes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_pipeline.data.bars import Bars, make_bars

OMEGA, ALPHA, GAMMA, BETA, FREEDOM = 2e-6, 0.08, 0.0, 0.9, 6.0


def garch_returns(
    count: int, seed: int = 0, *, alpha: float = ALPHA, gamma: float = GAMMA, beta: float = BETA
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate log returns of a GJR-GARCH(1,1) with t innovations; return them and their variances, `(count,)` each."""
    innovations = np.random.default_rng(seed).standard_t(FREEDOM, count) * np.sqrt((FREEDOM - 2) / FREEDOM)
    returns, variances = np.empty(count), np.empty(count)
    variance = OMEGA / (1 - alpha - gamma / 2 - beta)
    for bar, innovation in enumerate(innovations):
        variances[bar], returns[bar] = variance, np.sqrt(variance) * innovation
        variance = OMEGA + (alpha + gamma * (returns[bar] < 0)) * returns[bar] ** 2 + beta * variance
    return returns, variances


def bars_of_returns(returns: np.ndarray, *, ticker: str = "ACME", price: float = 100.0, seed: int = 0) -> Bars:
    """Return daily bars, one more than returns: each opens at the close before and has a range like its move."""
    close = price * np.exp(np.concatenate([[0.0], np.cumsum(returns)]))
    start = np.concatenate([close[:1], close[:-1]])
    reach = np.abs(np.random.default_rng(seed + 1).standard_normal((2, len(close))))
    moves = np.abs(np.log(close / start))
    size = 0.5 * np.maximum(moves, np.median(moves))
    frame = pd.DataFrame(
        {
            "timestamps": pd.bdate_range("2020-01-01", periods=len(close)),
            "open": start,
            "high": np.maximum(start, close) * np.exp(size * reach[0]),
            "low": np.minimum(start, close) * np.exp(-size * reach[1]),
            "close": close,
            "volume": 1000.0,
            "amount": 1000.0 * close,
        }
    )
    return make_bars(ticker, frame, source=f"{ticker}.csv")


def garch_ticker(count: int, seed: int = 0, *, ticker: str = "ACME") -> Bars:
    """Return `count` bars with the volatility of `garch_returns`."""
    return bars_of_returns(garch_returns(count - 1, seed)[0], ticker=ticker, seed=seed)
