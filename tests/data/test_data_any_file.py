"""Bars are read back from a file in any shape, or the file is refused with a real ambiguity."""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_shapes import assert_same_bars, bars_at, epoch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from market_files import NOW

from kronos_pipeline.data.bars import PRICES
from kronos_pipeline.data.ingest import read_folder

pytestmark = pytest.mark.slow

HEADERS = (
    {"time": "Date", "open": "Open", "high": "High", "low": "Low", "close": "Close", "volume": "Volume"},
    {"time": "timestamps", "open": "open", "high": "high", "low": "low", "close": "close", "volume": "volume"},
    {"time": "<DATE>", "open": "<OPEN>", "high": "<HIGH>", "low": "<LOW>", "close": "<CLOSE>", "volume": "<VOL>"},
    {"time": "Date", "open": "Open", "high": "High", "low": "Low", "close": "Price", "volume": "Vol."},
    {"time": "Datum", "open": "Erster", "high": "Hoch", "low": "Tief", "close": "Schlusskurs", "volume": "Stuecke"},
    {"time": "日期", "open": "开盘", "high": "最高", "low": "最低", "close": "收盘", "volume": "成交量"},
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "gbk")
EPOCHS = ("s", "ms", "us", "ns")
DATES = ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d", "%d.%m.%Y", "%d-%b-%Y", "%b %d, %Y", "%m/%d/%Y", "%d/%m/%Y")
CLOCKS = (" %H:%M", " %H:%M:%S", "T%H:%M:%SZ", " %H:%M:%S+00:00", " %H:%M:%S+05:30", "T%H:%M:%S-0500", " %I:%M %p")
TWO_READINGS = ("%m/%d/%Y", "%d/%m/%Y")


@dataclass(frozen=True)
class Shape:
    """How a program writes a file of bars."""

    header: int
    encoding: str
    separator: str
    decimal: str
    thousands: str
    digits: int
    date: str
    clock: str
    unit: str | None
    split_time: bool
    newest_first: bool
    shuffled: bool
    quoted: bool
    newline: str
    preamble: bool
    footer: bool
    extra: bool
    order: int

    def number(self, value: float, digits: int) -> str:
        text = f"{value:,.{digits}f}"
        return text.translate({ord(","): self.thousands, ord("."): self.decimal})

    def times(self, stamps: pd.Series, intraday: bool) -> dict[str, list[str]]:
        names = HEADERS[self.header]
        if self.unit is not None:
            point = ".0" if self.unit == "s" and self.order % 2 else ""
            return {names["time"]: [f"{count}{point}" for count in epoch(stamps, self.unit)]}
        dates = list(stamps.dt.strftime(self.date))
        if not intraday:
            return {names["time"]: dates}
        if self.split_time:
            return {names["time"]: dates, "Time": list(stamps.dt.strftime("%H:%M:%S"))}
        return {names["time"]: list(stamps.dt.strftime(self.date + self.clock))}

    def write(self, path: Path, frame: pd.DataFrame, intraday: bool) -> None:
        names = HEADERS[self.header]
        columns = self.times(frame["timestamps"], intraday)
        for name in PRICES:
            columns[names[name]] = [self.number(value, self.digits) for value in frame[name]]
        columns[names["volume"]] = [self.number(value, 0) for value in frame["volume"]]
        if self.extra:
            columns["Change %"] = ["0.10%"] * len(frame)
        rows = list(zip(*columns.values(), strict=True))
        if self.newest_first:
            rows.reverse()
        if self.shuffled:
            rows[1], rows[2] = rows[2], rows[1]
            rows.insert(4, rows[4])
        order = list(range(len(columns)))
        random.Random(self.order).shuffle(order)
        table = [list(columns), *(list(row) for row in rows)]
        cells = [[f'"{row[column]}"' if self.quoted else row[column] for column in order] for row in table]
        text = [self.separator.join(row) for row in cells]
        if self.preamble:
            text = ["Prices of ACME, from the archive" if self.separator != "," else "Prices of ACME", *text]
        if self.footer:
            text.append("Source: ACME Exchange")
        path.write_bytes((self.newline.join(text) + self.newline).encode(self.encoding))


shapes = st.builds(
    Shape,
    header=st.integers(0, len(HEADERS) - 1),
    encoding=st.sampled_from(ENCODINGS),
    separator=st.sampled_from(",;\t|"),
    decimal=st.sampled_from(".,"),
    thousands=st.sampled_from(["", "", ",", ".", " ", "'"]),
    digits=st.sampled_from([2, 4, 3]),
    date=st.sampled_from(DATES),
    clock=st.sampled_from(CLOCKS),
    unit=st.sampled_from([None, None, None, *EPOCHS]),
    split_time=st.booleans(),
    newest_first=st.booleans(),
    shuffled=st.booleans(),
    quoted=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n"]),
    preamble=st.booleans(),
    footer=st.booleans(),
    extra=st.booleans(),
    order=st.integers(0, 9),
)

CALENDARS = {
    "weekdays": ("2023-01-03", "B", False),
    "days": ("2023-03-09", "D", False),
    "weeks": ("2022-01-03", "7D", False),
    "months": ("2018-01-01", "MS", False),
    "hours": ("2023-03-09", "h", True),
    "minutes": ("2023-03-09 04:00", "5min", True),
}


@st.composite
def frames(draw: st.DrawFn) -> tuple[pd.DataFrame, bool]:
    """Bars of a calendar, and whether they have a time of day."""
    start, freq, intraday = CALENDARS[draw(st.sampled_from(list(CALENDARS)))]
    times = pd.date_range(start, periods=draw(st.integers(8, 70)), freq=freq)
    price = draw(st.sampled_from([2.5, 100.0, 30_000.0]))
    return bars_at(times, seed=draw(st.integers(0, 1000)), price=price), intraday


def both_readings(problem: str, shape: Shape, frame: pd.DataFrame) -> bool:
    """Return whether a refusal names an ambiguity of the numbers or of the dates that the file has."""
    if number := re.search(r": can be (\d+) or (\d+\.\d+) .*\(found '(.*)'\)", problem.replace(";", " ")):
        marks = set(number[3]) & set(".,")
        return len(marks) == 1 and len(number[3].partition(marks.pop())[2]) == 3
    if "day first" in problem and "month first" in problem:
        return shape.date in TWO_READINGS and frame["timestamps"].dt.day.max() <= 12
    return False


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(frames(), shapes)
def test_the_bars_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, bars_and_kind: tuple[pd.DataFrame, bool], shape: Shape
) -> None:
    frame, intraday = bars_and_kind
    assume(shape.decimal != shape.thousands)
    # A mark of numbers or dates that is also the separator needs quotes.
    dates_with_commas = shape.separator == "," and shape.date == "%b %d, %Y" and shape.unit is None
    assume(shape.quoted or not (shape.separator in (shape.decimal, shape.thousands) or dates_with_commas))
    for name in PRICES:
        frame[name] = frame[name].round(shape.digits)
    frame["high"] = np.maximum(frame["high"], frame[["open", "close"]].max(axis=1))
    frame["low"] = np.minimum(frame["low"], frame[["open", "close"]].min(axis=1))
    folder = tmp_path_factory.mktemp("any")
    shape.write(folder / "ACME.csv", frame, intraday)

    bars, errors = read_folder(folder, now=NOW)

    shutil.rmtree(folder)
    if errors:
        [problem] = errors["ACME"].problems
        assert both_readings(str(problem), shape, frame), problem
        return
    assert_same_bars(bars["ACME"].frame, frame)
