"""Simulated bars for pretraining: many tickers without a common pattern, and batches of windows cut from them.

Tickers differ in dynamics (from a pure random walk to a deviation that dies out within two bars), in bar interval and
start, and in the strength of their calendar pattern, which may be zero. So a model learns that prices may return, that
volatility clusters, and that a date may matter. Most tickers have their own calendar pattern, which a model cannot know
beforehand. The others share one of a few patterns, each ticker with its own strength and sign, which its lookback
shows: without them a model has no use for month and day, forgets them, and cannot be adapted to a pattern later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.data.normalisation import lookback_statistics, normalise
from kronos_pipeline.data.simulate import Calendar, Dynamics, simulate_ticker

PRETRAINING_STREAM = 77_001
"""First word of every seed here; seeds of shipped and tested tickers begin with another word, or are a number."""

_UNIT = Dynamics(month_drift=0.3, day_drift=0.3, weekday_level=0.5, hour_level=1)
_SHARED = [Calendar.draw(np.random.default_rng([PRETRAINING_STREAM, number]), _UNIT) for number in range(4)]
_FREQUENCIES = {"B": 0.5, "D": 0.2, "h": 0.2, "15min": 0.05, "min": 0.05}
_START_YEARS = (1990, 2035)


@dataclass(frozen=True)
class Batch:
    """Windows of a training batch.

    Attributes:
        bars: `(windows, bars, 6)` float32, normalised with each window's lookback and clipped.
        stamps: `(windows, bars, 5)` uint8, minute, hour, weekday, day, month.
    """

    bars: np.ndarray
    stamps: np.ndarray


class PretrainingBars:
    """Simulated tickers in memory, and random windows of them."""

    def __init__(self, seed: int, tickers: int, bars: int) -> None:
        """Simulate.

        Args:
            seed: the same seed gives the same tickers.
            tickers: number of tickers.
            bars: bars per ticker.
        """
        self.values = np.empty((tickers, bars, len(FEATURES)))
        self.stamps = np.empty((tickers, bars, 5), np.uint8)
        for ticker in range(tickers):
            stream = [PRETRAINING_STREAM, seed, ticker]
            rng = np.random.default_rng([*stream, 1])
            dynamics = random_dynamics(rng)
            shared = _SHARED[int(rng.integers(len(_SHARED)))].scaled(dynamics.step * rng.normal())
            simulated = simulate_ticker(
                [*stream, 0],
                bars,
                start=_random_start(rng),
                frequency=str(rng.choice(list(_FREQUENCIES), p=list(_FREQUENCIES.values()))),
                dynamics=dynamics,
                calendar=shared if rng.random() < 0.35 else None,
            )
            self.values[ticker] = simulated.values
            stamps = simulated.timestamps
            columns = (stamps.minute, stamps.hour, stamps.weekday, stamps.day, stamps.month)
            self.stamps[ticker] = np.stack(columns, axis=1)
            if rng.random() < 0.1:
                self.values[ticker, :, FEATURES.index("volume") :] = 0  # as for a ticker without volume

    def batch(self, rng: np.random.Generator, windows: int, lookback: int, horizon: int) -> Batch:
        """Cut random windows of `lookback + horizon + 1` bars, normalised by the lookback bars alone."""
        length = lookback + horizon + 1
        tickers = rng.integers(len(self.values), size=windows)[:, None]
        starts = rng.integers(self.values.shape[1] - length + 1, size=windows)[:, None]
        rows = starts + np.arange(length)
        values = self.values[tickers, rows]
        mean, std = lookback_statistics(values[:, :lookback])
        return Batch(normalise(values, mean, std), self.stamps[tickers, rows])


def random_dynamics(rng: np.random.Generator) -> Dynamics:
    """Draw the dynamics of a ticker: from a random walk to a strong mean reversion, with any calendar strength."""
    step = 0.01 * np.exp(rng.normal(0, 0.7))
    # Share of a bar's variance that dies out; a fifth of the tickers are plain random walks.
    reverting = 0.0 if rng.random() < 0.2 else rng.uniform(0, 1)
    half_life = np.exp(rng.uniform(np.log(1.5), np.log(40)))
    strength = 0.0 if rng.random() < 0.2 else rng.uniform(0, 1.2)
    return Dynamics(
        walk=step * np.sqrt(1 - reverting),
        deviation=step * np.sqrt(reverting),
        decay=0.5 ** (1 / half_life),
        month_drift=0.3 * step * strength,
        day_drift=0.3 * step * strength,
        weekday_level=step * rng.uniform(0, 1) * strength,
        hour_level=2 * step * rng.uniform(0, 1) * strength,
    )


def _random_start(rng: np.random.Generator) -> pd.Timestamp:
    first, last = (pd.Timestamp(year=year, month=1, day=1) for year in _START_YEARS)
    return first + pd.Timedelta(minutes=int(rng.integers((last - first) // pd.Timedelta(minutes=1))))
