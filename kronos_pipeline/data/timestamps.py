"""Parse the time columns of a CSV: format, time zone, and invalid cells.

Times stay in the file's local time: a daily bar keeps its calendar date. Offsets that change with daylight saving are
one time zone. If the end of daylight saving gave two bars the same local time, the whole file is read in standard time.

Arrow reads a column of ISO 8601 times. Other columns are counts since 1970, day numbers of a spreadsheet, or texts
that `time_texts` splits. The whole column decides what the cells leave open, such as the order of day and month.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.data.bars import FloatArray
from kronos_pipeline.data.time_texts import (
    MINGUO,
    MONTHS_ALONE,
    BoolArray,
    DateArray,
    IntArray,
    Order,
    Zone,
    sample,
    split_clock,
    split_times,
)
from kronos_pipeline.errors import enumerate_some

EpochUnit = Literal["s", "ms", "us", "ns"]
Texts: TypeAlias = "Sequence[str] | pa.StringArray"

_EPOCH_UNITS: dict[int, EpochUnit] = {9: "s", 10: "s", 12: "ms", 13: "ms", 15: "us", 16: "us", 18: "ns", 19: "ns"}
"""Unit of a Unix timestamp by number of digits: one digit less before September 2001 than after."""
_NANOSECONDS: dict[EpochUnit, int] = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_NUMBER = r"^-?\d{1,19}(?:\.\d*)?(?:[eE]\+?\d+)?$"
_COMPACT = r"^\d{6}(?:\d{2}){0,4}(?:\.0*)?$"
_DECIMAL_COMMA = r"^(\d{5}),(\d+)$"
_SERIALS = (7_000, 80_000)
"""Day numbers of a spreadsheet that are dates: 1919 to 2119."""
_ROW_NUMBERS = ("first column", "unnamed: 0", "index")
"""Names of a column that may number the rows."""
_TICKS = (
    ((620_000_000_000_000_000, 650_000_000_000_000_000), np.datetime64("0001-01-01")),
    (
        (119_000_000_000_000_000, 138_000_000_000_000_000),
        np.datetime64("1601-01-01"),
    ),
)
"""Counts of 100 ns since the year 1 (.NET) or 1601 (Windows) that are dates from 1964 or 1978 on, and the origin."""
_HALF_DAY = 12 * 3600 * 1_000_000_000
_SERIAL_ORIGIN = np.datetime64("1899-12-30", "D")
_DAYLIGHT_SAVING = 60
"""Largest shift of daylight saving, in minutes."""
_FARTHEST_ZONE = 14 * 60
"""Largest distance of a time zone from UTC, in minutes."""
_NAT = np.iinfo(np.int64).min
_MINUTE = 60_000_000_000
_QUARTER = 15 * _MINUTE
_DAY = 1440 * _MINUTE
_NO_TIME = "no time that can be read; write it as 2024-01-31 or 2024-01-31 15:30"
_ORDER_NAMES: dict[Order, str] = {"YMD": "year first", "DMY": "day first", "MDY": "month first"}
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


@dataclass
class _Column:
    """The times of a column before its zones are decided.

    Attributes:
        name: the file's name of the column.
        local: nanoseconds since 1970 in local time, `(rows,)`; the least integer for an invalid cell.
        offsets: minutes east of UTC, `(rows,)`; None without a zone.
        clocked: True if any cell has a time of day other than midnight.
        problems: the rule that an invalid cell breaks, by row.
        notes: decisions about the whole column.
        row_notes: decisions that begin at a row.
        readings: the possible values of `local`, if the cells leave several and `local` is invalid.
    """

    name: str
    local: IntArray
    offsets: IntArray | None = None
    clocked: bool = False
    problems: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    row_notes: list[tuple[int, str]] = field(default_factory=list)
    readings: list[IntArray] = field(default_factory=list)

    @property
    def readable(self) -> BoolArray:
        return self.local != _NAT

    @property
    def usable(self) -> bool:
        return 2 * int(self.readable.sum()) > len(self.local)

    @property
    def dates(self) -> IntArray:
        return self.local // _DAY

    @property
    def instants(self) -> IntArray:
        """Nanoseconds since 1970 in UTC; local times without a zone are taken for UTC."""
        return self.local if self.offsets is None else self.local - self.offsets * _MINUTE


def parse_time_columns(cells: Mapping[str, Texts]) -> ParsedTimes:
    """Parse the time columns of a file.

    A column of dates and a column of times of day are joined. Columns that hold the time twice must agree; a column
    with times of day is preferred to a column of dates, then a column with a zone, then the first column.

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


def parse_times(cells: Texts) -> ParsedTimes:
    """Parse the time cells of a file with a single time column.

    Supported formats: ISO 8601, counts of seconds, milli-, micro- or nanoseconds since 1970 (in UTC), day numbers of a
    spreadsheet, 20240131, and dates such as 2024.01.31, 01/31/2024 or 31/01/2024 (if the file's dates decide between
    them), 31.01.24, 31-Jan-2024, Jan 31, 2024, 31. Januar 2024 and 2024年1月31日, each with or without a time of day,
    with an offset, an abbreviation or a name of a time zone or without.
    """
    return parse_time_columns({"": cells})


def fixed_offset(zone: str | None) -> pd.Timedelta | None:
    """Return the offset east of UTC of a zone of `ParsedTimes`; None without a zone or for a changing offset."""
    if zone is None or "/" in zone:
        return None
    sign, digits = zone.removeprefix("UTC")[:1], zone.removeprefix("UTC")[1:]
    minutes = int(digits[:2]) * 60 + int(digits[3:]) if digits else 0
    return pd.Timedelta(minutes=-minutes if sign == "-" else minutes)


def _plain(texts: pa.StringArray) -> np.ndarray | None:
    """Parse cells that are all ISO 8601 without a zone, in a form that Arrow supports; None for other cells."""
    try:
        # Convert via microseconds, as a direct conversion would not detect years out of the range of nanoseconds.
        return pc.cast(pc.cast(texts, pa.timestamp("us")), pa.timestamp("ns")).to_numpy()
    except pa.ArrowInvalid:
        return None


def _parse(name: str, texts: pa.StringArray) -> _Column:
    """Parse a single column."""
    if (plain := _plain(texts)) is not None:
        local = plain.astype(np.int64)
        return _Column(name, local, clocked=bool((local % _DAY).any()))
    few = sample(texts)
    if _share(pc.match_substring_regex(few, _DECIMAL_COMMA)) > 0.5:
        texts = pc.replace_substring_regex(texts, _DECIMAL_COMMA, r"\1.\2")
        few = sample(texts)
    if _share(pc.match_substring_regex(few, _NUMBER)) > 0.5:
        # A number of 6 to 14 digits may also be a date without separators; its months and days tell.
        compact = pc.replace_substring_regex(texts, r"\.0*$", "")
        if not (_share(pc.match_substring_regex(few, _COMPACT)) > 0.5 and _share(_are_dates(sample(compact))) > 0.5):
            return _parse_numbers(name, texts)
        texts = compact
    return _parse_texts(name, texts)


def _share(flags: pa.BooleanArray | BoolArray) -> float:
    values = np.asarray(flags)
    return float(values.mean()) if len(values) else 0.0


def _are_dates(texts: pa.StringArray) -> BoolArray:
    split = split_times(texts)
    return np.zeros(len(texts), np.bool_) if split is None else ~np.isnat(next(iter(split.dates.values())))


def _parse_numbers(name: str, texts: pa.StringArray) -> _Column:
    """Parse counts since 1970, each by its digits, or day numbers of a spreadsheet."""
    good = np.asarray(pc.match_substring_regex(texts, _NUMBER))
    numbers = pc.replace_substring_regex(pc.if_else(pa.array(good), texts, "0"), r"\.0*$", "")
    floats = pc.cast(numbers, pa.float64()).to_numpy()
    known = floats[good]
    padded = pc.any(pc.match_substring_regex(numbers, r"^0\d")).as_py()
    if not padded and ((known >= _SERIALS[0]) & (known < _SERIALS[1])).all():
        if rule := _doubt_of_serials(name, known):
            return _Column(name, np.full(len(floats), _NAT), problems={0: rule})
        days = np.where(good, np.rint(floats * 86_400_000), 0).astype(np.int64)
        local = days * 1_000_000 + _SERIAL_ORIGIN.astype("datetime64[ns]").astype(np.int64)
        first = np.datetime64(int(local[good][0]), "ns").astype("datetime64[D]")
        note = f"times are day numbers of a spreadsheet, in which {known[0]:.10g} is {first}"
        return _numbered(name, local, good, "is no day number of a spreadsheet, as the other lines are", [note])
    digits = np.zeros(len(floats), np.int64)
    digits[good] = np.char.str_len(np.abs(np.trunc(known)).astype(np.int64).astype("U20"))
    local = np.zeros(len(floats), np.int64)
    units = np.full(len(floats), "", "U2")
    for length, unit in _EPOCH_UNITS.items():
        units[(digits == length) & good & (floats > 0)] = unit
    if not (units != "").any():
        return _Column(name, np.full(len(floats), _NAT), problems=dict.fromkeys(range(len(floats)), _NO_TIME))
    if (rule := _doubt_of_ticks(known)) is not None:
        return _Column(name, np.full(len(floats), _NAT), problems={0: rule})
    usual, counts = np.unique(units[units != ""], return_counts=True)
    if usual.tolist() == ["s"]:
        units[good] = "s"  # the first years after 1970 have fewer digits, years before it a minus
    integers = _integers(numbers)
    for unit, nanoseconds in _NANOSECONDS.items():
        of_unit = units == unit
        if integers is not None:
            local[of_unit] = integers[of_unit] * nanoseconds
        else:
            local[of_unit] = np.rint(floats[of_unit] * (nanoseconds / 1000)).astype(np.int64) * 1000
    good = units != ""
    good &= _in_order(local, good, digits)
    most = str(usual[counts.argmax()])
    column = _numbered(name, local, good, f"is no count of {most} since 1970, as the other lines are", [])
    rounded = np.asarray(pc.match_substring_regex(texts, "[eE]")) & good
    if rounded.any() and len(repeated := np.flatnonzero(pd.Series(local).duplicated().to_numpy() & rounded)):
        column.problems[int(repeated[0])] = (
            "is the same time as in another line, as a spreadsheet has rounded the numbers; export the file again"
        )
    column.offsets = np.zeros(len(local), np.int64)
    changes = [row for row in np.flatnonzero(units[1:] != units[:-1]) + 1 if good[row] and good[row - 1]]
    if not changes:
        column.notes.append(f"times are counts of {most} since 1970, read as UTC")
        return column
    used = [unit for unit in _NANOSECONDS if unit in usual]
    column.notes.append(f"times are counts of {' and '.join(used)} since 1970, each by its digits, read as UTC")
    first = changes[0]
    column.row_notes.append((int(first), f"counts of {units[first - 1]} since 1970 change to counts of {units[first]}"))
    return column


def _doubt_of_serials(name: str, numbers: FloatArray) -> str | None:
    """Return the rule that day numbers of a spreadsheet break if they may be other numbers as well, or None."""
    first = _SERIAL_ORIGIN + int(numbers[0])
    if name.casefold() in _ROW_NUMBERS and (np.diff(numbers) == 1).all():
        return f"can be the numbers of rows, or {first} as the day number of a spreadsheet; write dates as 2024-01-31"
    last = np.datetime64("today", "D").astype(int) + 366
    if numbers.max() <= last:
        other = np.datetime64(int(numbers[0]), "D")
        return (
            f"can be {first}, as the day number of a spreadsheet, or {other}, as days since 1970; write dates as "
            "2024-01-31"
        )
    return None


def _doubt_of_ticks(numbers: FloatArray) -> str | None:
    """Return the rule that counts of 18 digits break if they may be ns or ticks, or None."""
    if len(numbers) < 2 or np.median(np.abs(np.diff(numbers))) % _MINUTE == 0:
        return None  # bars of whole minutes in ns would be bars of 100 minutes and the like in ticks
    for (low, high), origin in _TICKS:
        if ((numbers >= low) & (numbers < high)).all():
            since_1970 = np.datetime64(int(numbers[0]), "ns").astype("datetime64[D]")
            ticks = origin + np.timedelta64(int(numbers[0] // 864_000_000_000), "D")
            return (
                f"can be {since_1970}, as ns since 1970, or {ticks}, as ticks of 100 ns since {origin}; write times as "
                "2024-01-31 15:30"
            )
    return None


def _integers(numbers: pa.StringArray) -> IntArray | None:
    try:
        return pc.cast(numbers, pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        return None


def _in_order(local: IntArray, good: BoolArray, digits: IntArray) -> BoolArray:
    """Check the counts with an unusual number of digits, which may be damaged: they must lie between their neighbours.

    Returns:
        False for each count with an unusual number of digits that is out of order.
    """
    lengths, counts = np.unique(digits[good], return_counts=True)
    rows = np.flatnonzero(good)
    unusual = digits[rows] != lengths[counts.argmax()]
    times = local[rows]
    steps = np.diff(times)
    if not unusual.any() or not len(steps):
        return np.ones(len(local), np.bool_)
    backward = steps * (1 if np.sign(steps).sum() >= 0 else -1) < 0
    odd = unusual & (np.append(backward, False) | np.append(False, backward))
    kept = np.ones(len(local), np.bool_)
    kept[rows[odd]] = False
    return kept


def _numbered(name: str, local: IntArray, good: BoolArray, rule: str, notes: list[str]) -> _Column:
    local = np.where(good, local, _NAT)
    problems = dict.fromkeys(map(int, np.flatnonzero(~good)), rule)
    return _Column(name, local, None, bool((local[good] % _DAY).any()), problems, notes)


def _parse_texts(name: str, texts: pa.StringArray) -> _Column:
    split = split_times(texts)
    if split is None:
        alone = _share(split_clock(sample(texts))[1]) > 0.5
        missing = "a time of day without a date; add a column with the date" if alone else _NO_TIME
        nothing = np.full(len(texts), _NAT)
        return _Column(name, nothing, problems={0: missing} if alone else dict.fromkeys(range(len(texts)), missing))
    order, note, rule = _choose_order(split.dates, preferred="name" in split.form or "dots" in split.form)
    local = _add(split.dates[order], split.clock)
    good = local != _NAT
    column = _Column(name, local, clocked=bool(split.clock[good].any()))
    if rule is not None:
        column.local, column.problems = np.full(len(texts), _NAT), {0: rule}
        column.readings = [_add(days, split.clock) for days in split.dates.values()]
        return column
    if note is not None:
        column.notes.append(note)
    if split.form == MINGUO:
        column.notes.append("years are those of the Minguo calendar, in which 113 is 2024")
    if split.form in MONTHS_ALONE:
        column.notes.append("months without a day are read as their first day")
    column.problems = dict.fromkeys(map(int, np.flatnonzero(~good)), _NO_TIME)
    column.offsets, problems = _offsets(column, split.zone_of, split.zones)
    column.problems |= problems
    column.local[list(problems)] = _NAT
    return column


def _add(days: DateArray, clock: IntArray) -> IntArray:
    """Return nanoseconds since 1970 of dates and times of day."""
    return np.where(np.isnat(days), _NAT, days.astype("datetime64[ns]").astype(np.int64) + clock)


@dataclass(frozen=True)
class _Reading:
    """A possible reading of a column of dates: its distinct dates in file order."""

    order: Order
    dates: IntArray
    intraday: bool

    @property
    def steps(self) -> IntArray:
        return np.abs(np.diff(self.dates))

    @property
    def step(self) -> float:
        return float(np.median(self.steps)) if len(self.dates) > 1 else 0.0

    @property
    def reversals(self) -> int:
        signs = np.sign(np.diff(self.dates))
        return int((signs != (1 if signs.sum() >= 0 else -1)).sum())

    @property
    def sorted(self) -> bool:
        return self.reversals == 0

    @property
    def nearly_sorted(self) -> bool:
        steps = len(self.dates) - 1
        return self.reversals <= (max(2, steps // 50) if steps >= 20 else 0)

    @property
    def covers(self) -> bool:
        """False for dates no bars have: mostly missing, a year apart, or months apart with several bars on each."""
        if len(self.dates) < 2:
            return True
        span = float(self.dates.max() - self.dates.min())
        return self.step < 300 and not (self.intraday and self.step >= 20) and span <= 4 * self.step * len(self.steps)

    @property
    def weekends(self) -> int:
        return int(((self.dates + 3) % 7 >= 5).sum())

    @property
    def trades_on_weekdays(self) -> bool:
        """True for daily dates with weekends left out, or weekly dates."""
        if len(self.dates) < 5 or self.weekends:
            return False
        spans_weekend = bool((((self.dates + 3) // 7)[1:] != ((self.dates + 3) // 7)[:-1]).any())
        return spans_weekend and (self.step == 1 or bool((self.steps == 7).all()))

    @property
    def regular(self) -> bool:
        return bool((np.abs(self.steps - self.step) <= 0.15 * self.step).all())


def _choose_order(dates: dict[Order, DateArray], *, preferred: bool) -> tuple[Order, str | None, str | None]:
    """Choose the order of day, month and year by the whole column.

    Args:
        dates: the dates in each possible order, datetime64[D], `(rows,)`.
        preferred: take the first order, which is the usual one, if the column allows it.

    Returns:
        The order, the note on the decision, and the rule that is broken if several orders fit.
    """
    valid = {order: int((~np.isnat(days)).sum()) for order, days in dates.items()}
    possible = [order for order in dates if valid[order] == max(valid.values())]
    distinct = [order for order in possible[1:] if not np.array_equal(dates[order], dates[possible[0]], equal_nan=True)]
    if not distinct:
        many = len(dates) > 1 and len(possible) == 1 and not preferred
        if many and _is_mixed(possible[0], dates):
            rule = "dates are month first in some lines and day first in others; export them again as 2024-01-31"
            return possible[0], None, rule
        note = f"dates are read {_ORDER_NAMES[possible[0]]}, as other orders give months above 12"
        return possible[0], note if many else None, None
    readings = [_reading(order, dates[order]) for order in (possible[0], *distinct)]
    reason = ""
    disorder = "would be out of order"
    tests = (
        ("nearly_sorted", disorder),
        ("sorted", disorder),
        ("covers", "would leave most of their time without a bar"),
    )
    for test, otherwise in tests:
        kept = [reading for reading in readings if getattr(reading, test)]
        if preferred and kept and kept[0].order == possible[0]:
            kept = kept[:1]
        if 0 < len(kept) < len(readings):
            readings, reason = kept, otherwise
    strong = [reading for reading in readings if reading.trades_on_weekdays]
    if len(readings) > 1 and len(strong) == 1 and not any(one.regular for one in readings if one not in strong):
        readings, reason = strong, "would fall on weekends or leave holes"
    chosen = readings[0].order
    if len(readings) == 1:
        note = f"dates are read {_ORDER_NAMES[chosen]}, as they {reason} otherwise"
        return chosen, None if preferred else note, None
    names = " or ".join(_ORDER_NAMES[order] for order in sorted((one.order for one in readings), reverse=True))
    spans = " and ".join(f"{_date(one.dates[0])} to {_date(one.dates[-1])}" for one in readings)
    rule = f"{names}? The dates of the file fit both, {spans}; write dates as 2024-01-31"
    return chosen, None, rule


def _is_mixed(order: Order, dates: Mapping[Order, DateArray]) -> bool:
    """Return whether dates are in order only if days up to 12 and days above 12 are written in two orders."""
    other: Order = "DMY" if order == "MDY" else "MDY"
    if other not in dates or _reading(order, dates[order]).nearly_sorted:
        return False
    return _reading(order, np.where(np.isnat(dates[other]), dates[order], dates[other])).sorted


def _date(day: int) -> str:
    return str(np.datetime64(int(day), "D"))


def _reading(order: Order, dates: DateArray) -> _Reading:
    days = dates[~np.isnat(dates)].astype(np.int64)
    first = np.concatenate([[True], days[1:] != days[:-1]]) if len(days) else np.zeros(0, np.bool_)
    return _Reading(order, days[first], 2 * int(first.sum()) <= len(days))


def _offsets(column: _Column, zone_of: IntArray, zones: Sequence[Zone]) -> tuple[IntArray | None, dict[int, str]]:
    """Return minutes east of UTC per row (None without any zone), and the rule broken by each row of another zone."""
    zoned = zone_of >= 0
    if not zoned.any():
        return None, {}
    problems: dict[int, str] = {}
    minutes = np.zeros(len(zone_of), np.int64)
    readable = column.readable
    for number, zone in enumerate(zones):
        rows = np.flatnonzero(zone_of == number)
        if isinstance(zone, str):
            problems |= dict.fromkeys(map(int, rows), zone)
            readable[rows] = False
        elif isinstance(zone, ZoneInfo):
            rows = rows[readable[rows]]
            minutes[rows], absent = _region_offsets(column.local[rows], zone)
            rule = "is an hour that the clocks of its zone leave out"
            problems |= dict.fromkeys(map(int, rows[absent]), rule)
            readable[rows[absent]] = False
        else:
            minutes[rows] = zone
    known = zoned & readable
    naive = ~zoned & readable
    if naive.any():
        few_naive = naive.sum() <= known.sum()
        rule = "no time zone, though other lines have one" if few_naive else "a time zone, though other lines have none"
        problems |= dict.fromkeys(map(int, np.flatnonzero(naive if few_naive else known)), rule)
        if not few_naive:
            return None, problems
    values, counts = np.unique(minutes[known], return_counts=True)
    if len(values) and values[-1] - values[0] > _DAYLIGHT_SAVING:
        usual = values[counts.argmax()]
        odd = known & (np.abs(minutes - usual) > _DAYLIGHT_SAVING)
        rule = f"another time zone than the usual {_zone_name(usual)} of this file"
        problems |= dict.fromkeys(map(int, np.flatnonzero(odd)), rule)
    return minutes, problems


def _region_offsets(local: IntArray, zone: ZoneInfo) -> tuple[IntArray, BoolArray]:
    """Return minutes east of UTC of local times, and which of them the clocks of the zone leave out.

    Of an hour that is repeated, times that follow a later time are the second pass.
    """
    # pandas needs microseconds per time, and clocks change at quarters of an hour.
    quarters, quarter_of = np.unique(local // _QUARTER, return_inverse=True)
    index = pd.DatetimeIndex((quarters * _QUARTER).astype("datetime64[ns]"))
    first = index.tz_localize(zone, ambiguous=np.ones(len(index), np.bool_), nonexistent="NaT")
    second = index.tz_localize(zone, ambiguous=np.zeros(len(index), np.bool_), nonexistent="NaT")
    absent = np.asarray(first.isna())[quarter_of]
    within = local % _QUARTER
    early, late = (
        zoned.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)[quarter_of]
        + within
        for zoned in (first, second)
    )
    repeated = ~absent & (early != late)
    utc = early.copy()
    if repeated.any():
        forward = np.sign(np.diff(local)).sum() >= 0
        ordered = local if forward else local[::-1]
        passes = np.zeros(len(local), np.bool_)
        hours = repeated if forward else repeated[::-1]
        again = False
        for row in np.flatnonzero(hours):
            if not (row and hours[row - 1]):
                again = False
            elif ordered[row] <= ordered[row - 1]:
                again = True
            passes[row] = again
        utc = np.where(passes if forward else passes[::-1], late, early)
    return np.where(absent, 0, (local - utc) // _MINUTE), absent


def _join(arrays: Mapping[str, pa.StringArray]) -> list[_Column]:
    """Return the columns that hold whole times, with a column of dates and a column of times of day joined."""
    columns = {name: _parse(name, array) for name, array in arrays.items()}
    clocks = {name: _clock_column(columns[name], array) for name, array in arrays.items()}
    dated = [name for name, column in columns.items() if column.usable]
    if len(columns) > 1 and dated and all(clock is not None for clock in clocks.values()):
        # Day numbers can be times of day as well: 42801 is 04:28:01. Columns that are called a date come last.
        clocks[dated[-1]] = None
    whole = [column for name, column in columns.items() if column.usable and clocks[name] is None]
    if not whole:
        # Day numbers of a spreadsheet may look like times of day.
        whole = [column for column in columns.values() if column.usable][:1]
        clocks |= {column.name: None for column in whole}
    clock_name = next((name for name, clock in clocks.items() if clock is not None), None)
    if not whole:
        # The dates may leave their order open, or no column may hold times.
        return [
            next((column for name, column in columns.items() if clocks[name] is None), next(iter(columns.values())))
        ]
    for column in columns.values():
        if column.readings:
            _resolve(column, whole[0])
            whole.append(column)
    ignored = [name for name, column in columns.items() if not column.usable and clocks[name] is None]
    if ignored:
        whole[0].notes.append(f"columns without times that can be read: {enumerate_some(ignored)}")
    dates = next((column for column in whole if not column.clocked), whole[0])
    if clock_name is not None and (clock := clocks[clock_name]) is not None:
        _add_clock(dates, clock_name, clock)
        if dates is not whole[0]:
            whole.remove(dates)
            whole.insert(0, dates)
    return whole


def _resolve(column: _Column, other: _Column) -> None:
    """Choose the reading of a column that is nearest to the times of another column."""

    def distant(local: IntArray) -> int:
        both = (local != _NAT) & other.readable
        return int((np.abs(local[both] - other.local[both]) > _DAY).sum() + (local == _NAT).sum())

    column.local = min(column.readings, key=distant)
    column.problems = {}


@dataclass(frozen=True)
class _Clock:
    """A column of times of day: nanoseconds since midnight, and the zones of `time_texts`."""

    times: IntArray
    readable: BoolArray
    zone_of: IntArray
    zones: tuple[Zone, ...]


def _clock_column(column: _Column, texts: pa.StringArray) -> _Clock | None:
    """Return the times of day of a column that holds no dates, or None."""
    if column.usable:
        known = column.dates[column.readable]
        low, high = (edge.astype(np.int64) for edge in _DATELESS_ORIGINS)
        if ((known >= low) & (known <= high)).all():
            return _Clock(column.local % _DAY, column.readable, np.full(len(known), -1), ())
        if _share(pc.match_substring_regex(sample(texts), r"^\d{1,6}(?:\.0*)?$")) <= 0.5:
            return None
    if _share(split_clock(sample(texts))[1]) <= 0.5:
        return None
    clock = _Clock(*split_clock(texts))
    return clock if _share(clock.readable) > 0.5 else None


def _add_clock(dates: _Column, name: str, clock: _Clock) -> None:
    """Join times of day to a column of dates."""
    readable = dates.readable
    if dates.clocked:
        different = readable & clock.readable & (dates.local % _DAY != clock.times)
        if different.any():
            rows = np.flatnonzero(different)
            rule = f"has another time of day than {name}, {_clock_text(clock.times[rows[0]])}; keep one of both"
            dates.problems |= dict.fromkeys(map(int, rows), rule)
        return
    unreadable = readable & ~clock.readable
    rule = f"has no time of day that can be read in {name}; write it as 15:30"
    dates.problems |= dict.fromkeys(map(int, np.flatnonzero(unreadable)), rule)
    dates.local = np.where(readable & clock.readable, dates.local + clock.times, _NAT)
    dates.clocked = bool(clock.times[clock.readable].any())
    if len(clock.zones) and (clock.zone_of >= 0).any():
        dates.offsets, problems = _offsets(dates, clock.zone_of, clock.zones)
        dates.problems |= problems
        dates.local[list(problems)] = _NAT
    dates.notes.append(f"times are {dates.name} and {name}, joined")


def _clock_text(nanoseconds: int) -> str:
    return str(np.datetime64(int(nanoseconds), "ns").astype("datetime64[s]")).partition("T")[2]


def _agree(columns: list[_Column]) -> _Column:
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


def _disagreement(best: _Column, other: _Column, both: BoolArray) -> tuple[IntArray, IntArray | None]:
    """Return the rows in which two columns disagree, and the offsets if `other` is in local time."""
    if not (best.clocked and other.clocked):
        # The exchange's date of a session that opens on the evening before in UTC is the next.
        shifts = (0, _DAY // 2) if best.offsets is not None else (0,)
        wrong = [both & ((best.local + shift) // _DAY != other.dates) for shift in shifts]
        fewest = min(wrong, key=lambda rows: int(rows.sum()))
        return np.flatnonzero(fewest), None
    second = 1_000_000_000
    pairs = [(best.instants, other.instants)]
    if best.offsets is None or other.offsets is None:
        pairs.append((best.local, other.local))
    wrong = [both & (one // second != two // second) for one, two in pairs]
    fewest = min(wrong, key=lambda rows: int(rows.sum()))
    if not fewest.any():
        return np.flatnonzero(fewest), None
    if best.offsets is not None and other.offsets is None and other.readable.all():
        minutes, rest = np.divmod(other.local - best.instants, _MINUTE)
        values = np.unique(minutes[both])
        interval = int(np.median(np.abs(np.diff(best.instants[both])))) // _MINUTE if both.sum() > 1 else 0
        # An offset of one bar may also be the bar's end beside its beginning.
        if (
            not rest[both].any()
            and not (values % 15).any()
            and np.abs(values).max() <= _FARTHEST_ZONE
            and values[-1] - values[0] <= _DAYLIGHT_SAVING
            and interval not in np.abs(values)
        ):
            return np.zeros(0, np.int64), minutes
    return np.flatnonzero(fewest), None


def _time_text(nanoseconds: int) -> str:
    return str(pd.Timestamp(int(nanoseconds)))


def _finish(column: _Column) -> ParsedTimes:
    """Decide the zone, and refuse times of day that lack AM and PM."""
    if (row := _find_second_morning(column)) is not None:
        rule = "goes back to the morning on the same date, as a time of day without AM or PM does; write it as 13:00"
        column.local, column.problems = np.full(len(column.local), _NAT), {row: rule}
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
    zone = "/".join(_zone_name(minutes) for minutes in used) or "UTC"
    # If local times and UTC times change in different directions, clocks were set back or lines are out of order.
    set_back = np.sign(np.diff(times)) != np.sign(np.diff(times - offsets * _MINUTE))
    if not set_back.any():
        return replace(parsed, zone=zone)
    standard = int(used[0])
    zone = _zone_name(standard)
    note = f"clocks were set back at {_time_text(times[int(set_back.argmax()) + 1])}: all times are read in {zone}"
    shifted = np.where(readable, column.local - (column.offsets - standard) * _MINUTE, _NAT).astype("datetime64[ns]")
    return replace(parsed, local=pd.Series(shifted), zone=zone, notes=(*parsed.notes, note))


def _find_second_morning(column: _Column) -> int | None:
    """Return the row where a date's times of day start again at 1 after 12, if no hour is 0 or later than 12."""
    local, dates = column.local, column.dates
    if not column.clocked or len(local) < 2 or not column.readable.all():
        return None
    clocks = local % _DAY
    hours = clocks // (_HALF_DAY // 12)
    if hours.min() < 1 or hours.max() != 12:
        return None
    same_date = dates[1:] == dates[:-1]
    earlier, later = (clocks[:-1], clocks[1:]) if dates[-1] >= dates[0] else (clocks[1:], clocks[:-1])
    rows = np.flatnonzero(same_date & (earlier >= _HALF_DAY) & (later < _HALF_DAY * 2 // 3))
    return int(rows[0]) + 1 if len(rows) else None


def _zone_name(minutes: int) -> str:
    if minutes == 0:
        return "UTC"
    return f"UTC{'+' if minutes > 0 else '-'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
