"""CSVs for the tests: good files to damage line by line, and files in the formats of stock, FX and crypto exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.ingest import read_bars
from kronos_pipeline.errors import DataError

HEADER = "Date,Open,High,Low,Close,Volume"
NOW = pd.Timestamp("2026-01-01", tz="UTC")
COLUMNS = ["Open", "High", "Low", "Close"]
SHARED = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""Settings of properties whose examples share a folder."""


def daily_frame(bars: int, *, seed: int = 0, start: str = "2022-01-03", freq: str = "B") -> pd.DataFrame:
    """Return a random walk with volume, with the columns of an export."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(0.01 * rng.standard_normal(bars)))
    open_ = close * np.exp(0.003 * rng.standard_normal(bars))
    high = np.maximum(open_, close) * 1.002
    low = np.minimum(open_, close) * 0.998
    times = pd.date_range(start, periods=bars, freq=freq)
    columns = {"Date": times, "Open": open_, "High": high, "Low": low, "Close": close}
    return pd.DataFrame(columns).round(4).assign(Volume=rng.integers(1_000, 9_000, bars))


def write_frame(folder: Path, ticker: str, frame: pd.DataFrame) -> CsvFile:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{ticker}.csv"
    frame.to_csv(path, index=False)
    return CsvFile(ticker, path)


def write_lines(folder: Path, ticker: str, *lines: str, header: str = HEADER) -> CsvFile:
    """Write a CSV with these lines below its header."""
    path = folder / f"{ticker}.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return CsvFile(ticker, path)


def read_frame(folder: Path, frame: pd.DataFrame, ticker: str = "ACME", **options: Any) -> Bars:
    return read_bars(write_frame(folder, ticker, frame), ReadingSettings(**options), now=NOW)


def refusal(folder: Path, frame: pd.DataFrame, **options: Any) -> str:
    """Return the problems of a frame, without the folder's name."""
    with pytest.raises(DataError) as caught:
        read_frame(folder, frame, **options)
    return str(caught.value).replace(f"{folder}/", "")


def one_note(bars: Bars, *parts: str) -> str:
    """Return the only note that has all these words."""
    [note] = [note for note in bars.notes if all(word in note for word in parts)]
    return note


def stock_frames() -> dict[str, pd.DataFrame]:
    """Return the five real daily stocks of bokeh-sampledata in the spelling of Yahoo's export."""
    from bokeh_sampledata import stocks

    names = {"date": "Date", "open": "Open", "high": "High", "low": "Low", "close": "Close", "volume": "Volume"}
    names["adj_close"] = "Adj Close"
    return {
        ticker: pd.DataFrame(getattr(stocks, ticker)).rename(columns=names)
        for ticker in ("AAPL", "FB", "GOOG", "IBM", "MSFT")
    }


def hourly_fx(weeks: int = 30) -> pd.DataFrame:
    """Write hourly EURUSD, Sunday 17:00 to Friday 16:00 in New York's time, without volume and Christmas Day."""
    times = pd.date_range("2023-10-01", periods=weeks * 7 * 24, freq="h")
    weekday, hour = times.weekday, times.hour
    open_hours = (weekday < 4) | ((weekday == 4) & (hour < 17)) | ((weekday == 6) & (hour >= 17))
    times = times[open_hours & (times.normalize() != pd.Timestamp("2023-12-25"))]
    frame = daily_frame(len(times), seed=3).drop(columns=["Volume", "Date"]) / 100
    frame.insert(0, "Time", times.strftime("%Y-%m-%d %H:%M"))
    return frame


CRYPTO_HOLES = ((700, 24), (2000, 3))
"""The bar before each hole and how many bars are missing."""


def crypto_five_minutes(bars: int = 3000) -> pd.DataFrame:
    """Write BTCUSDT in 5-minute bars with amount, times as milliseconds since 1970, and two holes."""
    frame = daily_frame(bars + 27, seed=4, start="2024-03-01", freq="5min")
    frame = frame.rename(columns=str.lower).rename(columns={"date": "timestamp"})
    frame["amount"] = (frame["volume"] * frame["close"]).round(2)
    frame["timestamp"] = frame["timestamp"].astype("int64") // 1_000_000
    missing_bars: list[int] = []
    for before, missing in CRYPTO_HOLES:
        missing_bars += range(before + 1 + len(missing_bars), before + 1 + len(missing_bars) + missing)
    return frame.drop(index=missing_bars).reset_index(drop=True)
