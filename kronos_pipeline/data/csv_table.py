"""Read a CSV into columns of text with line numbers, and check its structure before numbers are parsed.

Arrow splits a plain file, with a bar in each line below the header and without quotes. Python's csv module splits any
other file; it takes ten times as long and locates errors. Both give the same cells.
"""

from __future__ import annotations

import csv
import io
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

from kronos_pipeline.artifacts import bytes_hash
from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bars import FEATURES, PRICES
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.errors import DataError, Problem

TIME_NAMES = ("timestamps", "timestamp", "date", "datetime", "time")
"""Names of the time column, in any case; without such a column, an unnamed first column is the time column."""


DEFAULTS = ReadingSettings()
"""Settings of a reading without any option."""

Cells: TypeAlias = "Sequence[str] | pa.StringArray"
"""The cells of a column: an Arrow array, or texts that `pa.array` accepts."""


@dataclass(frozen=True)
class CsvTable:
    """The cells of a CSV as text.

    Attributes:
        file: the file.
        names: the file's spelling of each column that it has, by `timestamps` or feature.
        cells: the cells of these columns, by the same keys.
        lines: the 1-based line of each row.
        ignored: the names of the other columns.
        content_hash: SHA-256 of the file's bytes, in hex; None for a table that is not a file.
        notes: decisions about the structure of the file.
        time_cells: the cells of the columns that may hold the time, by the file's spelling, the best column first.
        decimal: the decimal mark of the file's numbers.
        thousands: the mark between thousands in the file's numbers; None without a mark.
    """

    file: CsvFile
    names: dict[str, str]
    cells: Mapping[str, Cells]
    lines: Sequence[int]
    ignored: tuple[str, ...]
    content_hash: str | None = None
    notes: tuple[str, ...] = ()
    time_cells: Mapping[str, Cells] = field(default_factory=dict)
    decimal: str = "."
    thousands: str | None = None


def read_csv_table(file: CsvFile, settings: ReadingSettings = DEFAULTS) -> CsvTable:  # noqa: ARG001
    """Read a CSV.

    Raises:
        DataError: the file cannot be read, is empty, binary or not UTF-8, has only a header, lacks a column, or has
            rows of another length than the header.
    """
    content = read_content(file)
    text = _decode(file, content)
    plain = _split_plain(content.removeprefix(BOM_UTF8))
    if plain is not None:
        header, columns = plain
        names, positions = _find_columns(file, 1, header)
        lines: Sequence[int] = range(2, len(columns[0]) + 2)
    else:
        rows = _rows(file, text)
        if not rows:
            raise _file_error(file, "the file is empty; write a header and one bar a line into it")
        header_line, header = rows[0][0], [name.strip() for name in rows[0][1]]
        names, positions = _find_columns(file, header_line, header)
        lines, columns = _split(file, header, rows[1:])
    cells: dict[str, Cells] = {key: columns[position] for key, position in positions.items()}
    for key in ("volume", "amount"):
        # Exporters write an empty column for a market without volume.
        if key in cells and pc.all(pc.equal(pc.utf8_trim_whitespace(cells[key]), "")).as_py():
            del cells[key], names[key]
    used = set(positions.values())
    ignored = tuple(name for position, name in enumerate(header) if position not in used)
    time_cells = {names["timestamps"]: cells["timestamps"]}
    return CsvTable(file, names, cells, lines, ignored, bytes_hash(content), time_cells=time_cells)


def select_symbol(table: CsvTable, symbol: str) -> CsvTable:
    """Return the rows of one ticker of a table with a column of symbols."""
    of_ticker = pc.equal(_trimmed(table.cells["symbol"]), symbol.strip())

    def rows(columns: Mapping[str, Cells]) -> dict[str, Cells]:
        return {name: pa.array(cells, pa.string()).filter(of_ticker) for name, cells in columns.items()}

    lines = [table.lines[row] for row in of_ticker.to_numpy(zero_copy_only=False).nonzero()[0]]
    return replace(table, cells=rows(table.cells), time_cells=rows(table.time_cells), lines=lines)


def symbols_of(file: CsvFile, settings: ReadingSettings = DEFAULTS) -> list[str]:  # noqa: ARG001
    """Return the distinct cells of a file's column of symbols, in their order; none without such a column."""
    return []


def _trimmed(cells: Cells) -> pa.StringArray:
    return pc.utf8_trim_whitespace(pa.array(cells, pa.string()))


def read_content(file: CsvFile) -> bytes:
    """Read the bytes of a file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return file.path.read_bytes()
    except OSError as error:
        raise _file_error(file, f"the file cannot be read ({error.strerror})") from error


def _decode(file: CsvFile, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _file_error(file, "the file is UTF-16; save it as UTF-8")
    if b"\0" in content:
        raise _file_error(file, "the file is binary, not a CSV; replace it with a text file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        rule = f"the file is not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8"
        raise DataError(Problem(file.name, rule, line), file.ticker) from error


def _split_plain(content: bytes) -> tuple[list[str], list[pa.StringArray]] | None:
    """Return header and columns of a plain file, with a row per line; None for other files."""
    lines = content.rstrip(b"\r\n").splitlines()
    if len(lines) < 2 or not lines[0] or b'"' in content or max(map(len, lines)) > csv.field_size_limit():
        return None
    header = [name.strip() for name in lines[0].decode().split(",")]
    keys = [str(position) for position in range(len(header))]
    try:
        table = read_csv(
            pa.BufferReader(content),
            ReadOptions(use_threads=False, skip_rows=1, column_names=keys),
            ParseOptions(quote_char=False),
            ConvertOptions(column_types=dict.fromkeys(keys, pa.string())),
        )
    except pa.ArrowInvalid:
        return None
    columns = [column.combine_chunks() for column in table.columns]
    # Arrow skips empty lines; a line of blanks has a blank first cell.
    if len(table) != len(lines) - 1 or pc.any(pc.equal(pc.utf8_trim_whitespace(columns[0]), "")).as_py():
        return None
    return header, columns


def _rows(file: CsvFile, text: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(
            Problem(file.name, f"no CSV that can be read ({error})", reader.line_num), file.ticker
        ) from error


def _split(
    file: CsvFile, header: list[str], rows: list[tuple[int, list[str]]]
) -> tuple[list[int], list[pa.StringArray]]:
    """Return the line number of each row that is not blank, and the columns."""
    body = [(line, row) for line, row in rows if "".join(row).strip()]
    if not body:
        raise _file_error(file, "a header alone, without a bar; add bars or remove the file")
    problems = [
        Problem(file.name, f"{len(row)} cells where the header has {len(header)}", line)
        for line, row in body
        if len(row) != len(header)
    ]
    if problems:
        raise DataError(problems, file.ticker)
    columns = zip(*(row for _, row in body), strict=True)
    return [line for line, _ in body], [pa.array(column, pa.string()) for column in columns]


def _find_columns(file: CsvFile, line: int, header: list[str]) -> tuple[dict[str, str], dict[str, int]]:
    """Return the names and positions of the used columns, by `timestamps` or feature."""
    if len(header) == 1 and (separator := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise _file_error(file, f"its columns are separated by {separator!r}; save it with commas", line)
    positions_by_key: dict[str, list[int]] = {}
    for position, name in enumerate(header):
        key = "timestamps" if name.casefold() in TIME_NAMES else name.casefold()
        if key in ("timestamps", *FEATURES):
            positions_by_key.setdefault(key, []).append(position)
    if "timestamps" not in positions_by_key and not header[0]:
        positions_by_key["timestamps"] = [0]
    problems = [
        Problem(
            file.name,
            f"{len(positions)} columns for it ({', '.join(header[position] for position in positions)}); keep one",
            line,
            key,
        )
        for key, positions in positions_by_key.items()
        if len(positions) > 1
    ]
    shown = ", ".join(header)
    if "timestamps" not in positions_by_key:
        rule = f"no time column; call it one of {', '.join(TIME_NAMES)} (the columns are {shown})"
        problems.append(Problem(file.name, rule, line))
    problems += [
        Problem(file.name, f"there is no such column (the columns are {shown})", line, price)
        for price in PRICES
        if price not in positions_by_key
    ]
    if problems:
        raise DataError(problems, file.ticker)
    positions = {key: positions_by_key[key][0] for key in ("timestamps", *FEATURES) if key in positions_by_key}
    # An unnamed first column still needs a name in messages.
    return {key: header[position] or "first column" for key, position in positions.items()}, positions


def _file_error(file: CsvFile, rule: str, line: int | None = None) -> DataError:
    return DataError(Problem(file.name, rule, line), file.ticker)
