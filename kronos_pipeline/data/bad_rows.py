"""The bad rows of a ticker: left out by --drop-bad-rows, or reported with the setting that leaves them out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bar_schedule import BoolArray
from kronos_pipeline.data.bars import FloatArray
from kronos_pipeline.data.csv_table import DEFAULTS
from kronos_pipeline.data.rows import TIME, Fault, Rows
from kronos_pipeline.errors import DataError, Problem, count, enumerate_some

_HUNDREDFOLD = float(np.log(100))
_NEAR_HUNDREDFOLD = 0.25
"""Largest distance, in log price, of a price in another unit from a hundred times the price around it."""
_BAD_BEGINNING = 0.5
"""Smallest share of bad rows, up to the last of them, of a file whose beginning is bad."""
_MANY_CONFLICTS = 0.2
"""Smallest share of rows with the time of another row that a file of several tickers has."""
_SUNDAY = 6
_CLOCKS_CHANGED = 4
"""Hour of a Sunday by which clocks have been set back."""
_AROUND = 10
"""Bars before and after a bar that give the price around it."""


def leave_out_bad(rows: Rows, settings: ReadingSettings) -> Rows:
    """Leave out bad rows, as many as the settings allow, and note prices in another unit.

    Raises:
        DataError: more rows are bad than the settings allow.
    """
    bad = rows.bad
    number, limit = int(bad.sum()), settings.droppable_rows(len(rows))
    if number == len(rows) or number > limit:
        conflicts = rows.problems(find_conflicts(rows.take(~bad)))
        beginning = [] if conflicts else _beginning(rows, bad, limit)
        raise DataError(beginning or [*_with_remedy(rows, number, limit, settings), *conflicts], rows.ticker)
    other_unit = np.zeros(len(rows), np.bool_)
    other_unit[~bad] = in_another_unit(rows.columns["close"][~bad])
    if not (bad | other_unit).any():
        return rows
    days = enumerate_some(np.unique(rows.times[other_unit].astype("datetime64[D]")).tolist())
    odd_note = f"prices a hundred times or a hundredth of those around them, as of pence and pounds: {days}"
    if other_unit.any() and number + other_unit.sum() > limit:
        rows = rows.change({}, f"{odd_note}; --drop-bad-rows {number + other_unit.sum()} leaves such bars out")
        other_unit[:] = False
        if not number:
            return rows
    reasons = [f"{problem.column} {problem.rule.partition('; ')[0]}" for problem in rows.problems(rows.faults)]
    if other_unit.any():
        reasons.append(odd_note)
    left_out = np.sort(rows.ids[bad | other_unit])
    note = (
        f"{count(len(left_out), 'bad row')} left out by --drop-bad-rows {settings.drop_bad_rows}: "
        f"{rows.all_places(left_out)} ({', '.join(dict.fromkeys(reasons))})"
    )
    return rows.take(~(bad | other_unit), note)


def find_conflicts(rows: Rows) -> list[Fault]:
    """Return a fault for each row with the time of an earlier row and other values; the rows are in order."""
    same = np.flatnonzero(rows.times[1:] == rows.times[:-1])
    pairs = [sorted(rows.ids[index : index + 2].tolist()) for index in same]
    if not pairs:
        return []
    times = pd.DatetimeIndex(rows.times[same])
    if len(same) > _MANY_CONFLICTS * len(rows):
        remedy = "keep one row of each time, or name the column that tells tickers apart: --columns symbol=NAME"
    elif rows.zone is None and ((times.weekday == _SUNDAY) & (times.hour < _CLOCKS_CHANGED)).all():
        remedy = (
            "if clocks were set back there, export the times in UTC or with their offset; else keep one of the rows"
        )
    else:
        remedy = "keep one of the rows"
    rule = f"is the same time as in {rows.place(pairs[0][0])}, with other values; {remedy}"
    return [Fault(later, TIME, rule) for _, later in pairs]


def in_another_unit(close: FloatArray) -> BoolArray:
    """Find closes at a hundredth or a hundred times of the price before and after them, `(bars,)`.

    A price that stays at the new level, such as after a split, is none of these.
    """
    if len(close) < 3 or np.log(close.max() / close.min()) < _HUNDREDFOLD - _NEAR_HUNDREDFOLD:
        return np.zeros(len(close), np.bool_)
    log_close = np.log(close)
    around = pd.Series(log_close).rolling(2 * _AROUND + 1, center=True, min_periods=1).median().to_numpy()
    other_unit = np.abs(np.abs(log_close - around) - _HUNDREDFOLD) < _NEAR_HUNDREDFOLD
    usual = np.flatnonzero(~other_unit)
    # Without a bar at the usual level on both sides, the level may have changed for good.
    other_unit[: usual[0] if len(usual) else None] = False
    other_unit[usual[-1] + 1 if len(usual) else 0 :] = False
    return other_unit


def _beginning(rows: Rows, bad: BoolArray, limit: int) -> list[Problem]:
    """Return the one problem of a file of which the beginning is bad, and `limit` other rows at most; else none."""
    places = np.flatnonzero(bad)
    days = rows.times.astype("datetime64[D]")
    # The beginning ends at the last bad row up to which most rows are bad; few bad rows may follow.
    mostly_bad = np.flatnonzero(np.arange(1, len(places) + 1) >= _BAD_BEGINNING * (places + 1))
    if len(mostly_bad) == 0 or mostly_bad[-1] == 0 or np.isnat(days).any():
        return []
    last, others = places[mostly_bad[-1]], len(places) - 1 - int(mostly_bad[-1])
    good_days = days[last + 1 :][days[last + 1 :] > days[last]]
    if others > limit or not len(good_days):
        return []
    first = max(rows.problems(rows.faults), key=lambda problem: problem.count)
    scope = f"all but {count(others, 'row')}" if others else "all rows"
    remedy = f"{scope} from {good_days[0]} on are good: read them with --from {good_days[0]}"
    for_ticker = f"--from {rows.ticker}={good_days[0]} for this ticker alone"
    return [replace(first, rule=f"{first.rule.partition('; ')[0]}; {remedy}, or {for_ticker}")]


def _with_remedy(rows: Rows, bad: int, limit: int, settings: ReadingSettings) -> list[Problem]:
    """Return the problems of the faults; the first tells how to leave bad rows out."""
    problems = rows.problems(rows.faults)
    if settings.drop_bad_rows != DEFAULTS.drop_bad_rows:
        remedy = (
            f"{count(bad, 'row')} bad in all, and --drop-bad-rows {settings.drop_bad_rows} leaves out {limit} at most"
        )
    elif bad <= len(rows) // 2:
        remedy = f"--drop-bad-rows {bad} leaves out {'the bad row' if bad == 1 else f'the {bad} bad rows'}"
    else:
        return problems
    separator = ", or " if "; " in problems[0].rule else "; "
    return [replace(problems[0], rule=f"{problems[0].rule}{separator}{remedy}"), *problems[1:]]
