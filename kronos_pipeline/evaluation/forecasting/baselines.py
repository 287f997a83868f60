"""Baseline forecasts without a model, in NumPy; any model must beat them.

They read the bars that a model reads: the closes of the lookback, `(cutoffs, lookback)`, oldest first, in the file's
unit. The formulas are those of Hyndman and Athanasopoulos, Forecasting: Principles and Practice, section 5.2.
"""

from __future__ import annotations

import numpy as np

from kronos_pipeline.data.bar_schedule import StampArray, find_bar_schedule
from kronos_pipeline.data.bars import FloatArray

_DAY = np.timedelta64(1, "D")


def naive(closes: FloatArray, horizon: int) -> FloatArray:
    """Repeat the last close: `(cutoffs, horizon)`."""
    return np.repeat(closes[:, -1:], horizon, axis=1)


def random_walk_with_drift(closes: FloatArray, horizon: int) -> FloatArray:
    """Extend the line from the lookback's first close through its last: `(cutoffs, horizon)`."""
    slope = (closes[:, -1:] - closes[:, :1]) / (closes.shape[1] - 1)
    return closes[:, -1:] + slope * np.arange(1, horizon + 1)


def seasonal_naive(closes: FloatArray, season: int | None, horizon: int) -> FloatArray | None:
    """Repeat the lookback's last season: `(cutoffs, horizon)`; None if `no_season` has a reason.

    Args:
        closes: `(cutoffs, lookback)`.
        season: number of bars of the season, see `week_length`.
        horizon: bars ahead.
    """
    if season is None or no_season(season, closes.shape[1]):
        return None
    return closes[:, closes.shape[1] - season + np.arange(horizon) % season]


def no_season(season: int | None, lookback: int) -> str | None:
    """Return the reason that a lookback has no seasonal naive forecast, or None if it has one."""
    if season is None:
        return "the bars before the first cutoff span no whole week"
    if season > lookback:
        return f"the ticker's week has {season:,} bars, and the lookback {lookback:,}"
    return None


def week_length(stamps: StampArray) -> int | None:
    """Count the bars in a usual week of a ticker: 5 for daily stocks, 168 for hourly crypto, 1 for weekly bars.

    The count is the sum over the regular weekdays of the most frequent number of bars per date, so holidays, half days
    and sessions that move with daylight saving do not change it.

    Args:
        stamps: times of at least two bars, sorted and distinct: the bars before the first cutoff, as a forecast may
            know no others.

    Returns:
        The number of bars; None if the bars span no whole week.
    """
    times = np.asarray(stamps).astype("datetime64[ns]")
    rhythm = find_bar_schedule(times)
    dates, bars = np.unique(times.astype("datetime64[D]"), return_counts=True)
    # The first date and the last may be cut, unless a date is one bar.
    if dates[-1] - dates[0] < (6 * _DAY if rhythm.daily else 8 * _DAY):
        return None
    weekdays = (dates.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
    usual = [_most_frequent(bars[weekdays == weekday]) for weekday in np.flatnonzero(rhythm.weekdays)]
    return max(sum(usual), 1)


def _most_frequent(counts: np.ndarray) -> int:
    """Return the most frequent value, of several the largest: a file's first date and its last may be cut."""
    values, times = np.unique(counts[::-1], return_counts=True)
    return int(values[::-1][times[::-1].argmax()])
