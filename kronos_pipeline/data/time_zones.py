"""Find the offsets of the time zones that the cells of a time column state."""

from __future__ import annotations

from collections.abc import Sequence
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from kronos_pipeline.data.bar_schedule import BoolArray, IntArray
from kronos_pipeline.data.time_column import MINUTE, TimeColumn
from kronos_pipeline.data.time_texts import Zone

DAYLIGHT_SAVING = 60
"""Largest shift of daylight saving, in minutes."""
_QUARTER = 15 * MINUTE


def fixed_offset(zone: str | None) -> pd.Timedelta | None:
    """Return the offset east of UTC of a zone of `ParsedTimes`; None without a zone or for a changing offset."""
    if zone is None or "/" in zone:
        return None
    sign, digits = zone.removeprefix("UTC")[:1], zone.removeprefix("UTC")[1:]
    minutes = int(digits[:2]) * 60 + int(digits[3:]) if digits else 0
    return pd.Timedelta(minutes=-minutes if sign == "-" else minutes)


def find_offsets(
    column: TimeColumn, zone_of: IntArray, zones: Sequence[Zone]
) -> tuple[IntArray | None, dict[int, str]]:
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
    stated = zoned & readable
    naive = ~zoned & readable
    if naive.any():
        few_naive = naive.sum() <= stated.sum()
        rule = "no time zone, though other lines have one" if few_naive else "a time zone, though other lines have none"
        problems |= dict.fromkeys(map(int, np.flatnonzero(naive if few_naive else stated)), rule)
        if not few_naive:
            return None, problems
    values, counts = np.unique(minutes[stated], return_counts=True)
    if len(values) and values[-1] - values[0] > DAYLIGHT_SAVING:
        usual = values[counts.argmax()]
        differing = stated & (np.abs(minutes - usual) > DAYLIGHT_SAVING)
        rule = f"another time zone than the usual {zone_name(usual)} of this file"
        problems |= dict.fromkeys(map(int, np.flatnonzero(differing)), rule)
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
    remainder = local % _QUARTER
    first_pass, second_pass = (
        zoned.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)[quarter_of]
        + remainder
        for zoned in (first, second)
    )
    repeated = ~absent & (first_pass != second_pass)
    utc = first_pass.copy()
    if repeated.any():
        forward = np.sign(np.diff(local)).sum() >= 0
        ordered = local if forward else local[::-1]
        passes = np.zeros(len(local), np.bool_)
        hours = repeated if forward else repeated[::-1]
        repeating = False
        for row in np.flatnonzero(hours):
            if not (row and hours[row - 1]):
                repeating = False
            elif ordered[row] <= ordered[row - 1]:
                repeating = True
            passes[row] = repeating
        utc = np.where(passes if forward else passes[::-1], second_pass, first_pass)
    return np.where(absent, 0, (local - utc) // MINUTE), absent


def zone_name(minutes: int) -> str:
    """Return the name of an offset east of UTC in minutes, such as UTC-05:00."""
    if minutes == 0:
        return "UTC"
    return f"UTC{'+' if minutes > 0 else '-'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
