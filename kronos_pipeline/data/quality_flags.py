"""Flag oddities of a ticker's bars that are not errors, for a person to check; the bars are never changed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_pipeline.data.bar_schedule import BarSchedule, find_bar_schedule
from kronos_pipeline.data.normalisation import EPSILON
from kronos_pipeline.errors import enumerate_some

_SPLIT_FACTORS = np.array([1.5, 2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 25, 30, 40, 50, 100])
_NEAR_OPEN = 0.05
"""Largest distance, in log price, of the open after a split from the value that the ratio gives."""
_NEAR_CLOSE = 0.12
"""Largest distance, in log price, of the close after a split from the value that the ratio gives."""
_ODD_MOVE = 8.0
"""Smallest odd jump, in multiples of the ticker's usual move from a close to the next open."""
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
    log_close = np.log(frame["close"].to_numpy())
    moves = np.log(frame["open"].to_numpy()[1:]) - log_close[:-1]
    usual = 1.4826 * np.median(np.abs(moves - np.median(moves)))
    odd = np.flatnonzero(np.abs(moves) > _ODD_MOVE * usual)
    open_move, close_move = moves[odd], log_close[odd + 1] - log_close[odd]
    factors = np.log(_SPLIT_FACTORS)
    nearest = np.abs(np.abs(open_move)[:, None] - factors).argmin(axis=1)
    expected = np.sign(open_move) * factors[nearest]
    split_like = (np.abs(open_move - expected) < _NEAR_OPEN) & (np.abs(close_move - expected) < _NEAR_CLOSE)
    splits = []
    for index in np.flatnonzero(split_like):
        factor = f"{_SPLIT_FACTORS[nearest[index]]:g}"
        ratio = f"1:{factor}" if open_move[index] > 0 else f"{factor}:1"
        splits.append(f"{frame['timestamps'].iloc[odd[index] + 1]:%Y-%m-%d} (about {ratio})")
    if not splits:
        return []
    return [f"jumps like unadjusted splits: {enumerate_some(splits, _MAX_SPLITS_SHOWN)}; adjust the prices if they are"]


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
