"""The rows of a ticker's CSV on their way to bars: each step leaves out, orders or completes rows, and notes it.

    order_rows       of each file: rows before --from and rows without a price are left out, the others sorted
    join_rows        the rows of all files of the ticker, sorted
    complete_rows    repeats, --adjusted, what is absent or off by a rounding error
    (validation)     finds further faults
    leave_out_bad    bad rows, by --drop-bad-rows (bad_rows.py)
    find_conflicts   two rows of one time with other values (bad_rows.py)

A fault makes its row bad. Every row that is left out is counted in a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bar_schedule import BoolArray, IntArray, StampArray
from kronos_pipeline.data.bars import PRICES, FloatArray
from kronos_pipeline.data.csv_table import CsvTable
from kronos_pipeline.errors import LINES_SHOWN, DataError, Problem, count, enumerate_some

TIME = "time"
"""The key of the time column in faults."""
ADJUSTED_CLOSE = "adj_close"
"""The key of the column of adjusted closes."""
NO_ADJUSTED_CLOSE = "no column Adj Close: --adjusted changes nothing"
"""The note on a ticker that --adjusted cannot change."""

_ROUNDING = 1e-6
"""Largest relative distance of a high below, or of a low above, the open or close of its bar that is no fault."""
_FEWEST_EVENINGS = 3
"""Dates that tell a habit from two rows in the wrong order."""
_LONGEST_VALUE = 100
"""Characters of a cell in a message."""


class Fault(NamedTuple):
    """A cell that makes its row bad: the row's number, the column's key, the violated rule."""

    row: int
    column: str
    rule: str


@dataclass(frozen=True)
class Rows:
    """The rows of one ticker, of all its files.

    Attributes:
        tables: the tables that the rows are from.
        time_columns: the name of each table's time column.
        ids: the number of each row, counted over all tables, one after another.
        times: datetime64[ns], `(rows,)`, NaT for a bad time.
        columns: the features, and `adj_close` if a table has it, each `(rows,)`; NaN for an empty or bad cell.
        gaps: `(rows,)`, True for a row without a price.
        derived: `(rows,)`, True for a row of a table without amount.
        zone: the time zone that the files state, or None.
        faults: the faults of these rows.
        notes: the decisions.
    """

    tables: tuple[CsvTable, ...]
    time_columns: tuple[str, ...]
    ids: IntArray
    times: StampArray
    columns: dict[str, FloatArray]
    gaps: BoolArray
    derived: BoolArray
    zone: str | None = None
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ticker(self) -> str:
        """The symbol."""
        return self.tables[0].file.ticker

    @property
    def bad(self) -> BoolArray:
        """True for a row with a fault, `(rows,)`."""
        if not self.faults:
            return np.zeros(len(self), np.bool_)
        return np.isin(self.ids, [fault.row for fault in self.faults])

    def take(self, index: IntArray | BoolArray | slice, *notes: str) -> Rows:
        """Return some of the rows, or the rows in another order, with further notes."""
        ids = self.ids[index]
        ids_left = set(ids.tolist()) if self.faults else set()
        return replace(
            self,
            ids=ids,
            times=self.times[index],
            columns={name: values[index] for name, values in self.columns.items()},
            gaps=self.gaps[index],
            derived=self.derived[index],
            faults=tuple(fault for fault in self.faults if fault.row in ids_left),
            notes=(*self.notes, *notes),
        )

    def change(self, columns: dict[str, FloatArray], *notes: str) -> Rows:
        """Return the rows with other values of some columns."""
        return replace(self, columns={**self.columns, **columns}, notes=(*self.notes, *notes))

    def problems(self, faults: Iterable[Fault]) -> list[Problem]:
        """Return the problems of faults in file order; lines with the same fault in the same column are one problem."""
        merged: dict[tuple[int, str, str], list[int]] = {}
        for row, column, rule in sorted(faults, key=lambda fault: fault.row):
            merged.setdefault((id(self._place(row)[0]), column, rule), []).append(row)
        return [self._problem(rows, column, rule) for (_, column, rule), rows in merged.items()]

    def places(self, rows: IntArray) -> str:
        """Return where the rows are: "lines 2, 3, 4, 5, 6 and 7 more", with the files' names if there are several."""
        if len(self.tables) > 1:
            return enumerate_some([self.place(row) for row in rows.tolist()])
        lines = [self._place(row)[1] for row in rows.tolist()]
        return f"line{'s' if len(lines) > 1 else ''} {enumerate_some(lines)}"

    def all_places(self, rows: IntArray) -> str:
        """Return where all of the sorted rows are: "lines 2-5, 9", or "A.csv:2-5, 9; B.csv:7"."""
        lines: dict[str, list[int]] = {}
        for row in rows.tolist():
            table, line, _ = self._place(row)
            lines.setdefault(table.file.name, []).append(line)
        if len(self.tables) > 1:
            return "; ".join(f"{file}:{_ranges(numbers)}" for file, numbers in lines.items())
        [numbers] = lines.values()
        return f"line{'s' if len(numbers) > 1 else ''} {_ranges(numbers)}"

    def place(self, row: int) -> str:
        """Return where a row is: "line 2", or "B.csv:2" if the ticker has several files."""
        table, line, _ = self._place(row)
        return f"line {line}" if len(self.tables) == 1 else f"{table.file.name}:{line}"

    def _place(self, row: int) -> tuple[CsvTable, int, int]:
        """Return a row's table, its line in the file and its index in the table."""
        for table in self.tables:
            if row < len(table.lines):
                return table, int(table.lines[row]), row
            row -= len(table.lines)
        raise IndexError(row)

    def _problem(self, rows: Sequence[int], column: str, rule: str) -> Problem:
        table, line, index = self._place(rows[0])
        if column == TIME:
            name = self.time_columns[next(number for number, other in enumerate(self.tables) if other is table)]
            cells = table.time_cells[name]
        else:
            name, cells = table.names[column], table.cells[column]
        lines = tuple(self._place(row)[1] for row in rows[:LINES_SHOWN]) if len(rows) > 1 else ()
        value = str(cells[index])[:_LONGEST_VALUE] or None
        return Problem(table.file.name, rule, line, name or "first column", value, lines, len(rows))


def order_rows(rows: Rows, settings: ReadingSettings) -> Rows:
    """Leave out the rows of a file before the first date to read and those without a price, and sort the others."""
    first = settings.first_date(rows.ticker)
    if first is not None:
        # Rows without a readable time stay.
        early = rows.times < np.datetime64(first)
        if early.any():
            rows = rows.take(~early, f"read from {first} on: {count(int(early.sum()), 'earlier row')} left out")
    if rows.gaps.any():
        gaps = rows.ids[rows.gaps]
        rows = rows.take(~rows.gaps, f"{count(len(gaps), 'row')} without a price left out: {rows.places(gaps)}")
    return _sort(rows)


def join_rows(parts: Sequence[Rows], settings: ReadingSettings) -> Rows:
    """Join the rows of a ticker's files, each in order.

    Raises:
        DataError: no row is left, the files are of different time zones, or some have no Adj Close.
    """
    rows = parts[0] if len(parts) == 1 else _join(parts, settings)
    if not len(rows):
        first = settings.first_date(rows.ticker)
        rule = (
            f"no row with a price from {first} on; choose an earlier date for --from" if first else "no row has a price"
        )
        raise DataError(Problem(rows.tables[0].file.name, rule), rows.ticker)
    return rows


def complete_rows(rows: Rows, settings: ReadingSettings) -> Rows:
    """Leave out repeats, adjust prices, and complete what is absent or off by a rounding error."""
    rows = _adjust(_leave_out_repeats(rows), adjusted=settings.adjusted)
    for name in ("volume", "amount"):
        rows = _fill(rows, name)
    return _derive_amount(_widen(rows))


def _join(parts: Sequence[Rows], settings: ReadingSettings) -> Rows:
    _require_alike(parts, settings)
    names = dict.fromkeys(name for part in parts for name in part.columns)
    offsets = np.cumsum([0, *(len(part.tables[0].lines) for part in parts)])[:-1].tolist()
    rows = Rows(
        tables=tuple(part.tables[0] for part in parts),
        time_columns=tuple(part.time_columns[0] for part in parts),
        ids=np.concatenate([part.ids + offset for part, offset in zip(parts, offsets, strict=True)]),
        times=np.concatenate([part.times for part in parts]),
        columns={
            name: np.concatenate([part.columns.get(name, np.full(len(part), np.nan)) for part in parts])
            for name in names
        },
        gaps=np.concatenate([part.gaps for part in parts]),
        derived=np.concatenate([part.derived for part in parts]),
        zone=parts[0].zone,
        faults=tuple(
            fault._replace(row=fault.row + offset)
            for part, offset in zip(parts, offsets, strict=True)
            for fault in part.faults
        ),
        notes=_join_notes(parts),
    )
    return rows.take(np.argsort(_known_times(rows.times), kind="stable"))


def _require_alike(parts: Sequence[Rows], settings: ReadingSettings) -> None:
    first = parts[0]
    adjusted = settings.adjusted and any(ADJUSTED_CLOSE in part.columns for part in parts)
    for part in parts:
        file = part.tables[0].file
        rule = None
        if part.zone != first.zone:
            zone, first_zone = (f"in {name}" if name else "without a time zone" for name in (part.zone, first.zone))
            rule = (
                f"its times are {zone}, and those of {first.tables[0].file.name} {first_zone}; export the files alike"
            )
        elif adjusted and ADJUSTED_CLOSE not in part.columns:
            rule = "no column Adj Close, which another file of the ticker has; export the files alike"
        if rule:
            raise DataError(Problem(file.name, rule), file.ticker)


def _join_notes(parts: Sequence[Rows]) -> tuple[str, ...]:
    """Return the notes of all files, and each other note with the names of its files."""
    files: dict[str, dict[str, None]] = {}
    for part in parts:
        for note in part.notes:
            files.setdefault(note, {})[part.tables[0].file.path.name] = None
    return tuple(
        note if len(names) == len(parts) else f"{enumerate_some(names, 3)}: {note}" for note, names in files.items()
    )


def _sort(rows: Rows) -> Rows:
    """Sort the rows by time; a row with a bad time stays beside its neighbours."""
    if (rows.times[1:] >= rows.times[:-1]).all():
        return rows
    known = _known_times(rows.times)
    steps = np.sign(np.diff(known.astype(np.int64)))
    # A shuffled file has as many steps back as forth.
    if (steps < 0).sum() > 2 * (steps > 0).sum():
        rows = rows.take(slice(None, None, -1), "the file is newest first: reversed")
        known, steps = known[::-1], -steps[::-1]
    if (steps >= 0).all():
        return rows
    if (row := _find_evening_first(known)) is not None:
        rule = "goes back on the same date, as where the bars of an evening have the date of the next day"
        fault = Fault(int(rows.ids[row]), TIME, f"{rule}; write the calendar date of each bar")
        raise DataError(rows.problems([fault]), rows.ticker)
    early = np.sort(rows.ids[1:][steps < 0])
    verb = "is" if len(early) == 1 else "are"
    note = (
        f"rows are sorted by time: {count(len(early), 'row')} {verb} earlier than the row before, {rows.places(early)}"
    )
    return rows.take(np.argsort(known, kind="stable"), note)


def _find_evening_first(times: StampArray) -> int | None:
    """Return the first row with an earlier time of day than the row before, if most dates have one such row.

    The dates are in order, so the file is not merely shuffled.
    """
    days = times.astype("datetime64[D]")
    if (days[1:] < days[:-1]).any():
        return None
    evenings = np.flatnonzero((days[1:] == days[:-1]) & (times[1:] < times[:-1])) + 1
    dates = len(np.unique(days))
    least = max(_FEWEST_EVENINGS, dates / 2)
    return int(evenings[0]) if len(evenings) == len(np.unique(days[evenings])) >= least else None


def _known_times(times: StampArray) -> StampArray:
    """Return the times with those of a neighbour in place of bad times."""
    return pd.Series(times).ffill().bfill().to_numpy()


def _leave_out_repeats(rows: Rows) -> Rows:
    """Leave out rows that repeat an earlier row of the files in every value."""
    if not (rows.times[1:] == rows.times[:-1]).any():
        return rows
    order = np.argsort(rows.ids)
    repeated = np.empty(len(rows), np.bool_)
    repeated[order] = pd.DataFrame({TIME: rows.times, **rows.columns}).iloc[order].duplicated().to_numpy()
    # Two bad cells are equally unreadable without being equal.
    repeated &= ~np.isnat(rows.times) & ~rows.bad
    if not repeated.any():
        return rows
    ids = np.sort(rows.ids[repeated])
    verb = "repeats" if len(ids) == 1 else "repeat"
    note = f"{count(len(ids), 'row')} {verb} another row exactly and count{'s' if len(ids) == 1 else ''} once"
    return rows.take(~repeated, f"{note}: {rows.places(ids)}")


def _adjust(rows: Rows, *, adjusted: bool) -> Rows:
    """Scale the prices by Adj Close / Close, or note that the prices are unadjusted."""
    columns = dict(rows.columns)
    adjusted_close = columns.pop(ADJUSTED_CLOSE, None)
    rows = replace(rows, columns=columns)
    if adjusted_close is None:
        return rows.change({}, NO_ADJUSTED_CLOSE) if adjusted else rows
    close = columns["close"]
    with np.errstate(all="ignore"):
        factors = adjusted_close / close
        differs = (np.abs(factors - 1) > _ROUNDING) & np.isfinite(factors) & (factors > 0)
    if not differs.any():
        return rows
    times = rows.times[differs]
    first = f"{pd.Timestamp(times[~np.isnat(times)].min()):%Y-%m-%d}" if not np.isnat(times).all() else "no date"
    largest = np.exp(np.abs(np.log(factors[differs])).max())
    extent = f"from {first} on, by a factor of {largest:.4g} at most"
    if not adjusted:
        return rows.change({}, f"Close is unadjusted: Adj Close differs from it {extent}; --adjusted scales the prices")
    with np.errstate(all="ignore"):
        scaled = {name: columns[name] * factors for name in PRICES}
    scaled["close"] = adjusted_close
    # The rounding of a product must not put the close out of the bar's range.
    scaled["high"] = np.where(columns["high"] >= close, np.fmax(scaled["high"], adjusted_close), scaled["high"])
    scaled["low"] = np.where(columns["low"] <= close, np.fmin(scaled["low"], adjusted_close), scaled["low"])
    note = f"open, high, low and close are scaled by Adj Close / Close, which differ {extent}; volume is as in the file"
    return rows.change(scaled, note)


def _fill(rows: Rows, name: str) -> Rows:
    """Take an empty cell as 0, and count those of rows that are good so far: a bad row is no bar."""
    values = rows.columns[name]
    empty = np.isnan(values)
    if name == "amount":
        empty &= ~rows.derived
    if not empty.any():
        return rows
    ids = np.sort(rows.ids[empty & ~rows.bad])
    note = f"no {name} in {count(len(ids), 'row')} with prices, taken as 0: {rows.places(ids)}"
    return rows.change({name: np.where(empty, 0.0, values)}, *([note] if len(ids) else []))


def _widen(rows: Rows) -> Rows:
    """Widen the range of bars whose open or close is out of it by a rounding error."""
    open_, high, low, close = (rows.columns[name] for name in PRICES)
    top, bottom = np.maximum(open_, close), np.minimum(open_, close)
    if (high >= top).all() and (low <= bottom).all():
        return rows
    with np.errstate(invalid="ignore"):
        short = (high < top) & (high >= top * (1 - _ROUNDING))
        tall = (low > bottom) & (low <= bottom * (1 + _ROUNDING))
    if not (short | tall).any():
        return rows
    ids = np.sort(rows.ids[short | tall])
    note = (
        f"high or low widened by less than {_ROUNDING:.0e} in {count(len(ids), 'row')} to hold open and close: "
        f"{rows.places(ids)}"
    )
    return rows.change({"high": np.where(short, top, high), "low": np.where(tall, bottom, low)}, note)


def _derive_amount(rows: Rows) -> Rows:
    """Take volume times the mean price as the amount of a file without amount."""
    if not rows.derived.any():
        return rows
    columns = rows.columns
    with np.errstate(all="ignore"):  # validation reports overflows
        derived = columns["volume"] * np.mean([columns[name] for name in PRICES], axis=0)
    return rows.change({"amount": np.where(rows.derived, derived, columns["amount"])})


def _ranges(numbers: Sequence[int]) -> str:
    """Format sorted numbers, with ranges of three and more joined: "2-5, 9, 10"."""
    runs = np.split(np.asarray(numbers), np.flatnonzero(np.diff(numbers) != 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
