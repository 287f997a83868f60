"""Read CSV files into validated bars; report all invalid lines, with file, line, column, rule and value.

files -> tables (csv_table) -> numbers and times -> rows of a ticker (rows) -> validation -> bar times -> bars
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bad_rows import find_conflicts, leave_out_bad
from kronos_pipeline.data.bar_schedule import BoolArray, IntArray
from kronos_pipeline.data.bar_times import arrange_bars
from kronos_pipeline.data.bars import FEATURES, PRICES, Bars, CsvReading, column_matrix, csv_key, make_bars
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.data.csv_symbols import split_symbols
from kronos_pipeline.data.csv_table import DEFAULTS, CsvTable, read_csv_table
from kronos_pipeline.data.history import NOTHING_KNOWN, KnownBars, check_history
from kronos_pipeline.data.numbers import NumberColumn, parse_numbers
from kronos_pipeline.data.quality_flags import find_flags
from kronos_pipeline.data.rows import (
    ADJUSTED_CLOSE,
    NO_ADJUSTED_CLOSE,
    TIME,
    Fault,
    Rows,
    complete_rows,
    join_rows,
    order_rows,
)
from kronos_pipeline.data.schemas import ORDER_RULES, RULES, VALIDATION_BATCH, BarFrame
from kronos_pipeline.data.timestamps import ParsedTimes, parse_time_columns
from kronos_pipeline.errors import DataError, Problem, SettingsError, enumerate_some, printable_text

_MOST_NAMES, _LONGEST_NAME = 30, 100
"""Columns in a note, and characters of a name."""
_VOLUME_LIKE = re.compile(
    r"vol|qty|quant|shares|contract|turnover|lots|size|umsatz|stück|成交|出来|거래|объ", re.IGNORECASE
)
"""Part of a name that a column of volumes may have."""


def read_bars(file: CsvFile, settings: ReadingSettings = DEFAULTS, *, now: pd.Timestamp | None = None) -> Bars:
    """Read and validate one ticker's CSV.

    Args:
        file: the file.
        settings: the settings of the reading.
        now: the time of reading, with a zone, for a last bar that is still forming; by default the current time.

    Raises:
        DataError: the file is invalid; the error has all problems.
    """
    bars, errors = read_files([file], settings, now=now)
    if errors:
        raise errors[file.ticker]
    return bars[file.ticker]


def read_table(table: CsvTable, *, now: pd.Timestamp | None = None) -> Bars:
    """Read and validate one ticker's bars from a table of text; see `read_bars`."""
    settings = ReadingSettings(keep_forming=True)  # the caller chooses the bars
    [rows] = _validate([_prepare([table], settings)])
    return _finish(table.file, rows, settings, pd.Timestamp.now("UTC") if now is None else now)


def read_folder(
    data_dir: Path, settings: ReadingSettings = DEFAULTS, *, now: pd.Timestamp | None = None
) -> tuple[dict[str, Bars], dict[str, DataError]]:
    """Read and validate every CSV below a folder.

    Returns:
        The bars of each valid ticker, and the error of each invalid ticker.

    Raises:
        DataError: the folder does not exist or has no CSV.
        SettingsError: adjusted prices are asked for, and no CSV has them.
    """
    folder = find_csv_files(data_dir, settings)
    bars, errors = read_files(list(folder.files.values()), settings, now=now)
    require_adjusted_closes(bars.values(), settings)
    return bars, dict(sorted({**folder.problems, **errors}.items()))


def require_adjusted_closes(bars: Collection[Bars], settings: ReadingSettings) -> None:
    """Check that `--adjusted` changes something.

    Raises:
        SettingsError: the setting is on, and no ticker of a folder has adjusted closes.
    """
    if settings.adjusted and bars and all(NO_ADJUSTED_CLOSE in ticker.notes for ticker in bars):
        raise SettingsError("--adjusted: no CSV has a column Adj Close; leave the option out, or export the column.")


def read_files(
    files: Sequence[CsvFile],
    settings: ReadingSettings = DEFAULTS,
    *,
    known: KnownBars = NOTHING_KNOWN,
    now: pd.Timestamp | None = None,
) -> tuple[dict[str, Bars], dict[str, DataError]]:
    """Read and validate tickers' CSVs, and compare them with the bars that were read before.

    Returns:
        The bars of each valid ticker, and the error of each invalid ticker.
    """
    now = pd.Timestamp.now("UTC") if now is None else now
    bars: dict[str, Bars] = {}
    errors: dict[str, DataError] = {}
    tables = _Tables(files, settings)
    for first in range(0, len(files), VALIDATION_BATCH):
        prepared: list[tuple[CsvFile, Rows]] = []
        for file in files[first : first + VALIDATION_BATCH]:
            try:
                prepared.append((file, _prepare([tables.read(file, path) for path in file.paths], settings)))
            except DataError as error:
                errors[file.ticker] = DataError(error.problems, file.ticker)
        validated = _validate([rows for _, rows in prepared])
        for (file, _), rows in zip(prepared, validated, strict=True):
            try:
                bars[file.ticker] = _finish(file, rows, settings, now, known)
            except DataError as error:
                errors[file.ticker] = error
    return bars, errors


class _Tables:
    """The tables of tickers' files; a file of several tickers is read and split once."""

    def __init__(self, files: Sequence[CsvFile], settings: ReadingSettings) -> None:
        self._settings = settings
        self._readers = Counter(path for file in files if file.symbol is not None for path in file.paths)
        self._split: dict[Path, dict[str, CsvTable] | DataError] = {}

    def read(self, file: CsvFile, path: Path) -> CsvTable:
        """Read a file of a ticker.

        Raises:
            DataError: the file is no table, or has no row of the ticker.
        """
        part = file.part(path)
        if file.symbol is None:
            return _check_symbol(read_csv_table(part, self._settings))
        if path not in self._split:
            self._split[path] = self._read_and_split(part)
        split = self._split[path]
        self._readers[path] -= 1
        if not self._readers[path]:
            del self._split[path]
        if isinstance(split, DataError):
            raise split
        symbol = file.symbol.strip()
        if symbol not in split:
            raise DataError(Problem(part.name, f"no row of the symbol {symbol}"), file.ticker)
        return replace(split[symbol], file=part)

    def _read_and_split(self, part: CsvFile) -> dict[str, CsvTable] | DataError:
        try:
            return split_symbols(read_csv_table(replace(part, symbol=None), self._settings))
        except DataError as error:
            return error


def _check_symbol(table: CsvTable) -> CsvTable:
    """Check that a table that is read as one ticker has the rows of one symbol.

    Raises:
        DataError: it has several symbols, between the first and the last lines that `symbols_of` looks at.
    """
    if "symbol" not in table.cells:
        return table
    cells = pc.utf8_trim_whitespace(pa.array(table.cells["symbol"], pa.string()))
    symbols = [symbol for symbol in pc.unique(cells).to_pylist() if symbol]
    if len(symbols) > 1:
        rule = f"another symbol than {symbols[0]} of the lines before; write a file per symbol, or sort by symbol"
        row = cells.index(symbols[1]).as_py()
        raise DataError(
            Problem(table.file.name, rule, table.lines[row], table.names["symbol"], symbols[1]), table.file.ticker
        )
    return table


def _prepare(tables: Sequence[CsvTable], settings: ReadingSettings) -> Rows:
    """Return the rows of a ticker, ready for validation."""
    times = _parse_times(tables)
    parts = [_parse(table, parsed, settings) for table, parsed in zip(tables, times, strict=True)]
    return complete_rows(join_rows([order_rows(part, settings) for part in parts], settings), settings)


def _parse_times(tables: Sequence[CsvTable]) -> list[ParsedTimes]:
    """Parse the times of each file of a ticker alone, or of all files together if one alone does not tell."""
    separate = [parse_time_columns(table.time_cells) for table in tables]
    names = list(tables[0].time_cells)
    if len({parsed.zone for parsed in separate}) == 1 and not any(map(_unreadable, separate)):
        return separate
    if len(tables) == 1 or any(list(table.time_cells) != names for table in tables):
        return separate
    cells = {
        name: pa.concat_arrays([pa.array(table.time_cells[name], pa.string()) for table in tables]) for name in names
    }
    joint = parse_time_columns(cells)
    parts = []
    first = 0
    for table in tables:
        last = first + len(table.lines)
        problems = tuple((row - first, rule) for row, rule in joint.problems if first <= row < last)
        row_notes = tuple((row - first, note) for row, note in joint.row_notes if first <= row < last)
        local = joint.local.iloc[first:last].reset_index(drop=True)
        parts.append(replace(joint, local=local, problems=problems, row_notes=row_notes))
        first = last
    return parts


def _unreadable(parsed: ParsedTimes) -> bool:
    """Return whether a problem is of the whole column: more cells without a time than problems."""
    return bool(parsed.problems) and int(parsed.local.isna().sum()) > len({row for row, _ in parsed.problems})


def _parse(table: CsvTable, times: ParsedTimes, settings: ReadingSettings) -> Rows:
    """Parse the numbers of a file.

    Raises:
        DataError: a problem of the whole time column.
    """
    names = [name for name in (*FEATURES, ADJUSTED_CLOSE) if name in table.cells]
    numbers = {name: parse_numbers(table, name) for name in names}
    gaps = _find_gaps(numbers, len(table.lines))
    changes = [f"{note} (line {table.lines[row]})" for row, note in times.row_notes]
    notes = [*table.notes, *times.notes, *changes, *(note for column in numbers.values() for note in column.notes)]
    if table.ignored:
        ignored = [name[:_LONGEST_NAME] or "one without a name" for name in table.ignored]
        notes.append(f"columns that are ignored: {enumerate_some(ignored, _MOST_NAMES)}")
    columns = {name: column.values for name, column in numbers.items()}
    if "volume" not in columns:
        columns["volume"] = np.zeros(len(table.lines))
        similar = enumerate_some([name for name in table.ignored if _VOLUME_LIKE.search(name)], 3)
        notes.append(f"no volume: taken as 0{f'; if it is {similar}, say --columns volume=NAME' if similar else ''}")
    derived = np.full(len(table.lines), "amount" not in columns)
    columns.setdefault("amount", np.full(len(table.lines), np.nan))
    faults = [Fault(row, TIME, rule) for row, rule in times.problems]
    rows = Rows(
        tables=(table,),
        time_columns=(times.column,),
        ids=np.arange(len(table.lines)),
        times=times.local.to_numpy(),
        columns=columns,
        gaps=gaps,
        derived=derived,
        zone=times.zone,
        faults=(*faults, *_unreadable_numbers(numbers, gaps, adjusted=settings.adjusted)),
        notes=tuple(dict.fromkeys(notes)),
    )
    if _unreadable(times):
        raise DataError(rows.problems(rows.faults), table.file.ticker)
    return rows


def _find_gaps(numbers: Mapping[str, NumberColumn], size: int) -> BoolArray:
    """Find the rows without a price, whose volume and amount are empty or 0, `(rows,)`."""
    gaps = np.ones(size, np.bool_)
    for name in PRICES:
        gaps &= numbers[name].empty
    for name in ("volume", "amount"):
        if name in numbers and gaps.any():
            gaps &= numbers[name].empty | (numbers[name].values == 0)
    return gaps


def _unreadable_numbers(numbers: Mapping[str, NumberColumn], gaps: BoolArray, *, adjusted: bool) -> list[Fault]:
    """Return the cells that are no number, and the prices that are absent in a row with numbers."""
    faults = []
    for name, column in numbers.items():
        if name == ADJUSTED_CLOSE and not adjusted:
            continue
        faults += [Fault(row, name, rule) for row, rule in column.problems]
        if name in PRICES or name == ADJUSTED_CLOSE:
            faults += [Fault(row, name, "has no value") for row in np.flatnonzero(column.empty & ~gaps).tolist()]
        if name == ADJUSTED_CLOSE:
            faults += [Fault(row, name, RULES["positive"]) for row in np.flatnonzero(column.values <= 0).tolist()]
    return faults


def _finish(
    file: CsvFile, rows: Rows, settings: ReadingSettings, now: pd.Timestamp, known: KnownBars = NOTHING_KNOWN
) -> Bars:
    """Make bars of validated rows.

    Raises:
        DataError: too many rows are bad, the times are not the times of bars, or the bars contradict those read before.
    """
    rows = leave_out_bad(rows, settings)
    if conflicts := find_conflicts(rows):
        raise DataError(rows.problems(conflicts), file.ticker)
    arranged = arrange_bars(rows.times, rows.zone, now, keep_forming=settings.keep_forming)
    if arranged.problems:
        faults = [Fault(int(rows.ids[bar]), TIME, rule) for bar, rule in arranged.problems]
        raise DataError(rows.problems(faults), file.ticker)
    notes = [note if bar is None else f"{note} ({rows.place(int(rows.ids[bar]))})" for bar, note in arranged.notes]
    contents = tuple(table.content_hash for table in rows.tables if table.content_hash)
    reading = CsvReading(contents, settings) if len(contents) == len(rows.tables) else None
    if reading is not None:
        notes += check_history(known, rows, arranged.times, arranged.zone, reading)
    bars_kept = slice(None) if arranged.forming is None else np.arange(len(rows)) != arranged.forming
    times, columns = arranged.times[bars_kept], {name: rows.columns[name][bars_kept] for name in FEATURES}
    flags = find_flags(times, column_matrix(columns, FEATURES))
    bars = make_bars(file.ticker, {"timestamps": times, **columns}, source=file.name, time_zone=arranged.zone)
    # A decision that depends on the time of reading may not hold later, so read such a file again next time.
    key = None if reading is None or arranged.temporary else csv_key(file, contents, settings)
    all_notes = tuple(map(printable_text, (*file.notes, *rows.notes, *notes, *flags)))
    return replace(bars, notes=all_notes, csv_key=key, reading=reading)


def _validate(tickers: Sequence[Rows]) -> list[Rows]:
    """Validate many tickers' rows in one call, and return them with all their faults."""
    if not tickers:
        return []
    joined = pd.DataFrame(
        {
            "ticker": np.repeat(np.arange(len(tickers)), [len(rows) for rows in tickers]),
            "timestamps": np.concatenate([rows.times for rows in tickers]),
            **{name: np.concatenate([rows.columns[name] for rows in tickers]) for name in FEATURES},
        }
    )
    try:
        BarFrame.validate(joined, lazy=True, inplace=True)
    except pandera.errors.SchemaErrors as error:
        failures = [_failed(joined, failure) for failure in error.schema_errors]
    else:
        return list(tickers)
    ends = np.cumsum([len(rows) for rows in tickers])
    return [
        _with_faults(
            rows, {(check, column): np.flatnonzero(failed[end - len(rows) : end]) for check, column, failed in failures}
        )
        for rows, end in zip(tickers, ends, strict=True)
    ]


def _failed(joined: pd.DataFrame, failure: pandera.errors.SchemaError) -> tuple[str, str, BoolArray]:
    """Return the name of a failed check, its column, or the frame's name, and the failing rows, `(rows,)`."""
    check = failure.check if isinstance(failure.check, str) else str(failure.check.name)
    column = str(failure.schema.name)
    if failure.check_output is None:
        return check, column, joined[column].isna().to_numpy(np.bool_)
    failed = np.zeros(len(joined), np.bool_)
    # A check's output lacks the rows without a value.
    failed[failure.check_output.index[~failure.check_output]] = True
    return check, column, failed


def _with_faults(rows: Rows, failures: Mapping[tuple[str, str], IntArray]) -> Rows:
    """Add the faults of the bars that fail checks; `find_conflicts` finds rows of the same time.

    Args:
        rows: the rows of a ticker.
        failures: the failing bars, by check and column.
    """
    faults = list(rows.faults)
    known = {(fault.row, fault.column) for fault in faults}

    def add(bars: IntArray, column: str, rule: str, except_rows: Collection[int] = ()) -> None:
        for row in rows.ids[bars].tolist():
            if (row, column) not in known and row not in except_rows:
                known.add((row, column))
                faults.append(Fault(row, column, rule))

    no_bars = np.zeros(0, np.int64)
    for check, rule in RULES.items():
        for column in FEATURES:
            bars = failures.get((check, column), no_bars)
            # A derived amount, volume times price, can only overflow or repeat a fault of another column.
            add(bars[~rows.derived[bars]] if column == "amount" else bars, column, rule)
    overflows = failures.get(("finite", "amount"), no_bars)
    bad_rows = {fault.row for fault in faults}
    add(overflows[rows.derived[overflows]], "volume", "times the price is more than a number can hold", bad_rows)
    bad_rows = {fault.row for fault in faults}
    for check, (column, rule) in ORDER_RULES.items():
        # The order of prices means nothing for a bar with an invalid price.
        add(failures.get((check, BarFrame.__name__), no_bars), column, rule, bad_rows)
    return replace(rows, faults=tuple(faults))
