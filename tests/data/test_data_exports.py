"""Exports of sites, terminals, exchanges and spreadsheets: headers, names of columns and files, marks of numbers.

Each test writes a frame of bars as a program writes it, and reads the folder as the pipeline does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from csv_shapes import (
    assert_same_bars,
    daily,
    dates,
    has_note,
    hourly,
    klines,
    lines,
    milliseconds,
    ohlcv,
    pick,
    plain,
    problem_of,
    read,
    read_one,
    sessions,
    texts,
    write,
)

YAHOO = ("Close", "High", "Low", "Open", "Volume")


# yfinance since 2024


def yahoo_lines(frame: pd.DataFrame, ticker: str, first: str) -> list[str]:
    columns = texts(frame)
    header = [",".join([first, *YAHOO]), ",".join(["Ticker", *[ticker] * 5]), "Date,,,,,"]
    return header + lines({"Date": dates(frame), **{name: columns[name.lower()] for name in YAHOO}})[1:]


@pytest.mark.parametrize("first", ["Price", "Date"])
def test_three_header_lines_of_yfinance_are_one_header(tmp_path: Path, first: str) -> None:
    frame = daily()
    write(tmp_path / "ZZA.csv", yahoo_lines(frame, "ZZA", first))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert not has_note(bars, "ZZA")


def test_another_ticker_in_the_second_line_of_yfinance_is_a_note(tmp_path: Path) -> None:
    write(tmp_path / "ZZA.csv", yahoo_lines(daily(), "ZZB", "Price"))

    bars = read_one(tmp_path)

    assert bars.ticker == "ZZA"
    assert has_note(bars, "ZZB")


def test_a_bad_cell_below_three_header_lines_is_named_by_its_line(tmp_path: Path) -> None:
    text = yahoo_lines(daily(), "ZZA", "Price")
    text[9] = text[9].split(",")[0] + ",x,1,1,1,1"
    write(tmp_path / "ZZA.csv", text)

    assert problem_of(tmp_path).startswith(f"{tmp_path / 'ZZA.csv'}:10: Close: ")


# MetaTrader 5


@pytest.mark.slow
@pytest.mark.parametrize("separator", ["\t", ","])
@pytest.mark.parametrize("real", [False, True])
def test_exports_of_metatrader_are_read_with_the_volume_that_is_not_all_zero(
    tmp_path: Path, separator: str, real: bool
) -> None:
    frame = sessions()
    columns = {
        "<DATE>": dates(frame, "%Y.%m.%d"),
        "<TIME>": dates(frame, "%H:%M:%S"),
        **pick(frame, open="<OPEN>", high="<HIGH>", low="<LOW>", close="<CLOSE>"),
        "<TICKVOL>": [7] * len(frame) if real else texts(frame)["volume"],
        "<VOL>": texts(frame)["volume"] if real else [0] * len(frame),
        "<SPREAD>": [5] * len(frame),
    }
    write(tmp_path / "EURUSD_M5.csv", lines(columns, separator=separator), newline="\r\n")

    bars = read_one(tmp_path)

    assert bars.ticker == "EURUSD_M5"
    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "volume", "<VOL>" if real else "<TICKVOL>")


# Investing.com


def test_exports_of_investing_com_are_read(tmp_path: Path) -> None:
    frame = daily(seed=3)
    for name in ("open", "high", "low", "close"):
        frame[name] = (frame[name] * 30).round(2)
    frame["volume"] = (frame["volume"] / 10_000).round() * 10_000
    frame.loc[7, "volume"] = 0
    quoted = {"Date": dates(frame, "%m/%d/%Y")}
    for feature, name in (("close", "Price"), ("open", "Open"), ("high", "High"), ("low", "Low")):
        quoted[name] = [f"{value:,.2f}" for value in frame[feature]]
    quoted["Vol."] = [f"{value / 1e6:.2f}M" if value else "-" for value in frame["volume"]]
    quoted["Change %"] = ["0.10%"] * len(frame)
    cells = {f'"{name}"': [f'"{cell}"' for cell in reversed(column)] for name, column in quoted.items()}
    write(tmp_path / "ZZH.csv", lines(cells), encoding="utf-8-sig")

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "newest first")
    assert has_note(bars, "Price")


# A European spreadsheet


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "utf-16", "cp1252"])
def test_semicolons_decimal_commas_and_days_first_are_read(tmp_path: Path, encoding: str) -> None:
    frame = daily()
    columns = ohlcv(frame, title=True)
    commas = {name: [cell.replace(".", ",") for cell in cells] for name, cells in columns.items()}
    text = lines({"Date": dates(frame, "%d.%m.%Y"), **commas}, separator=";")
    write(tmp_path / "ZZI.csv", text, encoding=encoding, newline="\r\n")

    assert_same_bars(read_one(tmp_path).frame, frame)


# Binance


def test_klines_of_binance_without_a_header_are_read(tmp_path: Path) -> None:
    frame = hourly()
    write(tmp_path / "ZZUSDT.csv", lines(klines(frame), header=False))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame, amount=True)
    assert has_note(bars, "no header")


def test_other_files_without_a_header_are_refused(tmp_path: Path) -> None:
    frame = hourly()
    columns = {
        "time": dates(frame, "%Y-%m-%d %H:%M"),
        **pick(frame, open="o", close="c", high="h", low="l", volume="v"),
    }
    write(tmp_path / "ZZUSDT.csv", lines(columns, header=False))

    assert "no header" in problem_of(tmp_path)


# Chinese sources


def test_exports_of_tushare_are_read_in_their_own_units(tmp_path: Path) -> None:
    frame = daily()
    frame["amount"] = (frame["amount"] / 1000).round(3)
    newest = frame[::-1]
    columns = {
        "ts_code": ["600000.SH"] * len(frame),
        "trade_date": dates(newest, "%Y%m%d"),
        **pick(newest, open="open", high="high", low="low", close="close"),
        "pre_close": texts(newest)["close"],
        "change": ["0.1"] * len(frame),
        "pct_chg": ["0.1"] * len(frame),
        "vol": [f"{volume / 100:.2f}" for volume in newest["volume"]],
        "amount": [f"{amount:.3f}" for amount in newest["amount"]],
    }
    write(tmp_path / "600000.SH.csv", lines(columns))

    bars = read_one(tmp_path)

    assert bars.ticker == "600000.SH"
    frame["volume"] = [float(f"{volume / 100:.2f}") for volume in frame["volume"]]
    assert_same_bars(bars.frame, frame, amount=True)
    assert has_note(bars, "vol", "in the file's own units")
    assert has_note(bars, "newest first")


def test_suspended_days_of_baostock_have_no_volume_and_are_counted(tmp_path: Path) -> None:
    frame = daily()
    for row in (100, 101):
        frame.loc[row, ["open", "high", "low"]] = frame.loc[row, "close"]
    columns = texts(frame)
    for row in (100, 101):
        columns["volume"][row] = columns["amount"][row] = ""
    frame.loc[[100, 101], ["volume", "amount"]] = 0
    table = {
        "date": dates(frame),
        "code": ["sh.600000"] * len(frame),
        **{name: columns[name] for name in ("open", "high", "low", "close")},
        "preclose": columns["close"],
        "volume": columns["volume"],
        "amount": columns["amount"],
        "adjustflag": ["3"] * len(frame),
        "turn": ["0.5"] * len(frame),
        "tradestatus": ["1"] * len(frame),
        "pctChg": ["0.1"] * len(frame),
        "isST": ["0"] * len(frame),
    }
    write(tmp_path / "sh.600000.csv", lines(table))

    bars = read_one(tmp_path)

    assert bars.ticker == "SH.600000"
    assert_same_bars(bars.frame, frame, amount=True)
    assert has_note(bars, "volume", "2")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gbk"])
def test_chinese_headers_of_akshare_are_read(tmp_path: Path, encoding: str) -> None:
    frame = daily()
    columns = {
        "日期": dates(frame),
        "股票代码": ["600000"] * len(frame),
        **pick(frame, open="开盘", close="收盘", high="最高", low="最低", volume="成交量", amount="成交额"),
        **{name: ["0.1"] * len(frame) for name in ("振幅", "涨跌幅", "涨跌额", "换手率")},
    }
    write(tmp_path / "600000.csv", lines(columns), encoding=encoding)

    assert_same_bars(read_one(tmp_path).frame, frame, amount=True)


# CryptoDataDownload


def test_exports_of_cryptodatadownload_are_read(tmp_path: Path) -> None:
    frame = hourly()
    newest = frame[::-1]
    columns = {
        "Unix": list(milliseconds(newest["timestamps"])),
        "Date": dates(newest, "%Y-%m-%d %H:%M:%S"),
        "Symbol": ["ZZ/USD"] * len(frame),
        **pick(newest, open="Open", high="High", low="Low", close="Close", volume="Volume ZZ", amount="Volume USD"),
        "tradecount": [9] * len(frame),
    }
    write(tmp_path / "ZZUSD.csv", ["https://www.example.com", *lines(columns)])

    bars = read_one(tmp_path)

    assert bars.ticker == "ZZUSD"
    assert_same_bars(bars.frame, frame, amount=True)
    assert has_note(bars, "line 1")


# Names of files


def test_the_symbol_is_read_from_the_names_that_sites_give(tmp_path: Path) -> None:
    names = {
        "ZZS": "BATS_ZZS, 1D.csv",
        "ZZT": "ZZT Historical Data.csv",
        "ZZU": "zzu_daily (1).csv",
        "ZZV": "ZZV.csv.txt",
        "ZZW": "$ZZW.csv",
    }
    frames = {symbol: daily(seed=seed) for seed, symbol in enumerate(names)}
    for symbol, frame in frames.items():
        write(tmp_path / names[symbol], plain(frame))
    for symbol in ("BRK-B", "Z"):
        write(tmp_path / f"{symbol}.csv", plain(daily()))

    bars = read(tmp_path)

    assert list(bars) == ["BRK-B", "Z", "ZZS", "ZZT", "ZZU", "ZZV", "ZZW"]
    for symbol, name in names.items():
        assert_same_bars(bars[symbol].frame, frames[symbol])
        assert has_note(bars[symbol], name, symbol)
    assert bars["BRK-B"].notes == bars["Z"].notes == ()


def test_text_files_of_stooq_are_read(tmp_path: Path) -> None:
    frame = hourly()
    columns: dict[str, list[Any]] = {
        "<TICKER>": ["BTCUSD"] * len(frame),
        "<PER>": [60] * len(frame),
        "<DATE>": dates(frame, "%Y%m%d"),
        "<TIME>": dates(frame, "%H%M%S"),
        **pick(frame, open="<OPEN>", high="<HIGH>", low="<LOW>", close="<CLOSE>", volume="<VOL>"),
        "<OPENINT>": [0] * len(frame),
    }
    write(tmp_path / "btcusd.txt", lines(columns))

    bars = read_one(tmp_path)

    assert bars.ticker == "BTCUSD"
    assert_same_bars(bars.frame, frame)
