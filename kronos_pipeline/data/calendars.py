"""The times of bars to come: by an exchange's calendar where one is set, else by the ticker's own schedule.

    own schedule   the newest weeks show which slots of which weekdays have a bar; holidays to come are not known
    exchange     the newest weeks show the slots of a day, the calendar its sessions: holidays, half days, lunch breaks

Times are in the file's own local time. With a calendar they are taken to the exchange's time and back, so that a file
in UTC follows the exchange's daylight saving. Bars slower than daily ones follow their own schedule alone.
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
_THURSDAY = 3  # 1970-01-01 was one; Monday is 0
_WEEKS = 5
"""Few enough that daylight saving is soon followed, enough that a holiday is outvoted."""
_SLOWER = DAY * 3 // 2
_MONTHLY = 27 * DAY
_ANCHORS = (MonthBegin, MonthEnd, BMonthBegin, BMonthEnd)
_SHOWN_MONTHS = 24
_FIT = 0.9
"""Of the newest bars so many must lie in a calendar's sessions: less, and it is another market's."""
_ZONE = re.compile(r"UTC(?:(?P<sign>[+-])(?P<hours>\d{2}):(?P<minutes>\d{2}))?")


@dataclass(frozen=True)
class WeeklySchedule:
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


@dataclass(frozen=True)
class _Sessions:
    """When an exchange trades, in its own local time: nanoseconds, `[start, stop)` each, by time."""

    starts: IntArray
    stops: IntArray

    def hold(self, times: IntArray, length: int) -> BoolArray:
        """Whether a bar that starts at each time and lasts `length` has a part in a session."""
        last = np.searchsorted(self.starts, times + length, side="left") - 1
        return (last >= 0) & (self.stops[last] > times)


def next_stamps(bars: Bars, count: int, calendars: Sequence[str]) -> pd.DatetimeIndex:
    """The times of a ticker's next bars, in the file's own local time.

    Args:
        bars: the ticker's bars, two at least.
        count: how many times.
        calendars: "XNYS" for all tickers, "AAPL=XNYS" for one, which comes first; names are those of
            exchange_calendars. A ticker without one follows its own schedule.

    Raises:
        SettingsError: a calendar is unknown or named twice, does not reach so far, or is not that of these bars.
    """
    name = find_calendar(bars.ticker, calendars)
    times = bars.frame["timestamps"].to_numpy("datetime64[ns]").astype(np.int64)
    recent = newest_week_times(times)
    week = find_weekly_schedule(recent)
    if week.slower:
        stamps = slow_bar_times(times, count)
    elif name is None:
        stamps = week.after(int(times[-1]), count)
    else:
        stamps = _exchange_stamps(bars, recent, count, name)
    return pd.DatetimeIndex(stamps.astype("datetime64[ns]"))


def find_calendar(ticker: str, calendars: Sequence[str]) -> str | None:
    """The calendar's name that is set for a ticker, or None.

    Raises:
        SettingsError: an entry, whichever ticker it is for, has no known calendar, or two are for the same.
    """
    found: dict[str | None, str] = {}
    for entry in calendars:
        symbol, equals, name = entry.strip().rpartition("=")  # the last, as a symbol such as EURUSD=X may hold one
        key = symbol.strip().upper() if equals else None
        if key == "":
            raise SettingsError(f"--calendars: {entry!r} names no ticker before the =; write AAPL=XNYS, or XNYS.")
        if key in found:
            raise SettingsError(f"--calendars: {key or 'all tickers'} has two calendars; keep one.")
        found[key] = _known(name.strip())
    return found.get(ticker.upper(), found.get(None))


def _known(name: str) -> str:
    import exchange_calendars  # takes a second

    names = exchange_calendars.get_calendar_names(include_aliases=True)
    by_case = {one.upper(): one for one in names}
    if name.upper() in by_case:
        return by_case[name.upper()]
    near = [by_case[one] for one in difflib.get_close_matches(name.upper(), by_case)]
    hint = f" Is it {' or '.join(near)}?" if near else ""
    raise SettingsError(
        f"--calendars: no exchange calendar is called {name!r}.{hint} Names are such as XNYS, XTKS, 24/5 and 24/7."
    )


def _exchange_stamps(bars: Bars, recent: IntArray, count: int, name: str) -> IntArray:
    """The next times by an exchange's calendar, in the file's local time, nanoseconds."""
    rough = find_weekly_schedule(recent)
    weeks_ahead = -(-count // max(int(rough.due.sum()), 1)) * 3 // 2 + 5
    calendar = _open_calendar(name, int(recent[0]), int(recent[-1]) + weeks_ahead * WEEK, bars.ticker)
    sessions = _sessions(calendar, rough.daily)

    best: tuple[float, tzinfo | None, int] = (0.0, None, 0)
    for zone in (None, *_zones(bars.time_zone)):
        local = _moved(recent, zone, calendar.tz)
        # Files stamp a bar by its start, and some by its end.
        for shift in (0,) if rough.daily else (0, rough.interval):
            fit = float(_hold(sessions, local - shift, rough).mean())
            best = max(best, (fit, zone, shift), key=lambda one: one[0])
    fit, zone, shift = best
    if fit < _FIT:
        raise SettingsError(
            f"{bars.ticker}: only {fit:.0%} of its newest bars lie in the sessions of calendar {name}; set its own "
            f"with --calendars {bars.ticker}=NAME, or none."
        )
    local = _moved(recent, zone, calendar.tz)
    week = find_weekly_schedule(local)
    days = np.arange(local[-1] // DAY, local[-1] // DAY + 7 * weeks_ahead)
    slots = np.flatnonzero(week.due.any(axis=0))
    grid = week.times(days[:, None], slots[None, :]).ravel()
    later = week.place(grid) > week.place(local[-1:])
    stamps = grid[later & _hold(sessions, grid - shift, week)][:count]
    if len(stamps) < count:
        raise SettingsError(
            f"{bars.ticker}: calendar {name} ends on {calendar.last_session:%Y-%m-%d}, before {count} bars ahead; "
            "bring exchange-calendars up to date, or set none."
        )
    return stamps if zone is None else _moved(stamps, calendar.tz, zone)


def _hold(sessions: _Sessions, times: IntArray, week: WeeklySchedule) -> BoolArray:
    return sessions.hold(times // DAY * DAY, 1) if week.daily else sessions.hold(times, week.interval)


def _open_calendar(name: str, first: int, last: int, ticker: str) -> Any:
    """The calendar from `first` to `last`, nanoseconds, a few days more on each side, cut where it ends."""
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
    """A calendar's sessions in its own local time: dates for daily bars, else hours, a lunch break parting two."""
    if daily:
        dates = calendar.sessions.to_numpy("datetime64[ns]").astype(np.int64)
        return _Sessions(dates, dates + DAY)
    opens, closes, pauses, resumes = (
        getattr(calendar, name).dt.tz_convert(calendar.tz).dt.tz_localize(None)
        for name in ("opens", "closes", "break_starts", "break_ends")
    )
    starts = pd.concat([opens, resumes.dropna()])
    stops = pd.concat([pauses.fillna(closes), closes[resumes.notna()]])
    return _Sessions(*(np.sort(one.to_numpy("datetime64[ns]").astype(np.int64)) for one in (starts, stops)))


def _zones(stated: str | None) -> list[tzinfo]:
    """The zones that a file says it is in, see `Bars.time_zone`; one that says nothing may be in UTC."""
    zones: list[tzinfo] = []
    for match in _ZONE.finditer(stated or "UTC"):
        minutes = int(match["hours"] or 0) * 60 + int(match["minutes"] or 0)
        zones.append(timezone(timedelta(minutes=-minutes if match["sign"] == "-" else minutes)))
    return zones


def _moved(times: IntArray, from_zone: tzinfo | None, to_zone: tzinfo) -> IntArray:
    """Local times of one zone as those of another; None is the zone that they go to."""
    if from_zone is None:
        return times
    index = pd.DatetimeIndex(times.astype("datetime64[ns]"))
    # An hour that comes twice or never is no trading hour of an exchange with daylight saving.
    zoned = index.tz_localize(from_zone, ambiguous=np.zeros(len(index), np.bool_), nonexistent="shift_forward")
    return zoned.tz_convert(to_zone).tz_localize(None).to_numpy("datetime64[ns]").astype(np.int64)


def newest_week_times(times: IntArray) -> IntArray:
    """The bars' times of the newest weeks that have bars, nanoseconds."""
    week = _week(times // DAY)
    return times[week >= np.unique(week)[-_WEEKS:][0]]


def find_weekly_schedule(times: IntArray) -> WeeklySchedule:
    """Observe the usual week in bars' times, nanoseconds, two at least, sorted and distinct."""
    schedule = find_bar_schedule(times.astype("datetime64[ns]"))
    interval = DAY if schedule.daily else schedule.interval
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
    return WeeklySchedule(interval, due, offsets, schedule.daily, schedule.interval > _SLOWER)


def slow_bar_times(times: IntArray, count: int) -> IntArray:
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
