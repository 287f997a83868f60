"""Split the text of a CSV into columns of cells, with the line of each row.

Arrow splits a plain file: UTF-8, commas, a header in line 1, a bar in each other line, no quotes. Any other file is
split by `dialect.read_sheet`, which takes ten times as long. Both give the same cells.
"""

from __future__ import annotations

import contextlib
import csv
import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

from kronos_pipeline.data.bars import PRICES, FloatArray
from kronos_pipeline.data.column_names import TIME_MEANINGS
from kronos_pipeline.data.columns import header_meanings
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.dialect import Dialect, Sheet, is_bar_row, is_date, read_sheet
from kronos_pipeline.data.headerless import headerless_names
from kronos_pipeline.data.number_format import is_empty
from kronos_pipeline.errors import DataError, Problem, count

Cells: TypeAlias = "Sequence[str] | pa.StringArray"
"""The cells of a column: an Arrow array, or texts that `pa.array` accepts."""
HEAD = 1 << 16
"""Bytes at the beginning of a file that tell its columns."""

_FEWEST_NAMES = 2
"""Known names in the header of a table of bars that has no bar among its first lines."""
_LONGEST_TEXT = 80
"""Characters of a file's text in a message."""


@dataclass(frozen=True)
class Columns:
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


def split_plain(content: bytes, wanted: Mapping[str, str]) -> Columns | None:
    """Return the columns of a plain file, with a row per line; None for other files."""
    names = first_names(content)
    if not names[-1] or not has_bars(names, wanted):
        return None
    cells = _arrow_cells(content, ",", 1, len(names))
    if cells is None:
        return None
    columns = Columns(names, 1, cells, range(2, len(cells[0]) + 2))
    values = [columns.numbers(position) for position in _prices(names, wanted)]
    # The first line may name the time column only, and the last line may be a text with empty cells.
    plain = all(prices is not None and not np.isnan(prices[[0, -1]]).any() for prices in values)
    return columns if plain else None


def split_dialect(file: CsvFile, dialect: Dialect, wanted: Mapping[str, str]) -> Columns:
    """Return the columns of a file in any dialect: by Arrow if the lines below the header are all rows."""
    sheet = read_sheet(file, dialect, wanted, beginning=True)
    names = sheet.header
    known = sum(1 for meaning in header_meanings(names, wanted) if meaning)
    if known < _FEWEST_NAMES and not any(is_bar_row(row) for _, row in sheet.rows):
        if not (lines := dialect.text.strip().splitlines()):
            raise _error(file, "the file is empty; write a header and one bar a line into it")
        text = lines[0][:_LONGEST_TEXT]
        raise _error(file, f"no table of bars: the file begins with {text!r}; replace it")
    if names and names[-1] and sheet.rows and '"' not in dialect.text:
        skipped = sheet.rows[0][0] - 1
        cells = _arrow_cells(dialect.text.encode(), dialect.separator, skipped, len(names))
        if cells and not any(_has_text(cells[position]) for position in _prices(names, wanted)):
            numbers = range(skipped + 1, skipped + 1 + len(cells[0]))
            return Columns(names, sheet.header_line, cells, numbers, dialect.separator, sheet.notes)
    return _split_sheet(file, read_sheet(file, dialect, wanted), dialect.separator, wanted)


def first_names(content: bytes) -> list[str]:
    """Return the names in line 1 of a file with commas."""
    line = (content[:HEAD].removeprefix(BOM_UTF8).splitlines() or [b""])[0]
    return [name.strip() for name in line.decode(errors="replace").split(",")]


def has_bars(names: Sequence[str], wanted: Mapping[str, str]) -> bool:
    """Return whether a header has a time and four prices."""
    meanings = {meaning[0] for meaning in header_meanings(names, wanted) if meaning}
    return meanings >= set(PRICES) and bool(meanings & {*TIME_MEANINGS} or not names[0])


def trim(cells: Cells) -> pa.StringArray:
    """Return cells without white space at either end."""
    return pc.utf8_trim_whitespace(pa.array(cells, pa.string()))


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


def _has_text(cells: pa.StringArray) -> bool:
    """Return whether a column of prices has letters, or no digit in its first or last row: lines that are no rows."""
    ends = all(re.search(r"\d", cells[row].as_py()) for row in (0, -1))
    return not ends or bool(pc.any(pc.match_substring_regex(cells, r"\pL")).as_py())


def _prices(names: Sequence[str], wanted: Mapping[str, str]) -> list[int]:
    """Return the positions of all columns of prices."""
    return [
        position for position, meaning in enumerate(header_meanings(names, wanted)) if meaning and meaning[0] in PRICES
    ]


def _split_sheet(file: CsvFile, sheet: Sheet, separator: str, wanted: Mapping[str, str]) -> Columns:
    """Return the columns of the rows of a sheet."""
    names, notes = sheet.header, sheet.notes
    if not names:
        names, decision = headerless_names(file, sheet.rows, wanted)
        notes = (*notes, decision)
    if not sheet.rows:
        raise _error(file, "a header alone, without a bar; add bars or remove the file")
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
    return Columns(names, sheet.header_line, cells, [line for line, _ in rows], separator, notes)


def _plain_numbers(cells: pa.StringArray) -> FloatArray | None:
    """Parse numbers with a decimal dot or without any mark, NaN for an empty cell; None if a cell is anything else."""
    with contextlib.suppress(pa.ArrowInvalid):
        return _to_numbers(cells)
    if any(mark in cells[0].as_py() for mark in ",'$€%"):
        return None  # an attempt that fails takes as long as one that does not
    trimmed = trim(cells)
    with contextlib.suppress(pa.ArrowInvalid):
        return _to_numbers(pc.if_else(is_empty(trimmed), pa.scalar(None, pa.string()), trimmed))
    return None


def _to_numbers(cells: pa.StringArray) -> FloatArray:
    values: FloatArray = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _error(file: CsvFile, rule: str) -> DataError:
    return DataError(Problem(file.name, rule), file.ticker)
