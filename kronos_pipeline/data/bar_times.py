"""Decide what the times of a ticker's bars mean.

two bar sizes      bars of a day followed by bars of an hour: refused, at the bar where the size changes
daily bars         one per date, at hour 0 of the exchange's date, whatever time of day the exporter stamped
forming last bar   a last bar that is not over: its time is off those of the others, or its end is later than now
moved session      a session that begins and ends at other times from a date on, in a file without a zone
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kronos_pipeline.data.bar_schedule import BoolArray, IntArray, StampArray
from kronos_pipeline.data.bar_stamps import (
    DAY,
    HALF_HOUR,
    HOUR,
    MONTHLY,
    Stamps,
    clock,
    duration,
    make_stamps,
    most_frequent,
)
from kronos_pipeline.data.session_moves import find_moves

_DAILY = DAY * 9 // 10
"""Nanoseconds: a clock change makes one day of a year 23 hours long."""

_RUN = 8
"""Steps of another size, one after another, that are no accident."""
_RARE_RUN = 24
"""The same for coarser steps of less than a day, which a ticker that trades rarely has by accident."""
_FINER, _COARSER = 0.875, 1.5
"""Largest finer and smallest coarser step, in usual steps: a holiday makes a week a day shorter or longer."""
_FINE_SHARE, _COARSE_SHARE = 0.4, 0.6
"""Smallest share of a run's steps of the same length: nights cut bars of hours, weekends cut bars of days."""

_EVENING, _LATE_EVENING = 11 * HOUR, 20 * HOUR
"""Earliest times of day of a session of the next date: midnight in New Zealand, and openings, both in UTC."""
_FEW_DOUBLES = 0.2
"""Largest fraction of dates with several bars in a file of daily bars."""
_REGULAR = 0.9
"""Smallest fraction of bars at regular times of day or at regular phases of their interval."""

_FARTHEST_ZONE = 14 * HOUR
_REGULAR_GAPS = 0.8
_SHORTEST_CLOSE = 16 * HOUR
"""Time of day at which the exchanges of a zone have closed, or close soon."""
_SHORTEST_SESSION = 6 * HOUR + HALF_HOUR
_WEEKEND = 56 * HOUR
"""A week of bars is over on Friday at 16:00."""


@dataclass(frozen=True)
class BarTimes:
    """The arranged times of a ticker's bars.

    Attributes:
        times: datetime64[ns], `(bars,)`, in the file's local time; daily and slower bars have the exchange's date and
            hour and minute 0.
        zone: the zone of the times, or None; None for dates of an exchange that differ from the dates of the file.
        forming: index of a last bar that is still forming and is to be left out, or None.
        problems: (bar, rule) of each bar that makes the file invalid.
        notes: (bar, note) of each decision; the bar is None for a decision about all bars.
        temporary: True if a later reading may give other bars or notes.
    """

    times: StampArray
    zone: str | None = None
    forming: int | None = None
    problems: tuple[tuple[int, str], ...] = ()
    notes: tuple[tuple[int | None, str], ...] = ()
    temporary: bool = False


def arrange_bars(times: StampArray, zone: str | None, now: pd.Timestamp, *, keep_forming: bool = False) -> BarTimes:
    """Arrange the times of a ticker's bars.

    Args:
        times: datetime64[ns], `(bars,)`, sorted, without NaT and without repeats, in the file's local time.
        zone: the time zone that the file states, as in `ParsedTimes`, or None.
        now: the time of reading, with a zone.
        keep_forming: keep a last bar that is still forming, with a note.
    """
    arranged = BarTimes(times, zone)
    if len(times) < 3:
        return arranged
    stamps = make_stamps(times)
    if (change := _find_size_change(stamps)) is not None:
        return replace(arranged, problems=(change,))
    dates = _exchange_dates(stamps) if stamps.median >= _DAILY else None
    if dates is None or _has_sessions(stamps, dates):
        moves = find_moves(stamps) if zone is None else []
        arranged = replace(arranged, notes=tuple(moves))
        return _leave_out_forming(arranged, stamps, _forming_intraday(stamps, zone, now), keep_forming)
    last = len(dates) - 1
    doubled = np.flatnonzero(dates[1:] == dates[:-1]) + 1
    clocks = stamps.clocks
    if len(doubled) and (doubled[0] != last or (clocks[:-1] == clocks[-1]).any()):
        return replace(arranged, problems=tuple(_doubled_rule(stamps, int(bar)) for bar in doubled))
    same_days = bool((dates == stamps.days).all())
    # Dates of the exchange that are not the dates of the stated zone have no zone.
    midnights = (dates * DAY).astype("datetime64[ns]")
    arranged = replace(arranged, times=midnights, zone=zone if same_days else None)
    if len(doubled):
        double = _Reason(f"its date has another bar, at {clock(stamps.times[-2])}")
        arranged = _leave_out_forming(arranged, stamps, double, keep_forming=False)
    else:
        arranged = _leave_out_forming(arranged, stamps, _forming_daily(stamps, dates, zone, now), keep_forming)
    if clocks[: arranged.forming].any():
        moved = "" if same_days else ", the day after where it opens in the evening"
        note = f"daily or slower bars have times of day; each gets the date of its session, at hour 0{moved}"
        arranged = replace(arranged, notes=((None, note), *arranged.notes))
    return arranged


@dataclass(frozen=True)
class _Reason:
    """Why the last bar is forming: surely or perhaps, for good or until later."""

    text: str
    sure: bool = True
    temporary: bool = False


def _leave_out_forming(arranged: BarTimes, stamps: Stamps, reason: _Reason | None, keep_forming: bool) -> BarTimes:
    if reason is None:
        return arranged
    last = len(stamps.times) - 1
    state = "is still forming" if reason.sure else "may still be forming"
    keeps_bar = keep_forming or not reason.sure
    decision = "kept" if keeps_bar else "left out"
    note = f"the last bar, {_text(stamps.times[-1])}, {state} and is {decision}: {reason.text}"
    notes = (*arranged.notes, (last, note))
    return replace(arranged, forming=None if keeps_bar else last, notes=notes, temporary=reason.temporary)


def _find_size_change(stamps: Stamps) -> tuple[int, str] | None:
    """Find the first bar of another size, if a file holds bars of two sizes.

    A run of steps of another size must be regular: in a ticker that trades rarely, the time from a bar to the next
    varies.
    """
    steps, usual = stamps.steps, stamps.usual
    for finer in (True, False):
        other = steps < _FINER * usual if finer else steps > _COARSER * usual
        runs = [(start, stop) for start, stop in _runs(other) if stop - start >= _RUN]
        if finer and runs and float((steps[~other] == usual).mean()) < _FINE_SHARE:
            continue
        for start, stop in runs:
            run = steps[start:stop]
            size = most_frequent(run)
            same = np.abs(run - size) <= (0.15 * size if size >= 6 * DAY else 0)
            rare = not finer and size < _DAILY and stop - start < _RARE_RUN
            if rare or same.mean() < (_FINE_SHARE if finer else _COARSE_SHARE):
                continue
            start = _first_of_many(steps == size, start) if start else start
            if not (steps[:start] == usual).any():  # a night before the run is no bar of the usual size
                start = 0
            before, after = (usual, size) if start else (size, usual)
            changed = steps[start:] == size if start else steps[stop:] == usual
            bar = int((start or stop) + (changed.argmax() if changed.any() else 0))
            rule = (
                f"bars of {duration(before)} change to bars of {duration(after)}; keep each size in a file of its own"
            )
            return bar, rule
    return None


def _runs(flags: BoolArray) -> Iterator[tuple[int, int]]:
    """Return the first index of each run of True, and the index after its last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _first_of_many(flags: BoolArray, start: int) -> int:
    """Go back from an index to the first True that is followed by others at short distances."""
    before = np.flatnonzero(flags[: start + 1])
    breaks = np.flatnonzero(np.diff(np.append(before, start)) > _RUN)
    indices = before[breaks[-1] + 1 :] if len(breaks) else before
    return int(indices[0]) if len(indices) else start


def _exchange_dates(stamps: Stamps) -> IntArray:
    """Return the date of each daily or slower bar, in days since 1970.

    A session may open on the evening before its date, in UTC or in the exchange's own time, and an end of a session may
    be stamped on the day after. The weekdays tell: dates that are moved to their session leave weekends free.
    """
    dates, clocks = stamps.days, stamps.clocks
    if not clocks.any():
        return dates
    evening = (clocks >= _LATE_EVENING) | ((clocks >= _EVENING) & (clocks % HALF_HOUR == 0))
    shifted = dates.copy()
    for group, shift in ((evening, 1), (~evening, -1)):
        group_dates = dates[group]
        if not len(group_dates):
            continue
        fewer = int(_weekend(group_dates).sum()) - int(_weekend(group_dates + shift).sum())
        monthly = stamps.median >= MONTHLY and (_day_of_month(group_dates + shift) == 1).all()
        if fewer > 0.05 * len(group_dates) or (shift == 1 and monthly):
            shifted[group] += shift
    # Bars in the wrong order would be no improvement.
    return shifted if (np.diff(shifted) >= 0).all() else dates


def _has_sessions(stamps: Stamps, dates: IntArray) -> bool:
    """Tell sessions of several a day, or rare trades, from daily bars with a few dates twice."""
    doubled = int((dates[1:] == dates[:-1]).sum())
    if not doubled:
        return False
    _, counts = np.unique(stamps.clocks, return_counts=True)
    frequent = int(np.sort(counts)[-2:].sum())  # winter and summer
    distinct = len(dates) - doubled
    return doubled > _FEW_DOUBLES * distinct + 1 or frequent < _REGULAR * distinct


def _doubled_rule(stamps: Stamps, bar: int) -> tuple[int, str]:
    before, after = stamps.times[bar - 1], stamps.times[bar]
    return bar, f"a second bar of a date of daily bars, at {clock(after)} beside {clock(before)}; remove one of both"


def _forming_daily(stamps: Stamps, dates: IntArray, zone: str | None, now: pd.Timestamp) -> _Reason | None:
    """Return why the last of daily or slower bars is forming, or None."""
    clocks = stamps.clocks
    if clocks.any():
        regular, counts = np.unique(clocks[:-1], return_counts=True)
        few_clocks = counts[counts > 1].sum() >= _REGULAR * counts.sum()
        # Daylight saving moves a session by an hour.
        if few_clocks and not (np.isin(np.abs(regular - clocks[-1]), (0, HOUR))).any():
            return _Reason(f"its time of day, {clock(clocks[-1])}, is not that of the others")
    step = stamps.median
    if step < 6 * DAY:
        return _forming_by_clock(stamps, dates, zone, now)
    gaps = np.diff(dates) * DAY
    regular_gaps = (np.abs(gaps - step) <= 0.15 * step).mean() >= _REGULAR_GAPS
    if len(gaps) > 3 and regular_gaps and gaps[-1] < min(0.75 * step, gaps[:-1].min()):
        return _Reason(f"it comes {duration(int(gaps[-1]))} after the bar before, and others after {duration(step)}")
    return _forming_by_clock(stamps, dates, zone, now)


def _forming_by_clock(stamps: Stamps, dates: IntArray, zone: str | None, now: pd.Timestamp) -> _Reason | None:
    """Return whether the last of daily or slower bars ends later than now, or may do so."""
    last, step = int(stamps.times[-1]), stamps.median
    if zone is None:
        # A bar that is named after its end may be later than now in every zone.
        ahead = now.tz_convert("UTC") + pd.Timedelta(_FARTHEST_ZONE, "ns")
        later = dates[-2:] * DAY > ahead.tz_localize(None).value
        only_last = step > 2 * DAY and later.tolist() == [False, True]
        return _Reason("its date is later than now", temporary=True) if only_last else None
    if step < 2 * DAY:
        latest_end = last + DAY
        earliest_end = latest_end
        if len(dates) >= 5 and not _weekend(dates).any():
            earliest_end = last + (_SHORTEST_SESSION if last % DAY else _SHORTEST_CLOSE)
    elif _named_after_end(dates, step):
        latest_end = earliest_end = last + DAY if step >= MONTHLY else last
    else:
        latest_end = int(dates[-1]) * DAY + step
        earliest_end = latest_end - _WEEKEND
    latest, earliest = _utc(latest_end, zone), _utc(earliest_end, zone)
    if now >= latest:
        return None
    text = f"its time is up at {latest:%Y-%m-%d %H:%M} UTC, later than now"
    return _Reason(text, sure=now < earliest, temporary=True)


def _named_after_end(dates: IntArray, step: int) -> bool:
    """Return whether weeks or months are named after their last day: on Thursday or later, or after the 23rd."""
    late_dates = _day_of_month(dates) > 23 if step >= MONTHLY else (dates + 3) % 7 >= 3
    return bool(late_dates.mean() > 0.5)


def _forming_intraday(stamps: Stamps, zone: str | None, now: pd.Timestamp) -> _Reason | None:
    """Return why the last of intraday bars is forming, or None."""
    phases = stamps.times % stamps.usual
    regular, counts = np.unique(phases[:-1], return_counts=True)
    few_phases = len(regular) == 1 or (len(regular) <= len(phases) // 20 and counts.min() > 1)
    if few_phases and phases[-1] not in regular:
        return _Reason("its time is off the grid of the others")
    if zone is None:
        return None
    end = _utc(int(stamps.times[-1]) + stamps.usual, zone)
    if end <= now:
        return None
    return _Reason(f"its time is up at {end:%Y-%m-%d %H:%M} UTC, later than now", temporary=True)


def _weekend(dates: IntArray) -> BoolArray:
    return (dates + 3) % 7 >= 5  # 1970-01-01 was a Thursday


def _day_of_month(dates: IntArray) -> IntArray:
    days = dates.astype("datetime64[D]")
    return (days - days.astype("datetime64[M]")).astype(np.int64) + 1


def _utc(local: int, zone: str) -> pd.Timestamp:
    # Take the eastern of the winter and summer offsets: a bar unfinished by it is unfinished by the other too.
    return pd.Timestamp(local).tz_localize(zone.split("/")[-1]).tz_convert("UTC")


def _text(stamp: int) -> str:
    return str(pd.Timestamp(int(stamp)))
