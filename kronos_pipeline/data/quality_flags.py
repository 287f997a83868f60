"""What is odd about a ticker's bars but no error: flagged for a person to look at, never changed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_pipeline.data.bar_schedule import BarSchedule, find_bar_schedule
from kronos_pipeline.data.normalisation import EPSILON

_SPLIT_FACTORS = np.array([1.5, 2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 25, 30, 40, 50, 100])
_NEAR_OPEN = 0.05
"""How far, in log price, the open after a split may be from what the ratio says."""
_NEAR_CLOSE = 0.12
"""The same for the close."""
_ODD_MOVE = 8.0
"""A jump is odd above that many of the ticker's usual moves between a close and the next open."""
_DAILY_HOLE = 5
"""Weekdays missing in daily bars that are worth a note: more than any public holiday leaves out."""
_SHOWN = 3


def find_flags(frame: pd.DataFrame, zone: str | None, now: pd.Timestamp) -> tuple[list[str], list[str]]:
    """Notes on jumps like unadjusted splits, bars without volume, holes, tiny prices, and a last bar still forming.

    Args:
        frame: validated bars.
        zone: what the file says of its time zone, or None.
        now: the moment of reading, with a zone.

    Returns:
        The notes that the bars alone give, then that on a last bar, which a later moment of reading may take back.
    """
    if len(frame) < 3:
        return [], []
    stamps = frame["timestamps"].to_numpy()
    schedule = find_bar_schedule(stamps)
    lasting = [*_splits(frame), *_without_volume(frame), *_holes(stamps, schedule), *_tiny(frame)]
    return lasting, _forming(frame, zone, schedule, now)


def _splits(frame: pd.DataFrame) -> list[str]:
    log_close = np.log(frame["close"].to_numpy())
    moves = np.log(frame["open"].to_numpy()[1:]) - log_close[:-1]
    usual = 1.4826 * np.median(np.abs(moves - np.median(moves)))
    odd = np.flatnonzero(np.abs(moves) > _ODD_MOVE * usual)
    open_move, close_move = moves[odd], log_close[odd + 1] - log_close[odd]
    factors = np.log(_SPLIT_FACTORS)
    nearest = np.abs(np.abs(open_move)[:, None] - factors).argmin(axis=1)
    expected = np.sign(open_move) * factors[nearest]
    like = (np.abs(open_move - expected) < _NEAR_OPEN) & (np.abs(close_move - expected) < _NEAR_CLOSE)
    texts = []
    for index in np.flatnonzero(like):
        factor = f"{_SPLIT_FACTORS[nearest[index]]:g}"
        ratio = f"1:{factor}" if open_move[index] > 0 else f"{factor}:1"
        texts.append(f"{frame['timestamps'].iloc[odd[index] + 1]:%Y-%m-%d} (about {ratio})")
    return [f"jumps like unadjusted splits: {_list(texts)}; adjust the prices if they are"] if texts else []


def _without_volume(frame: pd.DataFrame) -> list[str]:
    still = frame["volume"].to_numpy() == 0
    if still.all() or not still.any():
        return []
    first = frame["timestamps"].to_numpy()[still][0]
    return [f"bars without volume, as in a trading halt: {still.sum()}, the first at {_text(first)}"]


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


def _tiny(frame: pd.DataFrame) -> list[str]:
    usual_move = float(np.median(np.abs(np.diff(frame["close"]))))
    if not 0 < usual_move < EPSILON:
        return []
    return [
        f"prices so small that a bar moves by {usual_move:.1g}: Kronos adds {EPSILON:g} to a lookback's deviation and "
        "sees little of it; multiply the prices"
    ]


def _forming(frame: pd.DataFrame, zone: str | None, schedule: BarSchedule, now: pd.Timestamp) -> list[str]:
    """A last bar that is off the grid of all others was cut short; one with a known zone may also not be over by now.

    Neither the file's date nor its last volume tells it soundly, and without a zone the clock tells nothing.
    """
    stamps = frame["timestamps"]
    last = stamps.iloc[-1]
    phases = stamps.astype("int64").to_numpy() % schedule.interval
    text = f"the last bar, {last}, may still be forming: "
    if not schedule.daily and (phases[:-1] == phases[0]).all() and phases[-1] != phases[0]:
        return [f"{text}it is off the grid of the others; remove it if so"]
    if zone is not None:
        # Of a winter's and a summer's offset the eastern one: a bar that is not over by it is not over by the other.
        ends = (last.tz_localize(zone.split("/")[-1]) + pd.Timedelta(schedule.interval, "ns")).tz_convert("UTC")
        if ends > now:
            return [f"{text}its time is up at {ends:%Y-%m-%d %H:%M} UTC, later than now; remove it if so"]
    return []


def _list(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _text(stamp: np.datetime64) -> str:
    return str(pd.Timestamp(stamp))
