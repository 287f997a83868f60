"""Frames of bars and CSVs of them in the shapes that downloaders, exchanges, terminals and spreadsheets write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from market_files import NOW

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bars import FEATURES, PRICES, Bars
from kronos_pipeline.data.ingest import read_folder
from kronos_pipeline.data.timestamps import ParsedTimes, parse_time_columns
from kronos_pipeline.errors import DataError

UTC = "UTC"
NEW_YORK = "America/New_York"


def parse_times(cells: Sequence[str]) -> ParsedTimes:
    """Parse the cells of a file with a single time column."""
    return parse_time_columns({"": cells})


def bars_at(times: pd.DatetimeIndex, *, seed: int = 0, price: float = 100.0) -> pd.DataFrame:
    """Return valid bars at these times: `timestamps` and the six features, with four decimals and whole volumes."""
    rng = np.random.default_rng(seed)
    count = len(times)
    close = price * np.exp(np.cumsum(0.008 * rng.standard_normal(count)))
    open_ = close * np.exp(0.003 * rng.standard_normal(count))
    high = np.maximum(open_, close) * (1 + 0.004 * rng.random(count))
    low = np.minimum(open_, close) * (1 - 0.004 * rng.random(count))
    prices = pd.DataFrame({"open": open_, "high": high, "low": low, "close": close}).round(4)
    volume = rng.integers(100_000, 2_000_000, count).astype(float)
    frame = prices.assign(volume=volume, amount=(volume * prices["close"]).round(2))
    frame.insert(0, "timestamps", times)
    return frame


def daily(count: int = 400, *, seed: int = 0) -> pd.DataFrame:
    """Return bars of weekdays from 2023-01-03."""
    return bars_at(pd.date_range("2023-01-03", periods=count, freq="B"), seed=seed)


def hourly(count: int = 400, *, seed: int = 1) -> pd.DataFrame:
    """Bars of every hour from 2023-11-15."""
    return bars_at(pd.date_range("2023-11-15", periods=count, freq="h"), seed=seed)


def sessions(days: int = 12, *, minutes: int = 5, first: str = "09:30", last: str = "15:55") -> pd.DataFrame:
    """Bars of some minutes within the sessions of weekdays from 2024-01-02."""
    dates = pd.date_range("2024-01-02", periods=days, freq="B")
    clock = pd.timedelta_range(f"{first}:00", f"{last}:00", freq=f"{minutes}min")
    return bars_at(pd.DatetimeIndex([date + time for date in dates for time in clock]), seed=2)


def milliseconds(times: pd.Series, zone: str = UTC) -> pd.Series:
    """Counts of milliseconds since 1970 of local times."""
    return epoch(times, "ms", zone)


def epoch(times: pd.Series, unit: str, zone: str = UTC) -> pd.Series:
    """Counts of a unit since 1970 of local times."""
    counts: pd.Series = times.dt.tz_localize(zone).dt.tz_convert(UTC).dt.tz_localize(None).dt.as_unit(unit)
    return counts.astype("int64")


def texts(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Features as text: prices as they are, whole volumes without a point."""
    columns = {name: [f"{value:.4f}" for value in frame[name]] for name in PRICES}
    columns["volume"] = [f"{value:.0f}" for value in frame["volume"]]
    columns["amount"] = [f"{value:.2f}" for value in frame["amount"]]
    return columns


def pick(frame: pd.DataFrame, **names: str) -> dict[str, list[str]]:
    """Features as text, under the names that a program gives them, in the order given."""
    columns = texts(frame)
    return {name: columns[feature] for feature, name in names.items()}


def ohlcv(frame: pd.DataFrame, *, title: bool = False) -> dict[str, list[str]]:
    """Open, high, low, close and volume as text, under these names."""
    return pick(frame, **{name: name.title() if title else name for name in FEATURES[:5]})


def lines(columns: Mapping[str, Iterable[object]], *, separator: str = ",", header: bool = True) -> list[str]:
    """Return the lines of a CSV with these columns."""
    cells = [[str(cell) for cell in column] for column in columns.values()]
    rows = [separator.join(row) for row in zip(*cells, strict=True)]
    return [separator.join(columns), *rows] if header else rows


def write(path: Path, text: list[str], *, encoding: str = "utf-8", newline: str = "\n") -> Path:
    """Write lines as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((newline.join(text) + newline).encode(encoding))
    return path


def assert_same_bars(bars: pd.DataFrame, frame: pd.DataFrame, *, amount: bool = False) -> None:
    """Compare times, prices and volume, and the amount if the file has one; else it is volume times the mean price."""
    assert list(bars["timestamps"]) == list(frame["timestamps"])
    for name in FEATURES[:5]:
        np.testing.assert_array_equal(bars[name], frame[name], err_msg=name)
    if amount:
        np.testing.assert_array_equal(bars["amount"], frame["amount"])


def read(folder: Path, **settings: Any) -> dict[str, Bars]:
    """Return the bars of each ticker of a folder without problems."""
    bars, errors = read_folder(folder, ReadingSettings(**settings), now=NOW)
    assert errors == {}
    return bars


def read_one(folder: Path, **settings: Any) -> Bars:
    [bars] = read(folder, **settings).values()
    return bars


def problem_of(folder: Path, **settings: Any) -> str:
    """Return the only problem of a folder, in one line."""
    bars, errors = read_folder(folder, ReadingSettings(**settings), now=NOW)
    assert bars == {}
    [error] = errors.values()
    assert isinstance(error, DataError)
    [problem] = error.problems
    assert "\n" not in str(problem)
    return str(problem)


def has_note(bars: Bars, *parts: str) -> bool:
    """Return whether a note has all these words."""
    return any(all(word in note for word in parts) for note in bars.notes)


def dates(frame: pd.DataFrame, form: str = "%Y-%m-%d") -> list[str]:
    return list(frame["timestamps"].dt.strftime(form))


def plain(frame: pd.DataFrame, *, time: str = "Date", form: str = "%Y-%m-%d") -> list[str]:
    """Return the lines of a plain CSV: Date,Open,High,Low,Close,Volume."""
    return lines({time: dates(frame, form), **ohlcv(frame, title=True)})


def klines(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Return the columns of a file of klines from Binance."""
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
