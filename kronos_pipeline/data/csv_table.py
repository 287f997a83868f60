"""Read a CSV into columns of text with line numbers: its dialect first, then its columns, then their cells."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.checksums import bytes_hash
from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bars import FEATURES, PRICES, FloatArray
from kronos_pipeline.data.columns import ChosenColumns, choose_columns, header_meanings, meaning_notes, name_position
from kronos_pipeline.data.csv_columns import Cells, Columns, split_dialect, split_plain, trim
from kronos_pipeline.data.csv_content import read_content
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.dialect import find_dialect
from kronos_pipeline.data.number_format import NumberFormat, find_number_format, is_empty
from kronos_pipeline.errors import DataError, Problem, enumerate_some

DEFAULTS = ReadingSettings()
"""Settings of a reading without any option."""

_MOST_NAMES = 30
"""Names of columns in a message."""


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


def read_csv_table(file: CsvFile, settings: ReadingSettings = DEFAULTS) -> CsvTable:
    """Read a CSV.

    Raises:
        DataError: the file cannot be read, is empty or not text, has only a header or no header, lacks a column, has
            several columns or several readings for a column, or has rows of another length than the header.
    """
    content = read_content(file)
    wanted = settings.column_names
    plain = split_plain(content.removeprefix(BOM_UTF8), wanted)
    columns = plain or split_dialect(file, find_dialect(file, content, wanted), wanted)
    meanings = header_meanings(columns.names, wanted)
    chosen = choose_columns(columns.names, meanings, columns.cells.__getitem__, file.ticker)
    notes = [*columns.notes, *_cut_off_notes(content), *chosen.notes, *_check_columns(file, columns, chosen, wanted)]
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


def _cut_off_notes(content: bytes) -> list[str]:
    """Return a note on a last line that does not end: its last cell may be cut off."""
    if content.rstrip(b"\0\x1a").endswith((b"\n", b"\r")):
        return []
    line = max(content.count(b"\n"), content.count(b"\r")) + 1
    return [f"the last line, {line:,}, has no line end, as of a file that is cut off"]


def _check_columns(file: CsvFile, columns: Columns, chosen: ChosenColumns, wanted: Mapping[str, str]) -> list[str]:
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
    file: CsvFile, columns: Columns, names: Mapping[str, str], cells: Mapping[str, pa.StringArray]
) -> NumberFormat:
    number_format = find_number_format(
        {key: trim(cells[key]) for key in (*FEATURES, "adj_close") if key in cells}, columns.separator
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


def _all_empty(cells: pa.StringArray) -> bool:
    return not len(cells) or bool(is_empty(trim(cells[:1]))[0].as_py() and pc.all(is_empty(trim(cells))).as_py())
