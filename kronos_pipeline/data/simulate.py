"""Simulated bars: the shipped `trainingdata/`, the embedded base model's pretraining, and the tests of training.

The log of a ticker's close is a slow random walk, plus a short-lived deviation that dies out (an autoregression of order
one), plus a calendar pattern of the ticker's own: a level for each month of the year and one for each day of the month,
both smoothed over neighbouring days. A lookback of 64 bars shows three months of twelve, so the pattern is something
that only a model which has seen the ticker's history can know. Volatility is stochastic (a log-autoregression),
overnight gaps and bar ranges scale with it, and so does volume.

This is no market data and resembles a market in form alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kronos_pipeline.artifacts import write_file
from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.errors import SettingsError

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

MONTH_LEVEL = 0.07
"""Standard deviation of the twelve months' levels, in log price."""
DAY_LEVEL = 0.02
"""Standard deviation of the days' levels within a month, in log price."""
WALK = 0.004
"""Standard deviation of the random walk's daily step, in log price."""
DEVIATION = 0.009
"""Standard deviation of the deviation's daily shock, in log price."""
DEVIATION_DECAY = 0.93
"""Share of the deviation that is left a bar later: a half-life of ten bars."""

_SMOOTHING_DAYS = 5
_BURN_IN = 100

SHIPPED_TICKERS = ("AAPL", "AMD", "AMZN", "BTCUSD", "EURUSD", "GOOG", "JPM", "META", "MSFT", "NVDA", "TSLA", "XOM")
"""Names of the tickers in `trainingdata/`; BTCUSD trades seven days a week, EURUSD's file has no volume column."""


@dataclass(frozen=True)
class SimulatedTicker:
    """One simulated ticker with what its generator knows.

    Attributes:
        timestamps: one per bar, naive.
        values: `(bars, 6)`, the features of a bar in price units and shares.
        walk: `(bars,)`, the random walk in log price.
        deviation: `(bars,)`, the deviation in log price.
        pattern: `(bars,)`, the calendar pattern in log price.
    """

    timestamps: pd.DatetimeIndex
    values: FloatArray
    walk: FloatArray
    deviation: FloatArray
    pattern: FloatArray

    def frame(self) -> pd.DataFrame:
        """The bars as a frame with `timestamps` and the six features."""
        return pd.DataFrame({"timestamps": self.timestamps} | dict(zip(FEATURES, self.values.T, strict=True)))

    def conditional_close(self, origin: int, horizon: int) -> FloatArray:
        """The closes after bar `origin` as the generator itself expects them, `(horizon,)`, in price units.

        It knows the state at the origin and the pattern, and no later shock: the walk stays, the deviation decays. The
        exponential of a conditional mean in logs is the conditional median in price units, which an absolute error asks for.
        """
        steps = np.arange(1, horizon + 1)
        pattern = self.pattern[origin + 1 : origin + 1 + horizon]
        return np.exp(self.walk[origin] + DEVIATION_DECAY**steps * self.deviation[origin] + pattern)


def simulate_ticker(
    seed: int | Sequence[int],
    bars: int,
    *,
    start: str | pd.Timestamp = "2021-01-04",
    frequency: str = "B",
    strength: float = 1.0,
) -> SimulatedTicker:
    """Simulate one ticker.

    Args:
        seed: the same seed gives the same ticker.
        bars: how many.
        start: the first bar's timestamp.
        frequency: pandas' alias of the bar interval: `B` for weekdays, `D` for seven days a week, `h` and so on.
        strength: factor on the calendar pattern; 0 leaves none.
    """
    rng = np.random.default_rng(seed)
    timestamps = pd.date_range(start, periods=bars, freq=frequency)
    pattern = strength * _calendar_pattern(rng, timestamps)
    volatility = _volatility(rng, bars)
    walk = np.log(rng.uniform(20, 400)) + np.cumsum(WALK * volatility * rng.standard_normal(bars))
    shocks = DEVIATION * np.concatenate([np.ones(_BURN_IN), volatility]) * rng.standard_normal(_BURN_IN + bars)
    deviation = _autoregression(shocks, DEVIATION_DECAY)[_BURN_IN:]
    close = np.exp(walk + deviation + pattern)
    previous = np.concatenate([close[:1], close[:-1]])

    spread = 0.006 * volatility
    open_ = previous * np.exp(0.5 * spread * rng.standard_normal(bars))
    high = np.maximum(open_, close) * np.exp(spread * np.abs(rng.standard_normal(bars)))
    low = np.minimum(open_, close) * np.exp(-spread * np.abs(rng.standard_normal(bars)))

    busy = 0.8 * np.log(volatility) + 6 * np.abs(np.log(close / previous))
    log_volume = rng.uniform(13, 17) + busy + _autoregression(0.15 * rng.standard_normal(bars), 0.6)
    volume = np.exp(log_volume)
    amount = volume * (open_ + high + low + close) / 4
    values = np.stack([open_, high, low, close, volume, amount], axis=1)
    return SimulatedTicker(timestamps, values, walk, deviation, pattern)


def _calendar_pattern(rng: np.random.Generator, timestamps: pd.DatetimeIndex) -> FloatArray:
    months = MONTH_LEVEL * rng.standard_normal(12)
    days = DAY_LEVEL * rng.standard_normal(31)
    leap_year = pd.date_range("2024-01-01", "2024-12-31")
    levels = months[leap_year.month - 1] + days[leap_year.day - 1]
    kernel = np.ones(_SMOOTHING_DAYS) / _SMOOTHING_DAYS
    smooth = np.convolve(np.concatenate([levels, levels, levels]), kernel, mode="same")[len(levels) : 2 * len(levels)]
    by_date = dict(zip(zip(leap_year.month, leap_year.day, strict=True), smooth, strict=True))
    return np.array([by_date[date] for date in zip(timestamps.month, timestamps.day, strict=True)])


def _volatility(rng: np.random.Generator, bars: int) -> FloatArray:
    """A factor around 1 that is high for weeks and low for weeks, `(bars,)`."""
    logs = _autoregression(0.1 * rng.standard_normal(_BURN_IN + bars), 0.96)[_BURN_IN:]
    return np.exp(logs)


def _autoregression(shocks: FloatArray, decay: float) -> FloatArray:
    levels = np.empty_like(shocks)
    level = 0.0
    for index, shock in enumerate(shocks):
        level = decay * level + shock
        levels[index] = level
    return levels


def write_simulated(data_dir: Path, *, tickers: Sequence[str] = SHIPPED_TICKERS, bars: int = 1000, seed: int = 2026) -> list[Path]:
    """Write `<data_dir>/<TICKER>/<TICKER>.csv` for each ticker: the same arguments give the same bytes.

    Raises:
        SettingsError: fewer than two bars, or no ticker.
        ArtifactError: the folder cannot be written.
    """
    if bars < 2 or not tickers:
        raise SettingsError("A simulation needs at least one ticker and two bars.")
    paths = []
    for ticker in tickers:
        # The name seeds the ticker, so that a file does not change with its neighbours.
        frequency = "D" if ticker == "BTCUSD" else "B"
        simulated = simulate_ticker([seed, *ticker.encode()], bars, frequency=frequency)
        path = data_dir / ticker / f"{ticker}.csv"
        content = _csv(simulated, volume=ticker != "EURUSD").encode()
        write_file(path, lambda handle, content=content: handle.write(content))
        paths.append(path)
    return paths


def _csv(simulated: SimulatedTicker, *, volume: bool) -> str:
    frame = simulated.frame().drop(columns="amount")
    prices = frame[["open", "high", "low", "close"]].round(2)
    # Rounding keeps the order of prices, so low <= open, close <= high still holds.
    columns = {"timestamp": frame["timestamps"].dt.strftime("%Y-%m-%d")}
    columns |= {name: prices[name].map("{:.2f}".format) for name in prices}
    if volume:
        columns["volume"] = frame["volume"].round().astype("int64")
    return pd.DataFrame(columns).to_csv(index=False, lineterminator="\n")
