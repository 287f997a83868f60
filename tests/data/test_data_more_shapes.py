"""More shapes of files, and texts that are no tables: read in the one possible way, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from csv_shapes import assert_same_bars, daily, lines, ohlcv, texts, write
from market_files import NOW

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.ingest import read_folder


def read_one(folder: Path, **settings: Any) -> Bars:
    """The bars of the only ticker of a folder without problems."""
    bars, errors = read_folder(folder, ReadingSettings(**settings), now=NOW)
    assert errors == {}
    [one] = bars.values()
    return one


def problem_of(folder: Path) -> str:
    """The only problem of a folder."""
    bars, errors = read_folder(folder, now=NOW)
    assert bars == {}
    [error] = errors.values()
    [problem] = error.problems
    return str(problem)


def dates(frame: pd.DataFrame, form: str = "%Y-%m-%d") -> list[str]:
    return list(frame["timestamps"].dt.strftime(form))


def plain(frame: pd.DataFrame) -> list[str]:
    """The lines of a plain CSV: Date,Open,High,Low,Close,Volume."""
    return lines({"Date": dates(frame), **ohlcv(frame, title=True)})


# Structure


def test_bars_above_the_header_are_refused(tmp_path: Path) -> None:
    text = plain(daily(100))
    write(tmp_path / "ZZA.csv", [*text[1:41], text[0], *text[41:]])

    assert problem_of(tmp_path).startswith(f"{tmp_path / 'ZZA.csv'}:1: bars before the header in line 41;")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("404 Not Found", "no table of bars: the file begins with '404 Not Found'"),
        ("No data, symbol may be delisted", "no table of bars: the file begins with 'No data, symbol"),
        ("version https://git-lfs.github.com/spec/v1\nsize 123", "no table of bars: the file begins with 'version"),
        (",,,,,\n,,,,,", "no table of bars"),
        ("<div class='x'>Log in, please</div>", "a web page"),
        ("<table>\n<tr><td>1</td></tr>\n</table>", "a web page"),
        ('[\n {\n  "date": "2023-01-03"\n }\n]', "JSON"),
        ('["2023-01-03", "100.46"]', "JSON"),
        ("%PDF-1.4\n1 0 obj", "a PDF"),
        ("{\\rtf1\\ansi Date,Open}", "formatted text"),
    ],
)
def test_a_text_without_a_table_is_refused_for_what_it_is(tmp_path: Path, text: str, words: str) -> None:
    write(tmp_path / "ZZA.csv", [text])

    assert words in problem_of(tmp_path)


def test_a_line_of_another_length_is_named_with_the_way_out(tmp_path: Path) -> None:
    write(tmp_path / "ZZA.csv", [*plain(daily(50)), "1234"])

    assert problem_of(tmp_path).endswith("ZZA.csv:52: 1 cells where the header has 6; complete the line or take it out")


# Columns


def test_two_time_columns_of_one_name_must_agree(tmp_path: Path) -> None:
    frame = daily(50)
    later = dates(frame.assign(timestamps=frame["timestamps"] + pd.Timedelta(days=400)))
    text = [f"{line},{day}" for line, day in zip(plain(frame), ["Date", *later], strict=True)]
    write(tmp_path / "ZZA.csv", text)

    assert "Date: disagrees with Date (column 7)" in problem_of(tmp_path)


@pytest.mark.parametrize("name", ["% Close", "Close %", "Volume %"])
def test_a_column_of_percentages_is_no_price_and_no_volume(tmp_path: Path, name: str) -> None:
    frame = daily(50)
    write(
        tmp_path / "ZZA.csv", [f"{line},{cell}" for line, cell in zip(plain(frame), [name, *["0.5"] * 50], strict=True)]
    )

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert f"columns that are ignored: {name}" in bars.notes


def test_a_volume_in_the_currency_of_the_prices_is_the_amount(tmp_path: Path) -> None:
    frame = daily(50)
    columns = texts(frame)
    names = {f"{name}_usd": columns[name] for name in ("open", "high", "low", "close")}
    write(tmp_path / "BTC.csv", lines({"date": dates(frame), **names, "volume_usd": columns["amount"]}))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame.assign(volume=0.0), amount=True)
    assert "no volume: taken as 0" in bars.notes
