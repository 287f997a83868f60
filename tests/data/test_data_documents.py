"""docs/data.md is true: it quotes the messages of the reading, and its flags, columns and headers are known."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from kronos_pipeline.cli.doctor import Doctor
from kronos_pipeline.config import COLUMN_MEANINGS, KronosTrainingConfig, ReadingSettings
from kronos_pipeline.data.bars import PRICES
from kronos_pipeline.data.column_names import TIME_MEANINGS, column_rows, meaning_of
from kronos_pipeline.data.columns import header_meanings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text()
PACKAGE = ROOT / "kronos_pipeline"
READING = (
    *("csv_files", "csv_table", "csv_columns", "columns", "dialect", "encodings", "headerless", "numbers"),
    *("ingest", "rows", "vanished", "bad_rows", "schemas", "data_folder", "csv_content", "bar_cache", "history"),
    *(
        "timestamps",
        "time_numbers",
        "time_zones",
        "date_orders",
        "time_column",
        "time_texts",
        "bar_times",
        "session_moves",
    ),
    *("session_moves", "quality_flags", "windows", "doctor"),
)
ALL_QUOTED = tuple(module for module in READING if module not in ("time_texts", "windows", "doctor"))
"""Modules with messages of the reading alone; the others have names of months, and messages on artifacts."""
SOURCES = [
    *(PACKAGE / "data" / f"{module}.py" for module in READING),
    *(PACKAGE / name for name in ("config.py", "reading_settings.py", "training/preflight.py")),
]
LEAST_WORDS = 2
"""Words of a text of the code that can be a message."""
MESSAGE_WORDS = 4
"""Words of a text of the code that surely is a message, if it has no mark of a regular expression."""


def rows_of(*headings: str) -> list[list[str]]:
    """Return the cells of each row of the tables with one of these headings in the first column."""
    rows = []
    for table in re.findall(r"(?:^\|.*\|\n)+", PAGE, re.MULTILINE):
        head, _, *body = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
        rows += body if head[0].strip() in headings else []
    return rows


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


MESSAGES = [message for row in rows_of("Note", "Refusal") for message in quoted(row[0])]
QUOTES = [quote for row in rows_of("Note", "Refusal") for quote in quoted(" ".join(row))]
FLAGS = {
    name.replace("_", "-")
    for command in (Doctor, KronosTrainingConfig)
    for field, details in command.model_fields.items()
    for name in (field, *getattr(details.validation_alias, "choices", ()))
}


@dataclass(frozen=True)
class Text:
    """A text of the code: its fixed parts, between the values that it is given."""

    module: str
    parts: tuple[str, ...]

    @property
    def pattern(self) -> str:
        return ".*".join(map(re.escape, self.parts))

    def words(self) -> int:
        return len(re.findall(r"[^\W\d_]{2,}", " ".join(self.parts)))


def fixed_parts(text: ast.expr) -> tuple[str, ...]:
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return (text.value,)
    if isinstance(text, ast.JoinedStr):
        return tuple(str(part.value) if isinstance(part, ast.Constant) else "" for part in text.values)
    return ()


def texts_of_the_code() -> list[Text]:
    texts = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.expr) and id(node) not in documentation | inner and (parts := fixed_parts(node)):
                texts.append(Text(path.stem, parts))
    return [text for text in texts if text.words() >= LEAST_WORDS]


TEXTS = texts_of_the_code()


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_one_of_the_code(message: str) -> None:
    assert any(re.fullmatch(rf"{text.pattern}(?:[;:,. (].*)?", message) for text in TEXTS)


@pytest.mark.parametrize("module", ALL_QUOTED)
def test_each_message_of_the_reading_is_quoted(module: str) -> None:
    messages = {text for text in TEXTS if text.module == module and text.words() >= MESSAGE_WORDS}
    unquoted = [
        "…".join(text.parts)
        for text in messages
        if " " in "".join(text.parts)
        and not re.search(r"\\|\(\?|\|", "".join(text.parts))
        and not any(re.search(text.pattern, message) for message in QUOTES)
    ]
    assert unquoted == []


def test_each_flag_that_the_page_names_exists() -> None:
    named = set(re.findall(r"(?<![\w-])--(?:no-)?([a-z][a-z-]+)", PAGE))
    assert named <= FLAGS


def test_the_page_names_each_flag_of_the_reading() -> None:
    for field in ReadingSettings.model_fields:
        assert f"`--{field.replace('_', '-').removesuffix('-date')}" in PAGE


@pytest.mark.parametrize(("meaning", "names"), [row[:2] for row in rows_of("Meaning")], ids=lambda text: text[:9])
def test_the_names_of_columns_have_the_meaning_that_the_page_gives(meaning: str, names: str) -> None:
    ranks = []
    for text in names.split("; then "):
        meanings = [meaning_of(name) or ("", 0) for name in quoted(text)]
        assert {of_name for of_name, _ in meanings} == {meaning}
        assert len({rank for _, rank in meanings}) == 1 or meaning == "time"
        ranks.append(min(rank for _, rank in meanings))
    assert ranks == sorted(set(ranks))


def test_the_page_has_a_row_for_each_meaning() -> None:
    assert [row[0] for row in rows_of("Meaning")] == [meaning for meaning, _ in column_rows()]
    assert set(COLUMN_MEANINGS) == {meaning for meaning, _ in column_rows()}


@pytest.mark.parametrize(("source", "header"), [(row[0], quoted(row[2])) for row in rows_of("Source")])
def test_the_columns_of_each_source_are_known(source: str, header: list[str]) -> None:
    if not header or ("," not in header[0] and ";" not in header[0]):
        assert source in ("Binance", "MetaTrader 4")  # no header
        return
    names = re.split("[,;]", header[0])
    meanings = {meaning[0] for meaning in header_meanings(names, {}) if meaning}
    # The header of yfinance names the time in its third line.
    assert meanings >= set(PRICES)
    assert meanings & set(TIME_MEANINGS) or header[1:] == ["Ticker", "Date"]
