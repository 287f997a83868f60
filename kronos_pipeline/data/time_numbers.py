"""Parse the numbers of a time column: counts since 1970, and day numbers of a spreadsheet."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.data.bar_schedule import BoolArray, IntArray
from kronos_pipeline.data.bars import FloatArray
from kronos_pipeline.data.time_column import DAY, MINUTE, NAT, NO_TIME, TimeColumn

EpochUnit = Literal["s", "ms", "us", "ns"]
_EPOCH_UNITS: dict[int, EpochUnit] = {9: "s", 10: "s", 12: "ms", 13: "ms", 15: "us", 16: "us", 18: "ns", 19: "ns"}
"""Unit of a Unix timestamp by number of digits: one digit less before September 2001 than after."""
_NANOSECONDS: dict[EpochUnit, int] = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
NUMBER = r"^-?\d{1,19}(?:\.\d*)?(?:[eE]\+?\d+)?$"
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
_LARGEST = 9e18
"""Numbers from here on are no integers of 64 bits."""
_SERIAL_ORIGIN = np.datetime64("1899-12-30", "D")


def parse_numbers(name: str, texts: pa.StringArray) -> TimeColumn:
    """Parse counts since 1970, each by its digits, or day numbers of a spreadsheet."""
    is_number = np.asarray(pc.match_substring_regex(texts, NUMBER))
    numbers = pc.replace_substring_regex(pc.if_else(pa.array(is_number), texts, "0"), r"\.0*$", "")
    floats = pc.cast(numbers, pa.float64()).to_numpy()
    is_number = is_number & (np.abs(floats) < _LARGEST)
    floats = np.where(is_number, floats, 0.0)
    values = floats[is_number]
    if not len(values):
        return TimeColumn(name, np.full(len(floats), NAT), problems=dict.fromkeys(range(len(floats)), NO_TIME))
    padded = pc.any(pc.match_substring_regex(numbers, r"^0\d")).as_py()
    if not padded and ((values >= _SERIALS[0]) & (values < _SERIALS[1])).all():
        if rule := _doubt_of_serials(name, values):
            return TimeColumn(name, np.full(len(floats), NAT), problems={0: rule})
        days = np.where(is_number, np.rint(floats * 86_400_000), 0).astype(np.int64)
        local = days * 1_000_000 + _SERIAL_ORIGIN.astype("datetime64[ns]").astype(np.int64)
        first = np.datetime64(int(local[is_number][0]), "ns").astype("datetime64[D]")
        note = f"times are day numbers of a spreadsheet, in which {values[0]:.10g} is {first}"
        return _numbered(name, local, is_number, "is no day number of a spreadsheet, as the other lines are", [note])
    digits = np.zeros(len(floats), np.int64)
    digits[is_number] = np.char.str_len(np.abs(np.trunc(values)).astype(np.int64).astype("U20"))
    local = np.zeros(len(floats), np.int64)
    units = np.full(len(floats), "", "U2")
    for length, unit in _EPOCH_UNITS.items():
        units[(digits == length) & is_number & (floats > 0)] = unit
    if not (units != "").any():
        return TimeColumn(name, np.full(len(floats), NAT), problems=dict.fromkeys(range(len(floats)), NO_TIME))
    if (rule := _doubt_of_ticks(values)) is not None:
        return TimeColumn(name, np.full(len(floats), NAT), problems={0: rule})
    usual, counts = np.unique(units[units != ""], return_counts=True)
    if usual.tolist() == ["s"]:
        units[is_number] = "s"  # the first years after 1970 have fewer digits, years before it a minus
    integers = _integers(numbers)
    for unit, nanoseconds in _NANOSECONDS.items():
        of_unit = units == unit
        if integers is not None:
            local[of_unit] = integers[of_unit] * nanoseconds
        else:
            local[of_unit] = np.rint(floats[of_unit] * (nanoseconds / 1000)).astype(np.int64) * 1000
    is_number = units != ""
    is_number &= _in_order(local, is_number, digits)
    main_unit = str(usual[counts.argmax()])
    column = _numbered(name, local, is_number, f"is no count of {main_unit} since 1970, as the other lines are", [])
    rounded = np.asarray(pc.match_substring_regex(texts, "[eE]")) & is_number
    if rounded.any() and len(repeated := np.flatnonzero(pd.Series(local).duplicated().to_numpy() & rounded)):
        column.problems[int(repeated[0])] = (
            "is the same time as in another line, as a spreadsheet has rounded the numbers; export the file again"
        )
    column.offsets = np.zeros(len(local), np.int64)
    changes = [row for row in np.flatnonzero(units[1:] != units[:-1]) + 1 if is_number[row] and is_number[row - 1]]
    if not changes:
        column.notes.append(f"times are counts of {main_unit} since 1970, read as UTC")
        return column
    units_used = [unit for unit in _NANOSECONDS if unit in usual]
    column.notes.append(f"times are counts of {' and '.join(units_used)} since 1970, each by its digits, read as UTC")
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
    if len(numbers) < 2 or np.median(np.abs(np.diff(numbers))) % MINUTE == 0:
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


def _in_order(local: IntArray, valid: BoolArray, digits: IntArray) -> BoolArray:
    """Check the counts with an unusual number of digits, which may be damaged: they must lie between their neighbours.

    Returns:
        False for each count with an unusual number of digits that is out of order.
    """
    lengths, counts = np.unique(digits[valid], return_counts=True)
    rows = np.flatnonzero(valid)
    unusual = digits[rows] != lengths[counts.argmax()]
    times = local[rows]
    steps = np.diff(times)
    if not unusual.any() or not len(steps):
        return np.ones(len(local), np.bool_)
    backward = steps * (1 if np.sign(steps).sum() >= 0 else -1) < 0
    out_of_order = unusual & (np.append(backward, False) | np.append(False, backward))
    in_order = np.ones(len(local), np.bool_)
    in_order[rows[out_of_order]] = False
    return in_order


def _numbered(name: str, local: IntArray, valid: BoolArray, rule: str, notes: list[str]) -> TimeColumn:
    local = np.where(valid, local, NAT)
    problems = dict.fromkeys(map(int, np.flatnonzero(~valid)), rule)
    return TimeColumn(name, local, None, bool((local[valid] % DAY).any()), problems, notes)
