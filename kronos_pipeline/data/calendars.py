"""Predict the timestamps of a ticker's next bars, from an exchange calendar or from the ticker's weekly schedule.

    weekly schedule   the newest weeks give the slots of each weekday that have a bar; future holidays are unknown
    exchange          the newest weeks give the slots of a day, the calendar its holidays, half days and lunch breaks

Times are in the file's local time. With a calendar, times are converted to the exchange's time zone and back, so that
a file in UTC follows the exchange's daylight saving. Bars slower than daily use the ticker's schedule only.

`bar_schedule` finds missing bars and is lenient: a slot that a fifth of the days have may be due. Here a slot is due if
most of the newest weeks have it, so that a session edge moved by daylight saving is not forecast at both hours.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.offsets import BMonthBegin, BMonthEnd, DateOffset, MonthBegin, MonthEnd

from kronos_pipeline.data.bar_schedule import BoolArray, IntArray, find_bar_schedule
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.errors import SettingsError

DAY = 86_400_000_000_000
"""Nanoseconds."""
WEEK = 7 * DAY
_THURSDAY = 3  # the weekday of 1970-01-01; Monday is 0
_WEEKS = 5
"""Weeks observed: few enough to follow daylight saving soon, enough to outvote a holiday."""
_SLOWER = DAY * 3 // 2
_MONTHLY = 27 * DAY
_ANCHORS = (MonthBegin, MonthEnd, BMonthBegin, BMonthEnd)
_SHOWN_MONTHS = 24
_FIT = 0.9
"""Minimum fraction of the newest bars inside the calendar's sessions; below it, the calendar is of another market."""
_ZONE = re.compile(r"UTC(?:(?P<sign>[+-])(?P<hours>\d{2}):(?P<minutes>\d{2}))?")


@dataclass(frozen=True)
class WeeklySchedule:
    """Weekdays and time slots that have a bar.

    Attributes:
        interval: nanoseconds from one bar to the next, or a day for daily bars.
        due: `(7, slots)`, Monday first: True for a slot with a bar.
        offsets: `(slots,)`, nanoseconds from a slot's start to its bar's time.
        daily: True if a day is one slot.
        slower: True if bars are slower than daily; then `due` has no meaning.
    """

    interval: int
    due: BoolArray
    offsets: IntArray
    daily: bool
    slower: bool

    def slot_number(self, times: IntArray) -> IntArray:
        """Return the slot of each time, numbered through from 1970."""
        return times // DAY * len(self.offsets) + (0 if self.daily else times % DAY // self.interval)

    def times(self, days: IntArray, slots: IntArray) -> IntArray:
        """Return the bar times of slots on days since 1970."""
        return days * DAY + slots * self.interval + self.offsets[slots]

    def after(self, last: int, count: int) -> IntArray:
        """Return the times of the next `count` bars after the time `last`."""
        if DAY % self.interval and self.due.mean() > 0.9:  # the slots shift from day to day
            return last + self.interval * np.arange(1, count + 1)
        weeks = -(-count // int(self.due.sum())) + 2
        monday = last // DAY - (last // DAY + _THURSDAY) % 7
        days, slots = np.nonzero(np.tile(self.due, (weeks, 1)))
        times = self.times(monday + days, slots)
        return times[self.slot_number(times) > self.slot_number(np.array([last]))][:count]


@dataclass(frozen=True)
class _Sessions:
    """Trading sessions of an exchange in its local time: nanoseconds, `[start, stop)` each, ascending."""

    starts: IntArray
    stops: IntArray

    def overlap(self, times: IntArray, length: int) -> BoolArray:
        """Return, for each time, whether a bar from that time and of that length overlaps a session."""
        last = np.searchsorted(self.starts, times + length, side="left") - 1
        return (last >= 0) & (self.stops[last] > times)


def next_stamps(bars: Bars, count: int, calendars: Sequence[str]) -> pd.DatetimeIndex:
    """Predict the times of a ticker's next bars, in the file's local time.

    Args:
        bars: the ticker's bars, two at least.
        count: number of times.
        calendars: "XNYS" for all tickers, "AAPL=XNYS" for one ticker, which takes precedence; names of
            exchange_calendars. A ticker without a calendar follows its weekly schedule.

    Raises:
        SettingsError: a calendar is unknown, given twice, too short, or does not fit these bars.
    """
    name = find_calendar(bars.ticker, calendars)
    times = bars.frame["timestamps"].to_numpy("datetime64[ns]").astype(np.int64)
    recent = newest_week_times(times)
    if name is None or find_weekly_schedule(recent).slower:
        return next_times(times, count)
    return pd.DatetimeIndex(_exchange_stamps(bars, recent, count, name).astype("datetime64[ns]"))


def next_times(times: IntArray, count: int) -> pd.DatetimeIndex:
    """Predict the times of the next bars by the weekly schedule of the bars so far.

    Args:
        times: nanoseconds since 1970 of the bars, oldest first, two at least, `(bars,)`.
        count: number of times.
    """
    week = find_weekly_schedule(newest_week_times(times))
    stamps = slow_bar_times(times, count) if week.slower else week.after(int(times[-1]), count)
    return pd.DatetimeIndex(stamps.astype("datetime64[ns]"))


def find_calendar(ticker: str, calendars: Sequence[str]) -> str | None:
    """Return the name of the calendar set for a ticker, or None.

    Raises:
        SettingsError: any entry has an unknown calendar, or two entries are for the same ticker.
    """
    by_ticker: dict[str | None, str] = {}
    for entry in calendars:
        symbol, equals, name = entry.strip().rpartition("=")  # the last, as a symbol such as EURUSD=X may hold one
        key = symbol.strip().upper() if equals else None
        if key == "":
            raise SettingsError(f"--calendars: {entry!r} names no ticker before the =; write AAPL=XNYS, or XNYS.")
        if key in by_ticker:
            raise SettingsError(f"--calendars: {key or 'all tickers'} has two calendars; keep one.")
        by_ticker[key] = _calendar_name(name.strip())
    return by_ticker.get(ticker.upper(), by_ticker.get(None))


def _calendar_name(name: str) -> str:
    """Return the exchange_calendars name that equals `name` in any case."""
    import exchange_calendars  # takes a second

    by_upper_case = {
        calendar.upper(): calendar for calendar in exchange_calendars.get_calendar_names(include_aliases=True)
    }
    if name.upper() in by_upper_case:
        return by_upper_case[name.upper()]
    similar = [by_upper_case[match] for match in difflib.get_close_matches(name.upper(), by_upper_case)]
    hint = f" Is it {' or '.join(similar)}?" if similar else ""
    raise SettingsError(
        f"--calendars: no exchange calendar is called {name!r}.{hint} Names are such as XNYS, XTKS, 24/5 and 24/7."
    )


def _exchange_stamps(bars: Bars, recent: IntArray, count: int, name: str) -> IntArray:
    """Return the next times by an exchange's calendar, in the file's local time, nanoseconds."""
    schedule = find_weekly_schedule(recent)
    weeks_ahead = -(-count // max(int(schedule.due.sum()), 1)) * 3 // 2 + 5
    calendar = _open_calendar(name, int(recent[0]), int(recent[-1]) + weeks_ahead * WEEK, bars.ticker)
    sessions = _sessions(calendar, schedule.daily)

    best: tuple[float, tzinfo | None, int] = (0.0, None, 0)
    for zone in (None, *_zones(bars.time_zone)):
        local = _convert_zone(recent, zone, calendar.tz)
        # Most files stamp a bar with its start, some with its end.
        for shift in (0,) if schedule.daily else (0, schedule.interval):
            fit = float(_in_session(sessions, local - shift, schedule).mean())
            best = max(best, (fit, zone, shift), key=lambda candidate: candidate[0])
    fit, zone, shift = best
    if fit < _FIT:
        raise SettingsError(
            f"{bars.ticker}: only {fit:.0%} of its newest bars lie in the sessions of calendar {name}; set its own "
            f"with --calendars {bars.ticker}=NAME, or none."
        )
    local = _convert_zone(recent, zone, calendar.tz)
    week = find_weekly_schedule(local)
    days = np.arange(local[-1] // DAY, local[-1] // DAY + 7 * weeks_ahead)
    slots = np.flatnonzero(week.due.any(axis=0))
    grid = week.times(days[:, None], slots[None, :]).ravel()
    later = week.slot_number(grid) > week.slot_number(local[-1:])
    stamps = grid[later & _in_session(sessions, grid - shift, week)][:count]
    if len(stamps) < count:
        raise SettingsError(
            f"{bars.ticker}: calendar {name} ends on {calendar.last_session:%Y-%m-%d}, before {count} bars ahead; "
            "bring exchange-calendars up to date, or set none."
        )
    return stamps if zone is None else _convert_zone(stamps, calendar.tz, zone)


def _in_session(sessions: _Sessions, times: IntArray, week: WeeklySchedule) -> BoolArray:
    return sessions.overlap(times // DAY * DAY, 1) if week.daily else sessions.overlap(times, week.interval)


def _open_calendar(name: str, first: int, last: int, ticker: str) -> Any:
    """Open a calendar from a week before `first` to a week after `last`, nanoseconds, within the calendar's bounds."""
    import exchange_calendars

    known = exchange_calendars.get_calendar(name)
    start, end = (pd.Timestamp(time).normalize() for time in (first - WEEK, last + WEEK))
    start, end = max(start, known.bound_min() or start), min(end, known.bound_max() or end)
    if end - start < pd.Timedelta(WEEK):
        raise SettingsError(
            f"{ticker}: calendar {name} is known from {known.first_session:%Y-%m-%d} to "
            f"{known.last_session:%Y-%m-%d}, which its newest bars are not in; set none."
        )
    return exchange_calendars.get_calendar(name, start=start, end=end)


def _sessions(calendar: Any, daily: bool) -> _Sessions:
    """Return a calendar's sessions in its local time: dates for daily bars, else hours; a lunch break splits a day."""
    if daily:
        dates = calendar.sessions.to_numpy("datetime64[ns]").astype(np.int64)
        return _Sessions(dates, dates + DAY)
    opens, closes, pauses, resumes = (
        getattr(calendar, name).dt.tz_convert(calendar.tz).dt.tz_localize(None)
        for name in ("opens", "closes", "break_starts", "break_ends")
    )
    starts = pd.concat([opens, resumes.dropna()])
    stops = pd.concat([pauses.fillna(closes), closes[resumes.notna()]])
    return _Sessions(*(np.sort(edges.to_numpy("datetime64[ns]").astype(np.int64)) for edges in (starts, stops)))


def _zones(stated: str | None) -> list[tzinfo]:
    """Return the zones that a file states, see `Bars.time_zone`; UTC for a file without a zone."""
    zones: list[tzinfo] = []
    for match in _ZONE.finditer(stated or "UTC"):
        minutes = int(match["hours"] or 0) * 60 + int(match["minutes"] or 0)
        zones.append(timezone(timedelta(minutes=-minutes if match["sign"] == "-" else minutes)))
    return zones


def _convert_zone(times: IntArray, from_zone: tzinfo | None, to_zone: tzinfo) -> IntArray:
    """Convert local times from one zone to another; a `from_zone` of None leaves them unchanged."""
    if from_zone is None:
        return times
    index = pd.DatetimeIndex(times.astype("datetime64[ns]"))
    # The hour that daylight saving repeats or skips is not a trading hour.
    zoned = index.tz_localize(from_zone, ambiguous=np.zeros(len(index), np.bool_), nonexistent="shift_forward")
    return zoned.tz_convert(to_zone).tz_localize(None).to_numpy("datetime64[ns]").astype(np.int64)


def newest_week_times(times: IntArray) -> IntArray:
    """Return the bar times of the newest weeks that have bars, nanoseconds."""
    week = _week(times // DAY)
    return times[week >= np.unique(week)[-_WEEKS:][0]]


def find_weekly_schedule(times: IntArray) -> WeeklySchedule:
    """Derive the weekly schedule from bar times, nanoseconds, two at least, sorted and distinct."""
    schedule = find_bar_schedule(times.astype("datetime64[ns]"))
    interval = DAY if schedule.daily else schedule.interval
    slots = -(-DAY // interval)
    slot_of = times % DAY // interval
    remainders, counts = np.unique(np.stack([slot_of, times % DAY % interval]), axis=1, return_counts=True)
    order = np.argsort(counts, kind="stable")
    offsets = np.zeros(slots, np.int64)
    offsets[remainders[0, order]] = remainders[1, order]  # the most frequent offset is written last

    occupied = np.unique(times // DAY * slots + slot_of)
    span = np.arange(occupied[0], occupied[-1] + 1)
    due = _regular_slots(occupied, span, slots) & _regular_weekdays(times // DAY)[:, None]
    if not due.any():
        due = _count_per_week_slot(occupied, slots) > 0
    # A file of a few days does not cover every slot of a week; copy the slots of the days that it has.
    unseen = (_count_per_week_slot(span, slots) == 0) & ((np.arange(7) < 5) | due[5:].any())[:, None]
    due |= unseen & due.any(axis=0)
    return WeeklySchedule(interval, due, offsets, schedule.daily, schedule.interval > _SLOWER)


def slow_bar_times(times: IntArray, count: int) -> IntArray:
    """Predict the times of the next `count` bars of a ticker with bars slower than daily.

    Weekly bars keep their usual weekday. Monthly and slower bars keep their position in the month: the first or last
    day, the first or last weekday, or the date of the last bar.
    """
    gaps = np.diff(times)
    step = int(np.median(gaps))
    ahead = np.arange(1, count + 1)
    if step < _MONTHLY or np.mean(gaps == step) > 0.8:
        if step % WEEK:
            return times[-1] + step * ahead
        weekdays = (times // DAY + _THURSDAY) % 7
        shift = (weekdays[-1] - np.bincount(weekdays).argmax() + 3) % 7 - 3  # such as after a holiday on a Friday
        return times[-1] - shift * DAY + step * ahead

    last, time_of_day = pd.Timestamp(times[-1]).normalize(), times[-1] % DAY
    months = max(round(step / (365.2425 / 12 * DAY)), 1)
    dates = [pd.Timestamp(time).normalize() for time in times[-_SHOWN_MONTHS:]]
    fits = [np.mean([anchor().is_on_offset(date) for date in dates]) for anchor in _ANCHORS]
    if max(fits) <= 0.5:
        stamps: list[datetime] = [last + DateOffset(months=int(months * number)) for number in ahead]
    else:
        anchor = _ANCHORS[int(np.argmax(fits))]
        # Start half a month early, as a holiday may have moved the last bar.
        first = anchor().rollforward((last + pd.Timedelta(step - _MONTHLY // 2)).normalize())
        stamps = [first, *(first + anchor(int(months * number)) for number in ahead[:-1])]
    return pd.DatetimeIndex(stamps).to_numpy("datetime64[ns]").astype(np.int64) + time_of_day


def _week(days: IntArray) -> IntArray:
    return (days + _THURSDAY) // 7


def _regular_weekdays(days: IntArray) -> BoolArray:
    """Find weekdays with bars in at least half of the weeks that have bars, `(7,)`."""
    span = np.arange(days[0], days[-1] + 1)
    candidates = span[np.isin(_week(span), _week(days))]
    observed, possible = (np.bincount((dates + _THURSDAY) % 7, minlength=7) for dates in (np.unique(days), candidates))
    return (observed > 0) & (2 * observed >= possible)


def _regular_slots(occupied: IntArray, span: IntArray, slots: int) -> BoolArray:
    """Find slots with a bar on most dates of their weekday, or on half of them and the newest date, `(7, slots)`."""
    complete = _complete_dates(occupied, slots)
    observed, possible = (numbers[np.isin(numbers // slots, complete)] for numbers in (occupied, span))
    newest = np.zeros(7 * slots, np.bool_)
    newest[_week_slot(possible, slots)] = np.isin(possible, observed)  # ascending, so the newest date is written last
    return 2 * _count_per_week_slot(observed, slots) + newest.reshape(7, slots) > _count_per_week_slot(possible, slots)


def _complete_dates(occupied: IntArray, slots: int) -> IntArray:
    """Return the dates with bars, except the first and last, which may be cut, if their weekday has other dates."""
    dates = np.unique(occupied // slots)
    complete = (dates != dates[0]) & (dates != dates[-1]) | (slots == 1)
    weekdays = (dates + _THURSDAY) % 7
    return dates[complete | ~np.isin(weekdays, weekdays[complete])]


def _week_slot(numbers: IntArray, slots: int) -> IntArray:
    """Map slot numbers since 1970 to slot numbers in the week."""
    return (numbers // slots + _THURSDAY) % 7 * slots + numbers % slots


def _count_per_week_slot(numbers: IntArray, slots: int) -> IntArray:
    """Count the slot numbers that fall on each slot of each weekday, `(7, slots)`."""
    return np.bincount(_week_slot(numbers, slots), minlength=7 * slots).reshape(7, slots)
