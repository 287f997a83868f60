"""The week as a ticker's newest bars have it, and so when its next bars are due.

`rhythm` asks whether a bar is missing, and is lenient: a slot that a fifth of the days have may be due. Here a slot is
due where most of the newest weeks have it, so that a session's edge that moved with daylight saving is not forecast at
both hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd
from pandas.tseries.offsets import BMonthBegin, BMonthEnd, DateOffset, MonthBegin, MonthEnd

from kronos_pipeline.data.bar_schedule import BoolArray, IntArray, find_rhythm

DAY = 86_400_000_000_000
"""Nanoseconds."""
WEEK = 7 * DAY
_THURSDAY = 3  # 1970-01-01 was one; Monday is 0
_WEEKS = 5
"""Few enough that daylight saving is soon followed, enough that a holiday is outvoted."""
_SLOWER = DAY * 3 // 2
_MONTHLY = 27 * DAY
_ANCHORS = (MonthBegin, MonthEnd, BMonthBegin, BMonthEnd)
_SHOWN_MONTHS = 24


@dataclass(frozen=True)
class UsualWeek:
    """Which slots of which weekdays have a bar.

    Attributes:
        interval: nanoseconds from one bar to the next, or a day where bars are daily.
        due: `(7, slots)`, Monday first.
        offsets: `(slots,)`, nanoseconds from a slot's start to its bar's time.
        daily: True where a day is one slot.
        slower: True where bars are slower than daily ones, and `due` says nothing.
    """

    interval: int
    due: BoolArray
    offsets: IntArray
    daily: bool
    slower: bool

    def place(self, times: IntArray) -> IntArray:
        """The number of each time's slot, counted on from day to day."""
        return times // DAY * len(self.offsets) + (0 if self.daily else times % DAY // self.interval)

    def times(self, days: IntArray, slots: IntArray) -> IntArray:
        """The bars' times in these slots of these days since 1970."""
        return days * DAY + slots * self.interval + self.offsets[slots]

    def after(self, last: int, count: int) -> IntArray:
        """The times of the next `count` bars after a bar's."""
        if DAY % self.interval and self.due.mean() > 0.9:  # its slots move from day to day
            return last + self.interval * np.arange(1, count + 1)
        weeks = -(-count // int(self.due.sum())) + 2
        monday = last // DAY - (last // DAY + _THURSDAY) % 7
        days, slots = np.nonzero(np.tile(self.due, (weeks, 1)))
        times = self.times(monday + days, slots)
        return times[self.place(times) > self.place(np.array([last]))][:count]


def newest_weeks(times: IntArray) -> IntArray:
    """The bars' times of the newest weeks that have bars, nanoseconds."""
    week = _week(times // DAY)
    return times[week >= np.unique(week)[-_WEEKS:][0]]


def usual_week(times: IntArray) -> UsualWeek:
    """Observe the usual week in bars' times, nanoseconds, two at least, sorted and distinct."""
    rhythm = find_rhythm(times.astype("datetime64[ns]"))
    interval = DAY if rhythm.daily else rhythm.interval
    slots = -(-DAY // interval)
    slot_of = times % DAY // interval
    remainders, number = np.unique(np.stack([slot_of, times % DAY % interval]), axis=1, return_counts=True)
    order = np.argsort(number, kind="stable")
    offsets = np.zeros(slots, np.int64)
    offsets[remainders[0, order]] = remainders[1, order]  # the most frequent comes last, and stays

    places = np.unique(times // DAY * slots + slot_of)
    span = np.arange(places[0], places[-1] + 1)
    due = _often(places, span, slots) & _regular_weekdays(times // DAY)[:, None]
    if not due.any():
        due = _count(places, slots) > 0
    # A file of some days does not reach every slot of a week: those are as on the days that it has.
    unseen = (_count(span, slots) == 0) & ((np.arange(7) < 5) | due[5:].any())[:, None]
    due |= unseen & due.any(axis=0)
    return UsualWeek(interval, due, offsets, rhythm.daily, rhythm.interval > _SLOWER)


def slower_stamps(times: IntArray, count: int) -> IntArray:
    """The times of the next `count` bars of a ticker whose bars are slower than daily: of some days, weeks or months.

    Weekly bars keep their usual weekday. Monthly and slower ones keep their place in the month: its first or last day,
    its first or last weekday, or the date of the last bar.
    """
    gaps = np.diff(times)
    step = int(np.median(gaps))
    ahead = np.arange(1, count + 1)
    if step < _MONTHLY or np.mean(gaps == step) > 0.8:
        if step % WEEK:
            return times[-1] + step * ahead
        weekdays = (times // DAY + _THURSDAY) % 7
        astray = (weekdays[-1] - np.bincount(weekdays).argmax() + 3) % 7 - 3  # as where a Friday was a holiday
        return times[-1] - astray * DAY + step * ahead

    last, time_of_day = pd.Timestamp(times[-1]).normalize(), times[-1] % DAY
    months = max(round(step / (365.2425 / 12 * DAY)), 1)
    dates = [pd.Timestamp(time).normalize() for time in times[-_SHOWN_MONTHS:]]
    fits = [np.mean([anchor().is_on_offset(date) for date in dates]) for anchor in _ANCHORS]
    if max(fits) <= 0.5:
        stamps: list[datetime] = [last + DateOffset(months=int(months * number)) for number in ahead]
    else:
        anchor = _ANCHORS[int(np.argmax(fits))]
        # Half a month early, as the last bar may have missed its place by a holiday.
        first = anchor().rollforward((last + pd.Timedelta(step - _MONTHLY // 2)).normalize())
        stamps = [first, *(first + anchor(int(months * number)) for number in ahead[:-1])]
    return pd.DatetimeIndex(stamps).to_numpy("datetime64[ns]").astype(np.int64) + time_of_day


def _week(days: IntArray) -> IntArray:
    return (days + _THURSDAY) // 7


def _regular_weekdays(days: IntArray) -> BoolArray:
    """Weekdays that have bars in at least half of the weeks that have any, from the first bar to the last, `(7,)`."""
    span = np.arange(days[0], days[-1] + 1)
    could = span[np.isin(_week(span), _week(days))]
    came, could = (np.bincount((one + _THURSDAY) % 7, minlength=7) for one in (np.unique(days), could))
    return (came > 0) & (2 * came >= could)


def _often(places: IntArray, span: IntArray, slots: int) -> BoolArray:
    """Slots that most of their weekday's dates have, or half of them and the newest one, `(7, slots)`."""
    whole = _whole_dates(places, slots)
    came, could = (one[np.isin(one // slots, whole)] for one in (places, span))
    newest = np.zeros(7 * slots, np.bool_)
    newest[_cells(could, slots)] = np.isin(could, came)  # by time, so that the newest stays
    return 2 * _count(came, slots) + newest.reshape(7, slots) > _count(could, slots)


def _whole_dates(places: IntArray, slots: int) -> IntArray:
    """The dates that have bars, without the first and the last, which may be cut, where their weekday has others."""
    dates = np.unique(places // slots)
    whole = (dates != dates[0]) & (dates != dates[-1]) | (slots == 1)
    weekdays = (dates + _THURSDAY) % 7
    return dates[whole | ~np.isin(weekdays, weekdays[whole])]


def _cells(places: IntArray, slots: int) -> IntArray:
    """Of places, days times slots, the number of the slot in the week."""
    return (places // slots + _THURSDAY) % 7 * slots + places % slots


def _count(places: IntArray, slots: int) -> IntArray:
    """How many places fall on each slot of each weekday, `(7, slots)`."""
    return np.bincount(_cells(places, slots), minlength=7 * slots).reshape(7, slots)
