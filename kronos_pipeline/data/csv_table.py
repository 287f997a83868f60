"""Read a CSV into columns of text with line numbers: its dialect first, then its columns, then their cells.

Arrow splits a plain file: UTF-8, commas, a header in line 1, a bar in each other line, no quotes. Any other file is
split by `dialect.read_sheet`, which takes ten times as long. Both give the same cells.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

from kronos_pipeline.artifacts import bytes_hash
from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bars import FEATURES, PRICES, FloatArray
from kronos_pipeline.data.column_names import TIME_MEANINGS
from kronos_pipeline.data.columns import ChosenColumns, choose_columns, header_meanings, meaning_notes, name_position
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.dialect import Dialect, Sheet, find_dialect, is_bar_row, is_date, read_sheet
from kronos_pipeline.data.headerless import headerless_names
from kronos_pipeline.data.number_format import NumberFormat, find_number_format, is_empty
from kronos_pipeline.errors import DataError, Problem, count, enumerate_some

DEFAULTS = ReadingSettings()
"""Settings of a reading without any option."""

Cells: TypeAlias = "Sequence[str] | pa.StringArray"
"""The cells of a column: an Arrow array, or texts that `pa.array` accepts."""

_HEAD = 1 << 16
"""Bytes at the beginning of a file that tell its columns."""
_EDGE = 4096
"""Bytes at the beginning of a plain file that tell its columns, and with those at its end its symbol."""
_MOST_NAMES = 30
"""Names of columns in a message."""
_FEWEST_NAMES = 2
"""Known names in the header of a table of bars that has no bar among its first lines."""
_LONGEST_TEXT = 80
"""Characters of a file's text in a message."""


@dataclass(frozen=True)
class CsvTable:
    """The cells of a CSV as text.

    Attributes:
        file: the file.
        names: the file's spelling of each column that it has, by feature, `adj_close` or `symbol`.
        cells: the cells of these columns, by the same keys.
        lines: the 1-based line of each row.
        ignored: the names of the other columns.
        time_cells: the cells of the columns that may hold the time, by the file's spelling, the best column first.
        content_hash: SHA-256 of the file's bytes, in hex; None for a table that is not a file.
        notes: decisions about the structure of the file.
        decimal: the decimal mark of the file's numbers.
        thousands: the mark between thousands in the file's numbers; None without a mark.
        numbers: `(rows,)`, the values of columns of plain numbers, by feature, NaN where a cell has no value.
    """

    file: CsvFile
    names: dict[str, str]
    cells: Mapping[str, Cells]
    lines: Sequence[int]
    ignored: tuple[str, ...]
    time_cells: Mapping[str, Cells]
    content_hash: str | None = None
    notes: tuple[str, ...] = ()
    decimal: str = "."
    thousands: str | None = None
    numbers: Mapping[str, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True)
class _Columns:
    """All columns of a file: names of the header, its line, the cells, the line of each row, the separator, notes."""

    names: list[str]
    line: int
    cells: list[pa.StringArray]
    lines: Sequence[int]
    separator: str = ","
    notes: tuple[str, ...] = ()
    parsed: dict[int, FloatArray | None] = field(default_factory=dict)

    def numbers(self, position: int) -> FloatArray | None:
        """Return the values of a column of plain numbers, or None; they are parsed once."""
        if position not in self.parsed:
            self.parsed[position] = _plain_numbers(self.cells[position])
        return self.parsed[position]


def read_csv_table(file: CsvFile, settings: ReadingSettings = DEFAULTS) -> CsvTable:
    """Read a CSV.

    Raises:
        DataError: the file cannot be read, is empty or not text, has only a header or no header, lacks a column, has
            several columns or several readings for a column, or has rows of another length than the header.
    """
    content = read_content(file)
    wanted = settings.column_names
    plain = _split_plain(content.removeprefix(BOM_UTF8), wanted)
    columns = plain or _split_dialect(file, find_dialect(file, content, wanted), wanted)
    meanings = header_meanings(columns.names, wanted)
    chosen = choose_columns(columns.names, meanings, columns.cells.__getitem__, file.ticker)
    notes = [*columns.notes, *chosen.notes, *_check_columns(file, columns, chosen, wanted)]
    names = {key: columns.names[position] for key, position in chosen.positions.items()}
    cells = {key: columns.cells[position] for key, position in chosen.positions.items()}
    # An unnamed first column still needs a name in messages, and columns of one name need two.
    times: dict[str, pa.StringArray] = {}
    for position in chosen.times:
        name = columns.names[position] or "first column"
        times[f"{name} (column {position + 1})" if name in times else name] = columns.cells[position]
    for key in ("volume", "amount", "adj_close"):
        # Exporters write an empty column for a market without volume.
        if key in cells and _all_empty(cells[key]):
            del cells[key], names[key]
    parsed = {key: columns.numbers(chosen.positions[key]) for key in cells if key != "symbol"}
    numbers = {key: values for key, values in parsed.items() if values is not None}
    number_format = NumberFormat()
    if plain is None or len(numbers) < len(parsed):
        number_format = _number_format(file, columns, names, cells)
        if number_format != NumberFormat():
            numbers = {}
    used = {*chosen.positions.values(), *chosen.times}
    return CsvTable(
        file,
        names,
        cells,
        columns.lines,
        tuple(
            name
            for position, name in enumerate(columns.names)
            if position not in used and (name or not _all_empty(columns.cells[position]))
        ),
        times,
        bytes_hash(content),
        (*notes, *meaning_notes(names, notes=notes), *_format_notes(number_format)),
        number_format.decimal,
        number_format.thousands,
        numbers,
    )


def split_symbols(table: CsvTable) -> dict[str, CsvTable]:
    """Return the rows of each ticker of a table with a column of symbols, by symbol."""
    encoded = _trimmed(table.cells["symbol"]).dictionary_encode()
    codes = encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(encoded.dictionary)))
    lines = np.asarray(table.lines)[order].tolist()
    sorted_cells, sorted_times = (
        {name: pa.array(cells, pa.string()).take(pa.array(order)) for name, cells in columns.items()}
        for columns in (table.cells, table.time_cells)
    )
    numbers = {name: values[order] for name, values in table.numbers.items()}
    tables = {}
    for symbol, first, last in zip(encoded.dictionary.to_pylist(), [0, *ends], ends, strict=False):
        tables[symbol] = replace(
            table,
            cells={name: cells[first:last] for name, cells in sorted_cells.items()},
            time_cells={name: cells[first:last] for name, cells in sorted_times.items()},
            lines=lines[first:last],
            numbers={name: values[first:last] for name, values in numbers.items()},
        )
    return tables


def symbols_of(file: CsvFile, settings: ReadingSettings = DEFAULTS) -> list[str]:
    """Return the distinct cells of a file's column of symbols, in their order; none without such a column.

    The beginning of the file tells whether it has the column, and a file with one symbol in its first and last lines is
    not read further. A file that cannot be read has none: reading it reports its problems.
    """
    wanted = settings.column_names
    separator, encoding = ",", "UTF-8"
    try:
        with file.path.open("rb") as stream:
            head = stream.read(_EDGE)
            names = _first_names(head)
            first: list[list[str]] | None = None
            if not _has_bars(names, wanted):
                dialect = find_dialect(file, _whole_lines(head + stream.read(_HEAD - _EDGE)), wanted)
                separator, encoding = dialect.separator, dialect.encoding
                sheet = read_sheet(file, dialect, wanted, beginning=True)
                names, first = sheet.header, [cells for _, cells in sheet.rows]
            meanings = [meaning and meaning[0] for meaning in header_meanings(names, wanted)]
            if "symbol" not in meanings:
                return []
            last = _last_rows(stream, separator, encoding)
        if first is None:
            first = [line.split(",") for line in head.decode(errors="replace").splitlines()[1:-1]]
        position = meanings.index("symbol")
        symbols = {row[position].strip() for row in (*first, *last) if len(row) == len(names)}
        if last and len(symbols) == 1:
            return list(symbols)
        cells = _trimmed(read_csv_table(file, settings).cells["symbol"])
    except (OSError, DataError):
        return []
    return list(pc.unique(cells).to_pylist())


def _last_rows(stream: BinaryIO, separator: str, encoding: str) -> list[list[str]]:
    """Return the last rows of a file; none for an encoding whose characters do not begin at any byte."""
    if encoding.startswith(("UTF-16", "UTF-32")):
        return []
    stream.seek(max(stream.seek(0, os.SEEK_END) - _EDGE, 0))
    lines = stream.read().decode(encoding, errors="replace").splitlines()[1:]
    try:
        return list(csv.reader(lines, delimiter=separator, skipinitialspace=separator == " "))
    except csv.Error:
        return []


def read_content(file: CsvFile) -> bytes:
    """Read the bytes of a file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return file.path.read_bytes()
    except OSError as error:
        raise _file_error(file, f"the file cannot be read ({error.strerror})") from error


def _split_plain(content: bytes, wanted: Mapping[str, str]) -> _Columns | None:
    """Return the columns of a plain file, with a row per line; None for other files."""
    names = _first_names(content)
    if not names[-1] or not _has_bars(names, wanted):
        return None
    cells = _arrow_cells(content, ",", 1, len(names))
    if cells is None:
        return None
    columns = _Columns(names, 1, cells, range(2, len(cells[0]) + 2))
    values = [columns.numbers(position) for position in _prices(names, wanted)]
    # The first line may name the time column only, and the last line may be a text with empty cells.
    plain = all(prices is not None and not np.isnan(prices[[0, -1]]).any() for prices in values)
    return columns if plain else None


def _first_names(content: bytes) -> list[str]:
    """Return the names in line 1 of a file with commas."""
    line = (content[:_HEAD].removeprefix(BOM_UTF8).splitlines() or [b""])[0]
    return [name.strip() for name in line.decode(errors="replace").split(",")]


def _arrow_cells(content: bytes, separator: str, skipped: int, width: int) -> list[pa.StringArray] | None:
    """Split the lines below the first `skipped` by Arrow; None for quotes, empty lines or another number of cells."""
    lines = content.rstrip(b"\r\n").splitlines()
    if len(lines) <= skipped or not lines[0] or b'"' in content or max(map(len, lines)) > csv.field_size_limit():
        return None
    keys = [str(position) for position in range(width)]
    try:
        table = read_csv(
            pa.BufferReader(content),
            ReadOptions(use_threads=False, skip_rows=skipped, column_names=keys),
            ParseOptions(delimiter=separator, quote_char=False),
            ConvertOptions(column_types=dict.fromkeys(keys, pa.string())),
        )
    except pa.ArrowInvalid:
        return None
    cells = [column.combine_chunks() for column in table.columns]
    # Arrow skips empty lines; a line of blanks has a blank first cell.
    if len(table) != len(lines) - skipped or pc.any(pc.equal(pc.utf8_trim_whitespace(cells[0]), "")).as_py():
        return None
    return cells


def _split_dialect(file: CsvFile, dialect: Dialect, wanted: Mapping[str, str]) -> _Columns:
    """Return the columns of a file in any dialect: by Arrow if the lines below the header are all rows."""
    sheet = read_sheet(file, dialect, wanted, beginning=True)
    names = sheet.header
    known = sum(1 for meaning in header_meanings(names, wanted) if meaning)
    if known < _FEWEST_NAMES and not any(is_bar_row(row) for _, row in sheet.rows):
        text = dialect.text.strip().splitlines()[0][:_LONGEST_TEXT]
        raise _file_error(file, f"no table of bars: the file begins with {text!r}; replace it")
    if names and names[-1] and sheet.rows and '"' not in dialect.text:
        skipped = sheet.rows[0][0] - 1
        cells = _arrow_cells(dialect.text.encode(), dialect.separator, skipped, len(names))
        if cells and not any(_has_text(cells[position]) for position in _prices(names, wanted)):
            lines = range(skipped + 1, skipped + 1 + len(cells[0]))
            return _Columns(names, sheet.header_line, cells, lines, dialect.separator, sheet.notes)
    return _split_sheet(file, read_sheet(file, dialect, wanted), dialect.separator, wanted)


def _has_text(cells: pa.StringArray) -> bool:
    """Return whether a column of prices has letters, or no digit in its first or last row: lines that are no rows."""
    ends = all(re.search(r"\d", cells[row].as_py()) for row in (0, -1))
    return not ends or bool(pc.any(pc.match_substring_regex(cells, r"\pL")).as_py())


def _prices(names: Sequence[str], wanted: Mapping[str, str]) -> list[int]:
    """Return the positions of all columns of prices."""
    return [
        position for position, meaning in enumerate(header_meanings(names, wanted)) if meaning and meaning[0] in PRICES
    ]


def _whole_lines(head: bytes) -> bytes:
    """Return the beginning of a file up to its last line end."""
    if len(head) < _HEAD:
        return head
    if b"\0" in head:  # UTF-16, in either order of its bytes
        ends = [end for mark in (b"\n\0", b"\0\n") if (end := head.rfind(mark) + 2) % 2 == 0]
        return head[: max(ends, default=0)]
    return head[: max(head.rfind(b"\n"), head.rfind(b"\r")) + 1]


def _has_bars(names: Sequence[str], wanted: Mapping[str, str]) -> bool:
    """Return whether a header has a time and four prices."""
    meanings = {meaning[0] for meaning in header_meanings(names, wanted) if meaning}
    return meanings >= set(PRICES) and bool(meanings & {*TIME_MEANINGS} or not names[0])


def _split_sheet(file: CsvFile, sheet: Sheet, separator: str, wanted: Mapping[str, str]) -> _Columns:
    """Return the columns of the rows of a sheet."""
    names, notes = sheet.header, sheet.notes
    if not names:
        names, decision = headerless_names(file, sheet.rows, wanted)
        notes = (*notes, decision)
    if not sheet.rows:
        raise _file_error(file, "a header alone, without a bar; add bars or remove the file")
    timed = any(meaning and meaning[0] in TIME_MEANINGS for meaning in header_meanings(names, wanted))
    if not timed and all(len(row) == len(names) + 1 and is_date(row[0]) for _, row in sheet.rows):
        # R writes no name above the names of the rows.
        names, notes = ["", *names], (*notes, "the header has no name for the first column, which holds the dates")
    # Exporters end lines with a separator, and spreadsheets add empty cells.
    while len(names) > 1 and not names[-1] and not any("".join(row[len(names) - 1 :]).strip() for _, row in sheet.rows):
        names = names[:-1]
    rows = [(line, row if "".join(row[len(names) :]).strip() else row[: len(names)]) for line, row in sheet.rows]
    problems = [
        Problem(
            file.name,
            f"{count(len(row), 'cell')} where the header has {len(names)}; complete the line or take it out",
            line,
        )
        for line, row in rows
        if len(row) != len(names)
    ]
    if problems:
        raise DataError(problems, file.ticker)
    cells = [pa.array(column, pa.string()) for column in zip(*(row for _, row in rows), strict=True)]
    return _Columns(names, sheet.header_line, cells, [line for line, _ in rows], separator, notes)


def _check_columns(file: CsvFile, columns: _Columns, chosen: ChosenColumns, wanted: Mapping[str, str]) -> list[str]:
    """Check that each column that is needed can be chosen.

    Returns:
        Notes on the user's names that the file does not have and need not have.

    Raises:
        DataError: a column is missing or cannot be chosen; the error names each.
    """
    names = enumerate_some([name or "one without a name" for name in columns.names], _MOST_NAMES)
    problems = [Problem(file.name, rule, columns.line, key) for key, rule in chosen.problems]
    meanings = chosen.positions.keys() | ({"time", "date"} if chosen.times else set())
    absent = {meaning: name for meaning, name in wanted.items() if name_position(columns.names, name) is None}
    for meaning in absent.keys() - meanings:
        rule = f"--columns {meaning}={absent[meaning]}: there is no such column (the columns are {names})"
        problems.append(Problem(file.name, rule, columns.line))
    if not meanings >= {"time", "date"} and not absent.keys() & {"time", "date"}:
        rule = f"no time column; call it date or time, or say --columns time=NAME (the columns are {names})"
        problems.append(Problem(file.name, rule, columns.line))
    for price in PRICES:
        if price not in meanings | absent.keys():
            rule = (
                f"there is no such column (the columns are {names}); say --columns {price}=NAME if it has another name"
            )
            problems.append(Problem(file.name, rule, columns.line, price))
    if problems:
        raise DataError(problems, file.ticker)
    return [f"no column {name}: {meaning} is read by its own name" for meaning, name in absent.items()]


def _number_format(
    file: CsvFile, columns: _Columns, names: Mapping[str, str], cells: Mapping[str, pa.StringArray]
) -> NumberFormat:
    number_format = find_number_format(
        {key: _trimmed(cells[key]) for key in (*FEATURES, "adj_close") if key in cells}, columns.separator
    )
    if isinstance(number_format, NumberFormat):
        return number_format
    text = cells[number_format.column][number_format.row].as_py().strip()
    integer, fraction = (re.sub("[.,]", mark, text) for mark in ("", "."))
    rule = f"can be {integer} or {fraction}; write the numbers without a mark between thousands and with a decimal dot"
    raise DataError(
        Problem(file.name, rule, columns.lines[number_format.row], names[number_format.column], text), file.ticker
    )


def _format_notes(number_format: NumberFormat) -> list[str]:
    marks = {",": "commas", ".": "dots", "'": "apostrophes", "’": "apostrophes", None: ""}
    thousands = marks.get(number_format.thousands, "spaces")
    parts = ["a decimal comma"] if number_format.decimal == "," else []
    parts += [f"{thousands} between thousands"] if thousands else []
    return [f"numbers have {' and '.join(parts)}"] if parts else []


def _plain_numbers(cells: pa.StringArray) -> FloatArray | None:
    """Parse numbers with a decimal dot or without any mark, NaN for an empty cell; None if a cell is anything else."""
    with contextlib.suppress(pa.ArrowInvalid):
        return _to_numbers(cells)
    if any(mark in cells[0].as_py() for mark in ",'$€%"):
        return None  # an attempt that fails takes as long as one that does not
    trimmed = _trimmed(cells)
    with contextlib.suppress(pa.ArrowInvalid):
        return _to_numbers(pc.if_else(is_empty(trimmed), pa.scalar(None, pa.string()), trimmed))
    return None


def _to_numbers(cells: pa.StringArray) -> FloatArray:
    values: FloatArray = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _all_empty(cells: pa.StringArray) -> bool:
    return not len(cells) or bool(
        is_empty(_trimmed(cells[:1]))[0].as_py() and pc.all(is_empty(_trimmed(cells))).as_py()
    )


def _trimmed(cells: Cells) -> pa.StringArray:
    return pc.utf8_trim_whitespace(pa.array(cells, pa.string()))


def _file_error(file: CsvFile, rule: str, line: int | None = None) -> DataError:
    return DataError(Problem(file.name, rule, line), file.ticker)
