"""Any file ends with bars, or with a sentence that names the file: CSVs that people have, damaged in every way.

`make fuzz` looks for new examples for longer.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_shapes import bars_at, dates, klines, lines, ohlcv, plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from market_files import NOW

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bars import PRICES, Bars
from kronos_pipeline.data.ingest import read_folder
from kronos_pipeline.errors import DataError, KronosError

pytestmark = pytest.mark.slow

DAYS = bars_at(pd.date_range("2023-01-03", periods=12, freq="B"), seed=1)
HOURS = bars_at(pd.date_range("2023-03-09 22:00", periods=12, freq="h"), seed=2)
SHAPES = {
    "plain": plain(DAYS),
    "semicolons": [line.replace(",", ";").replace(".", ",") for line in plain(DAYS)],
    "american": lines({"Date": dates(DAYS, "%b %d, %Y"), **ohlcv(DAYS)}, separator="\t"),
    "german": lines({"Datum": dates(DAYS, "%d.%m.%Y"), **ohlcv(DAYS)}, separator=";"),
    "quoted": ['"' + line.replace(",", '","') + '"' for line in plain(DAYS)],
    "yfinance": ["Price,Open,High,Low,Close,Volume", "Ticker,A,A,A,A,A", "Date,,,,,", *plain(DAYS)[1:]],
    "binance": lines(klines(HOURS), header=False),
    "metatrader": lines(
        {"<DATE>": dates(HOURS, "%Y.%m.%d"), "<TIME>": dates(HOURS, "%H:%M:%S"), **ohlcv(HOURS)}, separator="\t"
    ),
    "zones": lines({"time": dates(HOURS, "%Y-%m-%dT%H:%M:%S+01:00"), **ohlcv(HOURS)}),
    "clocks": lines({"date": dates(HOURS), "time": dates(HOURS, "%I:%M %p"), **ohlcv(HOURS)}),
    "tickers": lines({"Symbol": ["A"] * 6 + ["B"] * 6, "Date": dates(DAYS), **ohlcv(DAYS)}),
    "china": [
        line.replace("Date,Open,High,Low,Close,Volume", "日期,开盘,最高,最低,收盘,成交量")
        for line in plain(DAYS, form="%Y%m%d")
    ],
    "spaces": [line.replace(",", " ") for line in plain(DAYS)],
    "text": ["Prices of ACME", "", *plain(DAYS), "", "Source: ACME, delayed", "Total,,,,,7"],
}
ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "cp932", "cp1252")
TOKENS = [
    *("", " ", "-", "NaN", "null", "inf", "-inf", "1e999", "1e-999", "-1", "0", "-0", "9" * 30, "9" * 400, "0" * 50),
    *(
        "1,234",
        "1.234,5",
        "1'234",
        "12%",
        "$5",
        "5M",
        "1.17万",
        "٣",
        "½",
        "１２",
        "0x10",
        "1_0",
        "=1+1",
        '="5"',
        '"',
        "''",
    ),
    *(
        "2024-02-30",
        "0000-00-00",
        "9999-12-31",
        "1677-01-01",
        "2262-04-12",
        "31.12.1969",
        "12/13/14",
        "1.5.24",
        "24:00",
    ),
    *(
        "2023-03-12 02:30",
        "2023-11-05T01:30:00-04:00",
        "2024-01-01Z",
        "00:00 EST",
        "12:00 PM CST",
        "+99:99",
        "Jan",
        "32",
    ),
    *("1700000000", "1700000000000000000000", "-5", "44929", "44929.5", "1e18", "20240101", "20241301", "113/01/02"),
    *("Date", "Close", "Adj Close", "Symbol", "Volume", "sep=;", "\0", "\r", "\n", "\x1a", "\x0c", "\u2028", "\ufeff"),
    *("\u202e", "\U0001f600", "\ud800", "#", "Ticker", "<TIME>", "{", "<html>", "PK\x03\x04", "a b", "x" * 300),
]


def cut(content: bytes, at: int, length: int, token: bytes) -> bytes:  # noqa: ARG001
    return content[:at] + content[at + length :]


def insert(content: bytes, at: int, length: int, token: bytes) -> bytes:  # noqa: ARG001
    return content[:at] + token + content[at:]


def replace(content: bytes, at: int, length: int, token: bytes) -> bytes:
    return content[:at] + token + content[at + length :]


def truncate(content: bytes, at: int, length: int, token: bytes) -> bytes:  # noqa: ARG001
    return content[:at]


def repeat(content: bytes, at: int, length: int, token: bytes) -> bytes:  # noqa: ARG001
    return content[: at + length] + content[at : at + length] * 3 + content[at + length :]


def flip(content: bytes, at: int, length: int, token: bytes) -> bytes:  # noqa: ARG001
    return content[:at] + bytes(byte ^ (1 << length % 8) for byte in content[at : at + 1]) + content[at + 1 :]


def swap_separators(content: bytes, at: int, length: int, token: bytes) -> bytes:  # noqa: ARG001
    marks = b",;\t| ."
    return content.replace(marks[at % 6 : at % 6 + 1], marks[length % 6 : length % 6 + 1])


BYTES: tuple[Callable[[bytes, int, int, bytes], bytes], ...] = (
    *(cut, insert, replace, truncate, repeat, flip, swap_separators),
)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a file: a shape whose cells, lines and bytes are changed."""
    rows = [re.split("([,;\t])", line) for line in SHAPES[draw(st.sampled_from(sorted(SHAPES)))]]
    for _ in range(draw(st.integers(0, 3))):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(TOKENS))
    if draw(st.booleans()):
        column, token = draw(st.integers(0, 6)) * 2, draw(st.sampled_from(TOKENS))
        for row in rows[draw(st.integers(0, 2)) :]:
            row[column : column + 1] = [token]
    cells = ["".join(row) for row in rows]
    for _ in range(draw(st.integers(0, 2))):
        line = cells.pop(draw(st.integers(0, len(cells) - 1)))
        cells.insert(draw(st.integers(0, len(cells))), line * draw(st.integers(0, 2)))
    text = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"])).join(cells) + draw(st.sampled_from(["\n", "", "\x1a"]))
    content = text.encode(draw(st.sampled_from(ENCODINGS)), errors="replace")
    for _ in range(draw(st.integers(0, 3))):
        mutate, at = draw(st.sampled_from(BYTES)), draw(st.integers(0, len(content)))
        inserted = draw(st.sampled_from(TOKENS)).encode(errors="replace")
        content = mutate(content, at, draw(st.integers(0, 60)), inserted)
    return content


readings = st.builds(
    ReadingSettings,
    columns=st.sampled_from(
        [[], [], [], ["close=Open", "open=Close"], ["time=1", "open=2", "high=3", "low=4", "close=5"]]
    ),
    adjusted=st.sampled_from([False, False, True]),
    drop_bad_rows=st.sampled_from(["0", "0", "1", "100%"]),
    from_date=st.sampled_from([[], [], ["2023-01-05"], ["9999-12-31"]]),
    keep_forming=st.booleans(),
)
CASES = settings(
    max_examples=max(600, settings.default.max_examples if settings.default else 0),
    suppress_health_check=list(HealthCheck),
)


@CASES
@given(damaged_files(), readings, st.sampled_from(["ACME.csv", "ACME.txt", "daily_IBM (1).csv"]))
def test_a_damaged_file_ends_with_bars_or_with_sentences_that_name_it(
    content: bytes, reading: ReadingSettings, name: str
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / name).write_bytes(content)
        with contextlib.suppress(KronosError), warnings.catch_warnings():
            warnings.simplefilter("error")
            bars, errors = read_folder(folder, reading, now=NOW)
            check(name, bars, errors)
    finally:
        shutil.rmtree(folder)


def check(name: str, bars: dict[str, Bars], errors: dict[str, DataError]) -> None:
    """Check that bars are valid, and that errors are sentences that name the file."""
    for one in bars.values():
        frame = one.frame
        assert np.isfinite(one.values).all()
        assert frame["timestamps"].is_monotonic_increasing
        assert frame["timestamps"].is_unique
        assert (frame[list(PRICES)] > 0).all(axis=None)
        assert all(note.isprintable() for note in one.notes), one.notes
    for error in errors.values():
        assert len(str(error)) < 20_000
        for problem in error.problems:
            assert name in problem.file
            assert len(problem.rule) > 3
            assert str(problem).isprintable(), str(problem)
