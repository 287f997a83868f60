"""The times at which a ticker's bars are due: interval, weekdays and times of day.

A night, weekend or lunch break that returns every day or week is part of the schedule. A hole is a missing bar that the
schedule has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kronos_pipeline.errors import enumerate_some

StampArray = np.ndarray[tuple[int, ...], np.dtype[np.datetime64]]
IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

_DAY = np.timedelta64(1, "D").astype("timedelta64[ns]").astype(np.int64)
_NIGHT = _DAY // 8
"""Nanoseconds: a ticker with a daily pause of three hours or more trades in daily sessions."""
_DAILY = _DAY * 9 // 10
"""Nanoseconds: a clock change makes one day of a year 23 hours long."""
_REGULAR_DAYS = 0.2
"""Fraction of days that makes a time of day regular: daylight saving moves the hour of a session's edge."""
_FEW_DATES = 5
"""Dates needed to tell a regular pause from a hole; with fewer, every slot without a bar within a day is a hole."""
_SAME_INTERVAL = 1.2
_REGULAR_WEEKS = 0.5
"""Fraction of its dates with bars that makes a weekday regular."""


@dataclass(frozen=True)
class BarSchedule:
    """Weekly times at which bars are due.

    Attributes:
        interval: nanoseconds from one bar to the next, the most frequent difference.
        weekdays: `(7,)`, Monday first: True if bars are due.
        due: `(7, slots)`, True if a bar is due in that slot of that weekday; a slot is as long as the interval, and a
            day is one slot for daily and slower bars.
        sessions: True if trading stops for some hours each day.
    """

    interval: int
    weekdays: BoolArray
    due: BoolArray
    sessions: bool

    @property
    def daily(self) -> bool:
        """True for daily and slower bars."""
        return self.interval >= _DAILY

    def missing(self, stamps: StampArray) -> IntArray:
        """Count the bars missing between each bar and the next, `(bars - 1,)`.

        For trading round the clock, every due slot counts. For daily sessions, the due slots between two bars of one
        date count, and between two dates each due day counts as one bar: slots missing at a session's end are mostly a
        half holiday.
        """
        times = _nanoseconds(stamps)
        gaps = np.diff(times)
        missing = np.zeros(len(gaps), np.int64)
        wide = np.flatnonzero(gaps > self.interval * 3 // 2)
        before, after = times[wide], times[wide + 1]
        if self.interval > _DAY * 3 // 2:
            missing[wide] = np.rint(gaps[wide] / self.interval).astype(np.int64) - 1
        elif self.daily or self.sessions:
            days_before, days_after = before // _DAY, after // _DAY
            between = _days_due(days_before, days_after, self.weekdays)
            same_day = _slots_due(before, after, self.due, self.interval)
            missing[wide] = np.where(days_before == days_after, same_day, between)
        else:
            missing[wide] = _slots_due(before, after, self.due, self.interval)
        return missing


def find_bar_schedule(stamps: StampArray) -> BarSchedule:
    """Derive a ticker's schedule from its bar times, two at least, sorted and distinct."""
    times = _nanoseconds(stamps)
    interval = usual_interval(times)
    days = times // _DAY
    dates = _distinct(days)
    days_per_weekday = np.bincount((dates + 3) % 7, minlength=7)  # 1970-01-01 was a Thursday
    # Count each weekday's dates between the first and the last bar: a short file has incomplete weeks.
    possible_days = np.bincount((np.arange(dates[0], dates[-1] + 1) + 3) % 7, minlength=7)
    weekdays = days_per_weekday >= np.maximum(_REGULAR_WEEKS * possible_days, 1)
    slots = int(max(-(-_DAY // interval), 1))
    slot_of = (times % _DAY) // interval if slots > 1 else np.zeros(len(times), np.int64)
    # Count one bar per slot and date, as some bars may be denser than the interval.
    occupied = _distinct(days * slots + slot_of)
    per_slot = np.bincount(occupied % slots, minlength=slots)
    regular = per_slot >= _REGULAR_DAYS * len(dates)
    few_dates = len(dates) < _FEW_DATES
    pause = _longest_pause(_between_first_and_last(regular) if few_dates else regular) * interval
    # A single date cannot show that a pause returns.
    sessions = slots > 1 and pause >= _NIGHT and len(dates) > 1
    if few_dates:
        return BarSchedule(interval, weekdays, np.ones((7, slots), np.bool_), sessions)
    if sessions or slots == 1:
        return BarSchedule(interval, weekdays, np.broadcast_to(regular, (7, slots)), sessions)
    per_weekday = np.zeros((7, slots), np.int64)
    np.add.at(per_weekday, ((occupied // slots + 3) % 7, occupied % slots), 1)
    frequent = per_weekday >= np.maximum(_REGULAR_WEEKS * days_per_weekday, 1)[:, None]
    # Every slot between a weekday's first and last frequent slot is due, as a hole may hide a slot in a short file.
    due = _between_first_and_last(frequent) & regular
    return BarSchedule(interval, weekdays, due, sessions)


def usual_interval(times: IntArray) -> int:
    """Return the most frequent difference of sorted times, in nanoseconds, two at least."""
    differences, counts = np.unique(np.diff(times), return_counts=True)
    return int(differences[counts.argmax()])


def interval_name(interval: int) -> str:
    """Return the name of an interval in nanoseconds, such as "1 day"."""
    units = ((_DAY, "day"), (_DAY // 24, "h"), (_DAY // 1440, "min"))
    name = next((f"{interval // unit} {text}" for unit, text in units if interval % unit == 0), None)
    return name or f"{interval / 1e9:g} s"


def mixed_intervals(stamps: Mapping[str, StampArray]) -> str | None:
    """Name the tickers of each interval, such as "1 h: BTCUSD; 1 day: AAPL, MSFT"; None if all have the same.

    Intervals within a fifth of each other are the same: the months of one ticker may mostly have 30 days, and those of
    another 31.

    Args:
        stamps: the bar times of each ticker, sorted; a ticker with fewer than two is left out.
    """
    intervals = {ticker: usual_interval(_nanoseconds(times)) for ticker, times in stamps.items() if len(times) > 1}
    tickers_by_interval: dict[int, list[str]] = {}
    for ticker in sorted(intervals, key=lambda ticker: intervals[ticker]):
        interval = intervals[ticker]
        same = next((other for other in tickers_by_interval if interval < other * _SAME_INTERVAL), interval)
        tickers_by_interval.setdefault(same, []).append(ticker)
    if len(tickers_by_interval) < 2:
        return None
    return "; ".join(
        f"{interval_name(interval)}: {enumerate_some(tickers)}" for interval, tickers in tickers_by_interval.items()
    )


def _nanoseconds(stamps: StampArray) -> IntArray:
    return np.asarray(stamps).astype("datetime64[ns]").astype(np.int64)


def _distinct(values: IntArray) -> IntArray:
    """Return the distinct values of a sorted array."""
    return values[np.concatenate([[True], values[1:] != values[:-1]])]


def _between_first_and_last(slots: BoolArray) -> BoolArray:
    """Set every value from the first to the last True of the last axis."""
    from_first = np.logical_or.accumulate(slots, axis=-1)
    to_last = np.logical_or.accumulate(slots[..., ::-1], axis=-1)[..., ::-1]
    return from_first & to_last


def _longest_pause(regular: BoolArray) -> int:
    """Count the slots of the longest run without trading, across midnight."""
    trading = np.flatnonzero(regular)
    if len(trading) == 0:
        return 0
    return int(np.diff(np.append(trading, trading[0] + len(regular))).max()) - 1


def _days_due(first: IntArray, last: IntArray, weekdays: BoolArray) -> IntArray:
    """Count the days of regular weekdays strictly between two days."""
    if not weekdays.any():
        return np.zeros(len(first), np.int64)
    after_first = (first + 1).astype("datetime64[D]")
    return np.maximum(np.busday_count(after_first, last.astype("datetime64[D]"), weekmask=weekdays), 0)


def _slots_due(before: IntArray, after: IntArray, due: BoolArray, interval: int) -> IntArray:
    """Count the due slots strictly between the slots of two times."""
    week = due.ravel()
    slots = due.shape[1]
    running = np.concatenate([[0], np.cumsum(week)])

    def slot_of(times: IntArray) -> IntArray:
        return (times // _DAY + 3) * slots + (times % _DAY) // interval

    def count_before(slot: IntArray) -> IntArray:
        return slot // len(week) * running[-1] + running[slot % len(week)]

    return np.maximum(count_before(slot_of(after)) - count_before(slot_of(before) + 1), 0)
