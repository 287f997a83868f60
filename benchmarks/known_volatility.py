"""Simulated tickers whose volatility is known, and forecasters that know it.

    x_t = sqrt(g_t) z_t            GARCH(1,1): g_t follows from x up to t - 1
    r_t = sqrt(m_t) x_t            log return; m_t is a factor of the variance that is known in advance

A bar's high and low are those of a Brownian bridge with the bar's variance, from the close before to the close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kronos_pipeline.data.bars import FEATURES, Bars, FloatArray, make_bars
from kronos_pipeline.evaluation.rivals.garch import Garch, filter_variance, simulate_garch
from kronos_pipeline.model.decode.sample import sample_paths

BRIDGE_STEPS = 16
"""Number of price changes within a bar."""
FIRST_DAY = "2005-01-03"


def garch_process(deviation: float, alpha: float, beta: float, freedom: float | None) -> Garch:
    """Return a GARCH(1,1) that starts at its long-run variance.

    Args:
        deviation: long-run standard deviation of a log return.
        alpha: weight of the last squared return; 0 with a beta of 0 is a constant volatility.
        beta: weight of the last variance.
        freedom: degrees of freedom of the t innovations; None of normal innovations.
    """
    variance = deviation**2
    return Garch(variance * (1 - alpha - beta), alpha, 0.0, beta, variance, freedom)


CONSTANT = garch_process(0.012, 0.0, 0.0, None)
GARCH_T = garch_process(0.012, 0.12, 0.83, 5.0)


@dataclass(frozen=True)
class VolatileTicker:
    """A simulated ticker.

    Attributes:
        bars: the bars, one more than returns.
        process: the GARCH of the returns without the factors.
        variance: g of each bar's return, given the bars before, and of the next bar's, `(bars,)`; item k is of bar
            k + 1.
        factors: m in the same order, `(bars,)`.
    """

    bars: Bars
    process: Garch
    variance: FloatArray
    factors: FloatArray


def simulate(
    name: str, seed: int, bars: int, process: Garch, *, factor: float = 1.0, share: float = 0.0
) -> VolatileTicker:
    """Simulate a ticker.

    Args:
        name: the symbol.
        seed: seed of the random numbers.
        bars: number of bars.
        process: the GARCH.
        factor: m on the bars of announced news; 1 on the other bars.
        share: probability of a bar that it has announced news.
    """
    rng = np.random.default_rng(seed)
    innovations = _innovations(process, rng, (1, 1, bars - 1))
    core = simulate_garch(process, np.array([process.start]), innovations)[0, 0]
    factors = np.where(rng.random(bars) < share, factor, 1.0)
    variance = filter_variance(process, core)
    returns = np.sqrt(factors[:-1]) * core
    frame = _candles(returns, np.sqrt(factors * variance)[:-1], rng)
    return VolatileTicker(make_bars(name, frame, source="simulated"), process, variance, factors)


@dataclass(frozen=True)
class Forecaster:
    """A stand-in for a model, which knows the process of a ticker and the variance at each cutoff.

    Two forecasters of different seeds forecast the same distribution with independent paths, so that neither is better.

    Attributes:
        ticker: the ticker.
        seed: seed of the paths.
        error: standard deviation of the log of a random factor of the variance, drawn for each cutoff; 0 of a
            forecaster without error.
        weights_hash: as a model has one.
    """

    ticker: VolatileTicker
    seed: int
    error: float = 0.0
    weights_hash: str = "a forecaster that knows"

    def closes(self, last_bar: FloatArray, paths: int, horizon: int) -> FloatArray:
        """Sample closes after a bar of the ticker, `(paths, horizon)`.

        Args:
            last_bar: the bar at the cutoff, `(6,)`.
            paths: number of paths.
            horizon: number of bars ahead; bars after the ticker's last have the factor 1.
        """
        (origin,) = np.flatnonzero((self.ticker.bars.values == last_bar).all(axis=1))
        rng = np.random.default_rng([self.seed, int(origin)])
        process, factors = self.ticker.process, np.ones(horizon)
        known = self.ticker.factors[origin : origin + horizon]
        factors[: len(known)] = known
        wrong = np.exp(self.error * rng.standard_normal())
        innovations = _innovations(process, rng, (1, paths, horizon))
        core = simulate_garch(process, self.ticker.variance[origin : origin + 1], innovations)[0]
        close: FloatArray = last_bar[FEATURES.index("close")] * np.exp((np.sqrt(wrong * factors) * core).cumsum(axis=1))
        return close


def sample(
    models: Sequence[Any], history: np.ndarray, past: np.ndarray, ahead: np.ndarray, *, paths: int, **settings: Any
) -> np.ndarray:
    """Sample paths of forecasters and of Kronos models; stands in for `sample_paths`."""
    horizon = ahead.shape[1]
    values = np.empty((len(models), paths, horizon, len(FEATURES)))
    for number, model in enumerate(models):
        if isinstance(model, Forecaster):
            values[number] = model.closes(history[number, -1], paths, horizon)[..., None]
    if kronos := [number for number, model in enumerate(models) if not isinstance(model, Forecaster)]:
        own = {name: [settings[name][number] for number in kronos] for name in ("temperature", "top_p", "seed")}
        kronos_models = [models[number] for number in kronos]
        settings |= own
        bars = history[kronos], past[kronos], ahead[kronos]
        values[kronos] = sample_paths(kronos_models, *bars, paths=paths, **settings)
    return values


def _innovations(process: Garch, rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    """Draw innovations of mean 0 and variance 1."""
    if process.freedom is None:
        return rng.standard_normal(shape)
    drawn: FloatArray = rng.standard_t(process.freedom, shape) * np.sqrt((process.freedom - 2) / process.freedom)
    return drawn


def _candles(returns: FloatArray, deviations: FloatArray, rng: np.random.Generator) -> pd.DataFrame:
    """Return bars of log returns, the first bar without a range."""
    close = 100.0 * np.exp(np.concatenate([[0.0], returns.cumsum()]))
    walk = rng.standard_normal((len(returns), BRIDGE_STEPS)).cumsum(axis=1) / np.sqrt(BRIDGE_STEPS)
    times = np.arange(1, BRIDGE_STEPS + 1) / BRIDGE_STEPS
    bridge = deviations[:, None] * (walk - times * walk[:, -1:]) + times * returns[:, None]
    start = close[:-1]
    high = start * np.exp(np.maximum(bridge.max(axis=1), 0.0))
    low = start * np.exp(np.minimum(bridge.min(axis=1), 0.0))
    opened = np.concatenate([close[:1], start])
    high, low = np.concatenate([close[:1], high]), np.concatenate([close[:1], low])
    volume = 1000.0 * np.exp(0.3 * rng.standard_normal(len(close)))
    return pd.DataFrame(
        {
            "timestamps": pd.bdate_range(FIRST_DAY, periods=len(close)),
            "open": opened,
            "high": np.maximum.reduce([high, opened, close]),
            "low": np.minimum.reduce([low, opened, close]),
            "close": close,
            "volume": volume,
            "amount": volume * close,
        }
    )
