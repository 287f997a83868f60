"""Parse the time column of a CSV: its format, its time zone and its invalid cells.

Times stay in the file's local time: a daily bar keeps its calendar date. Offsets that change with daylight saving are
one time zone. If the end of daylight saving gave two bars the same local time, the whole file is read in standard time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

EpochUnit = Literal["s", "ms", "us", "ns"]

_ZONE = re.compile(r"(?<=:\d\d)(?:[.,]\d+)?\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)$", re.IGNORECASE)
_EPOCH_UNITS: dict[int, EpochUnit] = {9: "s", 10: "s", 12: "ms", 13: "ms", 15: "us", 16: "us", 18: "ns", 19: "ns"}
"""Unit of a Unix timestamp by number of digits: one digit less before September 2001 than after."""
_DATES = ("%Y/%m/%d", "%Y-%m-%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%d-%b-%Y", "%d %b %Y", "%b %d, %Y")
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
_AMBIGUOUS = ("%m/%d/%Y", "%d/%m/%Y")
_SAMPLE = 64
_DAYLIGHT_SAVING = 60
"""Largest shift of daylight saving, in minutes."""


@dataclass(frozen=True)
class ParsedTimes:
    """A parsed time column.

    Attributes:
        local: datetime64[ns] in the file's local time, NaT for an invalid cell.
        zone: the zone that the file states, or None.
        problems: (row, rule) of each invalid cell, by row.
        notes: decisions about the whole column.
        column: the file's name of the column that the problems are about.
    """

    local: pd.Series
    zone: str | None
    problems: tuple[tuple[int, str], ...]
    notes: tuple[str, ...] = ()
    column: str = ""


def parse_time_columns(cells: Mapping[str, Sequence[str] | pa.StringArray]) -> ParsedTimes:
    """Parse the time columns of a file.

    Args:
        cells: the columns that may hold the time, by the file's name, in order of preference.
    """
    column, first = next(iter(cells.items()))
    return replace(parse_times(first), column=column)


def parse_times(cells: Sequence[str] | pa.StringArray) -> ParsedTimes:
    """Parse the time cells of a file.

    Supported formats: ISO 8601 (with or without an offset), counts of seconds, milli-, micro- or nanoseconds since 1970
    (in UTC), 20240131, 2024/01/31, 01/31/2024 or 31/01/2024 (if the file's days decide between them), 31.01.2024,
    31-01-2024 and 31-Jan-2024, each with or without a time of day.
    """
    array = pc.utf8_trim_whitespace(pa.array(cells, pa.string()))
    if (plain := _plain(array)) is not None:
        return ParsedTimes(plain, None, ())
    texts = pd.Series(array.to_pylist(), dtype=object)
    if unit := _epoch_unit(texts):
        return _from_epoch(texts, unit)
    zones, naive = _split_zones(texts)
    local, problems = _parse(naive)
    offsets, zone_problems = _offsets(zones, local.notna())
    problems |= zone_problems
    local[list(problems)] = pd.NaT
    if offsets is None:
        return ParsedTimes(local, None, tuple(sorted(problems.items())))
    return _zoned(local, offsets, problems)


def fixed_offset(zone: str | None) -> pd.Timedelta | None:
    """Return the offset east of UTC of a zone of `ParsedTimes`; None without a zone or for a changing offset."""
    if zone is None or "/" in zone:
        return None
    return pd.Timedelta(minutes=_minutes(zone.removeprefix("UTC") or zone))


def _plain(texts: pa.StringArray) -> pd.Series | None:
    """Parse cells that are all ISO 8601 without a zone, in a form that Arrow supports; None for other cells."""
    try:
        # Convert via microseconds, as a direct conversion would not detect years out of the range of nanoseconds.
        times = pc.cast(pc.cast(texts, pa.timestamp("us")), pa.timestamp("ns"))
    except pa.ArrowInvalid:
        return None
    return pd.Series(times.to_numpy())


def _epoch_unit(texts: pd.Series) -> EpochUnit | None:
    """Return the unit of Unix timestamps if more than half of the first cells have it, or None."""
    units = [_count_unit(text) for text in texts.iloc[:_SAMPLE]]
    return next((unit for unit in set(_EPOCH_UNITS.values()) if units.count(unit) > len(units) / 2), None)


def _count_unit(text: str) -> EpochUnit | None:
    return _EPOCH_UNITS.get(len(text)) if text.isascii() and text.isdecimal() else None


def _from_epoch(texts: pd.Series, unit: EpochUnit) -> ParsedTimes:
    good = np.array([_count_unit(text) == unit for text in texts])
    local = pd.Series(pd.NaT, index=texts.index, dtype="datetime64[ns]")
    local[good] = pd.to_datetime(texts[good].astype("int64").tolist(), unit=unit, errors="coerce")
    rule = f"is no count of {unit} since 1970, as the other lines are"
    problems = tuple((int(row), rule) for row in np.flatnonzero(local.isna()))
    return ParsedTimes(local, "UTC", problems, (f"times are counts of {unit} since 1970, read as UTC",))


def _split_zones(texts: pd.Series) -> tuple[list[str | None], pd.Series]:
    """Split each cell into its zone suffix, or None, and the rest."""
    if not any(":" in text for text in texts):
        return [None] * len(texts), texts
    zones: list[str | None] = []
    naive = []
    for text in texts:
        match = _ZONE.search(text)
        zones.append(match["zone"] if match else None)
        naive.append(text[: match.start("zone")].strip() if match else text)
    return zones, pd.Series(naive, dtype=object)


def _parse(texts: pd.Series) -> tuple[pd.Series, dict[int, str]]:
    local = pd.to_datetime(texts, format="ISO8601", errors="coerce").astype("datetime64[ns]")
    bad = np.flatnonzero(local.isna())
    if len(bad) > len(texts) / 2:
        local, ambiguous = _parse_other(texts)
        bad = np.flatnonzero(local.isna())
        if ambiguous:
            rule = "month first or day first? No day above 12 in the file tells; write dates as 2024-01-31"
            return pd.Series(pd.NaT, index=texts.index, dtype="datetime64[ns]"), {0: rule}
    problems = {int(row): "no time that can be read; write it as 2024-01-31 or 2024-01-31 15:30" for row in bad}
    return local, problems


def _parse_other(texts: pd.Series) -> tuple[pd.Series, bool]:
    """Parse the cells in the known format that fits most cells; the second value is True if two formats fit equally."""
    sample = texts.iloc[np.unique(np.linspace(0, len(texts) - 1, _SAMPLE).astype(int))] if len(texts) else texts
    best, fits = "ISO8601", 0
    for date in _DATES:
        for time in _TIMES:
            count = int(pd.to_datetime(sample, format=date + time, errors="coerce").notna().sum())
            if count > fits:
                best, fits = date + time, count
    local = pd.to_datetime(texts, format=best, errors="coerce").astype("datetime64[ns]")
    first = next((date for date in _AMBIGUOUS if best.startswith(date)), None)
    if first is None:
        return local, False
    other = best.replace(first, next(date for date in _AMBIGUOUS if date != first))
    swapped = pd.to_datetime(texts, format=other, errors="coerce").astype("datetime64[ns]")
    if swapped.notna().sum() == local.notna().sum():
        return local, not swapped.equals(local)
    return (swapped, False) if swapped.notna().sum() > local.notna().sum() else (local, False)


def _offsets(zones: list[str | None], readable: pd.Series) -> tuple[np.ndarray | None, dict[int, str]]:
    """Return minutes east of UTC per row (None without any zone), and the rule broken by each row of another zone."""
    zoned = np.array([zone is not None for zone in zones])
    if not zoned.any():
        return None, {}
    problems: dict[int, str] = {}
    known = zoned & readable.to_numpy()
    naive = ~zoned & readable.to_numpy()
    if naive.any():
        few_naive = naive.sum() <= known.sum()
        rule = "no time zone, though other lines have one" if few_naive else "a time zone, though other lines have none"
        problems |= dict.fromkeys(map(int, np.flatnonzero(naive if few_naive else known)), rule)
        if not few_naive:
            return None, problems
    minutes = np.array([_minutes(zone) for zone in zones])
    values, counts = np.unique(minutes[known], return_counts=True)
    if len(values) and values[-1] - values[0] > _DAYLIGHT_SAVING:
        usual = values[counts.argmax()]
        odd = known & (np.abs(minutes - usual) > _DAYLIGHT_SAVING)
        rule = f"another time zone than the usual {_zone_name(usual)} of this file"
        problems |= dict.fromkeys(map(int, np.flatnonzero(odd)), rule)
    return minutes, problems


def _zoned(local: pd.Series, offsets: np.ndarray, problems: dict[int, str]) -> ParsedTimes:
    readable = local.dropna()
    used = np.unique(offsets[readable.index])
    zone = "/".join(_zone_name(minutes) for minutes in used) or "UTC"
    sorted_problems = tuple(sorted(problems.items()))
    instants = readable - pd.to_timedelta(offsets[readable.index], unit="min")
    # If local times and UTC times change in different directions, clocks were set back or lines are out of order.
    set_back = np.sign(np.diff(readable.astype("int64"))) != np.sign(np.diff(instants.astype("int64")))
    if not set_back.any():
        return ParsedTimes(local, zone, sorted_problems)
    standard = int(used[0])
    zone = _zone_name(standard)
    note = f"clocks were set back at {readable.iloc[int(set_back.argmax()) + 1]}: all times are read in {zone}"
    return ParsedTimes(local - pd.to_timedelta(offsets - standard, unit="min"), zone, sorted_problems, (note,))


def _minutes(zone: str | None) -> int:
    if zone is None or zone[0] not in "+-":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    return int(zone[0] + "1") * (int(digits[:2]) * 60 + int(digits[2:]))


def _zone_name(minutes: int) -> str:
    if minutes == 0:
        return "UTC"
    return f"UTC{'+' if minutes > 0 else '-'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
