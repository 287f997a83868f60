"""Find the dialect of a CSV: its encoding, its separator, its header lines, and the lines that are no rows."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import pandas as pd

from kronos_pipeline.data.bars import PRICES
from kronos_pipeline.data.column_names import TIME_MEANINGS, meaning_of
from kronos_pipeline.data.columns import Meaning, header_meanings, side_by_side
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.encodings import ENCODING_NAMES, LEGACY, check_text, decode, file_error
from kronos_pipeline.errors import enumerate_some

Row = tuple[int, list[str]]
"""The 1-based line of a row, and its cells."""

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}
_SAMPLE = 4096
"""Characters at the beginning among which separators are looked for."""
_HEAD = 60
"""Rows among which the header is looked for."""
_HEADER_NAMES = 3
"""Known names that make a row a header."""
_WIDEST = 1000
"""Cells of the widest header."""
_FOOTERS = 20
"""Lines at the end among which lines of text are looked for."""
_QUOTED_LINE = re.compile(r'"((?:""|[^"\n])*)"[ \t]*\r?(?:\n|$)')
"""A line that is a single quoted cell."""
_MOST_CELLS = 10_000
"""Cells of the widest row that is read."""
_MOST_CHARACTERS = 1 << 28
"""Characters of the longest text that is split here: the cells take some ten times as many bytes."""
_FORMULA = re.compile(r'="(.*)"')
"""A text as spreadsheets keep it from being read as a number."""
_NUMBER = re.compile(r"^\W*\d[\d.,'\s]*[%€$£¥₩₹KMBT万亿億萬]?$", re.IGNORECASE)
_DATE = re.compile(r"\d{4,}|\d{1,4}\s?[-/.年]\s?\d")


@dataclass(frozen=True)
class Dialect:
    """How a CSV is written.

    Attributes:
        encoding: the name of the encoding.
        text: the decoded file.
        separator: the mark between cells.
        header: the row of the header, counted from 0 without empty lines; None for a file without a header.
        names: the number of known names in the header.
        width: the usual number of cells in a row.
    """

    encoding: str
    text: str
    separator: str
    header: int | None
    names: int
    width: int


@dataclass(frozen=True)
class Sheet:
    """The rows of a CSV, and its header.

    Attributes:
        header: the names of the columns; empty for a file without a header.
        header_line: the line of the header, 1-based.
        rows: the rows below the header; blank lines, further header lines and footer lines are not among them.
        notes: decisions about the dialect, and lines that are left out.
    """

    header: list[str]
    header_line: int
    rows: list[Row]
    notes: tuple[str, ...] = ()


def find_dialect(file: CsvFile, content: bytes, wanted: Mapping[str, str]) -> Dialect:
    """Find the dialect of a CSV: the one with the most known names in its header.

    Args:
        file: the file, for messages.
        content: its bytes.
        wanted: the user's names of columns by meaning.

    Raises:
        DataError: the file is empty or not text.
    """
    check_text(file, content)
    if (end := content.rstrip()).endswith(b"\x1a"):
        content = end[:-1]  # the end of a file of DOS
    dialects = (
        dialect
        for encoding, text in decode(file, content)
        for dialect in _dialects(encoding, _without_outer_quotes(text.replace("\ufeff", "")), wanted)
    )
    # One at a time: each encoding has a text as large as the file.
    best = max(dialects, key=lambda dialect: (dialect.names, dialect.width), default=None)
    if best is None:
        raise file_error(file, "the file is empty; write a header and one bar a line into it")
    return best


def read_sheet(file: CsvFile, dialect: Dialect, wanted: Mapping[str, str], *, beginning: bool = False) -> Sheet:
    """Split a CSV into header and rows.

    Args:
        file: the file, for messages.
        dialect: its dialect.
        wanted: the user's names of columns by meaning.
        beginning: split the first lines only.

    Raises:
        DataError: the file is no CSV, or has several tickers side by side.
    """
    rows = _rows(file, dialect, _HEAD if beginning else None)
    notes = []
    if dialect.encoding in LEGACY and "".join(rows[dialect.header or 0][1]).isascii():
        notes.append("the encoding is not UTF-8, and texts that are no names of columns may be misread")
    elif dialect.encoding != "UTF-8":
        notes.append(f"the encoding is {ENCODING_NAMES.get(dialect.encoding, dialect.encoding)}")
    if dialect.separator != ",":
        notes.append(f"the columns are separated by {SEPARATORS[dialect.separator]}")
    sheet = Sheet([], rows[0][0], rows, tuple(notes))
    if dialect.header is not None:
        sheet = _with_header(file, sheet, dialect.header, wanted)
    return sheet if beginning else _without_footers(sheet, wanted)


def _dialects(encoding: str, text: str, wanted: Mapping[str, str]) -> Iterator[Dialect]:
    """Yield a dialect per separator that the beginning of the text has."""
    stated = re.match(r"\s*sep=(.)\s*$", text[:20].splitlines()[0]) if text.strip() else None
    # Spaces are also inside cells, so they separate only where nothing else does.
    possible = [mark for mark in SEPARATORS if mark != " " and mark in text[:_SAMPLE]] or [" "]
    for separator in [stated[1]] if stated and stated[1] in SEPARATORS else possible:
        head: list[Row] = []
        # The reading of all lines reports an error of the quotes.
        with contextlib.suppress(csv.Error):
            head.extend(islice(_split(text, separator), _HEAD))
        if head:
            names = [_known_names(cells, wanted) for _, cells in head]
            header = max(range(len(head)), key=lambda row: (names[row], -row))
            widths = [len(cells) for _, cells in head[1:]] or [len(head[0][1])]
            width = max(set(widths), key=lambda width: (widths.count(width), width))
            has_header = names[header] >= _HEADER_NAMES or _looks_like_header(head[header][1])
            yield Dialect(encoding, text, separator, header if has_header else None, names[header], width)
    if text.strip() and encoding == "UTF-8":
        # A text that no separator splits; the reading of all lines locates the error.
        yield Dialect(encoding, text, ",", None, 0, 0)


def _without_outer_quotes(text: str) -> str:
    """Return the text of a file that has each line as a whole in quotes without these quotes; else the text."""
    if not _is_quoted(text):
        return text
    lines = text.splitlines()
    if not all(_is_quoted(line) for line in lines if line.strip()):
        return text
    return "\n".join(line.strip()[1:-1].replace('""', '"') for line in lines)


def _is_quoted(text: str) -> bool:
    """Return whether the first line of a text is a single quoted cell with separators in it."""
    line = _QUOTED_LINE.match(text)
    return line is not None and any(separator in line[1] for separator in SEPARATORS if separator != " ")


def _known_names(cells: Sequence[str], wanted: Mapping[str, str]) -> int:
    names = [cell.strip() for cell in cells]
    if not _HEADER_NAMES <= len(names) <= _WIDEST or any(_NUMBER.match(name) or _DATE.match(name) for name in names):
        return 0
    meanings = {meaning[0] for meaning in header_meanings(names, wanted) if meaning}
    several = len(PRICES) if len(side_by_side(names)) > 1 else 0
    return max(len(meanings), several) if meanings & set(PRICES) or several else 0


def _split(text: str, separator: str) -> Iterator[Row]:
    """Yield the rows of a text that are not empty."""
    spaced = separator == " " or f'{separator} "' in text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=spaced)
    formulas = '="' in text
    for cells in reader:
        if len(cells) > _MOST_CELLS:
            raise csv.Error(f"a row of more than {_MOST_CELLS:,} cells")
        row = [match[1] if (match := _FORMULA.fullmatch(cell)) else cell for cell in cells] if formulas else cells
        if row and not (reader.line_num == 1 and len(row) <= 2 and row[0].lower().startswith("sep=")):
            yield reader.line_num, row


def _rows(file: CsvFile, dialect: Dialect, limit: int | None) -> list[Row]:
    if limit is None and len(dialect.text) > _MOST_CHARACTERS:
        rule = f"a file with quotes, or lines that are no bars, can have {_MOST_CHARACTERS:,} characters at most"
        raise file_error(file, f"{rule}; split it by period, such as SYMBOL-2023.csv and SYMBOL-2024.csv")
    rows: list[Row] = []
    try:
        rows.extend(islice(_split(dialect.text, dialect.separator), limit))
    except csv.Error as error:
        line = rows[-1][0] + 1 if rows else 1
        raise file_error(file, f"no CSV that can be read ({error})", line) from error
    if not rows or (limit is None and not any(cell.strip() for _, row in rows for cell in row)):
        raise file_error(file, "the file is empty; write a header and one bar a line into it")
    return rows


def _looks_like_header(cells: Sequence[str]) -> bool:
    """Return whether a row without known names can still be a header: texts and no number or date."""
    texts = [cell.strip() for cell in cells[:_HEAD] if cell.strip()]
    return bool(texts) and not any(_NUMBER.match(text) or is_date(text) for text in texts)


def _with_header(file: CsvFile, sheet: Sheet, header: int, wanted: Mapping[str, str]) -> Sheet:
    """Take the header and further header lines from the rows."""
    rows, notes = sheet.rows, list(sheet.notes)
    line, cells = rows[header]
    names = [" ".join(cell.split()) for cell in cells]
    if len(affixes := side_by_side(names)) > 1:
        rule = (
            f"several tickers or prices side by side ({enumerate_some(affixes)}); keep one, or name its columns with "
            "--columns open=...,high=...,low=...,close=..."
        )
        if not {*PRICES} <= wanted.keys():
            raise file_error(file, rule, line)
    above = [(number, row) for number, row in rows[:header] if "".join(row).strip()]
    if bars := [number for number, row in above if is_bar_row(row)]:
        raise file_error(file, f"bars before the header in line {line}; write the header above them", bars[0])
    ticker: tuple[int, list[str]] | None = None
    if above and _is_ticker_line(above[-1][1]):
        ticker = above.pop()
    if above:
        excerpt = enumerate_some([repr(_shown(row)) for _, row in above], 2)
        notes.append(f"{_lines_text([number for number, _ in above])} before the header: left out ({excerpt})")
    first = header + 1
    for number, row in rows[first : first + 2]:
        texts = [cell.strip() for cell in row]
        if _is_time_line(texts):
            names[0] = texts[0]
        elif _is_ticker_line(texts) and ticker is None:
            ticker = (number, texts)
        elif len(row) == len(cells) and any(texts) and not any(map(_has_digit, texts)):
            # Units of the columns, or a line of dashes.
            notes.append(f"line {number} below the header: left out, no bar ({_shown(row)!r})")
        else:
            break
        first += 1
    if ticker is not None:
        notes += _ticker_notes(file, *ticker)
        if names[0].casefold() in ("price", "attributes"):  # the name of the header line itself
            names[0] = ""
    body = []
    repeated = []
    for number, row in rows[first:]:
        if row == cells:
            repeated.append(number)
        else:
            body.append((number, row))
    if repeated:
        notes.append(f"the header is repeated in {_lines_text(repeated)}: left out")
    return replace(sheet, header=names, header_line=line, rows=body, notes=tuple(notes))


def is_bar_row(row: Sequence[str]) -> bool:
    """Return whether a row has a time and four prices, as far as its cells tell."""
    return sum(1 for cell in row[:_HEAD] if _NUMBER.match(cell.strip()) or is_date(cell.strip())) > len(PRICES)


def _has_digit(text: str) -> bool:
    return any(map(str.isdigit, text))


def _is_time_line(texts: Sequence[str]) -> bool:
    meaning = meaning_of(texts[0]) if texts else None
    return meaning is not None and meaning[0] in TIME_MEANINGS and not any(texts[1:])


def _is_ticker_line(texts: Sequence[str]) -> bool:
    """Return whether a row is the line of tickers that yfinance writes: one text for every column, no number."""
    others = {text.strip() for text in texts[1:]} - {""}
    if texts[0].strip().casefold() in ("ticker", "tickers", "symbol", "symbols"):
        return bool(others) and meaning_of(next(iter(others))) is None
    return len(texts) > 2 and not texts[0].strip() and len(others) == 1 and not _NUMBER.match(next(iter(others)))


def _ticker_notes(file: CsvFile, line: int, texts: Sequence[str]) -> list[str]:
    tickers = list(dict.fromkeys(text.strip() for text in texts[1:] if text.strip()))
    if len(tickers) > 1:
        rule = f"several tickers side by side ({enumerate_some(tickers)}); save a file for each ticker"
        raise file_error(file, rule, line)
    if tickers[0].upper() == file.ticker.upper():
        return []
    return [f"line {line} names the ticker {tickers[0]}, and the file is that of {file.ticker}"]


def _without_footers(sheet: Sheet, wanted: Mapping[str, str]) -> Sheet:
    """Leave out blank rows, and lines of text at the end."""
    rows = [(line, row) for line, row in sheet.rows if "".join(row).strip()]
    meanings = header_meanings(sheet.header, wanted)
    end = len(rows)
    while end > max(len(rows) - _FOOTERS, 0) and _is_footer(rows[end - 1][1], sheet.header, meanings):
        end -= 1
    if end == len(rows):
        return replace(sheet, rows=rows)
    footers = rows[end:]
    excerpt = enumerate_some([repr(_shown(row)) for _, row in footers], 2)
    note = f"{_lines_text([line for line, _ in footers])} at the end: left out, no bar ({excerpt})"
    return replace(sheet, rows=rows[:end], notes=(*sheet.notes, note))


def _is_footer(row: Sequence[str], header: Sequence[str], meanings: Sequence[Meaning | None]) -> bool:
    texts = [cell.strip() for cell in row if cell.strip()]
    if not texts or not header or is_date(texts[0]):
        return False
    if len(texts) == 1 and texts[0][0] in "©*#†":
        return True
    if not re.search(r"[^\W\d_]", texts[0]):
        return False
    if len(row) != len(header):
        # A sentence may have commas and numbers; a row that is cut off begins with a date, a number or a symbol.
        return " " in texts[0] or not any(_NUMBER.match(text) or is_date(text) for text in texts)
    prices = [row[position] for position, meaning in enumerate(meanings) if meaning and meaning[0] in PRICES]
    times = [row[position] for position, meaning in enumerate(meanings) if meaning and meaning[0] in TIME_MEANINGS]
    return not any(price.strip() for price in prices) and not any(is_date(time) for time in times)


def is_date(text: str) -> bool:
    """Return whether a cell begins like a date, or is one in words."""
    if _DATE.match(text.strip()):
        return True
    if len(text) > 60:
        return False
    if not re.search(r"\d", text):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unknown time zone is no reason to warn, as nothing is read here
            return not pd.isna(pd.to_datetime(text.strip(), errors="coerce"))
    except (ValueError, OverflowError):
        return False


def _shown(row: Sequence[str]) -> str:
    text = " ".join(cell.strip() for cell in row if cell.strip())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lines_text(lines: Sequence[int]) -> str:
    if len(lines) > 1 and lines[-1] - lines[0] == len(lines) - 1:
        return f"lines {lines[0]} to {lines[-1]}"
    return f"line{'s' if len(lines) > 1 else ''} {enumerate_some(lines)}"
