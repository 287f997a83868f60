"""A CSV file as columns of text, each cell with its line: what can be said of a file before a number is read."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from kronos_pipeline.data.bars import FEATURES, PRICES
from kronos_pipeline.data.csv_files import CsvFile
from kronos_pipeline.errors import DataError, Problem

TIME_NAMES = ("timestamps", "timestamp", "date", "datetime", "time")
"""How the time column may be called, in any case; an unnamed first column is taken where none of them is there."""


@dataclass(frozen=True)
class CsvTable:
    """The cells of a CSV as text.

    Attributes:
        file: the file.
        names: of `timestamps` and each feature that is there, the column's name as the file spells it.
        cells: the cells of these columns, by the same keys.
        lines: the 1-based line of each row.
        ignored: the names of the other columns.
    """

    file: CsvFile
    names: dict[str, str]
    cells: dict[str, list[str]]
    lines: list[int]
    ignored: tuple[str, ...]


def read_csv_table(file: CsvFile) -> CsvTable:
    """Read a CSV.

    Raises:
        DataError: the file cannot be read, is empty or binary or not UTF-8, has a header alone, lacks a column, or has
            rows that are longer or shorter than the header.
    """
    rows = _rows(file)
    if not rows:
        raise _whole(file, "the file is empty; write a header and one bar a line into it")
    header_line, header = rows[0]
    names, positions = _find_columns(file, header_line, [name.strip() for name in header])
    body = [(line, row) for line, row in rows[1:] if "".join(row).strip()]
    if not body:
        raise _whole(file, "a header alone, without a bar; add bars or remove the file")
    problems = [
        Problem(file.name, f"{len(row)} cells where the header has {len(header)}", line)
        for line, row in body
        if len(row) != len(header)
    ]
    if problems:
        raise DataError(problems, file.ticker)
    columns = list(zip(*(row for _, row in body), strict=True))
    cells = {key: list(columns[position]) for key, position in positions.items()}
    for key in ("volume", "amount"):
        # Exporters write the column and leave it empty where a market has no volume.
        if key in cells and not any(cell.strip() for cell in cells[key]):
            del cells[key], names[key]
    used = set(positions.values())
    ignored = tuple(name.strip() for position, name in enumerate(header) if position not in used)
    return CsvTable(file, names, cells, [line for line, _ in body], ignored)


def _rows(file: CsvFile) -> list[tuple[int, list[str]]]:
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise _whole(file, f"the file cannot be read ({error.strerror})") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _whole(file, "the file is UTF-16; save it as UTF-8")
    if b"\0" in content:
        raise _whole(file, "the file is binary, not a CSV; replace it with a text file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        rule = f"the file is not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8"
        raise DataError(Problem(file.name, rule, line), file.ticker) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(
            Problem(file.name, f"no CSV that can be read ({error})", reader.line_num), file.ticker
        ) from error


def _find_columns(file: CsvFile, line: int, header: list[str]) -> tuple[dict[str, str], dict[str, int]]:
    """The header's names and positions of the columns that are used, by what they mean."""
    if len(header) == 1 and (separator := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise _whole(file, f"its columns are separated by {separator!r}; save it with commas", line)
    found: dict[str, list[int]] = {}
    for position, name in enumerate(header):
        key = "timestamps" if name.casefold() in TIME_NAMES else name.casefold()
        if key in ("timestamps", *FEATURES):
            found.setdefault(key, []).append(position)
    if "timestamps" not in found and not header[0]:
        found["timestamps"] = [0]
    problems = [
        Problem(
            file.name,
            f"{len(positions)} columns for it ({', '.join(header[one] for one in positions)}); keep one",
            line,
            key,
        )
        for key, positions in found.items()
        if len(positions) > 1
    ]
    shown = ", ".join(header)
    if "timestamps" not in found:
        rule = f"no time column; call it one of {', '.join(TIME_NAMES)} (the columns are {shown})"
        problems.append(Problem(file.name, rule, line))
    problems += [
        Problem(file.name, f"there is no such column (the columns are {shown})", line, price)
        for price in PRICES
        if price not in found
    ]
    if problems:
        raise DataError(problems, file.ticker)
    positions = {key: found[key][0] for key in ("timestamps", *FEATURES) if key in found}
    # An unnamed first column still needs a name in messages.
    return {key: header[position] or "first column" for key, position in positions.items()}, positions


def _whole(file: CsvFile, rule: str, line: int | None = None) -> DataError:
    return DataError(Problem(file.name, rule, line), file.ticker)
