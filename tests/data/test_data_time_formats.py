"""Times are read in every usual format, alone or in two columns, or refused where two readings fit."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from csv_shapes import parse_times
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_pipeline.data.timestamps import parse_time_columns

DATES = ["%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%Y年%m月%d日", "%d.%m.%Y", "%d.%m.%y"]
DATES += ["%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%Y-%b-%d", "%a, %d %b %Y", "%a %b %d %Y"]
OPEN_DATES = ["%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d/%m/%y", "%m/%d/%y", "%y-%m-%d"]
"""Formats whose order of day, month and year the whole column decides."""
CLOCKS = ["%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%H%M%S"]
ZONES = {"Z": "UTC", " UTC": "UTC", "+01:00": "UTC+01:00", "-0530": "UTC-05:30", " GMT+0100": "UTC+01:00"}
ZONES |= {" EST": "UTC-05:00", " JST": "UTC+09:00", " Asia/Tokyo": "UTC+09:00", "+09:00[Asia/Tokyo]": "UTC+09:00"}
UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}

starts = st.datetimes(datetime(1972, 1, 1), datetime(2026, 1, 1)).map(lambda time: pd.Timestamp(time).floor("min"))
ranges = st.builds(
    lambda start, bars, freq: pd.date_range(start, periods=bars, freq=freq),
    starts,
    st.integers(2, 80),
    st.sampled_from(["min", "5min", "h", "4h", "D", "B"]),
)
CASES = settings(max_examples=60)


def texts(times: pd.DatetimeIndex, form: str) -> list[str]:
    return [format(time, form) for time in times]


@CASES
@given(ranges, st.sampled_from(DATES), st.sampled_from(CLOCKS), st.sampled_from(["", *ZONES]), st.booleans())
def test_times_in_any_format_are_read_back(
    times: pd.DatetimeIndex, date: str, clock: str, zone: str, newest_first: bool
) -> None:
    times = times[::-1] if newest_first else times

    space = " " if clock.endswith("%p") and zone == "Z" else ""

    parsed = parse_times([text + space + zone for text in texts(times, f"{date} {clock}")])

    assert parsed.problems == ()
    assert list(parsed.local) == list(times)
    assert parsed.zone == (ZONES[zone] if zone else None)


@CASES
@given(ranges, st.sampled_from(OPEN_DATES))
def test_dates_in_any_order_are_read_back_or_refused_where_two_orders_fit(times: pd.DatetimeIndex, form: str) -> None:
    dates = times.normalize().unique()

    parsed = parse_times(texts(dates, form))

    if parsed.problems:
        [(row, rule)] = parsed.problems
        assert row == 0
        assert " first or " in rule
        # Another order fits only if no day tells it apart.
        assert dates.day.max() <= 12 or "%y" in form
    else:
        assert list(parsed.local) == list(dates)


@CASES
@given(ranges, st.sampled_from(list(UNITS)), st.sampled_from(["{}", "{}.0"]))
def test_counts_since_1970_are_read_back(times: pd.DatetimeIndex, unit: str, form: str) -> None:
    # Counts of ns of 1990 can be ticks of this century.
    times = times[times.year > (1990 if unit == "ns" else 1973)]
    counts = times.as_unit("ns").astype("int64") // UNITS[unit]

    parsed = parse_times([form.format(count) for count in counts]) if len(times) else parse_times(["0"])

    assert list(parsed.local[: len(times)]) == list(times)
    assert parsed.zone == "UTC" or not len(times)


@CASES
@given(ranges, st.integers(1, 70))
def test_a_unit_that_changes_is_told_with_its_row(times: pd.DatetimeIndex, row: int) -> None:
    times = times[times.year >= 2002]
    counts = times.as_unit("ns").astype("int64").to_numpy() // 10**6
    cells = [str(count * (1 if number < row else 1000)) for number, count in enumerate(counts)]

    parsed = parse_times(cells) if cells else None

    if parsed is not None:
        assert list(parsed.local) == list(times)
        assert [changed for changed, _ in parsed.row_notes] == ([row] if row < len(times) else [])


@pytest.mark.slow
@CASES
@given(ranges, st.sampled_from([*DATES, "excel"]), st.sampled_from(["%H:%M", "%H:%M:%S", "%H%M%S", "%H%M", "%I:%M %p"]))
def test_a_date_and_a_time_column_are_joined(times: pd.DatetimeIndex, date: str, clock: str) -> None:
    days = (times.normalize() - pd.Timestamp("1899-12-30")).days
    dates = [str(day) for day in days] if date == "excel" else texts(times, date)

    parsed = parse_time_columns({"Time": texts(times, clock), "Date": dates})

    assert parsed.problems == ()
    assert list(parsed.local) == list(times)
    assert parsed.column == "Date"


@CASES
@given(
    ranges,
    st.sampled_from(list(UNITS)),
    st.sampled_from(["%Y-%m-%d %H:%M:%S", "%d.%m.%Y %H:%M", "%Y-%m-%d"]),
    st.data(),
)
def test_two_columns_of_whole_times_must_agree(
    times: pd.DatetimeIndex, unit: str, form: str, data: st.DataObject
) -> None:
    times = times[times.year >= 1980]
    if len(times) < 3:
        return
    counts = [str(count) for count in times.as_unit("ns").astype("int64") // UNITS[unit]]
    cells = texts(times, form)

    parsed = parse_time_columns({"date": cells, "unix": counts})

    assert parsed.problems == ()
    assert list(parsed.local) == list(times)
    assert any("agrees" in note for note in parsed.notes)

    row = data.draw(st.integers(0, len(times) - 1))
    cells[row] = format(times[row] + pd.Timedelta(days=3), form)
    [(wrong, rule)] = parse_time_columns({"date": cells, "unix": counts}).problems
    assert wrong == row
    assert "disagrees" in rule


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("31. Januar 2024", "2024-01-31"),
        ("31. Mrz 2024", "2024-03-31"),
        ("31 janv. 2024", "2024-01-31"),
        ("15 août 2023", "2023-08-15"),
        ("31 de enero de 2024", "2024-01-31"),
        ("1 gennaio 2024", "2024-01-01"),
        ("31 января 2024", "2024-01-31"),
        ("January 31st, 2024", "2024-01-31"),
        ("Wed Jan 31 15:30:00 2024", "2024-01-31 15:30"),
        ("Wed Jan 31 2024 15:30:00", "2024-01-31 15:30"),
        ("15:30 31.01.2024", "2024-01-31 15:30"),
        ("2024/1/31 下午3:30", "2024-01-31 15:30"),
        ("2024年1月31日 15时30分", "2024-01-31 15:30"),
        ("20240131-15:30:00", "2024-01-31 15:30"),
        ("20240131 153000", "2024-01-31 15:30"),
        ("202401311530", "2024-01-31 15:30"),
        ("20240131.0", "2024-01-31"),
        ("1/31/2024 3:30:00\u202fPM", "2024-01-31 15:30"),
        ("1/31/2024 12:30 a. m.", "2024-01-31 00:30"),
        ("2024-01-31  15:30", "2024-01-31 15:30"),
        ("2024-01", "2024-01-01"),
        ("Jan 24", "2024-01-01"),
    ],
)
def test_a_time_as_programs_and_languages_write_it_is_read(text: str, time: str) -> None:
    parsed = parse_times([text, text])
    assert list(parsed.local) == [pd.Timestamp(time)] * 2
    assert parsed.zone is None


@pytest.mark.parametrize(
    "text", ["31 jui 2024", "2024-13-01", "2024-01-31 25:00", "31-Foo-2024", "12:75", "9", "2024-1"]
)
def test_what_is_no_time_is_a_problem(text: str) -> None:
    parsed = parse_times(["2024-01-30 10:00", "2024-01-31 11:00", text, "2024-02-02 10:00"])
    assert [row for row, _ in parsed.problems] == [2]


def test_two_digits_of_a_year_are_the_past() -> None:
    times = pd.date_range("1950-01-03", "2024-12-30", freq="B")
    assert list(parse_times(texts(times, "%m/%d/%y")).local) == list(times)


def test_the_zone_of_a_region_follows_its_clocks() -> None:
    utc = pd.date_range("2024-11-02 20:00", periods=24, freq="h", tz="UTC")
    local = utc.tz_convert("America/New_York")

    parsed = parse_times([f"{time:%Y-%m-%d %H:%M} America/New_York" for time in local])

    assert parsed.problems == ()
    assert parsed.zone == "UTC-05:00"
    assert list(parsed.local + pd.Timedelta(hours=5)) == list(utc.tz_localize(None))


@pytest.mark.parametrize("zone", ["CST", "IST", "Mars/Olympus", "XYZ"])
def test_a_zone_that_is_not_known_is_refused(zone: str) -> None:
    parsed = parse_times([f"2024-01-31 15:30 {zone}"])
    assert [row for row, _ in parsed.problems] == [0]
    assert "write" in parsed.problems[0][1]


def test_day_numbers_of_a_spreadsheet_are_read_and_said() -> None:
    parsed = parse_times(["45299", "45300", "45301.5"])
    assert list(parsed.local) == [
        pd.Timestamp("2024-01-08"),
        pd.Timestamp("2024-01-09"),
        pd.Timestamp("2024-01-10 12:00"),
    ]
    assert parsed.notes == ("times are day numbers of a spreadsheet, in which 45299 is 2024-01-08",)


def test_counts_that_a_spreadsheet_has_rounded_are_refused() -> None:
    [(row, rule)] = parse_times(["1.70001E+12", "1.70001E+12", "1.70002E+12"]).problems
    assert row == 1
    assert "export the file again" in rule


def test_years_before_1970_are_counts_with_a_minus() -> None:
    parsed = parse_times(["-86400", "0", "86400", "1704153600"])
    assert list(parsed.local.dt.strftime("%Y-%m-%d")) == ["1969-12-31", "1970-01-01", "1970-01-02", "2024-01-02"]


def test_months_of_daily_dates_up_to_the_twelfth_tell_their_order() -> None:
    times = pd.date_range("2022-01-03", "2024-12-30", freq="B")
    times = times[times.day <= 12]
    for form in OPEN_DATES:
        assert list(parse_times(texts(times, form)).local) == list(times)


def test_dates_that_two_orders_fit_are_refused_with_both() -> None:
    months = pd.date_range("2022-01-01", periods=12, freq="MS")
    [(_, rule)] = parse_times(texts(months, "%d/%m/%Y")).problems
    assert "2022-01-01 to 2022-12-01" in rule
    assert "2022-01-01 to 2022-01-12" in rule


def test_a_second_column_decides_the_order_of_dates() -> None:
    days = pd.date_range("2024-01-02", periods=3)
    epoch = [str(count) for count in days.as_unit("s").astype("int64")]
    parsed = parse_time_columns({"time": epoch, "date": texts(days, "%d/%m/%Y")})
    assert parsed.problems == ()
    assert list(parsed.local) == list(days)


def test_a_column_in_local_time_beside_utc_states_the_zone() -> None:
    utc = pd.date_range("2024-01-02 01:30", periods=20, freq="5min")
    epoch = [str(count) for count in utc.as_unit("s").astype("int64")]
    parsed = parse_time_columns({"timestamp": epoch, "datetime": texts(utc + pd.Timedelta(hours=8), "%Y-%m-%d %H:%M")})
    assert parsed.problems == ()
    assert parsed.zone == "UTC+08:00"
    assert list(parsed.local) == list(utc + pd.Timedelta(hours=8))


def test_a_column_that_may_be_the_end_of_each_bar_disagrees() -> None:
    utc = pd.date_range("2024-01-02", periods=20, freq="h")
    epoch = [str(count) for count in utc.as_unit("s").astype("int64")]
    parsed = parse_time_columns({"timestamp": epoch, "datetime": texts(utc + pd.Timedelta(hours=1), "%Y-%m-%d %H:%M")})
    assert [row for row, _ in parsed.problems] == list(range(20))


@pytest.mark.parametrize("empty", [True, False])
def test_a_column_without_times_is_left_out(empty: bool) -> None:
    days = pd.date_range("2024-01-02", periods=3)
    parsed = parse_time_columns({"time": ["" if empty else "pit"] * 3, "Date": texts(days, "%Y-%m-%d")})
    assert list(parsed.local) == list(days)
    assert parsed.column == "Date"
    assert any("time" in note for note in parsed.notes) is not empty


def test_a_time_of_day_without_a_date_is_refused_once() -> None:
    assert parse_times(["09:30", "09:35"]).problems == (
        (0, "a time of day without a date; add a column with the date"),
    )


def test_a_bad_time_of_day_is_named_with_its_column() -> None:
    parsed = parse_time_columns({"Date": ["2024-01-02"] * 3, "Time": ["09:30", "noon", "09:40"]})
    assert parsed.problems == ((1, "has no time of day that can be read in Time; write it as 15:30"),)
    assert list(parsed.local.isna()) == [False, True, False]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=20))
@settings(max_examples=60)
def test_any_text_is_read_or_a_problem(cells: list[str]) -> None:
    parsed = parse_times(cells)
    assert len(parsed.local) == len(cells)
    if parsed.local.isna().any():
        assert parsed.problems
    assert np.all([0 <= row < len(cells) for row, _ in parsed.problems])
