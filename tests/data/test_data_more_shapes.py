"""More shapes of files, and texts that are no tables: read in the one possible way, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from csv_shapes import (
    assert_same_bars,
    daily,
    dates,
    lines,
    ohlcv,
    plain,
    problem_of,
    read_one,
    sessions,
    texts,
    write,
)

from kronos_pipeline.data.csv_files import find_csv_files

# Structure


def test_bars_above_the_header_are_refused(tmp_path: Path) -> None:
    text = plain(daily(100))
    write(tmp_path / "ZZA.csv", [*text[1:41], text[0], *text[41:]])

    assert problem_of(tmp_path).startswith(f"{tmp_path / 'ZZA.csv'}:1: bars before the header in line 41;")


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_a_text_without_a_table_is_refused_for_what_it_is(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "ZZA.csv", [text])

    assert message in problem_of(tmp_path)


def test_a_line_of_another_length_is_named_with_the_way_out(tmp_path: Path) -> None:
    write(tmp_path / "ZZA.csv", [*plain(daily(50)), "1234"])

    assert problem_of(tmp_path).endswith("ZZA.csv:52: 1 cell where the header has 6; complete the line or take it out")


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


def test_a_note_names_the_column_that_may_be_the_volume(tmp_path: Path) -> None:
    frame = daily(50)
    columns = ohlcv(frame, title=True)
    columns["Share Count, Vol"] = columns.pop("Volume")
    write(tmp_path / "ZZA.csv", lines({"Date": dates(frame), **columns}, separator=";"))

    assert "no volume: taken as 0; if it is Share Count, Vol, say --columns volume=NAME" in read_one(tmp_path).notes


def test_the_beginning_of_a_bar_is_its_time_and_not_its_first_trade(tmp_path: Path) -> None:
    frame = daily(50)
    columns = {
        "time_period_start": dates(frame, "%Y-%m-%dT00:00:00.0000000Z"),
        "time_period_end": dates(frame, "%Y-%m-%dT23:59:00.0000000Z"),
        "time_open": dates(frame, "%Y-%m-%dT00:00:03.1230000Z"),
        "time_close": dates(frame, "%Y-%m-%dT23:58:57.1230000Z"),
        **{f"price_{name}": cells for name, cells in ohlcv(frame).items() if name != "volume"},
        "volume_traded": texts(frame)["volume"],
    }
    write(tmp_path / "BTC.csv", lines(columns, separator=";"))

    assert_same_bars(read_one(tmp_path).frame, frame)


# The names of rows that R writes, quotes around lines, formulas


def test_a_header_without_a_name_for_the_dates_is_read(tmp_path: Path) -> None:
    frame = daily(50)
    header, *rows = plain(frame)
    write(tmp_path / "ZZA.csv", [header.removeprefix("Date,"), *rows])

    assert_same_bars(read_one(tmp_path).frame, frame)


@pytest.mark.parametrize("form", ['"{}"', '="{date}",{rest}', '"=""{date}""",{rest}'])
def test_quotes_around_lines_and_texts_kept_from_spreadsheets_are_read(tmp_path: Path, form: str) -> None:
    frame = daily(50)
    header, *rows = plain(frame)
    parts = [row.partition(",") for row in rows]
    body = [form.format(row, date=part[0], rest=part[2]) for row, part in zip(rows, parts, strict=True)]
    write(tmp_path / "ZZA.csv", [f'"{header}"' if form == '"{}"' else header, *body])

    assert_same_bars(read_one(tmp_path).frame, frame)


def test_the_mark_at_the_end_of_a_file_of_dos_is_no_row(tmp_path: Path) -> None:
    frame = daily(50)
    write(tmp_path / "ZZA.csv", [*plain(frame), "\x1a"])

    assert_same_bars(read_one(tmp_path).frame, frame)


# Numbers


def test_exponents_with_a_decimal_comma_are_read(tmp_path: Path) -> None:
    frame = daily(50)
    columns = {name: [f"{value:.6E}".replace(".", ",") for value in frame[name]] for name in frame.columns[1:5]}
    write(tmp_path / "ZZA.csv", lines({"date": dates(frame), **columns}, separator=";"))

    assert_same_bars(read_one(tmp_path).frame, frame.assign(volume=0.0))


@pytest.mark.parametrize("marks", ["\u202f\u00a0", "\u00a0 ", "'’"])
def test_marks_of_one_kind_between_thousands_are_one_mark(tmp_path: Path, marks: str) -> None:
    frame = daily(50)
    prices = {
        name: [f"{value * 100:,.2f}".replace(",", marks[0]) for value in frame[name]] for name in frame.columns[1:5]
    }
    columns = {**prices, "volume": [f"{value:,.0f}".replace(",", marks[1]) for value in frame["volume"]]}
    write(tmp_path / "ZZA.csv", lines({"date": dates(frame), **columns}, separator=";"))

    bars = read_one(tmp_path)

    assert list(bars.frame["close"]) == [float(f"{value * 100:.2f}") for value in frame["close"]]
    assert list(bars.frame["volume"]) == list(frame["volume"])


# Files


def test_hidden_files_and_folders_of_other_programs_hold_no_tickers(tmp_path: Path) -> None:
    frame = daily(50)
    write(tmp_path / "ZZA.csv", plain(frame))
    write(tmp_path / "._ZZA.csv", ["\0\5\x16\7\0"])
    write(tmp_path / ".ipynb_checkpoints" / "ZZA-checkpoint.csv", plain(frame))
    write(tmp_path / "__MACOSX" / "ZZB.csv", plain(frame))

    folder = find_csv_files(tmp_path)

    assert list(folder.files) == ["ZZA"]
    assert folder.problems == {}
    assert folder.notes == ("hidden folders are not searched: .ipynb_checkpoints, __MACOSX",)


@pytest.mark.parametrize(
    "name",
    [
        "SAP Historische Daten.csv",
        "Copy of SAP.csv",
        "Kopie von SAP.csv",
        "SAP.csv.csv",
        "sap_daily_historical-data-01-31-2024.csv",
        "SAP_01.01.2023-31.12.2023.csv",
    ],
)
def test_names_of_sites_and_copies_hold_the_symbol(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, plain(daily(50)))

    assert list(find_csv_files(tmp_path).files) == ["SAP"]


def test_a_long_cell_is_cut_in_a_message(tmp_path: Path) -> None:
    header, *rows = plain(daily(50))
    write(tmp_path / "ZZA.csv", [header, *rows, f"{'1 ' * 50_000},1,2,1,1.5,1"])

    assert len(problem_of(tmp_path)) < 1000


def test_files_that_are_named_by_the_year_of_their_bars_are_no_tickers(tmp_path: Path) -> None:
    header, *rows = plain(daily(400))
    for year in ("2023", "2024"):
        write(tmp_path / f"{year}.csv", [header, *(row for row in rows if row.startswith(year))])

    folder = find_csv_files(tmp_path)

    assert folder.files == {}
    assert "the file's name is a period and no symbol: name it SYMBOL-2023" in str(folder.problems["2023.csv"])


def test_the_name_of_a_download_without_a_symbol_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "HistoricalData_1700000000000.csv", plain(daily(50)))

    assert "the file's name makes no symbol" in problem_of(tmp_path)


@pytest.mark.parametrize(
    ("order", "places"),
    [
        ("date time open high low close volume", "date=1,time=2,open=3,high=4,low=5,close=6,volume=7"),
        ("time open close high low volume", "time=1,open=2,close=3,high=4,low=5,volume=6"),
        ("time low high open close volume", "time=1,low=2,high=3,open=4,close=5,volume=6"),
        ("symbol time open high low close", "symbol=1,time=2,open=3,high=4,low=5,close=6"),
    ],
)
def test_a_file_without_a_header_is_refused_with_the_places_that_read_it(
    tmp_path: Path, order: str, places: str
) -> None:
    frame = sessions(5)
    moments = "%Y-%m-%d" if "date" in order else "%Y-%m-%d %H:%M"
    columns = {**ohlcv(frame), "date": dates(frame), "time": dates(frame, "%H:%M" if "date" in order else moments)}
    columns["symbol"] = ["ZZA"] * len(frame)
    write(tmp_path / "ZZA.csv", lines({name: columns[name] for name in order.split()}, header=False))

    assert problem_of(tmp_path).endswith(f"--columns {places}")
    bars = read_one(tmp_path, columns=places.split(","))
    assert_same_bars(bars.frame, frame if "volume" in order else frame.assign(volume=0.0))


def test_names_of_several_lines_and_marks_of_joined_files_are_read(tmp_path: Path) -> None:
    frame = daily(50)
    header, *rows = plain(frame)
    header = ",".join(f'"{name}\nprice"' if name in ("Open", "Close") else name for name in header.split(","))
    write(tmp_path / "ZZA.csv", ["\ufeff" + header, *rows[:20], "\ufeff" + header, *rows[20:]])

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert "columns by meaning: open is Open price, close is Close price" in bars.notes


def test_a_name_of_a_file_is_shown_in_one_line(tmp_path: Path) -> None:
    write(tmp_path / "A\n\x1b[31mB.csv", plain(daily(50)))

    assert problem_of(tmp_path).isprintable()


def test_several_sentences_at_the_end_are_left_out_with_a_note(tmp_path: Path) -> None:
    frame = daily(50)
    footer = ["", "Source: an exchange", "Note 1: prices, adjusted for splits, 2:1", "* delayed", "© 2024"]
    write(tmp_path / "ZZA.csv", [*plain(frame), *footer])

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert any(note.startswith("lines 53 to 56 at the end: left out, no bar") for note in bars.notes)
