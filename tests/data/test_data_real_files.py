"""Files as they are met: real daily stocks, hourly FX with Sunday evenings, 5-minute crypto bars with holes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from market_files import CRYPTO_HOLES, NOW, crypto_five_minutes, hourly_fx, read_frame, stock_frames, write_frame

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bar_schedule import find_bar_schedule
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.ingest import read_bars, read_folder
from kronos_pipeline.data.windows import build_windows


@pytest.fixture(scope="module")
def stocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bars]:
    folder = tmp_path_factory.mktemp("stocks")
    for ticker, frame in stock_frames().items():
        write_frame(folder / ticker, ticker, frame)
    good, bad = read_folder(folder)
    assert bad == {}
    return good


def test_every_bar_of_the_real_stocks_is_read_as_it_stands_in_the_file(stocks: dict[str, Bars]) -> None:
    for ticker, frame in stock_frames().items():
        bars = stocks[ticker].frame
        assert len(bars) == len(frame)
        np.testing.assert_array_equal(bars["timestamps"], pd.to_datetime(frame["Date"]))
        for name in ("Open", "High", "Low", "Close", "Volume"):
            np.testing.assert_array_equal(bars[name.lower()], frame[name])


def test_a_close_that_differs_from_the_adjusted_close_is_said_to_be_unadjusted(stocks: dict[str, Bars]) -> None:
    notes = {
        ticker: [note for note in bars.notes if "unadjusted: Adj Close" in note] for ticker, bars in stocks.items()
    }

    [apple] = notes["AAPL"]
    assert apple.startswith("Close is unadjusted: Adj Close differs from it from 2000-03-01 on, by a factor of ")
    assert apple.endswith(" at most; --adjusted scales the prices")
    assert notes["FB"] == []


def test_the_unadjusted_splits_of_2000_to_2013_are_found_and_no_other(stocks: dict[str, Bars]) -> None:
    split_notes = {ticker: [note for note in bars.notes if "splits" in note] for ticker, bars in stocks.items()}

    [apple], [microsoft] = split_notes.pop("AAPL"), split_notes.pop("MSFT")
    assert "2000-06-21 (about 2:1), 2005-02-28 (about 2:1);" in apple
    assert "2003-02-18 (about 2:1);" in microsoft
    assert split_notes == {"FB": [], "GOOG": [], "IBM": []}


def test_the_days_that_exchanges_closed_in_september_2001_cut_no_window(stocks: dict[str, Bars]) -> None:
    windows = build_windows(stocks["IBM"], Recipe())
    assert windows.excluded == {"targets in two splits": 60}
    assert windows.counts() == {"train": 3270 - 90 - 95 + 1, "selection": 30, "holdout": 1}


@pytest.fixture
def fx(tmp_path: Path) -> Bars:
    return read_frame(tmp_path, hourly_fx(), "EURUSD")


def test_hourly_fx_trades_round_the_clock_and_its_weekends_are_no_holes(fx: Bars) -> None:
    stamps = fx.frame["timestamps"].to_numpy()
    schedule = find_bar_schedule(stamps)

    assert schedule.interval == 3600 * 10**9
    assert not schedule.sessions
    assert schedule.weekdays.tolist() == [True] * 5 + [False, True]
    missing = schedule.missing(stamps)
    assert missing.sum() == missing.max() == 24
    assert str(stamps[missing.argmax()])[:13] == "2023-12-24T23"


def test_hourly_fx_without_volume_says_so_and_names_christmas(fx: Bars) -> None:
    assert fx.notes == (
        "no volume: taken as 0",
        "holes: 1, 24 bars missing; the longest, of 24, after 2023-12-24 23:00:00",
    )


def test_sunday_evenings_are_trading_days_of_their_own_and_windows_cross_weekends(fx: Bars) -> None:
    windows = build_windows(fx, Recipe(validation_days=6, selection_days=12))

    stamps = fx.frame["timestamps"]
    assert stamps[windows.holdout_start :].dt.date.nunique() == 6
    assert windows.excluded["hole longer than --max-gap"] == 94
    train = windows.of_split("train")
    spans = stamps[train["end"] - 1].to_numpy() - stamps[train["start"]].to_numpy()
    assert spans.min() == pd.Timedelta(hours=94)
    assert spans.max() == pd.Timedelta(hours=94 + 48)


@pytest.fixture
def crypto(tmp_path: Path) -> Bars:
    frame = crypto_five_minutes()
    file = write_frame(tmp_path, "BTCUSDT", frame)
    last = pd.Timestamp(frame["timestamp"].iloc[-1], unit="ms", tz="UTC")
    return read_bars(file, now=last + pd.Timedelta(minutes=2))


def test_crypto_bars_keep_their_amount_and_count_in_utc(crypto: Bars) -> None:
    np.testing.assert_array_equal(crypto.frame["amount"], crypto_five_minutes()["amount"][:-1])
    assert crypto.time_zone == "UTC"
    assert crypto.frame["timestamps"].iloc[0] == pd.Timestamp("2024-03-01")


def test_crypto_holes_are_flagged_and_the_bar_that_is_still_forming_is_left_out(crypto: Bars) -> None:
    _, forming, holes = crypto.notes

    first = crypto.frame["timestamps"].iloc[CRYPTO_HOLES[0][0]]
    assert holes == f"holes: 2, 27 bars missing; the longest, of 24, after {first}"
    last = crypto.frame["timestamps"].iloc[-1] + pd.Timedelta(minutes=5)
    assert forming.startswith(f"the last bar, {last}, is still forming and is left out: its time is up")
    assert len(crypto) == 2999


def test_crypto_windows_count_bars_and_leave_out_the_long_hole_alone(crypto: Bars) -> None:
    recipe = Recipe(validation_bars=600, selection_bars=300, max_cutoffs=8)

    windows = build_windows(crypto, recipe)

    assert windows.counts() == {"train": 2099 - 95 + 1 - 94, "selection": 270, "holdout": 8}
    assert windows.excluded == {
        "targets in two splits": 60,
        "hole longer than --max-gap": 94,
        "cutoffs above --max-cutoffs": 12,
    }


def test_crypto_holes_are_found_in_a_file_of_a_day_and_a_half(tmp_path: Path) -> None:
    frame = crypto_five_minutes().iloc[500:930]
    bars = read_bars(write_frame(tmp_path, "BTCUSDT", frame), now=NOW)

    assert any("24 bars missing" in note for note in bars.notes)
