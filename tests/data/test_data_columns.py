"""Columns are found by the meaning of their names; of two that mean the same the better is read, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from kronos_pipeline.config import COLUMN_MEANINGS, ReadingSettings
from kronos_pipeline.data.column_names import COLUMN_NAMES, column_rows, meaning_of, normal_name
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.csv_symbols import symbols_of
from kronos_pipeline.data.csv_table import CsvTable, read_csv_table
from kronos_pipeline.errors import DataError


def table_of(folder: Path, header: str, row: str, *columns: str, ticker: str = "ACME") -> CsvTable:
    path = folder / f"{ticker}.csv"
    path.write_text(f"{header}\n{row}\n", encoding="utf-8")
    return read_csv_table(CsvFile(ticker, path), ReadingSettings(columns=list(columns)))


def problems_of(folder: Path, header: str, row: str, *columns: str) -> list[str]:
    with pytest.raises(DataError) as caught:
        table_of(folder, header, row, *columns)
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


def test_each_name_has_one_meaning() -> None:
    assert set(COLUMN_NAMES) == set(COLUMN_MEANINGS)
    names = [normal_name(name) for ranks in COLUMN_NAMES.values() for names in ranks for name in names.split(", ")]
    assert len(names) == len(set(names))
    assert all(names)


def test_the_table_of_names_has_a_row_per_meaning() -> None:
    rows = dict(column_rows())
    assert list(rows) == list(COLUMN_NAMES)
    assert rows["amount"].endswith("; then value")


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("<CLOSE>", "close"),
        ("4. close", "close"),
        ("1a. open (USD)", "open"),
        ("Close*", "close"),
        ("Adj Close**", "adj_close"),
        ("CLOSE_PRICE ", "close"),
        ("Schluß", "close"),
        ("MÁXIMO", "high"),
        ("Volume_(BTC)", "volume"),
        ("Volume USD", "amount"),
        ("成交量(手)", "volume"),
        ("Date (UTC)", "date"),
        ("close_time", None),
        ("timeClose", None),
        ("Prev. Close", None),
        ("Volume MA", None),
        ("Change %", None),
        ("Open Interest", None),
        ("Turnover", None),
        ("x" * 10_000, None),
        ("", None),
    ],
)
def test_names_are_compared_without_case_accents_and_marks(name: str, meaning: str | None) -> None:
    result = meaning_of(name)
    assert (result and result[0]) == meaning


PROGRAMS = {
    "Polygon": ("v,vw,o,c,h,l,t,n", "7,1,1,4,5,1,1704153600000,9"),
    "Alpha Vantage": ("timestamp,1. open,2. high,3. low,4. close,5. volume", "2024-01-02,1,5,1,4,7"),
    "Nasdaq": ("Date,Close/Last,Volume,Open,High,Low", "01/02/2024,$4,7,$1,$5,$1"),
    "TradingView": ("time,open,high,low,close,Plot,Volume,Volume MA", "1704153600,1,5,1,4,2,7,8"),
    "Kraken": ("time,open,high,low,close,vwap,volume,count", "1704153600,1,5,1,4,2,7,8"),
    "Coinbase": ("time,low,high,open,close,volume", "1704153600,1,5,1,4,7"),
    "Stooq": (
        "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT>",
        "ZZA.US,D,20240102,000000,1,5,1,4,7,0",
    ),
    "Stooq in Polish": ("Data,Otwarcie,Najwyzszy,Najnizszy,Zamkniecie,Wolumen", "2024-01-02,1,5,1,4,7"),
    "Investing.com in Portuguese": ("Data,Último,Abertura,Máxima,Mínima,Vol.,Var%", "02.01.2024,4,1,5,1,7,1%"),
    "Investing.com in Japanese": ("日付け,終値,始値,高値,安値,出来高,変化率 %", "2024年01月02日,4,1,5,1,7,1%"),
    "Investing.com in Korean": ("날짜,종가,시가,고가,저가,거래량,변동 %", "2024-01-02,4,1,5,1,7,1%"),
    "Investing.com in Russian": ("Дата,Цена,Откр.,Макс.,Мин.,Объём,Изм. %", "02.01.2024,4,1,5,1,7,1%"),
    "Investing.com in Italian": ("Data,Ultimo,Apertura,Massimo,Minimo,Vol.,Var. %", "02.01.2024,4,1,5,1,7,1%"),
    "Investing.com in Dutch": ("Datum,Laatste,Open,Hoog,Laag,Vol.,Verschil %", "02-01-2024,4,1,5,1,7,1%"),
    "a German bank": ("Datum,Erster,Hoch,Tief,Schlusskurs,Stuecke,Volumen", "2024-01-02,1,5,1,4,7,28"),
    "a French bank": ("date,ouv,haut,bas,clot,vol,devise,", "02/01/2024,1,5,1,4,7,EUR,"),
    "Bloomberg": ("Date,PX_OPEN,PX_HIGH,PX_LOW,PX_LAST,PX_VOLUME", "2024-01-02,1,5,1,4,7"),
    "CryptoCompare": ("time,high,low,open,volumefrom,volumeto,close", "1704153600,5,1,1,7,20,4"),
    "CoinMarketCap": (
        "timeOpen,timeClose,timeHigh,timeLow,name,open,high,low,close,volume,marketCap,timestamp",
        "2024-01-02T00:00:00Z,2024-01-02T23:59:59Z,,,27,1,5,1,4,7,9,2024-01-02T23:59:59Z",
    ),
    "OKX": ("open,high,low,close,vol,vol_ccy,vol_quote,open_time,confirm", "1,5,1,4,7,7,20,1704153600000,1"),
    "Bybit": ("symbol,startTime,openPrice,highPrice,lowPrice,closePrice,volume", "ZZA,1704153600,1,5,1,4,7"),
    "quantmod": ('"","ZZA.Open","ZZA.High","ZZA.Low","ZZA.Close","ZZA.Volume"', '"2024-01-02",1,5,1,4,7'),
    "a table of Yahoo's page": (
        "Date,Open,High,Low,Close Close price adjusted for splits.,Adj Close Adjusted close price adjusted for splits "
        "and dividend and/or capital gain distributions.,Volume",
        "Jan 2 2024,1,5,1,4,2,7",
    ),
    "Bombay": (
        "Date,Open Price,High Price,Low Price,Close Price,WAP,No.of Shares,No. of Trades,Total Turnover (Rs.)",
        "2-January-2024,1,5,1,4,2,7,8,28",
    ),
    "an exchange with units": (
        "Date,Open Price,High Price,Low Price,Close Price,Volume (BTC),Volume (USD)",
        "2024-01-02,1,5,1,4,7,28",
    ),
    "a flat yfinance": ("Date,Close_ZZA,High_ZZA,Low_ZZA,Open_ZZA,Volume_ZZA", "2024-01-02,4,5,1,1,7"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_columns_of_programs_are_found(tmp_path: Path, program: str) -> None:
    table = table_of(tmp_path, *PROGRAMS[program])
    first_cells = {key: str(table.cells[key][0]).strip("$") for key in ("open", "high", "low", "close", "volume")}
    assert first_cells == {"open": "1", "high": "5", "low": "1", "close": "4", "volume": "7"}
    assert not any("close" in name.lower() for name in table.time_cells)
    assert table.time_cells


BASE = "Date,Open,High,Low,"


@pytest.mark.parametrize(
    ("columns", "cells", "close"),
    [
        ("Price,Close", "9,4", "4"),
        ("Close/Last,Price", "9,4", "4"),
        ("Last,Settle", "4,9", "4"),
        ("Adj Close,Close", "9,4", "4"),
        ("Prev Close,Close", "9,4", "4"),
    ],
)
def test_the_better_of_two_closes_is_read_and_told(tmp_path: Path, columns: str, cells: str, close: str) -> None:
    table = table_of(tmp_path, BASE + columns, f"2024-01-02,1,5,1,{cells}")
    assert str(table.cells["close"][0]) == close
    others = [name for name in columns.split(",") if meaning_of(name) and meaning_of(name)[0] == "close"]  # type: ignore[index]
    assert any(note.startswith(f"close is {table.names['close']}, and not") for note in table.notes) == (
        len(others) == 2
    )


def test_adjusted_closes_stand_for_closes_only_if_there_are_none(tmp_path: Path) -> None:
    table = table_of(tmp_path, f"{BASE}Adj Close", "2024-01-02,1,5,1,4")
    assert table.names["close"] == "Adj Close"
    assert table.notes[0] == "close is Adj Close, as no column is called Close"

    table = table_of(tmp_path, f"{BASE}Close,Adj Close", "2024-01-02,1,5,1,4,2")
    assert {key: str(table.cells[key][0]) for key in ("close", "adj_close")} == {"close": "4", "adj_close": "2"}


def test_two_equal_names_are_refused_unless_their_cells_are_equal(tmp_path: Path) -> None:
    header = f"{BASE}Close,Schlusskurs"
    assert problems_of(tmp_path, header, "2024-01-02,1,5,1,4,3") == [
        "ACME.csv:1: close: 2 columns for it (Close, Schlusskurs); keep one, or say --columns close=Close"
    ]
    assert str(table_of(tmp_path, header, "2024-01-02,1,5,1,4,4").cells["close"][0]) == "4"
    assert str(table_of(tmp_path, header, "2024-01-02,1,5,1,4,3", "close=schlusskurs").cells["close"][0]) == "3"


@pytest.mark.parametrize(
    ("columns", "cells", "name"),
    [
        ("Tick Volume,Real Volume", "7,5", "Real Volume"),
        ("Tick Volume,Real Volume", "7,0", "Tick Volume"),
        ("<TICKVOL>,<VOL>", "0,0", "<VOL>"),
        ("Volume,Volume BTC", "7,5", "Volume"),
    ],
)
def test_the_better_volume_that_is_not_all_zero_is_read_and_told(
    tmp_path: Path, columns: str, cells: str, name: str
) -> None:
    table = table_of(tmp_path, f"{BASE}Close,{columns}", f"2024-01-02,1,5,1,4,{cells}")
    assert table.names["volume"] == name
    assert any(note.startswith(f"volume is {name}") for note in table.notes)


@pytest.mark.parametrize(("ticker", "volumes"), [("ETHBTC", "ETH,BTC"), ("EURUSD", "EUR,USD"), ("EURUSD", "USD,EUR")])
def test_the_ticker_tells_the_volume_in_the_base_from_that_in_the_quote_currency(
    tmp_path: Path, ticker: str, volumes: str
) -> None:
    first, second = volumes.split(",")
    header = f"{BASE}Close,Volume {first},Volume {second}"
    table = table_of(tmp_path, header, "2024-01-02,1,5,1,4,7,28", ticker=ticker)
    assert (table.names["volume"], table.names["amount"]) == (f"Volume {ticker[:3]}", f"Volume {ticker[3:]}")


def test_two_volumes_in_other_currencies_are_refused(tmp_path: Path) -> None:
    [problem] = problems_of(tmp_path, f"{BASE}Close,Volume ETH,Volume BTC", "2024-01-02,1,5,1,4,7,28")
    assert problem.startswith("ACME.csv:1: volume: 2 columns for it (Volume ETH, Volume BTC); keep one, or say --col")


def test_columns_of_the_user_overrule_the_names(tmp_path: Path) -> None:
    header, row = "Day,Zone,Time,Open,High,Low,Close,Kurs,Turnover", "2024-01-02,x,2024-01-03,1,5,1,4,3,28"
    table = table_of(tmp_path, header, row, "close=KURS", "amount=Turnover", "time=Day")
    assert (table.names["close"], table.names["amount"], list(table.time_cells)) == ("Kurs", "Turnover", ["Day"])
    assert table.ignored == ("Zone", "Time", "Close")


def test_columns_of_the_user_that_a_file_lacks_are_told_or_refused(tmp_path: Path) -> None:
    row = "2024-01-02,1,5,1,4"
    table = table_of(tmp_path, f"{BASE}Close", row, "close=Kurs")
    assert table.notes == ("no column Kurs: close is read by its own name",)
    assert problems_of(tmp_path, f"{BASE}Foo", row, "close=Kurs") == [
        "ACME.csv:1: --columns close=Kurs: there is no such column (the columns are Date, Open, High, Low, Foo)"
    ]


def test_prices_of_several_tickers_side_by_side_are_refused(tmp_path: Path) -> None:
    prices = ("Open", "High", "Low", "Close")
    header = ",".join(["Date", *(f"{ticker}.{price}" for ticker in ("ZZA", "ZZB") for price in prices)])
    [problem] = problems_of(tmp_path, header, "2024-01-02,1,5,1,4,1,5,1,4")
    assert problem.startswith("ACME.csv:1: several tickers or prices side by side (ZZA, ZZB); keep one, or name its")

    chosen = [f"{price.lower()}=ZZB.{price}" for price in prices]
    assert table_of(tmp_path, header, "2024-01-02,1,5,1,4,2,6,2,5", *chosen).cells["close"][0].as_py() == "5"  # type: ignore[union-attr]


def test_all_missing_columns_are_named_with_the_way_out(tmp_path: Path) -> None:
    assert problems_of(tmp_path, "Wann,Eroeffnung,Hoch,Was", "2024-01-02,1,5,1") == [
        "ACME.csv:1: no time column; call it date or time, or say --columns time=NAME "
        "(the columns are Wann, Eroeffnung, Hoch, Was)",
        *(
            f"ACME.csv:1: {price}: there is no such column (the columns are Wann, Eroeffnung, Hoch, Was); "
            f"say --columns {price}=NAME if it has another name"
            for price in ("low", "close")
        ),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "gb18030"])
def test_symbols_of_a_long_file_are_found_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    rows = [f"{symbol},2024-01-02,1,5,1,4" for symbol in ("ZZA", "ZZB") for _ in range(5000)]
    path = tmp_path / "all.csv"
    path.write_bytes("\n".join(["代码,日期,开盘,最高,最低,收盘", *rows]).encode(encoding))
    assert symbols_of(CsvFile("ALL", path)) == ["ZZA", "ZZB"]
