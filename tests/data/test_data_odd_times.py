"""Rare forms of times: read in the one possible way, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from csv_shapes import (
    assert_same_bars,
    bars_at,
    daily,
    dates,
    hourly,
    lines,
    milliseconds,
    ohlcv,
    problem_of,
    read_one,
    sessions,
    write,
)


def plain_times(frame: pd.DataFrame) -> list[str]:
    """Return the lines of a plain CSV of times."""
    return lines({"Date": dates(frame, "%Y-%m-%d %H:%M"), **ohlcv(frame, title=True)})


@pytest.mark.parametrize(
    "form",
    ["{:%Y/%m/%d}({cjk})", "{:%Y.%m.%d}. ({cjk})", "{:%m/%d/%Y} ({:%a})", "{:%d%b%Y}:{:%H:%M:%S}", "{:%Y. %-m. %-d.}"],
)
def test_dates_with_a_weekday_in_brackets_and_dates_of_sas_are_read(tmp_path: Path, form: str) -> None:
    frame = daily(50)
    cells = [form.format(time, time, cjk="月火水木金土日"[time.weekday()]) for time in frame["timestamps"]]
    write(tmp_path / "ZZA.csv", lines({"Date": cells, **ohlcv(frame, title=True)}))

    assert_same_bars(read_one(tmp_path).frame, frame)


def test_years_of_taiwan_are_read_with_a_note(tmp_path: Path) -> None:
    frame = daily(50)
    cells = [f"{time.year - 1911}/{time:%m/%d}" for time in frame["timestamps"]]
    write(tmp_path / "2330.csv", lines({"日期": cells, **ohlcv(frame)}))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert "years are those of the Minguo calendar, in which 113 is 2024" in bars.notes


def test_day_numbers_with_a_decimal_comma_are_read(tmp_path: Path) -> None:
    frame = daily(50)
    cells = [f"{(time - pd.Timestamp('1899-12-30')).days},0000" for time in frame["timestamps"]]
    columns = {name: [cell.replace(".", ",") for cell in cells] for name, cells in ohlcv(frame).items()}
    write(tmp_path / "ZZA.csv", lines({"date": cells, **columns}, separator=";"))

    assert_same_bars(read_one(tmp_path).frame, frame)


@pytest.mark.parametrize(
    ("name", "first", "step", "message"),
    [
        ("date", 19360, 1, "can be 1953-01-01, as the day number of a spreadsheet, or 2023-01-03, as days since 1970"),
        ("Unnamed: 0", 44929, 1, "can be the numbers of rows, or 2023-01-03 as the day number of a spreadsheet"),
        ("time", 638083008000000000, 864_000_000_000, "or 2023-01-03, as ticks of 100 ns since 0001-01-01"),
        ("time", 133171776000000000, 864_000_000_000, "or 2023-01-03, as ticks of 100 ns since 1601-01-01"),
    ],
)
def test_numbers_that_can_be_two_times_are_refused(
    tmp_path: Path, name: str, first: int, step: int, message: str
) -> None:
    frame = daily(50)
    write(tmp_path / "ZZA.csv", lines({name: range(first, first + 50 * step, step), **ohlcv(frame)}))

    assert message in problem_of(tmp_path)


@pytest.mark.parametrize("newest_first", [False, True])
def test_times_of_day_without_am_and_pm_are_refused(tmp_path: Path, newest_first: bool) -> None:
    frame = sessions(5)
    columns = {"Date": dates(frame, "%m/%d/%Y"), "Time": dates(frame, "%I:%M"), **ohlcv(frame, title=True)}
    header, *rows = lines(columns)
    write(tmp_path / "ZZA.csv", [header, *(rows[::-1] if newest_first else rows)])

    assert "as a time of day without AM or PM does" in problem_of(tmp_path)


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d_%H-%M",
        "%Y-%m-%d_%H-%M-%S",
        "%Y/%m/%d-%H:%M:%S",
        "%d.%m.%Y %H:%M Uhr",
        "%d/%m/%Y à %H:%M",
        "%Y−%m‑%d %H:%M",
    ],
)
def test_times_with_other_marks_have_no_time_zone(tmp_path: Path, form: str) -> None:
    frame = hourly(50)
    write(tmp_path / "ZZA.csv", lines({"time": dates(frame, form), **ohlcv(frame)}))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert bars.time_zone is None


def test_an_offset_with_its_name_is_a_time_zone(tmp_path: Path) -> None:
    frame = hourly(50)
    write(tmp_path / "ZZA.csv", lines({"time": dates(frame, "%Y-%m-%d %H:%M:%S -0500 EST"), **ohlcv(frame)}))

    assert read_one(tmp_path).time_zone == "UTC-05:00"


@pytest.mark.parametrize("newest_first", [False, True])
def test_evenings_with_the_date_of_the_next_day_are_refused(tmp_path: Path, newest_first: bool) -> None:
    dates_ = pd.date_range("2024-01-02", periods=5, freq="B")
    hours = (18, 19, 20, 21, 22, 23, 0, 1, 2, 9, 10, 11, 12, 13)
    frame = bars_at(pd.DatetimeIndex([date + pd.Timedelta(hours=hour) for date in dates_ for hour in hours]))
    header, *rows = plain_times(frame)
    write(tmp_path / "ZZA.csv", [header, *(rows[::-1] if newest_first else rows)])

    assert "goes back on the same date, as where the bars of an evening have the date" in problem_of(tmp_path)


def test_days_that_are_newest_first_with_bars_oldest_first_are_sorted(tmp_path: Path) -> None:
    frame = sessions(5)
    header, *rows = plain_times(frame)
    days = [rows[start : start + len(rows) // 5] for start in range(0, len(rows), len(rows) // 5)]
    write(tmp_path / "ZZA.csv", [header, *(row for day in days[::-1] for row in day)])

    assert_same_bars(read_one(tmp_path).frame, frame)


def test_days_and_months_that_a_spreadsheet_has_swapped_are_refused(tmp_path: Path) -> None:
    frame = daily()
    cells = [f"{time:%m/%d/%Y}" if time.day > 12 else f"{time:%d/%m/%Y}" for time in frame["timestamps"]]
    write(tmp_path / "ZZA.csv", lines({"Date": cells, **ohlcv(frame, title=True)}))

    assert "dates are month first in some lines and day first in others" in problem_of(tmp_path)


@pytest.mark.parametrize("form", ["%H%M%S", "%-H%M%S", "%H:%M:%S"])
def test_day_numbers_beside_times_of_day_in_digits_are_the_dates(tmp_path: Path, form: str) -> None:
    frame = bars_at(pd.date_range("2017-03-04 03:00:00", periods=200, freq="min"))
    days = [(time.normalize() - pd.Timestamp("1899-12-30")).days for time in frame["timestamps"]]
    write(tmp_path / "ZZA.csv", lines({"Time": dates(frame, form), "Date": days, **ohlcv(frame)}))

    assert_same_bars(read_one(tmp_path).frame, frame)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [1, 50])
def test_counts_beyond_64_bits_are_refused_without_a_warning_of_a_library(tmp_path: Path, rows: int) -> None:
    frame = daily(50)
    cells = ["1e999"] * rows + [str(time) for time in milliseconds(frame["timestamps"])][rows:]
    write(tmp_path / "ZZA.csv", lines({"Date": cells, **ohlcv(frame, title=True)}))
    assert "found '1e999'" in problem_of(tmp_path)
