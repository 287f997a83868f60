"""Find the dates from which a session begins and ends at other times, in a file without a zone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_pipeline.data.bar_schedule import IntArray
from kronos_pipeline.data.bar_stamps import HALF_HOUR, HOUR, Stamps, clock, most_frequent
from kronos_pipeline.errors import count

_SESSION_DATES = 5
"""Dates before and after a moved session."""
_REGULAR_SESSIONS = 0.8
_SESSION = 18 * HOUR
_LEAST_MOVE = HALF_HOUR
_CLOCK_CHANGES = (3, 4, 9, 10, 11)
"""Months in which clocks change."""
_SHOWN = 3


def find_moves(stamps: Stamps) -> list[tuple[int | None, str]]:
    """Find the bars from which sessions begin and end at other times of day."""
    days, clocks = stamps.days, stamps.clocks
    firsts = np.flatnonzero(np.concatenate([[True], days[1:] != days[:-1]]))
    if len(firsts) < 2 * _SESSION_DATES:
        return []
    lasts = np.append(firsts[1:], len(days)) - 1
    begins, ends = clocks[firsts], clocks[lasts]
    if np.median(ends - begins) > _SESSION or np.median(lasts - firsts) < 1:
        return []
    # A new beginning that holds on the next dates, too.
    new = (begins[1:-2] != begins[:-3]) & (begins[1:-2] == begins[2:-1]) & (begins[1:-2] == begins[3:])
    moves: list[tuple[int | None, str]] = []
    changes: list[int] = []
    for date in (np.flatnonzero(new) + 1).tolist():
        sides = slice(max(date - 2 * _SESSION_DATES, 0), date), slice(date, date + 2 * _SESSION_DATES)
        before, after = (_regular_session(begins[side], ends[side]) for side in sides)
        if before is None or after is None or after[0] != begins[date] or (begins[sides[0]] == after[0]).any():
            continue
        move = after[0] - before[0]
        if abs(move) < _LEAST_MOVE or after[1] - before[1] != move:
            continue
        bar = int(firsts[date])
        if abs(move) == HOUR and pd.Timestamp(int(stamps.times[bar])).month in _CLOCK_CHANGES:
            changes.append(bar)
            continue
        sessions = [f"{clock(begin)}-{clock(end)}" for begin, end in (before, after)]
        moves.append((bar, f"the session moves from {sessions[0]} to {sessions[1]}, as if the time zone changed"))
    if moves:
        more = f"the session moves {count(len(moves) - _SHOWN, 'more time')}"
        return [*moves[:_SHOWN], *([(None, more)] if len(moves) > _SHOWN else [])]
    if not changes:
        return []
    note = f"the session moves by an hour with daylight saving, {count(len(changes), 'time')}, for the first time here"
    return [(changes[0], note)]


def _regular_session(begins: IntArray, ends: IntArray) -> tuple[int, int] | None:
    """Return the beginning and the end that most of some sessions have, or None."""
    if len(begins) < _SESSION_DATES:
        return None
    begin, end = most_frequent(begins), most_frequent(ends)
    regular = min((begins == begin).mean(), (ends == end).mean())
    return (begin, end) if regular >= _REGULAR_SESSIONS else None
