"""Times of bars as nanoseconds, their steps, and their words in notes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kronos_pipeline.data.bar_schedule import IntArray, StampArray
from kronos_pipeline.errors import count

MINUTE = 60_000_000_000
HALF_HOUR, HOUR = 30 * MINUTE, 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY
MONTHLY = 27 * DAY
_UNITS = ((WEEK, "week"), (DAY, "day"), (HOUR, "hour"), (MINUTE, "minute"), (MINUTE // 60, "second"))


@dataclass(frozen=True)
class Stamps:
    """Bar times as nanoseconds since 1970, in local time.

    Attributes:
        times: the times, `(bars,)`.
        steps: the time from each bar to the next, `(bars - 1,)`.
        usual: the most frequent step.
        median: the median step.
    """

    times: IntArray
    steps: IntArray
    usual: int
    median: int

    @property
    def days(self) -> IntArray:
        """Days since 1970."""
        return self.times // DAY

    @property
    def clocks(self) -> IntArray:
        """Nanoseconds since midnight."""
        return self.times % DAY


def make_stamps(times: StampArray) -> Stamps:
    """Return the times of three bars or more as nanoseconds, with their steps.

    Args:
        times: datetime64, `(bars,)`, sorted, in local time.
    """
    stamps = np.asarray(times).astype("datetime64[ns]").astype(np.int64)
    steps = np.diff(stamps)
    # numpy's median takes ten times as long for the few distinct steps of bars.
    distinct, counts = np.unique(steps, return_counts=True)
    median = int(distinct[np.searchsorted(np.cumsum(counts), len(steps) / 2)])
    return Stamps(stamps, steps, int(distinct[counts.argmax()]), median)


def most_frequent(values: IntArray) -> int:
    """Return the most frequent value, the smallest of several."""
    distinct, counts = np.unique(values, return_counts=True)
    return int(distinct[counts.argmax()])


def duration(nanoseconds: int) -> str:
    """Return a duration in words, in its largest whole unit: "90 minutes"."""
    if nanoseconds >= MONTHLY:
        return count(round(nanoseconds / (30.4 * DAY)), "month")
    size, unit = next(((size, unit) for size, unit in _UNITS if nanoseconds % size == 0), _UNITS[-1])
    return count(nanoseconds // size, unit)


def clock(nanoseconds: int) -> str:
    """Return the time of day of a stamp: "09:30:00"."""
    return f"{np.datetime64(int(nanoseconds) % DAY, 'ns').astype('datetime64[s]')}".partition("T")[2]
