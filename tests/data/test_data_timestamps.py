"""Times stay the file's own: no calendar date moves, daylight saving is one zone, half a zone is an error."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_shapes import parse_times
from hypothesis import given
from hypothesis import strategies as st
from market_files import NOW, daily_frame, read_frame, write_frame

from kronos_pipeline.data.ingest import read_bars
from kronos_pipeline.data.timestamps import parse_time_columns
from kronos_pipeline.errors import DataError


def test_zoned_daily_bars_keep_their_calendar_date_and_daylight_saving_is_one_zone(tmp_path: Path) -> None:
    days = pd.date_range("2024-01-02", periods=200, freq="B")
    zoned = days.tz_localize("America/New_York")
    texts = [stamp.isoformat(sep=" ") for stamp in zoned]
    assert len({text[-6:] for text in texts}) == 2

    bars = read_frame(tmp_path, daily_frame(200).assign(Date=texts))

    assert list(bars.frame["timestamps"]) == list(days)
    assert bars.time_zone == "UTC-05:00/UTC-04:00"


@pytest.mark.parametrize("suffix", ["Z", "+00:00", "+0000", "+00", " UTC"])
def test_utc_is_read_however_it_is_written(suffix: str) -> None:
    times = parse_times([f"2024-01-02T15:30:00{suffix}", f"2024-01-02T15:31:00.000{suffix}"])

    assert times.zone == "UTC"
    assert list(times.local) == [pd.Timestamp("2024-01-02 15:30"), pd.Timestamp("2024-01-02 15:31")]
    assert times.problems == ()


def test_an_hour_that_clocks_set_back_repeat_is_two_hours_in_standard_time(tmp_path: Path) -> None:
    utc = pd.date_range("2023-10-28", periods=72, freq="h", tz="UTC")
    texts = [stamp.isoformat() for stamp in utc.tz_convert("Europe/Berlin")]

    bars = read_frame(tmp_path, daily_frame(72).assign(Date=texts))

    assert list(bars.frame["timestamps"]) == list((utc + pd.Timedelta(hours=1)).tz_localize(None))
    assert bars.time_zone == "UTC+01:00"
    assert any("clocks were set back at 2023-10-29 02:00:00" in note for note in bars.notes)


def test_a_zone_in_half_of_the_rows_is_an_error_that_names_each_of_them(tmp_path: Path) -> None:
    frame = daily_frame(6)
    texts = frame["Date"].dt.strftime("%Y-%m-%d %H:%M:%S").to_list()
    texts[1::2] = [f"{text}+01:00" for text in texts[1::2]]

    with pytest.raises(DataError) as caught:
        read_frame(tmp_path, frame.assign(Date=texts))

    [problem] = caught.value.problems
    assert problem.lines == (2, 4, 6)
    assert problem.rule.startswith("no time zone, though other lines have one; ")


def test_a_single_zoned_row_among_naive_ones_is_the_one_that_is_named() -> None:
    times = parse_times(["2024-01-02 00:00:00", "2024-01-03 00:00:00-05:00", "2024-01-04 00:00:00"])
    assert times.problems == ((1, "a time zone, though other lines have none"),)


def test_offsets_that_no_daylight_saving_explains_are_an_error() -> None:
    times = parse_times(["2024-01-02 00:00:00-05:00", "2024-01-03 00:00:00-05:00", "2024-01-04 00:00:00+09:00"])
    assert times.problems == ((2, "another time zone than the usual UTC-05:00 of this file"),)


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts",
    [
        ["2024-01-02", "2024-01-31"],
        ["20240102", "20240131"],
        ["2024/01/02", "2024/01/31"],
        ["2024-1-2", "2024-1-31"],
        ["01/02/2024", "01/31/2024"],
        ["02/01/2024", "31/01/2024"],
        ["02.01.2024", "31.01.2024"],
        ["02-01-2024", "31-01-2024"],
        ["02-Jan-2024", "31-Jan-2024"],
        ["Jan 2, 2024", "Jan 31, 2024"],
        ["1704153600", "1706659200"],
        ["1704153600000", "1706659200000"],
        ["1704153600000000000", "1706659200000000000"],
    ],
)
def test_the_usual_ways_to_write_a_date_are_read(texts: list[str]) -> None:
    times = parse_times(texts)

    assert times.problems == ()
    assert list(times.local) == [pd.Timestamp("2024-01-02"), pd.Timestamp("2024-01-31")]


@pytest.mark.parametrize("time", ["15:30", "15:30:00", "3:30 PM"])
def test_a_time_of_day_is_read_beside_a_date(time: str) -> None:
    assert list(parse_times([f"01/31/2024 {time}"]).local) == [pd.Timestamp("2024-01-31 15:30")]


def test_days_and_months_that_could_be_either_are_not_guessed() -> None:
    [(row, rule)] = parse_times(["01/02/2024", "01/03/2024", "01/04/2024"]).problems
    assert row == 0
    assert "month first or day first?" in rule


def test_counts_since_1970_are_utc() -> None:
    times = parse_times(["1704153600000", "1704153900000"])

    assert times.zone == "UTC"
    assert times.notes == ("times are counts of ms since 1970, read as UTC",)


def test_a_unit_that_changes_in_mid_file_is_read_by_the_digits_of_each_line_and_said() -> None:
    times = parse_times(["1704153600000", "1704153900000", "1704154200000000", "1704154500000000"])

    assert times.problems == ()
    assert list(times.local) == list(pd.date_range("2024-01-02 00:00", periods=4, freq="5min"))
    assert times.notes == ("times are counts of ms and us since 1970, each by its digits, read as UTC",)
    assert times.row_notes == ((2, "counts of ms since 1970 change to counts of us"),)


def test_a_count_that_lost_digits_is_named() -> None:
    times = parse_times(["1704153600", "1704153900", "170415420", "1704154500", "1704154800"])
    assert times.problems == ((2, "is no count of s since 1970, as the other lines are"),)


def test_counts_from_before_september_2001_have_a_digit_less() -> None:
    assert list(parse_times(["999993600", "1000080000"]).local) == [
        pd.Timestamp("2001-09-09"),
        pd.Timestamp("2001-09-10"),
    ]


@pytest.mark.parametrize("name", ["timestamps", "TIMESTAMP", "date", "Datetime", "time", "", "Unnamed: 0 is not it"])
def test_the_time_column_goes_by_any_of_its_names_or_none(tmp_path: Path, name: str) -> None:
    frame = daily_frame(5).rename(columns={"Date": name})
    if name.startswith("Unnamed"):
        with pytest.raises(DataError, match="no time column"):
            read_frame(tmp_path, frame)
    else:
        assert len(read_frame(tmp_path, frame)) == 5


def test_a_named_time_column_goes_before_an_unnamed_first_one(tmp_path: Path) -> None:
    path = write_frame(tmp_path, "ACME", daily_frame(5))
    daily_frame(5).to_csv(path.path, index=True)

    bars = read_bars(path, now=NOW)

    assert bars.frame["timestamps"].iloc[0] == pd.Timestamp("2022-01-03")
    assert "columns that are ignored: one without a name" in bars.notes


def test_a_newest_first_file_is_reversed_and_says_so(tmp_path: Path) -> None:
    frame = daily_frame(40)
    forward, backward = read_frame(tmp_path, frame), read_frame(tmp_path, frame[::-1])

    assert backward.content_hash == forward.content_hash
    assert "the file is newest first: reversed" in backward.notes
    assert not any("reversed" in note for note in forward.notes)


def test_numbers_are_read_exactly_as_python_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    close = rng.uniform(1, 1000, 500)
    frame = daily_frame(500).assign(Open=close, High=close, Low=close, Close=[repr(float(value)) for value in close])

    np.testing.assert_array_equal(read_frame(tmp_path, frame).frame["close"], close)


@pytest.mark.slow
@given(
    st.lists(st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)), min_size=1, max_size=5),
    st.sampled_from(["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S.%f"]),
)
def test_plain_times_are_read_as_pandas_reads_them(times: list[datetime], form: str) -> None:
    cells = [f" {time:{form}}" for time in times]
    parsed = parse_times(cells)
    assert list(parsed.local) == [pd.Timestamp(cell) for cell in cells]
    assert (parsed.zone, parsed.problems, parsed.notes) == (None, (), ())


@pytest.mark.parametrize("cell", ["1500-01-02", "9999-12-31 10:00", "2024-02-30", "2024-01-31 24:00"])
def test_a_time_that_cannot_be_is_a_problem_of_its_own_row(cell: str) -> None:
    parsed = parse_times(["2024-01-30", cell, "2024-02-01"])
    assert [row for row, _ in parsed.problems] == [1]
    assert list(parsed.local.isna()) == [False, True, False]


def test_every_line_in_which_two_columns_disagree_is_a_problem() -> None:
    """`--drop-bad-rows 1` must not read a file of which one column is wrong in all lines."""
    dates, others = ["2024-01-02 10:00", "2024-01-02 11:00"], ["2024-01-02 10:07", "2024-01-02 11:07"]

    full_times = parse_time_columns({"time": dates, "datetime": others})
    clock = parse_time_columns({"date": dates, "time": ["10:07", "11:07"]})

    for parsed, rule in ((full_times, "disagrees with datetime"), (clock, "has another time of day than time")):
        assert [(row, text.startswith(rule)) for row, text in parsed.problems] == [(0, True), (1, True)]
