"""Bars are the same from a CSV in any dialect, or the file is refused with a real ambiguity."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.csv_symbols import split_symbols, symbols_of
from kronos_pipeline.data.csv_table import CsvTable, read_csv_table
from kronos_pipeline.data.numbers import NumberColumn, parse_numbers
from kronos_pipeline.errors import DataError

SHARED = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
PLAIN = "Date,Open,High,Low,Close,Volume"
BARS = ("2024-01-02,100.5,102.25,99.75,101,1200", "2024-01-03,101,103.5,100.25,102.75,1500")
FEATURES = ("open", "high", "low", "close", "volume")
HEADERS = {
    "utf-8": ["Date", "Open", "High", "Low", "Close", "Volume"],
    "utf-8-sig": ["日期", "开盘", "最高", "最低", "收盘", "成交量"],
    "utf-16": ["Fecha", "Apertura", "Máximo", "Mínimo", "Último", "Vol."],
    "utf-16-le": ["<DATE>", "<OPEN>", "<HIGH>", "<LOW>", "<CLOSE>", "<TICKVOL>"],
    "gb18030": ["日期", "开盘价", "最高价", "最低价", "收盘价", "成交量"],
    "cp932": ["日付け", "始値", "高値", "安値", "終値", "出来高"],
    "cp949": ["날짜", "시가", "고가", "저가", "종가", "거래량"],
    "cp1251": ["Дата", "Откр.", "Макс.", "Мин.", "Цена", "Объём"],
    "cp1252": ["Datum", "Eröffnung", "Höchst", "Tief", "Schluß", "Stück"],
}


def table_of(folder: Path, content: bytes | str, ticker: str = "ACME", *columns: str) -> CsvTable:
    path = folder / f"{ticker}.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_csv_table(CsvFile(ticker, path), ReadingSettings(columns=list(columns)))


def lines(*body: str, header: str = PLAIN) -> str:
    return "\n".join([header, *body, ""])


def problem_of(folder: Path, content: bytes | str, *columns: str) -> str:
    with pytest.raises(DataError) as caught:
        table_of(folder, content, "ACME", *columns)
    [problem] = caught.value.problems
    return str(problem).replace(f"{folder}/", "")


def values(table: CsvTable) -> dict[str, list[float]]:
    columns: dict[str, NumberColumn] = {name: parse_numbers(table, name) for name in FEATURES if name in table.cells}
    assert not any(column.problems for column in columns.values())
    return {name: column.values.tolist() for name, column in columns.items()}


def times(table: CsvTable) -> list[str]:
    texts: list[str] = pa.array(next(iter(table.time_cells.values())), pa.string()).to_pylist()
    return texts


@dataclass(frozen=True)
class Dialect:
    encoding: str
    separator: str
    decimal: str
    thousands: str
    digits: int
    quoting: Literal[0, 1, 2, 3]
    end: str
    preamble: int
    footer: int

    def number(self, value: float, digits: int) -> str:
        marked = f"{value:,.{digits}f}"
        return marked.translate({ord(","): self.thousands, ord("."): self.decimal})

    def write(self, bars: list[tuple[float, ...]]) -> bytes:
        text = io.StringIO(newline="")
        text.write(f"Prices of ACME{self.end}" * self.preamble)
        writer = csv.writer(text, delimiter=self.separator, quoting=self.quoting, lineterminator=self.end)
        writer.writerow(HEADERS[self.encoding])
        for day, (*prices, volume) in enumerate(bars):
            cells = [*(self.number(price, self.digits) for price in prices), self.number(volume, 0)]
            writer.writerow([f"2024-01-{day + 1:02}", *cells])
        text.write(f"Source: ACME Exchange{self.end}" * self.footer)
        return text.getvalue().encode(self.encoding)


dialects = st.builds(
    Dialect,
    st.sampled_from(list(HEADERS)),
    st.sampled_from(",;\t|"),
    st.sampled_from(".,"),
    st.sampled_from(["", ",", ".", " ", "'"]),
    st.integers(0, 4),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.integers(0, 2),
    st.integers(0, 2),
)


@st.composite
def bars(draw: st.DrawFn) -> list[tuple[float, ...]]:
    """Bars with prices of a few digits or of thousands."""
    scale = draw(st.sampled_from([1, 100, 10_000]))
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        low, first, second, high = sorted(draw(st.lists(st.integers(1000, 30_000), min_size=4, max_size=4)))
        prices = (first, high, low, second) if draw(st.booleans()) else (second, high, low, first)
        rows.append((*(price * scale / 1e4 for price in prices), float(draw(st.integers(0, 10**7)))))
    return rows


@pytest.mark.slow
@SHARED
@given(bars(), dialects)
@example([(1.5, 2.5, 1.25, 1.75, 1234.0)], Dialect("cp1252", ";", ",", ".", 2, csv.QUOTE_ALL, "\r", 1, 1))
def test_bars_are_the_same_in_any_dialect_or_a_number_has_two_readings(
    tmp_path: Path, written_bars: list[tuple[float, ...]], dialect: Dialect
) -> None:
    assume(dialect.decimal != dialect.thousands)
    # Without any fraction in the file, a dot between digits is the decimal mark, as in all programs.
    assume(dialect.digits or dialect.thousands != ".")
    rounded = [(*(float(f"{price:.{dialect.digits}f}") for price in row[:4]), row[4]) for row in written_bars]
    try:
        table = table_of(tmp_path, dialect.write(written_bars))
    except DataError as error:
        [problem] = error.problems
        assert ": can be " in str(problem)
        # One mark with three digits after it: the number has two readings.
        [mark] = {mark for mark in ".," if mark in str(problem.value)}
        assert str(problem.value).partition(mark)[2].isdecimal()
        assert len(str(problem.value).partition(mark)[2]) == 3
        return

    assert list(zip(*values(table).values(), strict=True)) == rounded
    assert times(table) == [f"2024-01-{day + 1:02}" for day in range(len(written_bars))]
    first = dialect.preamble + 2
    assert list(table.lines) == list(range(first, first + len(written_bars)))


@pytest.mark.parametrize("encoding", HEADERS)
def test_the_encoding_is_found_and_told(tmp_path: Path, encoding: str) -> None:
    table = table_of(tmp_path, Dialect(encoding, ",", ".", "", 2, 0, "\n", 0, 0).write([(1.5, 2, 1, 1.5, 7)]))

    assert values(table)["close"] == [1.5]
    assert any(note.startswith("the encoding is") for note in table.notes) == (not encoding.startswith("utf-8"))


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (["Price,Close,High,Low,Open,Volume", "Ticker,ACME,ACME,ACME,ACME,ACME", "Date,,,,,"], 3),
        (["Date,Close,High,Low,Open,Volume", "Ticker,ACME,ACME,ACME,ACME,ACME", "Date,,,,,"], 3),
        (["Ticker,ACME,ACME,ACME,ACME,ACME", "Price,Close,High,Low,Open,Volume", "Date,,,,,"], 3),
        (["Price,Close,High,Low,Open,Volume", "Ticker,ACME,ACME,ACME,ACME,ACME"], 2),
        ([",Close,High,Low,Open,Volume", ",ACME,ACME,ACME,ACME,ACME", "Date,,,,,"], 3),
        (["Price,Close,High,Low,Open,Volume", "Date,,,,,"], 2),
    ],
)
def test_the_header_lines_of_yfinance_are_no_bars(tmp_path: Path, header: list[str], rows: int) -> None:
    table = table_of(tmp_path, "\n".join([*header, "2024-01-02,101,103,99,100,7", "2024-01-03,102,103,99,100,7", ""]))

    assert values(table) == {
        **{"open": [100, 100], "high": [103, 103], "low": [99, 99], "close": [101, 102], "volume": [7, 7]}
    }
    assert times(table) == ["2024-01-02", "2024-01-03"]
    assert list(table.lines) == [rows + 1, rows + 2]
    assert table.notes == ()


def test_another_ticker_in_the_header_is_told_and_several_are_refused(tmp_path: Path) -> None:
    header = ["Price,Close,High,Low,Open", "Ticker,ZZB,ZZB,ZZB,ZZB", "Date,,,,"]
    table = table_of(tmp_path, "\n".join([*header, "2024-01-02,101,103,99,100", ""]))
    assert table.notes == ("line 2 names the ticker ZZB, and the file is that of ACME",)

    wide = ["Price,Close,Close,High,High,Low,Low,Open,Open", "Ticker,A,B,A,B,A,B,A,B", "Date,,,,,,,,"]
    assert problem_of(tmp_path, "\n".join([*wide, "2024-01-02,1,2,1,2,1,2,1,2"])).startswith(
        "ACME.csv:2: several tickers side by side (A, B); save a file for each ticker"
    )


def test_lines_of_text_before_and_after_the_bars_are_left_out_with_a_note(tmp_path: Path) -> None:
    footers = ("", "Data delayed by 15 minutes", "Total,,,,,2700")
    table = table_of(tmp_path, "https://example.com\nPrices, in USD\n\n" + lines(*BARS, *footers))

    assert values(table)["close"] == [101, 102.75]
    assert list(table.lines) == [5, 6]
    assert table.notes == (
        "lines 1 to 2 before the header: left out ('https://example.com', 'Prices in USD')",
        "lines 8 to 9 at the end: left out, no bar ('Data delayed by 15 minutes', 'Total 2700')",
    )


def test_a_header_that_is_repeated_is_left_out_with_a_note(tmp_path: Path) -> None:
    table = table_of(tmp_path, lines(BARS[0], PLAIN, BARS[1]))

    assert list(table.lines) == [2, 4]
    assert table.notes == ("the header is repeated in line 3: left out",)


@pytest.mark.parametrize("line", ["2024-01-04,101,102", "a line of text", "2024-01-04,1,2,1,1,1,1,1"])
def test_a_line_of_another_length_among_the_bars_is_a_problem(tmp_path: Path, line: str) -> None:
    assert problem_of(tmp_path, lines(BARS[0], line, BARS[1])).startswith("ACME.csv:3: ")


def test_a_last_line_that_is_cut_off_is_a_problem(tmp_path: Path) -> None:
    assert problem_of(tmp_path, lines(*BARS, "2024-01-04,101.2")).startswith("ACME.csv:4: 2 cells where the header")


def test_a_separator_at_the_end_of_each_line_is_no_column(tmp_path: Path) -> None:
    table = table_of(tmp_path, lines(*(f"{bar}," for bar in BARS)))
    assert values(table)["volume"] == [1200, 1500]
    assert table.ignored == ()


def test_empty_cells_beyond_the_header_are_no_cells(tmp_path: Path) -> None:
    table = table_of(tmp_path, lines(BARS[0], f"{BARS[1]},,", header=f"{PLAIN},,"))
    assert values(table)["volume"] == [1200, 1500]
    assert table.ignored == ()


def test_a_line_of_units_below_the_header_is_left_out_with_a_note(tmp_path: Path) -> None:
    table = table_of(tmp_path, lines("day,USD,USD,USD,USD,shares", *BARS))
    assert list(table.lines) == [3, 4]
    assert table.notes == ("line 2 below the header: left out, no bar ('day USD USD USD USD shares')",)


def test_excels_line_with_the_separator_is_followed(tmp_path: Path) -> None:
    table = table_of(tmp_path, "sep=;\n" + lines(*BARS).replace(",", ";"))
    assert values(table)["close"] == [101, 102.75]
    assert table.notes == ("the columns are separated by semicolons",)


KLINE = "1700006400000,100.5,102.25,99.75,101,1200,1700009999999,121200.5,900,600,60600.25,0"


@pytest.mark.parametrize("cells", [12, 11])
def test_klines_of_binance_need_no_header(tmp_path: Path, cells: int) -> None:
    table = table_of(tmp_path, ",".join(KLINE.split(",")[:cells]) + "\n")

    assert values(table) == {"open": [100.5], "high": [102.25], "low": [99.75], "close": [101], "volume": [1200]}
    assert (list(table.time_cells), list(table.lines)) == (["open_time"], [1])
    assert table.notes[0].startswith("no header: the columns are those of Binance's klines")


def test_metatraders_export_needs_no_header(tmp_path: Path) -> None:
    table = table_of(tmp_path, "2024.01.02,09:30,1.5,1.75,1.25,1.6,37\n2024.01.02,09:31,1.6,1.75,1.25,1.7,12\n")
    assert values(table)["volume"] == [37, 12]
    assert set(table.time_cells) == {"date", "time"}


@pytest.mark.parametrize(
    "line",
    [
        "2024-01-02,100.5,102.25,99.75,101,1200",  # open, high, low, close, or close, high, low, open
        KLINE.replace("102.25", "98.25"),  # no valid bar
        KLINE + ",1",
    ],
)
def test_columns_that_can_be_more_than_one_thing_need_a_header(tmp_path: Path, line: str) -> None:
    assert problem_of(tmp_path, f"{line}\n{line}\n").startswith("ACME.csv:1: no header; write the names of the columns")


def test_columns_without_a_header_are_named_by_their_places(tmp_path: Path) -> None:
    places = ("time=1", "open=2", "high=3", "low=4", "close=5")
    table = table_of(tmp_path, "\n".join(BARS), "ACME", *places)
    assert values(table)["close"] == [101, 102.75]
    assert times(table) == ["2024-01-02", "2024-01-03"]


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (("1.243,5", "998,25"), [1243.5, 998.25]),
        (("1,243.5", "998.25"), [1243.5, 998.25]),
        (("1,234,567", "1,234,568"), [1234567, 1234568]),
        (("12,34,567.5", "12,34,568"), [1234567.5, 1234568]),
        (("1.234", "1.2345"), [1.234, 1.2345]),
        (("1,234", "1,2345"), [1.234, 1.2345]),
        (("1,234", "0,998"), [1.234, 0.998]),
        (("1,234", "12345"), [1.234, 12345]),
        (("1'234.5", "998"), [1234.5, 998]),
        (("1\u202f234,567", "998"), [1234.567, 998]),
        (("147.123", "148.456"), [147.123, 148.456]),
        (("$1,243.50", "$998.25"), [1243.5, 998.25]),
        (("1.243,50 €", "998,25 €"), [1243.5, 998.25]),
        (("1.5e3", "+1600"), [1500, 1600]),
    ],
)
def test_all_prices_together_tell_the_decimal_mark(tmp_path: Path, cells: tuple[str, ...], read: list[float]) -> None:
    body = [f"2024-01-0{day + 1}" + f',"{cell}"' * 4 for day, cell in enumerate(cells)]
    table = table_of(tmp_path, lines(*body, header="Date,Open,High,Low,Close"))
    assert values(table)["close"] == read


@pytest.mark.parametrize(
    ("separator", "cell", "readings"), [(",", "1,234", "1234 or 1.234"), (";", "1.234", "1234 or 1.234")]
)
def test_a_number_with_two_readings_is_refused_with_both(
    tmp_path: Path, separator: str, cell: str, readings: str
) -> None:
    body = f'2024-01-02{separator}"{cell}"{separator}"{cell}"{separator}"{cell}"{separator}"{cell}"'
    problem = problem_of(tmp_path, f"{PLAIN[:24].replace(',', separator)}\n{body}\n")
    assert problem.startswith(f"ACME.csv:2: Open: can be {readings} (found '{cell}')")


def test_the_order_of_prices_tells_the_decimal_mark(tmp_path: Path) -> None:
    body = 'Date,Open,High,Low,Close\n2024-01-02,998,"1,004",995,"1,002"\n'
    assert values(table_of(tmp_path, body))["close"] == [1002]


def column(folder: Path, *cells: str, name: str = "Volume") -> NumberColumn:
    body = [f'2024-01-{day + 1:02},1.5,2.5,1.25,1.75,"{cell}"' for day, cell in enumerate(cells)]
    table = table_of(folder, lines(*body, header=f"Date,Open,High,Low,Close,{name}"))
    return parse_numbers(table, "volume")


def test_suffixes_are_powers_of_ten_and_told(tmp_path: Path) -> None:
    numbers = column(tmp_path, "1.17M", "953.4K", "2.5B", "1.2万", "3亿", "1.5 Mio.", "12")
    assert numbers.values.tolist() == [1_170_000, 953_400, 2_500_000_000, 12_000, 300_000_000, 1_500_000, 12]
    assert numbers.notes == ("Volume has suffixes: 1.17M is read as 1,170,000",)


def test_cells_without_a_value_are_empty_and_no_problem(tmp_path: Path) -> None:
    numbers = column(tmp_path, "", "-", "--", "N/A", "null", "NaN", "7")
    assert numbers.empty.tolist() == [True] * 6 + [False]
    assert numbers.values.tolist()[-1] == 7
    assert (numbers.problems, numbers.notes) == ((), ())


def test_cells_that_are_no_numbers_are_problems(tmp_path: Path) -> None:
    numbers = column(tmp_path, "5%", "many", "1_000", "1e5M", "12,34", "7")
    assert dict(numbers.problems) == {
        0: "is a percentage; say with --columns which column to read",
        **dict.fromkeys(range(1, 5), "must be a number"),
    }


def test_a_second_currency_is_a_problem(tmp_path: Path) -> None:
    numbers = column(tmp_path, "$5", "$6", "€7", "8")
    assert numbers.problems == ((2, "has another currency sign than the $ of the other lines"),)
    assert numbers.values.tolist()[:2] == [5, 6]


@pytest.mark.parametrize("volume", ["-", "", "N/A"])
def test_a_volume_without_any_value_is_no_volume(tmp_path: Path, volume: str) -> None:
    table = table_of(tmp_path, lines(f"2024-01-02,1,2,1,1,{volume}", f"2024-01-03,1,2,1,1,{volume}"))
    assert "volume" not in table.cells


LONG = "date,open,high,low,close,Name\n2024-01-02,1,2,1,1,A\n2024-01-02,5,6,5,5,B\n2024-01-03,1,2,1,1.5,A\n"


@pytest.mark.parametrize("text", [LONG, LONG.replace(",", ";"), "# prices\n" + LONG])
def test_the_rows_of_each_ticker_of_a_file_are_selected(tmp_path: Path, text: str) -> None:
    table = table_of(tmp_path, text)
    first = text.index("\n2024") and text[: text.index("2024")].count("\n") + 1

    assert symbols_of(table.file) == ["A", "B"]
    part = split_symbols(table)["A"]
    assert values(part)["close"] == [1, 1.5]
    assert times(part) == ["2024-01-02", "2024-01-03"]
    assert list(part.lines) == [first, first + 2]


def test_a_file_without_a_column_of_symbols_or_without_bars_has_no_symbols(tmp_path: Path) -> None:
    for text in (lines(*BARS), "", "nothing of use"):
        path = tmp_path / "ACME.csv"
        path.write_text(text)
        assert symbols_of(CsvFile("ACME", path)) == []
