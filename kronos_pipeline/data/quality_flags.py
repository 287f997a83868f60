"""Flag oddities of a ticker's bars that are not errors, for a person to check; the bars are never changed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_pipeline.data.bar_schedule import BarSchedule, find_bar_schedule
from kronos_pipeline.data.bars import FEATURES, column_matrix
from kronos_pipeline.data.jumps import find_jumps
from kronos_pipeline.data.normalisation import EPSILON
from kronos_pipeline.errors import enumerate_some

_DAILY_HOLE = 5
"""Missing weekdays of daily bars that are not worth a note: no public holiday is longer."""
_MAX_SPLITS_SHOWN = 3


def find_flags(frame: pd.DataFrame, zone: str | None, now: pd.Timestamp) -> tuple[list[str], list[str]]:
    """Flag jumps like unadjusted splits, bars without volume, holes, tiny prices and an unfinished last bar.

    Args:
        frame: validated bars.
        zone: the time zone that the file states, or None.
        now: the time of reading, with a zone.

    Returns:
        The notes that depend on the bars only, and the note on the last bar, which may not hold for a later reading.
    """
    if len(frame) < 3:
        return [], []
    stamps = frame["timestamps"].to_numpy()
    schedule = find_bar_schedule(stamps)
    permanent = [*_splits(frame), *_without_volume(frame), *_holes(stamps, schedule), *_tiny_prices(frame)]
    return permanent, _unfinished_bar(frame, zone, schedule, now)


def _splits(frame: pd.DataFrame) -> list[str]:
    jumps = find_jumps(column_matrix(frame, FEATURES))
    if not len(jumps.bars):
        return []
    ratios = [f"{ratio:.3g}:1" if ratio > 1 else f"1:{1 / ratio:.3g}" for ratio in jumps.ratios]
    days = frame["timestamps"].iloc[jumps.bars]
    splits = [f"{day:%Y-%m-%d} (about {ratio})" for day, ratio in zip(days, ratios, strict=True)]
    return [
        f"jumps like unadjusted splits: {enumerate_some(splits, _MAX_SPLITS_SHOWN)}; windows over them are left out: "
        "adjust the prices, or use --keep-jumps if they are real"
    ]


def _without_volume(frame: pd.DataFrame) -> list[str]:
    no_volume = frame["volume"].to_numpy() == 0
    if no_volume.all() or not no_volume.any():
        return []
    first = frame["timestamps"].to_numpy()[no_volume][0]
    return [f"bars without volume, as in a trading halt: {no_volume.sum()}, the first at {_text(first)}"]


def _holes(stamps: np.ndarray, schedule: BarSchedule) -> list[str]:
    missing = schedule.missing(stamps)
    holes = missing > (_DAILY_HOLE if schedule.daily else 0)
    if not holes.any():
        return []
    longest = int(missing.argmax())
    return [
        f"holes: {holes.sum()}, {missing[holes].sum()} bars missing; the longest, of {missing[longest]}, "
        f"after {_text(stamps[longest])}"
    ]


def _tiny_prices(frame: pd.DataFrame) -> list[str]:
    usual_move = float(np.median(np.abs(np.diff(frame["close"]))))
    if not 0 < usual_move < EPSILON:
        return []
    return [
        f"prices so small that a bar moves by {usual_move:.1g}: Kronos adds {EPSILON:g} to a lookback's deviation and "
        "sees little of it; multiply the prices"
    ]


def _unfinished_bar(frame: pd.DataFrame, zone: str | None, schedule: BarSchedule, now: pd.Timestamp) -> list[str]:
    """Flag a last bar that is off the grid of all other bars, or, if the zone is known, that ends after `now`.

    The file's date and the last volume are no reliable signs; without a zone the current time is of no use.
    """
    stamps = frame["timestamps"]
    last = stamps.iloc[-1]
    phases = stamps.astype("int64").to_numpy() % schedule.interval
    text = f"the last bar, {last}, may still be forming: "
    if not schedule.daily and (phases[:-1] == phases[0]).all() and phases[-1] != phases[0]:
        return [f"{text}it is off the grid of the others; remove it if so"]
    if zone is not None:
        # Take the eastern of the winter and summer offsets: a bar unfinished by it is unfinished by the other too.
        ends = (last.tz_localize(zone.split("/")[-1]) + pd.Timedelta(schedule.interval, "ns")).tz_convert("UTC")
        if ends > now:
            return [f"{text}its time is up at {ends:%Y-%m-%d %H:%M} UTC, later than now; remove it if so"]
    return []


def _text(stamp: np.datetime64) -> str:
    return str(pd.Timestamp(stamp))
