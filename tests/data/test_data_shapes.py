"""Files in the shapes that people have: read right, or refused for a cause that is in the file, in one sentence.

Each test writes a frame of bars as a program writes it, and reads the folder as the pipeline does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from csv_shapes import (
    assert_same_bars,
    bars_at,
    daily,
    epoch,
    hourly,
    lines,
    milliseconds,
    ohlcv,
    pick,
    sessions,
    texts,
    write,
)
from market_files import NOW

from kronos_pipeline.config import ReadingSettings, Recipe
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.ingest import read_folder
from kronos_pipeline.data.windows import build_windows
from kronos_pipeline.errors import DataError

YAHOO = ("Close", "High", "Low", "Open", "Volume")


def read(folder: Path, **settings: Any) -> dict[str, Bars]:
    """The bars of each ticker of a folder without problems."""
    bars, errors = read_folder(folder, ReadingSettings(**settings), now=NOW)
    assert errors == {}
    return bars


def read_one(folder: Path, **settings: Any) -> Bars:
    [bars] = read(folder, **settings).values()
    return bars


def problem_of(folder: Path, **settings: Any) -> str:
    """The only problem of a folder, in one line."""
    bars, errors = read_folder(folder, ReadingSettings(**settings), now=NOW)
    assert bars == {}
    [error] = errors.values()
    assert isinstance(error, DataError)
    [problem] = error.problems
    assert "\n" not in str(problem)
    return str(problem)


def has_note(bars: Bars, *parts: str) -> bool:
    """Whether one note has all these words."""
    return any(all(word in note for word in parts) for note in bars.notes)


def dates(frame: pd.DataFrame, form: str = "%Y-%m-%d") -> list[str]:
    return list(frame["timestamps"].dt.strftime(form))


def plain(frame: pd.DataFrame, *, time: str = "Date", form: str = "%Y-%m-%d") -> list[str]:
    """The lines of a plain CSV: Date,Open,High,Low,Close,Volume."""
    return lines({time: dates(frame, form), **ohlcv(frame, title=True)})


# 01, 02: yfinance since 2024


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


# 03, 04: highs and lows


def test_a_high_in_the_last_bits_below_the_close_is_widened_and_counted(tmp_path: Path) -> None:
    frame = daily()
    text = plain(frame)
    for row, column in ((50, 2), (120, 2), (200, 3)):
        cells = text[row].split(",")
        extreme = max(float(cells[1]), float(cells[4])) if column == 2 else min(float(cells[1]), float(cells[4]))
        cells[column] = repr(float(np.nextafter(extreme, 0 if column == 2 else np.inf)))
        frame.loc[row - 1, "high" if column == 2 else "low"] = extreme
        text[row] = ",".join(cells)
    write(tmp_path / "ZZB.csv", text)

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "widened", "3")


def high_below_open(folder: Path) -> pd.DataFrame:
    frame = daily()
    text = plain(frame)
    cells = text[78].split(",")
    cells[2] = f"{max(float(cells[1]), float(cells[4])) * 0.997:.4f}"
    text[78] = ",".join(cells)
    write(folder / "ZZC.csv", text)
    return frame


def test_a_high_well_below_the_open_is_refused_with_its_line(tmp_path: Path) -> None:
    high_below_open(tmp_path)

    assert f"{tmp_path / 'ZZC.csv'}:79: High: is below" in problem_of(tmp_path)


@pytest.mark.parametrize("limit", ["1", "5", "1%"])
def test_bad_rows_up_to_the_number_that_is_allowed_are_left_out_and_named(tmp_path: Path, limit: str) -> None:
    frame = high_below_open(tmp_path)

    bars = read_one(tmp_path, drop_bad_rows=limit)

    assert_same_bars(bars.frame, frame.drop(index=77))
    assert has_note(bars, "79", "left out")


def test_more_bad_rows_than_are_allowed_refuse_the_ticker(tmp_path: Path) -> None:
    high_below_open(tmp_path)

    assert ":79: High: is below" in problem_of(tmp_path, drop_bad_rows="0.1%")


# 05: rows without any number


def test_rows_without_any_number_are_left_out_and_counted(tmp_path: Path) -> None:
    frame = daily()
    text = plain(frame)
    for row in (61, 162):
        text[row] = text[row].split(",")[0] + ",,,,,"
    write(tmp_path / "ZZD.csv", text)

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame.drop(index=[60, 161]))
    assert has_note(bars, "2", "62")


# 07: date and time


def test_a_date_and_a_time_column_are_joined(tmp_path: Path) -> None:
    frame = sessions()
    columns = {"Date": dates(frame), "Time": dates(frame, "%H:%M"), **ohlcv(frame, title=True)}
    write(tmp_path / "ZZF.csv", lines(columns))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "Date", "Time")


# 08, 09: MetaTrader 5


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


# 11: Investing.com


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


# 13: a European spreadsheet


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "utf-16", "cp1252"])
def test_semicolons_decimal_commas_and_days_first_are_read(tmp_path: Path, encoding: str) -> None:
    frame = daily()
    columns = ohlcv(frame, title=True)
    commas = {name: [cell.replace(".", ",") for cell in cells] for name, cells in columns.items()}
    text = lines({"Date": dates(frame, "%d.%m.%Y"), **commas}, separator=";")
    write(tmp_path / "ZZI.csv", text, encoding=encoding, newline="\r\n")

    assert_same_bars(read_one(tmp_path).frame, frame)


# 14, 16, 17, 18: epochs


def klines(frame: pd.DataFrame) -> dict[str, list[Any]]:
    times = milliseconds(frame["timestamps"])
    return {
        "timestamp": list(times),
        **ohlcv(frame),
        "close_time": list(times + 3_599_999),
        "quote_volume": texts(frame)["amount"],
        "count": [900] * len(frame),
        "taker_buy_volume": list((frame["volume"] // 2).astype(int)),
        "taker_buy_quote_volume": list((frame["amount"] / 2).round(2)),
        "ignore": [0] * len(frame),
    }


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


def test_milliseconds_then_microseconds_are_read_each_by_its_digits(tmp_path: Path) -> None:
    frame = hourly()
    columns = klines(frame)
    for name in ("timestamp", "close_time"):
        columns[name] = [cell if row < 200 else cell * 1000 for row, cell in enumerate(columns[name])]
    write(tmp_path / "ZZUSDT.csv", lines(columns))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame, amount=True)
    assert has_note(bars, "ms", "us")


def two_times(frame: pd.DataFrame, form: str = "%Y-%m-%d %H:%M:%S") -> dict[str, Any]:
    return {
        "timestamp": list(milliseconds(frame["timestamps"])),
        "datetime": dates(frame, form),
        **ohlcv(frame),
    }


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d"])
def test_two_time_columns_that_agree_are_read(tmp_path: Path, form: str) -> None:
    frame = hourly()
    write(tmp_path / "ZZUSDT.csv", lines(two_times(frame, form)))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "timestamp", "datetime")


def test_two_time_columns_that_disagree_are_refused_with_the_first_line_that_does(tmp_path: Path) -> None:
    frame = hourly()
    columns = two_times(frame)
    columns["datetime"][60:] = [*columns["datetime"][61:], "2024-01-01 00:00:00"]
    write(tmp_path / "ZZUSDT.csv", lines(columns))

    problem = problem_of(tmp_path)

    assert f"{tmp_path / 'ZZUSDT.csv'}:62: " in problem
    assert "datetime" in problem


def test_epochs_with_a_point_are_read(tmp_path: Path) -> None:
    frame = hourly()
    columns = {"timestamp": [f"{cell}.0" for cell in epoch(frame["timestamps"], "s")], **ohlcv(frame)}
    write(tmp_path / "ZZUSDT.csv", lines(columns))

    assert_same_bars(read_one(tmp_path).frame, frame)


# 20, 21: several files of a ticker, several tickers of a file


def month_lines(frame: pd.DataFrame) -> list[str]:
    return lines({"timestamp": list(milliseconds(frame["timestamps"])), **ohlcv(frame)})


def test_a_file_per_month_is_one_ticker(tmp_path: Path) -> None:
    frame = hourly()
    write(tmp_path / "ZZUSDT-1h-2023-12.csv", month_lines(frame[384:]))
    write(tmp_path / "ZZUSDT-1h-2023-11.csv", month_lines(frame[:384]))

    bars = read_one(tmp_path)

    assert bars.ticker == "ZZUSDT"
    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "ZZUSDT-1h-2023-11.csv", "ZZUSDT-1h-2023-12.csv")


def test_bars_in_two_files_with_the_same_values_are_read_once(tmp_path: Path) -> None:
    frame = hourly()
    write(tmp_path / "ZZUSDT-1h-2023-11.csv", month_lines(frame[:390]))
    write(tmp_path / "ZZUSDT-1h-2023-12.csv", month_lines(frame[380:]))

    assert_same_bars(read_one(tmp_path).frame, frame)


def test_bars_in_two_files_with_other_values_are_refused(tmp_path: Path) -> None:
    frame = hourly()
    other = frame.assign(volume=frame["volume"] + 1)
    write(tmp_path / "ZZUSDT-1h-2023-11.csv", month_lines(frame[:390]))
    write(tmp_path / "ZZUSDT-1h-2023-12.csv", month_lines(other[380:]))

    problem = problem_of(tmp_path)

    assert "ZZUSDT-1h-2023-11.csv" in problem
    assert "ZZUSDT-1h-2023-12.csv" in problem


@pytest.mark.parametrize("by_date", [False, True])
def test_a_file_of_several_tickers_gives_each_of_them(tmp_path: Path, by_date: bool) -> None:
    frames = {"ZZJ": daily(seed=5), "ZZK": daily(380, seed=6), "ZZL": daily(seed=7)}
    rows = pd.concat([frame.assign(Name=ticker) for ticker, frame in frames.items()], ignore_index=True)
    if by_date:
        rows = rows.sort_values(["timestamps", "Name"], ignore_index=True)
    columns = {"date": dates(rows), **ohlcv(rows)}
    write(tmp_path / "all_stocks.csv", lines({**columns, "Name": list(rows["Name"])}))

    bars = read(tmp_path)

    assert list(bars) == list(frames)
    for ticker, frame in frames.items():
        assert_same_bars(bars[ticker].frame, frame)


# 22, 24, 25, 26: Chinese sources


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


# 29, 30: a bar that is still forming


def live(frame: pd.DataFrame, zone: str, last: str) -> list[str]:
    text = plain(frame, form=f"%Y-%m-%d %H:%M:%S{zone}")
    text[-1] = text[-1].replace("00:00:00", last)
    return text


@pytest.mark.parametrize("zone", ["", "-05:00"])
def test_a_last_daily_bar_with_a_time_of_day_of_its_own_is_left_out(tmp_path: Path, zone: str) -> None:
    frame = daily()
    write(tmp_path / "ZZN.csv", live(frame, zone, "11:42:07"))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame[:-1])
    assert has_note(bars, "11:42:07", "forming")


def test_a_last_daily_bar_that_is_forming_may_be_kept(tmp_path: Path) -> None:
    frame = daily()
    write(tmp_path / "ZZN.csv", live(frame, "-05:00", "11:42:07"))

    assert_same_bars(read_one(tmp_path, keep_forming=True).frame, frame)


def test_the_last_day_twice_is_one_bar(tmp_path: Path) -> None:
    frame = daily()
    text = plain(frame, form="%Y-%m-%d %H:%M:%S")
    text.append(text[-1].replace("00:00:00", "16:00:01").rpartition(",")[0] + ",1234")
    write(tmp_path / "ZZN.csv", text)

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "16:00:01")


# 31, 34: jumps


def test_days_in_another_unit_of_money_are_named_and_can_be_dropped(tmp_path: Path) -> None:
    frame = daily()
    for name in ("open", "high", "low", "close"):
        frame.loc[[150, 151], name] = (frame.loc[[150, 151], name] / 100).round(4)
    write(tmp_path / "ZZO.L.csv", plain(frame))
    first, second = (f"{frame.loc[row, 'timestamps']:%Y-%m-%d}" for row in (150, 151))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, first, second)
    dropped = read_one(tmp_path, drop_bad_rows="2")
    assert_same_bars(dropped.frame, frame.drop(index=[150, 151]))
    assert has_note(dropped, "left out", "152, 153")


def test_an_unadjusted_split_is_a_note_and_no_window_crosses_it(tmp_path: Path) -> None:
    frame = daily()
    for name in ("open", "high", "low", "close"):
        frame.loc[150:, name] = (frame.loc[150:, name] / 10).round(4)
    write(tmp_path / "ZZR.csv", plain(frame))
    recipe = Recipe(lookback=16, horizon=4, validation_days=20, selection_days=20)

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, f"{frame.loc[150, 'timestamps']:%Y-%m-%d}", "10:1")
    rows = build_windows(bars, recipe).rows
    assert not ((rows["start"] < 150) & (rows["end"] > 150)).any()
    rows_across_jumps = build_windows(bars, recipe.model_copy(update={"keep_jumps": True})).rows
    assert ((rows_across_jumps["start"] < 150) & (rows_across_jumps["end"] > 150)).any()


# 35: CryptoDataDownload


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


# 37: names of files


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


# 38: daily bars stamped with the opening of the session


@pytest.mark.parametrize(
    ("zone", "opens"),
    [("America/New_York", "09:30"), ("Europe/Berlin", "09:00"), ("Asia/Tokyo", "09:00"), ("Australia/Sydney", "10:00")],
)
def test_daily_bars_stamped_with_the_opening_in_utc_have_the_exchanges_date(
    tmp_path: Path, zone: str, opens: str
) -> None:
    frame = daily()
    stamps = epoch(frame["timestamps"] + pd.Timedelta(f"{opens}:00"), "s", zone)
    columns = {"time": list(stamps), **pick(frame, open="open", high="high", low="low", close="close", volume="Volume")}
    write(tmp_path / "ZZX.csv", lines(columns))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    # Tokyo opens at midnight UTC.
    assert has_note(bars, "daily") or zone == "Asia/Tokyo"


# 39, 40: a line too many


def test_a_line_of_text_at_the_end_is_a_note(tmp_path: Path) -> None:
    frame = daily()
    write(tmp_path / "ZZY.csv", [*plain(frame), "Data delayed by 15 minutes"])

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "402")


def test_a_repeated_row_and_two_swapped_rows_are_put_right(tmp_path: Path) -> None:
    frame = daily()
    text = plain(frame)
    text.insert(201, text[200])
    text[301], text[302] = text[302], text[301]
    write(tmp_path / "ZZZ.csv", text)

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "202")
    assert has_note(bars, "303") or has_note(bars, "sorted")


def test_a_row_that_repeats_a_time_with_other_values_is_refused(tmp_path: Path) -> None:
    text = plain(daily())
    text.insert(201, text[200].rpartition(",")[0] + ",1")
    write(tmp_path / "ZZZ.csv", text)

    problem = problem_of(tmp_path)

    assert ":202: Date: " in problem
    assert "201" in problem


# 42, 44: the size of the bars


def test_weekly_bars_are_read(tmp_path: Path) -> None:
    frame = bars_at(pd.date_range("2014-01-06", periods=400, freq="7D"))
    write(tmp_path / "ZZ2.csv", plain(frame))

    assert_same_bars(read_one(tmp_path).frame, frame)


def test_two_sizes_of_bars_in_a_file_are_refused_with_the_line_of_the_change(tmp_path: Path) -> None:
    days = pd.date_range("2023-08-01", periods=151, freq="D")
    times = pd.DatetimeIndex([*days, *pd.date_range("2024-01-01 01:00", periods=249, freq="h")])
    frame = bars_at(times)
    write(tmp_path / "ZZ4.csv", plain(frame, time="timestamp", form="%Y-%m-%d %H:%M:%S"))

    problem = problem_of(tmp_path)

    assert f"{tmp_path / 'ZZ4.csv'}:153: " in problem or f"{tmp_path / 'ZZ4.csv'}:154: " in problem
    assert "1 day" in problem
    assert "1 h" in problem


# 47: day first or month first


def test_days_above_twelve_tell_day_first(tmp_path: Path) -> None:
    frame = daily()
    write(tmp_path / "ZZ7.csv", plain(frame, form="%d/%m/%Y"))

    assert_same_bars(read_one(tmp_path).frame, frame)


@pytest.mark.parametrize("form", ["%d/%m/%Y", "%m/%d/%Y"])
def test_the_order_and_the_weekdays_tell_day_first_where_no_day_is_above_twelve(tmp_path: Path, form: str) -> None:
    frame = daily(8)
    assert frame["timestamps"].dt.day.max() <= 12
    write(tmp_path / "ZZ7.csv", plain(frame, form=form))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "day first" if form.startswith("%d") else "month first")


def test_dates_that_fit_day_first_and_month_first_are_refused_with_both(tmp_path: Path) -> None:
    # Both readings are sorted weekdays.
    frame = bars_at(pd.DatetimeIndex(["2024-01-02", "2024-02-05", "2024-03-06", "2024-04-09"]))
    write(tmp_path / "ZZ7.csv", plain(frame, form="%d/%m/%Y"))

    problem = problem_of(tmp_path)

    assert "day first" in problem
    assert "month first" in problem


# 51: a session that moves


def test_a_session_that_moves_in_mid_file_is_a_note_with_the_line(tmp_path: Path) -> None:
    days = pd.date_range("2024-04-01", periods=60, freq="B")
    opens = [pd.Timedelta("13:30:00") if day < 30 else pd.Timedelta("09:30:00") for day in range(60)]
    stamps = [
        date + start + pd.Timedelta(hours=hour) for date, start in zip(days, opens, strict=True) for hour in range(7)
    ]
    frame = bars_at(pd.DatetimeIndex(stamps))
    write(tmp_path / "ZAB.csv", plain(frame, time="Datetime", form="%Y-%m-%d %H:%M:%S"))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "212")


# 52, 53: volumes


def test_volumes_with_a_suffix_are_read(tmp_path: Path) -> None:
    frame = daily()
    frame["volume"] = (frame["volume"] / 10_000).round() * 10_000
    columns = {
        "Date": dates(frame),
        **pick(frame, close="Close", open="Open", high="High", low="Low"),
        "Volume": [f"{volume / 1e6:.2f}M" for volume in frame["volume"]],
    }
    write(tmp_path / "ZAC.csv", lines(columns))

    assert_same_bars(read_one(tmp_path).frame, frame)


def test_a_volume_called_vol_is_the_volume(tmp_path: Path) -> None:
    frame = daily()
    columns = {"Date": dates(frame), **pick(frame, close="Close", open="Open", high="High", low="Low", volume="Vol.")}
    write(tmp_path / "ZAD.csv", lines(columns))

    assert_same_bars(read_one(tmp_path).frame, frame)


# Further shapes


def test_columns_between_spaces_are_read(tmp_path: Path) -> None:
    frame = daily()
    text = lines({"Date": dates(frame), **ohlcv(frame, title=True)}, separator="  ")
    write(tmp_path / "AAPL.txt", text)

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "separated by spaces")


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
