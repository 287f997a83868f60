"""Times in the shapes that people have: columns of times, epochs, zones, forming bars, sizes of bars, orders of dates.

Each test writes a frame of bars as a program writes it, and reads the folder as the pipeline does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from csv_shapes import (
    assert_same_bars,
    bars_at,
    daily,
    dates,
    epoch,
    has_note,
    hourly,
    klines,
    lines,
    milliseconds,
    ohlcv,
    pick,
    plain,
    problem_of,
    read_one,
    sessions,
    write,
)

# Date and time


def test_a_date_and_a_time_column_are_joined(tmp_path: Path) -> None:
    frame = sessions()
    columns = {"Date": dates(frame), "Time": dates(frame, "%H:%M"), **ohlcv(frame, title=True)}
    write(tmp_path / "ZZF.csv", lines(columns))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "Date", "Time")


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


# A bar that is still forming


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


# Daily bars stamped with the opening of the session


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


# The size of the bars


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


# Day first or month first


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


# A session that moves


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
