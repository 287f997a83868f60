"""Compare the bars of a changed CSV with the bars that were read before: bars that are gone, closes that changed.

A CSV that an exporter has cut off looks complete. Its bars tell, as a source only adds bars, drops the oldest bars of
its window, and restates prices by a factor (splits, dividends, another unit), which is constant from one date to
another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_pipeline.data.bar_schedule import BoolArray, IntArray, StampArray, interval_name, usual_interval
from kronos_pipeline.data.bars import Bars, CsvReading, FloatArray
from kronos_pipeline.data.rows import Fault, Rows
from kronos_pipeline.errors import DataError, Problem, count, join

_OTHER_VALUES = ("columns", "adjusted", "keep_forming")
"""Settings of the reading that give other bars of the same file."""
_FEWEST_BARS = 3
"""Bars of the shortest period with a factor of its own; shorter periods are single closes that changed."""
_MOST_GONE = 0.01
"""Largest share of bars between others that a source may take back."""
_FLOAT_NOISE = 1e-6
"""Largest relative difference of prices that are equal up to the precision of a source."""
_MOST_DIGITS = 8
_SAME_INTERVAL = 1.2
"""Largest ratio of two intervals that are the same, such as months of 30 and 31 days."""


@dataclass(frozen=True)
class HistoryChange:
    """What differs between the bars of two readings of a ticker.

    Attributes:
        problems: (bar, column, rule) of each change that no source makes; the bar is None for the whole file.
        notes: changes that sources make, a sentence each.
    """

    problems: tuple[tuple[int | None, str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownBars:
    """The bars that were read before.

    Attributes:
        bars: the bars by ticker; no bars for a ticker that is read for the first time.
        notes: the reason for which a ticker's earlier bars are not known, by ticker.
        accept: take bars that contradict the earlier bars, with a note.
    """

    bars: Mapping[str, Bars] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    accept: bool = False


NOTHING_KNOWN = KnownBars()
"""For a reading whose bars are compared with no others."""


def check_history(known: KnownBars, rows: Rows, times: StampArray, zone: str | None, reading: CsvReading) -> list[str]:
    """Compare a ticker's bars with those that were read before, and return notes on the changes.

    Args:
        known: the bars that were read before.
        rows: the rows of the bars.
        times: the bars' times, `(bars,)`.
        zone: their time zone.
        reading: how the bars are read.

    Raises:
        DataError: the bars contradict the earlier bars, and such changes are not accepted.
    """
    file, before = rows.tables[0].file, known.bars.get(rows.ticker)
    if before is None:
        return [known.notes[rows.ticker]] if rows.ticker in known.notes else []
    if before.reading is None or before.reading.contents == reading.contents:
        return []
    names = [
        name for name in _OTHER_VALUES if getattr(before.reading.settings, name) != getattr(reading.settings, name)
    ]
    if names:
        flags = join([f"--{name.replace('_', '-')}" for name in names])
        return [f"not compared with the bars that were read before, as {flags} was another"]
    change = compare_history(before, times, rows.columns)
    faults = [Fault(int(rows.ids[bar]), column, rule) for bar, column, rule in change.problems if bar is not None]
    problems = [Problem(file.name, rule) for bar, _, rule in change.problems if bar is None] + rows.problems(faults)
    if not problems:
        return list(change.notes)
    if known.accept:
        return [*change.notes, *(f"--accept-history: {problem}" for problem in problems)]
    remedy = "export the file again, or take it as it is with --accept-history"
    if Path(before.source).resolve().parent != file.path.resolve().parent:
        remedy = (
            f"the bars were read from {before.source} before: give other data a folder of their own with --output-dir, "
            "or take them as they are with --accept-history"
        )
    elif zone != before.time_zone:
        remedy += f" (the times are in {zone or 'no stated zone'}, and were in {before.time_zone or 'no stated zone'})"
    raise DataError([replace(problem, rule=f"{problem.rule}; {remedy}") for problem in problems], rows.ticker)


def compare_history(before: Bars, times: StampArray, columns: Mapping[str, FloatArray]) -> HistoryChange:
    """Compare the bars of a file with the bars that were read before.

    Args:
        before: the bars of the earlier reading.
        times: datetime64[ns], `(bars,)`, sorted and distinct.
        columns: the features, each `(bars,)`.
    """
    old_times, new_times = _nanoseconds(before.frame["timestamps"].to_numpy()), _nanoseconds(times)
    if interval_change := _interval_change(old_times, new_times):
        return HistoryChange(((None, "time", interval_change),))
    gone = ~np.isin(old_times, new_times, assume_unique=True)
    rolled_off, cut_off = gone & (old_times < new_times[0]), gone & (old_times > new_times[-1])
    between = gone & ~rolled_off & ~cut_off
    problems: list[tuple[int | None, str, str]] = []
    notes: list[str] = []
    if rolled_off.any():
        notes.append(
            f"{_bars_text(old_times[rolled_off])} that were read before are no longer in the file, which begins later"
        )
    if cut_off.any():
        rule = f"is the last bar, and {_bars_text(old_times[cut_off])} that were read before are gone"
        problems.append((len(new_times) - 1, "time", rule))
    if between.any():
        text = f"{_bars_text(old_times[between])} that were read before are gone from between the others"
        if between.sum() > _MOST_GONE * len(old_times):
            problems.append((None, "time", text))
        else:
            notes.append(text)
    _, old_rows, new_rows = np.intersect1d(old_times, new_times, assume_unique=True, return_indices=True)
    if len(old_rows):
        columns = {name: values[new_rows] for name, values in columns.items()}
        common = before.frame.iloc[old_rows]
        closes = _compare_closes(common, columns["close"], newest_known=bool(old_rows[-1] == len(old_times) - 1))
        problems += [(int(new_rows[bar]), "close", rule) for bar, rule in closes.changed]
        notes += [*closes.notes, *_revisions(common, columns)]
    return HistoryChange(tuple(problems), tuple(notes))


@dataclass(frozen=True)
class _Closes:
    """The bars whose closes changed, each with the rule, and notes on restated closes."""

    changed: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()


def _compare_closes(common: pd.DataFrame, new: FloatArray, *, newest_known: bool) -> _Closes:
    """Compare the closes of the bars that both readings have.

    Args:
        common: the bars of the earlier reading.
        new: their closes now, `(bars,)`.
        newest_known: whether the last of them was the newest bar, which may have been revised since.
    """
    old = common["close"].to_numpy()
    if np.array_equal(old, new):
        return _Closes()
    days = common["timestamps"].to_numpy()
    low, high = _ratios(old, new)
    periods = _constant_periods(low, high)
    changed: list[int] = []
    factors: list[tuple[float, int]] = []
    for first, end in periods:
        smallest, largest = low[first:end].max(), high[first:end].min()
        if smallest <= 1 <= largest:
            continue
        if end - first >= _FEWEST_BARS or first == 0:  # the oldest period may have rolled off in part
            factors.append(((smallest + largest) / 2, end))
        else:
            changed += [bar for bar in range(first, end) if not low[bar] <= 1 <= high[bar]]
    notes = []
    if newest_known and changed and changed[-1] == len(old) - 1:
        bar = changed.pop()
        closes = f"its close was {old[bar]:g} and is {new[bar]:g}"
        notes.append(f"the newest bar read before, {_time_text(days[bar])}, is revised: {closes}")
    if factors:
        texts = [f"{factor:.4g}" for factor, _ in factors]
        text = f"a factor of {texts[0]}" if len(texts) == 1 else f"{len(texts)} factors, {texts[0]} to {texts[-1]},"
        notes.append(
            f"closes up to {_time_text(days[factors[-1][1] - 1])} are restated by {text} since they were read before"
        )
    if not changed:
        return _Closes((), tuple(notes))
    largest = np.abs(new[changed] / old[changed] - 1).max()
    rule = (
        f"is not the close that was read before, {old[changed[0]]:g} on {_time_text(days[changed[0]])}, and neither a "
        f"split nor a dividend makes it so; such closes differ by {largest:.2%} at most"
    )
    return _Closes(tuple((bar, rule) for bar in changed), tuple(notes))


def _ratios(old: FloatArray, new: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the smallest and largest ratio of the closes before they were rounded, each `(bars,)`."""
    old_error, new_error = _rounding_error(old), _rounding_error(new)
    return (new - new_error) / (old + old_error), (new + new_error) / np.maximum(old - old_error, 1e-300)


def _rounding_error(prices: FloatArray) -> FloatArray:
    """Return the largest error of prices that a source rounds, `(bars,)`."""
    noise = _FLOAT_NOISE * prices
    for digits in range(_MOST_DIGITS):
        if (np.abs(prices - np.round(prices, digits)) <= 1e-12 * prices).all():
            return np.maximum(noise, 0.5 * 10.0**-digits)
    return noise


def _constant_periods(low: FloatArray, high: FloatArray) -> list[tuple[int, int]]:
    """Divide bars into the fewest periods of a constant ratio, as pairs of the first bar and the bar after the last."""
    starts, smallest, largest = [0], 0.0, np.inf
    for bar, (least, most) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        smallest, largest = max(smallest, least), min(largest, most)
        if smallest > largest:
            starts.append(bar)
            smallest, largest = least, most
    return list(zip(starts, [*starts[1:], len(low)], strict=True))


def _revisions(common: pd.DataFrame, columns: Mapping[str, FloatArray]) -> list[str]:
    """Return notes on volumes, and on other prices of bars with the same close, that differ from those read before."""

    def differs(*names: str) -> BoolArray:
        return np.any([columns[name] != common[name].to_numpy() for name in names], axis=0)

    revised = {"volume": differs("volume"), "open, high or low": differs("open", "high", "low") & ~differs("close")}
    times = common["timestamps"].to_numpy()
    return [
        f"{name} revised in {count(int(bars.sum()), 'bar')}, first on {_time_text(times[bars][0])}"
        for name, bars in revised.items()
        if bars.any()
    ]


def _interval_change(old: IntArray, new: IntArray) -> str | None:
    """Return the rule that a file of bars of another interval breaks."""
    if min(len(old), len(new)) <= _FEWEST_BARS:
        return None
    before, now = usual_interval(old), usual_interval(new)
    if max(before, now) <= _SAME_INTERVAL * min(before, now):
        return None
    return f"bars of {interval_name(now)}, and those read before are of {interval_name(before)}"


def _nanoseconds(stamps: StampArray) -> IntArray:
    return np.asarray(stamps).astype("datetime64[ns]").astype(np.int64)


def _bars_text(times: IntArray) -> str:
    first, last = _time_text(times[0]), _time_text(times[-1])
    return f"{count(len(times), 'bar')} ({first if len(times) == 1 else f'{first} to {last}'})"


def _time_text(time: Any) -> str:
    """Format a bar time; a date if it is midnight."""
    stamp = pd.Timestamp(time)
    return f"{stamp:%Y-%m-%d}" if stamp == stamp.normalize() else f"{stamp:%Y-%m-%d %H:%M:%S}"
