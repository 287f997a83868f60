"""Parse the time columns of a CSV: format, time zone, and invalid cells.

Times stay in the file's local time: a daily bar keeps its calendar date. Offsets that change with daylight saving are
one time zone. If the end of daylight saving gave two bars the same local time, the whole file is read in standard time.

Arrow reads a column of ISO 8601 times. Other columns are counts since 1970, day numbers of a spreadsheet, or texts
that `time_texts` splits. The whole column decides what the cells leave open, such as the order of day and month.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.data.bar_schedule import BoolArray, IntArray, StampArray
from kronos_pipeline.data.date_orders import choose_order
from kronos_pipeline.data.time_column import DAY, MINUTE, NAT, NO_TIME, TimeColumn, share
from kronos_pipeline.data.time_numbers import NUMBER, parse_numbers
from kronos_pipeline.data.time_texts import MINGUO, MONTHS_ALONE, Zone, sample, split_clock, split_times
from kronos_pipeline.data.time_zones import DAYLIGHT_SAVING, find_offsets, zone_name
from kronos_pipeline.errors import enumerate_some

Texts: TypeAlias = "Sequence[str] | pa.StringArray"

_COMPACT = r"^\d{6}(?:\d{2}){0,4}(?:\.0*)?$"
_DECIMAL_COMMA = r"^(\d{5}),(\d+)$"
_HALF_DAY = 12 * 3600 * 1_000_000_000
_FARTHEST_ZONE = 14 * 60
"""Largest distance of a time zone from UTC, in minutes."""
_DATELESS_ORIGINS = (np.datetime64("1899-12-29"), np.datetime64("1900-01-02"))
"""Dates that spreadsheets give to a time of day alone."""


@dataclass(frozen=True)
class ParsedTimes:
    """The parsed time columns of a file.

    Attributes:
        local: datetime64[ns] in the file's local time, NaT for an invalid cell.
        zone: the zone that the file states, or None.
        problems: (row, rule) of each invalid cell, by row.
        notes: decisions about the whole column.
        column: the file's name of the column that the problems are about.
        row_notes: (row, note) of each decision that begins at a row.
    """

    local: pd.Series
    zone: str | None
    problems: tuple[tuple[int, str], ...]
    notes: tuple[str, ...] = ()
    column: str = ""
    row_notes: tuple[tuple[int, str], ...] = ()


def parse_time_columns(cells: Mapping[str, Texts]) -> ParsedTimes:
    """Parse the time columns of a file.

    A column of dates and a column of times of day are joined. Columns that hold the time twice must agree; a column
    with times of day is preferred to a column of dates, then a column with a zone, then the first column.

    Supported formats: ISO 8601, counts of seconds, milli-, micro- or nanoseconds since 1970 (in UTC), day numbers of a
    spreadsheet, 20240131, and dates such as 2024.01.31, 01/31/2024 or 31/01/2024 (if the file's dates decide between
    them), 31.01.24, 31-Jan-2024, Jan 31, 2024, 31. Januar 2024 and 2024年1月31日, each with or without a time of day,
    with an offset, an abbreviation or a name of a time zone or without.

    Args:
        cells: the columns that may hold the time, by the file's name, in order of preference.
    """
    arrays = {name: pc.utf8_trim_whitespace(pa.array(texts, pa.string())) for name, texts in cells.items()}
    if len(arrays) > 1:
        filled = {name: array for name, array in arrays.items() if pc.any(pc.not_equal(array, "")).as_py()}
        arrays = filled or arrays
    if len(arrays) == 1:
        [(name, array)] = arrays.items()
        if (plain := _plain(array)) is not None:
            return ParsedTimes(pd.Series(plain), None, (), column=name)
        return _finish(_parse(name, array))
    return _finish(_agree(_join(arrays)))


def _plain(texts: pa.StringArray) -> np.ndarray | None:
    """Parse cells that are all ISO 8601 without a zone, in a form that Arrow supports; None for other cells."""
    try:
        # Convert via microseconds, as a direct conversion would not detect years out of the range of nanoseconds.
        return pc.cast(pc.cast(texts, pa.timestamp("us")), pa.timestamp("ns")).to_numpy()
    except pa.ArrowInvalid:
        return None


def _parse(name: str, texts: pa.StringArray) -> TimeColumn:
    """Parse a single column."""
    if (plain := _plain(texts)) is not None:
        local = plain.astype(np.int64)
        return TimeColumn(name, local, clocked=bool((local % DAY).any()))
    sampled = sample(texts)
    if share(pc.match_substring_regex(sampled, _DECIMAL_COMMA)) > 0.5:
        texts = pc.replace_substring_regex(texts, _DECIMAL_COMMA, r"\1.\2")
        sampled = sample(texts)
    if share(pc.match_substring_regex(sampled, NUMBER)) > 0.5:
        # A number of 6 to 14 digits may also be a date without separators; its months and days tell.
        compact = pc.replace_substring_regex(texts, r"\.0*$", "")
        if not (share(pc.match_substring_regex(sampled, _COMPACT)) > 0.5 and share(_are_dates(sample(compact))) > 0.5):
            return parse_numbers(name, texts)
        texts = compact
    return _parse_texts(name, texts)


def _are_dates(texts: pa.StringArray) -> BoolArray:
    split = split_times(texts)
    return np.zeros(len(texts), np.bool_) if split is None else ~np.isnat(next(iter(split.dates.values())))


def _parse_texts(name: str, texts: pa.StringArray) -> TimeColumn:
    split = split_times(texts)
    if split is None:
        only_clocks = share(split_clock(sample(texts))[1]) > 0.5
        missing = "a time of day without a date; add a column with the date" if only_clocks else NO_TIME
        no_times = np.full(len(texts), NAT)
        return TimeColumn(
            name, no_times, problems={0: missing} if only_clocks else dict.fromkeys(range(len(texts)), missing)
        )
    order, note, rule = choose_order(split.dates, preferred="name" in split.form or "dots" in split.form)
    local = _add(split.dates[order], split.clock)
    valid = local != NAT
    column = TimeColumn(name, local, clocked=bool(split.clock[valid].any()))
    if rule is not None:
        column.local, column.problems = np.full(len(texts), NAT), {0: rule}
        column.readings = [_add(days, split.clock) for days in split.dates.values()]
        return column
    if note is not None:
        column.notes.append(note)
    if split.form == MINGUO:
        column.notes.append("years are those of the Minguo calendar, in which 113 is 2024")
    if split.form in MONTHS_ALONE:
        column.notes.append("months without a day are read as their first day")
    column.problems = dict.fromkeys(map(int, np.flatnonzero(~valid)), NO_TIME)
    column.offsets, problems = find_offsets(column, split.zone_of, split.zones)
    column.problems |= problems
    column.local[list(problems)] = NAT
    return column


def _add(days: StampArray, clock: IntArray) -> IntArray:
    """Return nanoseconds since 1970 of dates and times of day."""
    return np.where(np.isnat(days), NAT, days.astype("datetime64[ns]").astype(np.int64) + clock)


def _join(arrays: Mapping[str, pa.StringArray]) -> list[TimeColumn]:
    """Return the columns that hold whole times, with a column of dates and a column of times of day joined."""
    columns = {name: _parse(name, array) for name, array in arrays.items()}
    clocks = {name: _clock_column(columns[name], array) for name, array in arrays.items()}
    dated = [name for name, column in columns.items() if column.usable]
    if len(columns) > 1 and dated and all(clock is not None for clock in clocks.values()):
        # Day numbers can be times of day as well: 42801 is 04:28:01. Columns that are called a date come last.
        clocks[dated[-1]] = None
    full = [column for name, column in columns.items() if column.usable and clocks[name] is None]
    if not full:
        # Day numbers of a spreadsheet may look like times of day.
        full = [column for column in columns.values() if column.usable][:1]
        clocks |= {column.name: None for column in full}
    clock_name = next((name for name, clock in clocks.items() if clock is not None), None)
    if not full:
        # The dates may leave their order open, or no column may hold times.
        return [
            next((column for name, column in columns.items() if clocks[name] is None), next(iter(columns.values())))
        ]
    for column in columns.values():
        if column.readings:
            _resolve(column, full[0])
            full.append(column)
    ignored = [name for name, column in columns.items() if not column.usable and clocks[name] is None]
    if ignored:
        full[0].notes.append(f"columns without times that can be read: {enumerate_some(ignored)}")
    dates = next((column for column in full if not column.clocked), full[0])
    if clock_name is not None and (clock := clocks[clock_name]) is not None:
        _add_clock(dates, clock_name, clock)
        if dates is not full[0]:
            full.remove(dates)
            full.insert(0, dates)
    return full


def _resolve(column: TimeColumn, other: TimeColumn) -> None:
    """Choose the reading of a column that is nearest to the times of another column."""

    def distant(local: IntArray) -> int:
        both = (local != NAT) & other.readable
        return int((np.abs(local[both] - other.local[both]) > DAY).sum() + (local == NAT).sum())

    column.local = min(column.readings, key=distant)
    column.problems = {}


@dataclass(frozen=True)
class _Clock:
    """A column of times of day: nanoseconds since midnight, and the zones of `time_texts`."""

    times: IntArray
    readable: BoolArray
    zone_of: IntArray
    zones: tuple[Zone, ...]


def _clock_column(column: TimeColumn, texts: pa.StringArray) -> _Clock | None:
    """Return the times of day of a column that holds no dates, or None."""
    if column.usable:
        known = column.dates[column.readable]
        low, high = (edge.astype(np.int64) for edge in _DATELESS_ORIGINS)
        if ((known >= low) & (known <= high)).all():
            return _Clock(column.local % DAY, column.readable, np.full(len(known), -1), ())
        if share(pc.match_substring_regex(sample(texts), r"^\d{1,6}(?:\.0*)?$")) <= 0.5:
            return None
    if share(split_clock(sample(texts))[1]) <= 0.5:
        return None
    clock = _Clock(*split_clock(texts))
    return clock if share(clock.readable) > 0.5 else None


def _add_clock(dates: TimeColumn, name: str, clock: _Clock) -> None:
    """Join times of day to a column of dates."""
    readable = dates.readable
    if dates.clocked:
        different = readable & clock.readable & (dates.local % DAY != clock.times)
        if different.any():
            rows = np.flatnonzero(different)
            rule = f"has another time of day than {name}, {_clock_text(clock.times[rows[0]])}; keep one of both"
            dates.problems |= dict.fromkeys(map(int, rows), rule)
        return
    unreadable = readable & ~clock.readable
    rule = f"has no time of day that can be read in {name}; write it as 15:30"
    dates.problems |= dict.fromkeys(map(int, np.flatnonzero(unreadable)), rule)
    dates.local = np.where(readable & clock.readable, dates.local + clock.times, NAT)
    dates.clocked = bool(clock.times[clock.readable].any())
    if len(clock.zones) and (clock.zone_of >= 0).any():
        dates.offsets, problems = find_offsets(dates, clock.zone_of, clock.zones)
        dates.problems |= problems
        dates.local[list(problems)] = NAT
    dates.notes.append(f"times are {dates.name} and {name}, joined")


def _clock_text(nanoseconds: int) -> str:
    return str(np.datetime64(int(nanoseconds), "ns").astype("datetime64[s]")).partition("T")[2]


def _agree(columns: list[TimeColumn]) -> TimeColumn:
    """Return the column to read; the others must hold the same times."""
    best = max(columns, key=lambda column: (column.clocked, column.offsets is not None))  # the first of equal columns
    agreeing = []
    for other in columns:
        if other is best:
            continue
        both = best.readable & other.readable
        rows, shift = _disagreement(best, other, both)
        if len(rows):
            rule = (
                f"disagrees with {other.name}, which says {_time_text(other.local[rows[0]])}; remove a column, or "
                f"choose with --columns time={best.name}"
            )
            best.problems |= dict.fromkeys(map(int, rows), rule)
        elif shift is not None:
            best.local, best.offsets = other.local, shift
            best.notes.append(f"{other.name} holds the same times in local time, which is kept")
        else:
            agreeing.append(other.name)
    if agreeing:
        best.notes.append(f"times are read from {best.name}; {enumerate_some(agreeing)} agrees with it")
    return best


def _disagreement(best: TimeColumn, other: TimeColumn, both: BoolArray) -> tuple[IntArray, IntArray | None]:
    """Return the rows in which two columns disagree, and the offsets if `other` is in local time."""
    if not (best.clocked and other.clocked):
        # The exchange's date of a session that opens on the evening before in UTC is the next.
        shifts = (0, DAY // 2) if best.offsets is not None else (0,)
        wrong = [both & ((best.local + shift) // DAY != other.dates) for shift in shifts]
        fewest = min(wrong, key=lambda rows: int(rows.sum()))
        return np.flatnonzero(fewest), None
    second = 1_000_000_000
    pairs = [(best.instants, other.instants)]
    if best.offsets is None or other.offsets is None:
        pairs.append((best.local, other.local))
    wrong = [both & (first_clock // second != two // second) for first_clock, two in pairs]
    fewest = min(wrong, key=lambda rows: int(rows.sum()))
    if not fewest.any():
        return np.flatnonzero(fewest), None
    if best.offsets is not None and other.offsets is None and other.readable.all():
        minutes, seconds = np.divmod(other.local - best.instants, MINUTE)
        values = np.unique(minutes[both])
        interval = int(np.median(np.abs(np.diff(best.instants[both])))) // MINUTE if both.sum() > 1 else 0
        # An offset of one bar may also be the bar's end beside its beginning.
        if (
            not seconds[both].any()
            and not (values % 15).any()
            and np.abs(values).max() <= _FARTHEST_ZONE
            and values[-1] - values[0] <= DAYLIGHT_SAVING
            and interval not in np.abs(values)
        ):
            return np.zeros(0, np.int64), minutes
    return np.flatnonzero(fewest), None


def _time_text(nanoseconds: int) -> str:
    return str(pd.Timestamp(int(nanoseconds)))


def _finish(column: TimeColumn) -> ParsedTimes:
    """Decide the zone, and refuse times of day that lack AM and PM."""
    if (row := _find_second_morning(column)) is not None:
        rule = "goes back to the morning on the same date, as a time of day without AM or PM does; write it as 13:00"
        column.local, column.problems = np.full(len(column.local), NAT), {row: rule}
    local = column.local.astype("datetime64[ns]")  # the least integer is NaT
    parsed = ParsedTimes(
        pd.Series(local),
        None,
        tuple(sorted(column.problems.items())),
        tuple(column.notes),
        column.name,
        tuple(column.row_notes),
    )
    if column.offsets is None:
        return parsed
    readable = column.readable
    times, offsets = column.local[readable], column.offsets[readable]
    used = np.unique(offsets)
    zone = "/".join(zone_name(minutes) for minutes in used) or "UTC"
    # If local times and UTC times change in different directions, clocks were set back or lines are out of order.
    set_back = np.sign(np.diff(times)) != np.sign(np.diff(times - offsets * MINUTE))
    if not set_back.any():
        return replace(parsed, zone=zone)
    standard = int(used[0])
    zone = zone_name(standard)
    note = f"clocks were set back at {_time_text(times[int(set_back.argmax()) + 1])}: all times are read in {zone}"
    shifted = np.where(readable, column.local - (column.offsets - standard) * MINUTE, NAT).astype("datetime64[ns]")
    return replace(parsed, local=pd.Series(shifted), zone=zone, notes=(*parsed.notes, note))


def _find_second_morning(column: TimeColumn) -> int | None:
    """Return the row where a date's times of day start again at 1 after 12, if no hour is 0 or later than 12."""
    local, dates = column.local, column.dates
    if not column.clocked or len(local) < 2 or not column.readable.all():
        return None
    clocks = local % DAY
    hours = clocks // (_HALF_DAY // 12)
    if hours.min() < 1 or hours.max() != 12:
        return None
    same_date = dates[1:] == dates[:-1]
    earlier, later = (clocks[:-1], clocks[1:]) if dates[-1] >= dates[0] else (clocks[1:], clocks[:-1])
    rows = np.flatnonzero(same_date & (earlier >= _HALF_DAY) & (later < _HALF_DAY * 2 // 3))
    return int(rows[0]) + 1 if len(rows) else None
