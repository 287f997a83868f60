"""Parse CSV files into validated bars; report all invalid lines, with file, line, column, rule and value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bar_schedule import StampArray
from kronos_pipeline.data.bars import FEATURES, PRICES, Bars, FloatArray, csv_key, make_bars
from kronos_pipeline.data.csv_files import CsvFile, find_csv_files
from kronos_pipeline.data.csv_table import DEFAULTS, CsvTable, read_csv_table
from kronos_pipeline.data.quality_flags import find_flags
from kronos_pipeline.data.schemas import ORDER_RULES, RULES, VALIDATION_BATCH, BarFrame
from kronos_pipeline.data.timestamps import parse_times
from kronos_pipeline.errors import DataError, Problem


@dataclass
class _Draft:
    """A parsed file before validation: columns oldest first, the table's row of each bar, and the problems found."""

    table: CsvTable
    times: StampArray
    columns: dict[str, FloatArray]
    rows: np.ndarray
    zone: str | None
    problems: list[Problem]
    notes: list[str]


def read_bars(file: CsvFile, settings: ReadingSettings = DEFAULTS, *, now: pd.Timestamp | None = None) -> Bars:
    """Read and validate one ticker's CSV.

    Args:
        file: the file.
        settings: the settings of the reading.
        now: the time of reading, with a zone, for the note on an unfinished last bar; by default the current time.

    Raises:
        DataError: the file is invalid; the error has all problems.
    """
    bars, errors = read_files([file], settings, now=now)
    if errors:
        raise errors[file.ticker]
    return bars[file.ticker]


def read_table(table: CsvTable, *, now: pd.Timestamp | None = None) -> Bars:
    """Read and validate one ticker's bars from a table of text; see `read_bars`."""
    draft = _draft(table)
    _validate([draft])
    return _finish(draft, DEFAULTS, pd.Timestamp.now("UTC") if now is None else now)


def read_folder(
    data_dir: Path, settings: ReadingSettings = DEFAULTS, *, now: pd.Timestamp | None = None
) -> tuple[dict[str, Bars], dict[str, DataError]]:
    """Read and validate every CSV below a folder.

    Returns:
        The bars of each valid ticker, and the error of each invalid ticker.

    Raises:
        DataError: the folder does not exist or has no CSV.
    """
    folder = find_csv_files(data_dir, settings)
    bars, errors = read_files(list(folder.files.values()), settings, now=now)
    return bars, dict(sorted({**folder.problems, **errors}.items()))


def read_files(
    files: Sequence[CsvFile], settings: ReadingSettings = DEFAULTS, *, now: pd.Timestamp | None = None
) -> tuple[dict[str, Bars], dict[str, DataError]]:
    """Read and validate tickers' CSVs; return the bars of valid tickers and the errors of invalid tickers."""
    now = pd.Timestamp.now("UTC") if now is None else now
    bars: dict[str, Bars] = {}
    errors: dict[str, DataError] = {}
    for first in range(0, len(files), VALIDATION_BATCH):
        drafts: list[_Draft] = []
        for file in files[first : first + VALIDATION_BATCH]:
            try:
                drafts.append(_draft(read_csv_table(file, settings)))
            except DataError as error:
                errors[file.ticker] = error
        _validate(drafts)
        for draft in drafts:
            try:
                bars[draft.table.file.ticker] = _finish(draft, settings, now)
            except DataError as error:
                errors[draft.table.file.ticker] = error
    return bars, errors


def _finish(draft: _Draft, settings: ReadingSettings, now: pd.Timestamp) -> Bars:
    file = draft.table.file
    if draft.problems:
        raise DataError(sorted(draft.problems, key=lambda problem: problem.line or 0), file.ticker)
    columns = {"timestamps": draft.times, **draft.columns}
    bars = make_bars(file.ticker, columns, source=file.name, time_zone=draft.zone)
    permanent, temporary = find_flags(bars.frame, draft.zone, now)
    # The note on an unfinished bar will not hold later, so read such a file again next time.
    content = draft.table.content_hash
    key = None if temporary or content is None else csv_key(file, [content], settings)
    return replace(bars, notes=(*draft.notes, *permanent, *temporary), csv_key=key)


def _draft(table: CsvTable) -> _Draft:
    """Parse a table's numbers and times; an invalid cell becomes NaN or NaT and a problem."""
    parsed = parse_times(table.cells["timestamps"])
    problems = [_problem(table, "timestamps", row, rule) for row, rule in parsed.problems]
    columns: dict[str, FloatArray] = {}
    for name in FEATURES:
        if name in table.cells:
            columns[name], unreadable = _numbers(table, name)
            problems += unreadable
    notes = list(parsed.notes)
    if table.ignored:
        notes.append(f"columns that are ignored: {', '.join(name or 'one without a name' for name in table.ignored)}")
    if "volume" not in columns:
        columns["volume"] = np.zeros(len(table.lines))
        notes.append("no volume: taken as 0")
    if "amount" not in columns:
        with np.errstate(over="ignore", invalid="ignore"):  # validation reports overflows
            columns["amount"] = columns["volume"] * np.mean([columns[name] for name in PRICES], axis=0)
    times, rows = parsed.local.to_numpy(), np.arange(len(table.lines))
    order = slice(None)
    if np.sign(np.diff(times[~np.isnat(times)].astype(np.int64))).sum() < 0:
        order = slice(None, None, -1)
        notes.append("the file is newest first: reversed")
    ordered = {name: columns[name][order] for name in FEATURES}
    return _Draft(table, times[order], ordered, rows[order], parsed.zone, problems, notes)


def _numbers(table: CsvTable, name: str) -> tuple[FloatArray, list[Problem]]:
    """Parse a column's numbers; an invalid cell becomes NaN and a problem."""
    cells = pc.utf8_trim_whitespace(pa.array(table.cells[name], pa.string()))
    try:
        return pc.cast(cells, pa.float64()).to_numpy(), []
    except pa.ArrowInvalid:
        pass
    numbers = np.full(len(cells), np.nan)
    problems = []
    for row, cell in enumerate(cells.to_pylist()):
        try:
            # float() would accept 1_000 as a thousand.
            numbers[row] = float(cell if "_" not in cell else "")
        except ValueError:
            problems.append(_problem(table, name, row, "must be a number" if cell else "has no value"))
    return numbers, problems


def _problem(table: CsvTable, column: str, row: int, rule: str) -> Problem:
    value = str(table.cells[column][row]) or None
    return Problem(table.file.name, rule, table.lines[row], table.names[column], value)


def _validate(drafts: list[_Draft]) -> None:
    """Validate many tickers' frames in one call, and add the problems to their drafts."""
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
    for number, cases in failures.groupby(owners[failures["index"].to_numpy(int)]):
        _explain(drafts[int(number)], cases.assign(bar=cases["index"].astype(int) - first[int(number)]))


def _explain(draft: _Draft, failures: pd.DataFrame) -> None:
    """Translate pandera's failures to problems of the file: line, the file's column name, rule, text of the cell."""
    table = draft.table
    known = {(problem.line, problem.column) for problem in draft.problems}
    bad_lines = {line for line, _ in known}

    def add(column: str, bar: int, rule: str) -> None:
        row = int(draft.rows[bar])
        if (table.lines[row], table.names[column]) not in known:
            known.add((table.lines[row], table.names[column]))
            draft.problems.append(_problem(table, column, row, rule))

    feature_columns = [column for column in table.cells if column != "timestamps"]
    for check in RULES:
        # Use the order of the file's columns; pandera's order may differ.
        for column in feature_columns:
            for bar in failures.loc[(failures["check"] == check) & (failures["column"] == column), "bar"]:
                add(column, bar, RULES[check])
                bad_lines.add(table.lines[int(draft.rows[bar])])
    if "amount" not in table.cells:
        # A computed amount, volume times price, can only overflow or repeat a problem of another column.
        for bar in failures.loc[(failures["check"] == "finite") & (failures["column"] == "amount"), "bar"]:
            if table.lines[int(draft.rows[bar])] not in bad_lines:
                add("volume", bar, "times the price is more than a number can hold")
    for check, (column, rule) in ORDER_RULES.items():
        for bar in failures.loc[failures["check"] == check, "bar"].unique():
            if check == "later_than_before":
                add(column, bar, _order_rule(draft, int(bar)))
            elif table.lines[int(draft.rows[bar])] not in bad_lines:
                # The order of prices means nothing for a bar with an invalid price.
                add(column, bar, rule)


def _order_rule(draft: _Draft, bar: int) -> str:
    times = draft.times
    lines = np.array(draft.table.lines)[draft.rows]
    same = np.flatnonzero(times[:bar] == times[bar])
    if len(same):
        return f"is the same time as in line {lines[same[0]]}"
    before = np.flatnonzero(~np.isnat(times[:bar]))[-1]
    return f"is out of order: earlier than line {lines[before]}"
