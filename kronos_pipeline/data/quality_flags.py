"""Flag oddities of a ticker's bars that are not errors, for a person to check; the bars are never changed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_pipeline.data.bar_schedule import BarSchedule, StampArray, find_bar_schedule
from kronos_pipeline.data.bars import FEATURES, FloatArray
from kronos_pipeline.data.jumps import find_jumps
from kronos_pipeline.data.normalisation import EPSILON
from kronos_pipeline.errors import enumerate_some

_DAILY_HOLE = 5
"""Missing weekdays of daily bars that are not worth a note: no public holiday is longer."""
_MAX_SPLITS_SHOWN = 3


def find_flags(stamps: StampArray, values: FloatArray) -> list[str]:
    """Flag jumps like unadjusted splits, bars without volume, holes and tiny prices of validated bars.

    Args:
        stamps: the times, `(bars,)`.
        values: the features, `(bars, 6)`.
    """
    if len(stamps) < 3:
        return []
    close, volume = values[:, FEATURES.index("close")], values[:, FEATURES.index("volume")]
    schedule = find_bar_schedule(stamps)
    return [*_splits(stamps, values), *_without_volume(stamps, volume), *_holes(stamps, schedule), *_tiny_prices(close)]


def _splits(stamps: StampArray, values: FloatArray) -> list[str]:
    jumps = find_jumps(values)
    if not len(jumps.bars):
        return []
    ratios = [f"{ratio:.3g}:1" if ratio > 1 else f"1:{1 / ratio:.3g}" for ratio in jumps.ratios]
    days = stamps[jumps.bars].astype("datetime64[D]")
    splits = [f"{day} (about {ratio})" for day, ratio in zip(days, ratios, strict=True)]
    return [
        f"jumps like unadjusted splits: {enumerate_some(splits, _MAX_SPLITS_SHOWN)}; windows over them are left out: "
        "adjust the prices, or use --keep-jumps if they are real"
    ]


def _without_volume(stamps: StampArray, volume: FloatArray) -> list[str]:
    no_volume = volume == 0
    if no_volume.all() or not no_volume.any():
        return []
    first = stamps[no_volume][0]
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


def _tiny_prices(close: FloatArray) -> list[str]:
    usual_move = float(np.median(np.abs(np.diff(close))))
    if not 0 < usual_move < EPSILON:
        return []
    return [
        f"prices so small that a bar moves by {usual_move:.1g}: Kronos adds {EPSILON:g} to a lookback's deviation and "
        "sees little of it; multiply the prices"
    ]


def _text(stamp: np.datetime64) -> str:
    return str(pd.Timestamp(stamp))
