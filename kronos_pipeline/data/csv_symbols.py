"""The column of symbols of a CSV: the symbols of a file, and the rows of each symbol."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.columns import header_meanings
from kronos_pipeline.data.csv_columns import HEAD, first_names, has_bars, trim
from kronos_pipeline.data.csv_content import open_regular
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.csv_table import DEFAULTS, CsvTable, read_csv_table
from kronos_pipeline.data.dialect import find_dialect, read_sheet
from kronos_pipeline.errors import DataError

_EDGE = 4096
"""Bytes at the beginning of a plain file that tell its columns, and with those at its end its symbol."""


def split_symbols(table: CsvTable) -> dict[str, CsvTable]:
    """Return the rows of each ticker of a table with a column of symbols, by symbol."""
    encoded = trim(table.cells["symbol"]).dictionary_encode()
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
        with open_regular(file.path) as stream:
            head = stream.read(_EDGE)
            names = first_names(head)
            first: list[list[str]] | None = None
            if not has_bars(names, wanted):
                dialect = find_dialect(file, _whole_lines(head + stream.read(HEAD - _EDGE)), wanted)
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
        cells = trim(read_csv_table(file, settings).cells["symbol"])
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


def _whole_lines(head: bytes) -> bytes:
    """Return the beginning of a file up to its last line end."""
    if len(head) < HEAD:
        return head
    if b"\0" in head:  # UTF-16, in either order of its bytes
        ends = [end for mark in (b"\n\0", b"\0\n") if (end := head.rfind(mark) + 2) % 2 == 0]
        return head[: max(ends, default=0)]
    return head[: max(head.rfind(b"\n"), head.rfind(b"\r")) + 1]
