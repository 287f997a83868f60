"""The times of bars to come: by an exchange's calendar where one is set, else by the ticker's own rhythm.

    own rhythm   the newest weeks show which slots of which weekdays have a bar; holidays to come are not known
    exchange     the newest weeks show the slots of a day, the calendar its sessions: holidays, half days, lunch breaks

Times are in the file's own local time. With a calendar they are taken to the exchange's time and back, so that a file
in UTC follows the exchange's daylight saving. Bars slower than daily ones follow their own rhythm alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta, timezone, tzinfo
from typing import Any

import numpy as np
import pandas as pd

from kronos_pipeline.data.bar_schedule import BoolArray, IntArray
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.usual_week import DAY, WEEK, UsualWeek, newest_weeks, slower_stamps, usual_week
from kronos_pipeline.errors import SettingsError

_FIT = 0.9
"""Of the newest bars so many must lie in a calendar's sessions: less, and it is another market's."""
_ZONE = re.compile(r"UTC(?:(?P<sign>[+-])(?P<hours>\d{2}):(?P<minutes>\d{2}))?")


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
            exchange_calendars. A ticker without one follows its own rhythm.

    Raises:
        SettingsError: a calendar is unknown or named twice, does not reach so far, or is not that of these bars.
    """
    name = find_calendar(bars.ticker, calendars)
    times = bars.frame["timestamps"].to_numpy("datetime64[ns]").astype(np.int64)
    recent = newest_weeks(times)
    week = usual_week(recent)
    if week.slower:
        stamps = slower_stamps(times, count)
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
    rough = usual_week(recent)
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
    week = usual_week(local)
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


def _hold(sessions: _Sessions, times: IntArray, week: UsualWeek) -> BoolArray:
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
