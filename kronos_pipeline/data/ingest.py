"""From CSV files to validated bars. Every bad line is reported at once, with its file, line, column, rule and value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.data.bar_schedule import StampArray
from kronos_pipeline.data.bars import FEATURES, PRICES, Bars, FloatArray, make_bars
from kronos_pipeline.data.csv_files import CsvFile, find_csv_files
from kronos_pipeline.data.csv_table import CsvTable, read_csv_table
from kronos_pipeline.data.quality_flags import find_flags
from kronos_pipeline.data.schemas import ORDER_RULES, RULES, VALIDATION_BATCH, BarFrame
from kronos_pipeline.data.timestamps import parse_times
from kronos_pipeline.errors import DataError, Problem


@dataclass
class _Draft:
    """A file on its way to bars: columns oldest first, the table's row of each bar, and what is known to be wrong."""

    table: CsvTable
    times: StampArray
    columns: dict[str, FloatArray]
    rows: np.ndarray
    zone: str | None
    problems: list[Problem]
    notes: list[str]


def read_bars(file: CsvFile, *, now: pd.Timestamp | None = None) -> Bars:
    """Read and validate one ticker's CSV.

    Args:
        file: the file.
        now: the moment of reading, with a zone, for the note on a last bar that is still forming; by default the
            clock's.

    Raises:
        DataError: with every problem of the file.
    """
    good, bad = read_files([file], now=now)
    if bad:
        raise bad[file.ticker]
    return good[file.ticker]


def read_table(table: CsvTable, *, now: pd.Timestamp | None = None) -> Bars:
    """Read and validate one ticker's bars that are a table of text already; see `read_bars`."""
    draft = _draft(table)
    _validate([draft])
    return _finish(draft, pd.Timestamp.now("UTC") if now is None else now)


def read_folder(data_dir: Path, *, now: pd.Timestamp | None = None) -> tuple[dict[str, Bars], dict[str, DataError]]:
    """Read and validate every CSV below a folder: the good tickers' bars, and what is wrong with each bad one.

    Raises:
        DataError: there is no such folder, or no CSV in it.
    """
    folder = find_csv_files(data_dir)
    good, bad = read_files(list(folder.files.values()), now=now)
    return good, dict(sorted({**folder.problems, **bad}.items()))


def read_files(
    files: Sequence[CsvFile], *, now: pd.Timestamp | None = None
) -> tuple[dict[str, Bars], dict[str, DataError]]:
    """Read and validate some tickers' CSVs: the good tickers' bars, and what is wrong with each bad one."""
    now = pd.Timestamp.now("UTC") if now is None else now
    good: dict[str, Bars] = {}
    bad: dict[str, DataError] = {}
    for first in range(0, len(files), VALIDATION_BATCH):
        drafts: list[_Draft] = []
        for file in files[first : first + VALIDATION_BATCH]:
            try:
                drafts.append(_draft(read_csv_table(file)))
            except DataError as error:
                bad[file.ticker] = error
        _validate(drafts)
        for draft in drafts:
            try:
                good[draft.table.file.ticker] = _finish(draft, now)
            except DataError as error:
                bad[draft.table.file.ticker] = error
    return good, bad


def _finish(draft: _Draft, now: pd.Timestamp) -> Bars:
    file = draft.table.file
    if draft.problems:
        raise DataError(sorted(draft.problems, key=lambda one: one.line or 0), file.ticker)
    columns = {"timestamps": draft.times, **draft.columns}
    bars = make_bars(file.ticker, columns, source=file.name, time_zone=draft.zone)
    lasting, passing = find_flags(bars.frame, draft.zone, now)
    # What is said of a bar that is not over yet is not said for ever, so such a file is read again.
    key = None if passing else draft.table.key
    return replace(bars, notes=(*draft.notes, *lasting, *passing), csv_key=key)


def _draft(table: CsvTable) -> _Draft:
    """Read a table's numbers and times; what cannot be read is NaN or NaT, and a problem."""
    parsed = parse_times(table.cells["timestamps"])
    problems = [_problem(table, "timestamps", row, rule) for row, rule in parsed.problems]
    found: dict[str, FloatArray] = {}
    for name in FEATURES:
        if name in table.cells:
            found[name], unreadable = _numbers(table, name)
            problems += unreadable
    notes = list(parsed.notes)
    if table.ignored:
        notes.append(f"columns that are ignored: {', '.join(name or 'one without a name' for name in table.ignored)}")
    if "volume" not in found:
        found["volume"] = np.zeros(len(table.lines))
        notes.append("no volume: taken as 0")
    if "amount" not in found:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found with the rest
            found["amount"] = found["volume"] * np.mean([found[name] for name in PRICES], axis=0)
    times, rows = parsed.local.to_numpy(), np.arange(len(table.lines))
    order = slice(None)
    if np.sign(np.diff(times[~np.isnat(times)].astype(np.int64))).sum() < 0:
        order = slice(None, None, -1)
        notes.append("the file is newest first: reversed")
    columns = {name: found[name][order] for name in FEATURES}
    return _Draft(table, times[order], columns, rows[order], parsed.zone, problems, notes)


def _numbers(table: CsvTable, name: str) -> tuple[FloatArray, list[Problem]]:
    """A column's numbers, NaN where a cell holds none, and the problems of those cells."""
    cells = pc.utf8_trim_whitespace(pa.array(table.cells[name], pa.string()))
    try:
        return pc.cast(cells, pa.float64()).to_numpy(), []
    except pa.ArrowInvalid:
        pass
    numbers = np.full(len(cells), np.nan)
    problems = []
    for row, cell in enumerate(cells.to_pylist()):
        try:
            # float() would take 1_000 for a thousand.
            numbers[row] = float(cell if "_" not in cell else "")
        except ValueError:
            problems.append(_problem(table, name, row, "must be a number" if cell else "has no value"))
    return numbers, problems


def _problem(table: CsvTable, column: str, row: int, rule: str) -> Problem:
    value = str(table.cells[column][row]) or None
    return Problem(table.file.name, rule, table.lines[row], table.names[column], value)


def _validate(drafts: list[_Draft]) -> None:
    """Check many tickers' frames in one call, and add to each draft the problems that it has."""
    if not drafts:
        return
    joined = pd.DataFrame(
        {
            "ticker": np.repeat(np.arange(len(drafts)), [len(draft.rows) for draft in drafts]),
            "timestamps": np.concatenate([draft.times for draft in drafts]),
            **{name: np.concatenate([draft.columns[name] for draft in drafts]) for name in FEATURES},
        }
    )
    try:
        BarFrame.validate(joined, lazy=True, inplace=True)
    except pandera.errors.SchemaErrors as error:
        failures = error.failure_cases.drop_duplicates(["index", "check", "column"])
    else:
        return
    owners = joined["ticker"].to_numpy()
    first = np.searchsorted(owners, np.arange(len(drafts)))
    for number, found in failures.groupby(owners[failures["index"].to_numpy(int)]):
        _explain(drafts[int(number)], found.assign(bar=found["index"].astype(int) - first[int(number)]))


def _explain(draft: _Draft, failures: pd.DataFrame) -> None:
    """Say each failure of pandera's in the file's own terms: line, column as it is spelt, rule, text of the cell."""
    table = draft.table
    known = {(one.line, one.column) for one in draft.problems}
    bad_lines = {line for line, _ in known}

    def add(column: str, bar: int, rule: str) -> None:
        row = int(draft.rows[bar])
        if (table.lines[row], table.names[column]) not in known:
            known.add((table.lines[row], table.names[column]))
            draft.problems.append(_problem(table, column, row, rule))

    given = [column for column in table.cells if column != "timestamps"]
    for check in RULES:
        # In the order of the columns, which pandera's is not always.
        for column in given:
            for bar in failures.loc[(failures["check"] == check) & (failures["column"] == column), "bar"]:
                add(column, bar, RULES[check])
                bad_lines.add(table.lines[int(draft.rows[bar])])
    if "amount" not in table.cells:
        # It is volume times a price then, which only overflows, or fails for what is named already.
        for bar in failures.loc[(failures["check"] == "finite") & (failures["column"] == "amount"), "bar"]:
            if table.lines[int(draft.rows[bar])] not in bad_lines:
                add("volume", bar, "times the price is more than a number can hold")
    for check, (column, rule) in ORDER_RULES.items():
        for bar in failures.loc[failures["check"] == check, "bar"].unique():
            if check == "later_than_before":
                add(column, bar, _order_rule(draft, int(bar)))
            elif table.lines[int(draft.rows[bar])] not in bad_lines:
                # Of a bar with a price that is no price, the order of its prices says nothing more.
                add(column, bar, rule)


def _order_rule(draft: _Draft, bar: int) -> str:
    times = draft.times
    lines = np.array(draft.table.lines)[draft.rows]
    same = np.flatnonzero(times[:bar] == times[bar])
    if len(same):
        return f"is the same time as in line {lines[same[0]]}"
    before = np.flatnonzero(~np.isnat(times[:bar]))[-1]
    return f"is out of order: earlier than line {lines[before]}"
