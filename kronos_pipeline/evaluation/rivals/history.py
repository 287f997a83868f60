"""Known bars of a ticker as the volatility rivals read them, and the random numbers of a cutoff."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kronos_pipeline.checksums import text_hash
from kronos_pipeline.data.bar_schedule import IntArray, StampArray
from kronos_pipeline.data.bars import FEATURES, Bars, FloatArray, column_matrix
from kronos_pipeline.data.jumps import find_jumps
from kronos_pipeline.evaluation.rivals.measures import garman_klass, log_returns, range_variance

FITTED_BARS = 2_000
"""Number of newest bars that a model is fitted on: eight years of daily bars."""

_OPEN, _HIGH, _LOW, _CLOSE = (FEATURES.index(price) for price in ("open", "high", "low", "close"))


@dataclass(frozen=True)
class History:
    """Returns and ranges of a ticker's bars, and the bars that parameters may depend on.

    Item k of the series belongs to bar k + 1, so a forecast with the cutoff `origin` knows the items before `origin`.

    Attributes:
        ticker: the symbol.
        stamps: time of each bar, `(bars,)`.
        close: close of each bar, `(bars,)`.
        returns: log change from the close before, `(bars - 1,)`; 0 over a jump like an unadjusted split.
        ranges: `range_variance` of each bar, `(bars - 1,)`; over a jump without the change from close to open.
        without_range: whether the high equals the low, `(bars - 1,)`.
        fitted: the items that parameters are fitted on: those of the newest `FITTED_BARS` bars before a given bar.
    """

    ticker: str
    stamps: StampArray
    close: FloatArray
    returns: FloatArray
    ranges: FloatArray
    without_range: np.ndarray
    fitted: slice

    @property
    def fitted_returns(self) -> FloatArray:
        """The returns that parameters are fitted on."""
        return self.returns[self.fitted]


def read_history(bars: Bars, fitted_until: int, *, keep_jumps: bool = False) -> History:
    """Compute the series of a ticker.

    Args:
        bars: the ticker's bars, two or more.
        fitted_until: index of the first bar that no parameter may depend on.
        keep_jumps: take a jump like an unadjusted split as a return.
    """
    values = column_matrix(bars.frame, FEATURES)
    returns, ranges = log_returns(values[:, _CLOSE]), range_variance(values)[1:]
    if not keep_jumps:
        jumps = find_jumps(values, fitted_until).bars - 1
        returns[jumps], ranges[jumps] = 0.0, garman_klass(values)[1:][jumps]
    return History(
        ticker=bars.ticker,
        stamps=bars.frame["timestamps"].to_numpy(),
        close=values[:, _CLOSE],
        returns=returns,
        ranges=ranges,
        without_range=(values[:, _HIGH] == values[:, _LOW])[1:],
        fitted=slice(max(fitted_until - 1 - FITTED_BARS, 0), fitted_until - 1),
    )


@dataclass(frozen=True)
class Draws:
    """Source of the random numbers of a ticker's paths.

    The numbers of a cutoff depend on its time, the ticker and the seed: other cutoffs, other prices and more paths do
    not change them.

    Attributes:
        keys: a text per cutoff.
        paths: number of paths per cutoff.
        horizon: bars ahead.
    """

    keys: tuple[str, ...]
    paths: int
    horizon: int

    def normal(self) -> FloatArray:
        """Draw from the standard normal distribution, `(cutoffs, paths, horizon)`."""
        return self._draw(lambda generator, shape: generator.standard_normal(shape))

    def student(self, freedom: float) -> FloatArray:
        """Draw from Student's t with `freedom` > 2 degrees, scaled to variance 1, `(cutoffs, paths, horizon)`."""
        drawn = self._draw(lambda generator, shape: generator.standard_t(freedom, shape))
        scaled: FloatArray = drawn * np.sqrt((freedom - 2) / freedom)
        return scaled

    def indices(self, count: int) -> IntArray:
        """Draw indices below `count`, with replacement, `(cutoffs, paths, horizon)`."""
        return self._draw(lambda generator, shape: generator.integers(count, size=shape))

    def _draw(self, draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]) -> np.ndarray:
        """Draw `(paths, horizon)` numbers per cutoff, each time from the start of the cutoff's generator."""
        shape = self.paths, self.horizon
        drawn = [draw(np.random.default_rng(int(text_hash(key)[:32], 16)), shape) for key in self.keys]
        return np.stack(drawn)


def draws_of(history: History, origins: IntArray, seed: int, paths: int, horizon: int) -> Draws:
    """Return the source of the random numbers of a ticker's cutoffs; `origins` are indices of bars, `(cutoffs,)`."""
    times = history.stamps[origins].astype("datetime64[ns]").astype(np.int64)
    return Draws(tuple(f"{seed} {history.ticker} {time}" for time in times), paths, horizon)
