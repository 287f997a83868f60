"""The symbol, the interval and the period in a file's name."""

from __future__ import annotations

import pytest

from kronos_pipeline.data.file_names import read_file_name


@pytest.mark.parametrize(
    "stem",
    ["AAPL", "EURUSD_M5", "BRK-B", "BRK.B", "Z", "600000.SH", "^GSPC", "EURUSD=X", "ZAE_1d", "NASDAQ_AAPL", "zzu_daily",
     "aapl.us", "2330", "2023", "BTCUSD_240628", "ESU2024", "all_stocks_5yr", "sh.600000"],
)  # fmt: skip
def test_a_valid_symbol_is_the_symbol(stem: str) -> None:
    name = read_file_name(stem)

    assert (name.symbol, name.literal, name.period) == (stem.upper(), True, None)


@pytest.mark.parametrize(
    ("stem", "symbol", "interval"),
    [
        ("BATS_ZZS, 1D", "ZZS", "1D"),
        ("NASDAQ_AAPL, 60_a1b2c", "AAPL", "60"),
        ("BINANCE_BTCUSDT.P, 15", "BTCUSDT.P", "15"),
        ("AAPL, D", "AAPL", "D"),
        ("ZZT Historical Data", "ZZT", None),
        ("AAPL Historical Prices", "AAPL", None),
        ("EUR_USD Historical Data", "EUR_USD", None),
        ("EURUSD=X Historical Data", "EURUSD=X", None),
        ("$ZZW", "ZZW", None),
        ("zzu_daily (1)", "ZZU", "daily"),
        ("AAPL (1)", "AAPL", None),
        ("AAPL - Copy", "AAPL", None),
        ("NASDAQ AAPL 1d", "AAPL", "1d"),
    ],
)
def test_exporters_words_are_left_out_of_the_symbol(stem: str, symbol: str, interval: str | None) -> None:
    name = read_file_name(stem)

    assert (name.symbol, name.interval, name.literal) == (symbol, interval, False)


@pytest.mark.parametrize(
    ("stem", "symbol", "interval", "period"),
    [
        ("ZZUSDT-1h-2023-11", "ZZUSDT", "1h", "2023-11"),
        ("ZZUSDT-1h-2023-11-05", "ZZUSDT", "1h", "2023-11-05"),
        ("EURUSD_2023", "EURUSD", None, "2023"),
        ("EURUSD_202311", "EURUSD", None, "202311"),
        ("ZZ-USD-2023Q1", "ZZ-USD", None, "2023Q1"),
        ("EURUSD_M5_202401020930_202401171555", "EURUSD", "M5", "202401020930_202401171555"),
        ("AAPL_2020-01-01_to_2023-12-31", "AAPL", None, "2020-01-01_to_2023-12-31"),
        ("AAPL_2010-2012", "AAPL", None, "2010-2012"),
        ("Binance_BTCUSDT_2023_minute", "BTCUSDT", "minute", "2023"),
        ("DAT_ASCII_EURUSD_M1_2023", "EURUSD", "M1", "2023"),
        ("SPY 5min 2023-11", "SPY", "5min", "2023-11"),
        ("600000_2023", "600000", None, "2023"),
    ],
)
def test_a_period_at_the_end_is_no_part_of_the_symbol(
    stem: str, symbol: str, interval: str | None, period: str
) -> None:
    name = read_file_name(stem)

    assert (name.symbol, name.interval, name.period) == (symbol, interval, period)


@pytest.mark.parametrize(
    ("stem", "candidates"),
    [
        ("BAD NAME", ("BAD", "NAME")),
        ("S&P 500 Historical Data", ("S&P", "500")),
        ("Apple Inc Historical Data", ("APPLE", "INC")),
        ("Download Data - FUND_US_XNAS_QQQ", ("FUND", "US", "XNAS", "QQQ")),
        ("Historical Data", ()),
        ("data (1)", ()),
        ("2023-11", ()),
        ("a$b", ("A$B",)),
        (".hidden", (".HIDDEN",)),
        ("straße", ("straße",)),
        ("x" * 65, ("X" * 65,)),
        ("../../etc", ("../../ETC",)),
    ],
)
def test_a_name_without_exactly_one_valid_word_has_no_symbol(stem: str, candidates: tuple[str, ...]) -> None:
    name = read_file_name(stem)

    assert name.symbol is None
    assert name.candidates == candidates


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stem", ["x" * 5000 + " (" * 5000, "1" * 5000 + "_2023" * 5000, "a_" * 5000, "-copy" * 5000])
def test_a_hostile_name_is_read_in_no_time(stem: str) -> None:
    assert read_file_name(stem).symbol is None


@pytest.mark.parametrize(
    ("stem", "split"),
    [("ZAE_1d", ("ZAE", "1d")), ("ZAE_1M", ("ZAE", "1M")), ("ZAE_H4", ("ZAE", "h4")), ("ZAE", ("ZAE", None))],
)
def test_a_literal_name_splits_into_symbol_and_interval(stem: str, split: tuple[str, str | None]) -> None:
    assert read_file_name(stem).split == split
