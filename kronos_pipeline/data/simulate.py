"""Simulated bars, for the shipped `trainingdata/`, the pretraining of the embedded base model, and tests of training.

The log of a ticker's close is the sum of a slow random walk, a short-lived deviation (an autoregression of order 1) and
the ticker's own calendar pattern: a drift for each month of the year and a drift for each day of the month, which add
up to zero over a year. A lookback of 64 bars shows three months of twelve, so a model knows the pattern only if it has
seen the ticker's history. Volatility is stochastic (a log-autoregression); overnight gaps, bar ranges and volume scale
with it.

Simulated bars are no market data. They resemble a market in form alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.names import NAME, NAME_RULE

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Dynamics:
    """Parameters of a simulated ticker; all but `decay` are standard deviations in log price.

    Attributes:
        walk: the random walk's step per bar.
        deviation: the shock to the deviation per bar.
        decay: share of the deviation that is left a bar later; 0.93 is a half-life of ten bars.
        month_drift: the calendar pattern's drift per day, by month of the year.
        day_drift: the calendar pattern's drift per day, by day of the month.
        weekday_level: the calendar pattern's level by day of the week.
        hour_level: the calendar pattern's level by hour of the day.
    """

    walk: float = 0.004
    deviation: float = 0.009
    decay: float = 0.93
    month_drift: float = 0.003
    day_drift: float = 0.003
    weekday_level: float = 0.0
    hour_level: float = 0.0

    @property
    def step(self) -> float:
        """Standard deviation of the random change in log price per bar."""
        return float(np.hypot(self.walk, self.deviation))


FIRST_DAY = "2021-01-04"
_BURN_IN = 100


@dataclass(frozen=True)
class Calendar:
    """A calendar pattern, as levels in log price.

    Attributes:
        by_date: `(13, 32)`, levels by month and day of the month; row and column 0 are unused.
        by_weekday: `(7,)`, levels by day of the week, Monday first.
        by_hour: `(24,)`, levels by hour of the day.
    """

    by_date: FloatArray
    by_weekday: FloatArray
    by_hour: FloatArray

    @classmethod
    def draw(cls, rng: np.random.Generator, dynamics: Dynamics) -> Self:
        """Draw a pattern; the levels by date are the sums of the drifts from the first of January on."""
        months = dynamics.month_drift * rng.standard_normal(12)
        days = dynamics.day_drift * rng.standard_normal(31)
        leap_year = pd.date_range("2024-01-01", "2024-12-31")
        drift = months[leap_year.month - 1] + days[leap_year.day - 1]
        by_date = np.zeros((13, 32))
        by_date[leap_year.month, leap_year.day] = np.cumsum(drift - drift.mean())
        return cls(
            by_date, dynamics.weekday_level * rng.standard_normal(7), dynamics.hour_level * rng.standard_normal(24)
        )

    def scaled(self, factor: float) -> Calendar:
        """Return the pattern with all levels multiplied by `factor`."""
        return Calendar(factor * self.by_date, factor * self.by_weekday, factor * self.by_hour)

    def levels(self, timestamps: pd.DatetimeIndex) -> FloatArray:
        """Return the level at each time, `(times,)`, in log price."""
        return (
            self.by_date[timestamps.month, timestamps.day]
            + self.by_weekday[timestamps.weekday]
            + self.by_hour[timestamps.hour]
        )


SHIPPED_TICKERS = ("AAPL", "AMD", "AMZN", "BTCUSD", "EURUSD", "GOOG", "JPM", "META", "MSFT", "NVDA", "TSLA", "XOM")
"""Names of the tickers in `trainingdata/`; BTCUSD trades seven days a week, EURUSD's file has no volume column."""


@dataclass(frozen=True)
class SimulatedTicker:
    """A simulated ticker with the components of its price.

    Attributes:
        timestamps: the time of each bar, without a time zone.
        values: `(bars, 6)`, the features of each bar, in price units and shares.
        walk: `(bars,)`, the random walk in log price.
        deviation: `(bars,)`, the deviation in log price.
        pattern: `(bars,)`, the calendar pattern in log price.
        dynamics: the parameters of the simulation.
    """

    timestamps: pd.DatetimeIndex
    values: FloatArray
    walk: FloatArray
    deviation: FloatArray
    pattern: FloatArray
    dynamics: Dynamics

    def frame(self) -> pd.DataFrame:
        """Return the bars as a frame with `timestamps` and the six features."""
        return pd.DataFrame({"timestamps": self.timestamps} | dict(zip(FEATURES, self.values.T, strict=True)))

    def conditional_close(self, origin: int, horizon: int) -> FloatArray:
        """Return the conditional medians of the closes after bar `origin`, `(horizon,)`, in price units.

        The forecast uses the state at the origin and the pattern, and no later shock: the walk stays, the deviation
        decays. The exponential of the conditional mean in logs is the conditional median in price units, which
        minimises the mean absolute error.
        """
        steps = np.arange(1, horizon + 1)
        pattern = self.pattern[origin + 1 : origin + 1 + horizon]
        return np.exp(self.walk[origin] + self.dynamics.decay**steps * self.deviation[origin] + pattern)


def simulate_ticker(
    seed: int | Sequence[int],
    bars: int,
    *,
    start: str | pd.Timestamp = FIRST_DAY,
    frequency: str = "B",
    dynamics: Dynamics | None = None,
    calendar: Calendar | None = None,
) -> SimulatedTicker:
    """Simulate one ticker.

    Args:
        seed: the same seed gives the same ticker.
        bars: number of bars.
        start: time of the first bar.
        frequency: pandas' alias of the bar interval: `B` for weekdays, `D` for seven days a week, `h` and so on.
        dynamics: the parameters; by default `Dynamics()`, as for the shipped tickers.
        calendar: the calendar pattern; by default drawn from the seed.
    """
    dynamics = dynamics or Dynamics()
    rng = np.random.default_rng(seed)
    timestamps = pd.date_range(start, periods=bars, freq=frequency)
    own_calendar = Calendar.draw(rng, dynamics)
    pattern = (calendar or own_calendar).levels(timestamps)
    volatility = _volatility(rng, bars)
    walk = np.log(rng.uniform(20, 400)) + np.cumsum(dynamics.walk * volatility * rng.standard_normal(bars))
    shocks = dynamics.deviation * np.concatenate([np.ones(_BURN_IN), volatility]) * rng.standard_normal(_BURN_IN + bars)
    deviation = _autoregression(shocks, dynamics.decay)[_BURN_IN:]
    close = np.exp(walk + deviation + pattern)
    previous = np.concatenate([close[:1], close[:-1]])

    spread = 0.6 * dynamics.step * volatility
    open_ = previous * np.exp(0.5 * spread * rng.standard_normal(bars))
    high = np.maximum(open_, close) * np.exp(spread * np.abs(rng.standard_normal(bars)))
    low = np.minimum(open_, close) * np.exp(-spread * np.abs(rng.standard_normal(bars)))

    busy = 0.8 * np.log(volatility) + 0.06 * np.abs(np.log(close / previous)) / dynamics.step
    log_volume = rng.uniform(13, 17) + busy + _autoregression(0.15 * rng.standard_normal(bars), 0.6)
    volume = np.exp(log_volume)
    amount = volume * (open_ + high + low + close) / 4
    values = np.stack([open_, high, low, close, volume, amount], axis=1)
    return SimulatedTicker(timestamps, values, walk, deviation, pattern, dynamics)


def _volatility(rng: np.random.Generator, bars: int) -> FloatArray:
    """Return a persistent volatility factor around 1 for each bar, `(bars,)`."""
    logs = _autoregression(0.1 * rng.standard_normal(_BURN_IN + bars), 0.96)[_BURN_IN:]
    return np.exp(logs)


def _autoregression(shocks: FloatArray, decay: float) -> FloatArray:
    return np.array(list(accumulate(shocks.tolist(), lambda level, shock: decay * level + shock)))


def write_simulated(
    data_dir: Path, *, tickers: Sequence[str] = SHIPPED_TICKERS, bars: int = 1000, seed: int = 2026
) -> list[Path]:
    """Write `<data_dir>/<TICKER>/<TICKER>.csv` for each ticker; the same arguments give the same bytes.

    All tickers end on the same day, with five or seven days a week: otherwise a model over several tickers would know
    later days of some tickers.

    Raises:
        SettingsError: fewer than two bars, no ticker, or an invalid symbol.
        ArtifactError: the folder cannot be written.
    """
    if bars < 2 or not tickers:
        raise SettingsError("A simulation needs at least one ticker and two bars.")
    if wrong := next((ticker for ticker in tickers if not NAME.fullmatch(ticker)), None):
        raise SettingsError(f"{wrong!r} is no symbol: use {NAME_RULE}.")
    paths = []
    last = pd.date_range(FIRST_DAY, periods=bars, freq="B")[-1]
    for ticker in tickers:
        # The name is part of the seed, so a file does not depend on the other tickers.
        frequency = "D" if ticker == "BTCUSD" else "B"
        start = pd.date_range(end=last, periods=bars, freq=frequency)[0]
        simulated = simulate_ticker([seed, *ticker.encode()], bars, start=start, frequency=frequency)
        path = data_dir / ticker / f"{ticker}.csv"
        _write(path, _csv(simulated, volume=ticker != "EURUSD"))
        paths.append(path)
    return paths


def _write(path: Path, text: str) -> None:
    write_file(path, lambda handle: handle.write(text.encode()))


def _csv(simulated: SimulatedTicker, *, volume: bool) -> str:
    frame = simulated.frame().drop(columns="amount")
    prices = frame[["open", "high", "low", "close"]].round(2)
    # Rounding keeps the order of prices, so low <= open, close <= high still holds.
    columns = {"timestamp": frame["timestamps"].dt.strftime("%Y-%m-%d")}
    columns |= {str(name): prices[name].map("{:.2f}".format) for name in prices}
    if volume:
        columns["volume"] = frame["volume"].round().astype("int64")
    return pd.DataFrame(columns).to_csv(index=False, lineterminator="\n")
