"""Bad rows: left out by --drop-bad-rows with a note, or refused with the setting that reads the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from market_files import COLUMNS, SHARED, daily_frame, one_note, read_frame, refusal

from kronos_pipeline.data.bad_rows import in_another_unit
from kronos_pipeline.errors import DataError

# bad rows


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["0", "-1", "", "x", "inf"])
@pytest.mark.parametrize("limit", ["2", "2%", "2.5%"])
def test_bad_rows_are_left_out_as_many_as_are_allowed_and_named(tmp_path: Path, cell: str, limit: str) -> None:
    frame = daily_frame(100).astype(str)
    frame.loc[[50, 70], "Close"] = cell

    bars = read_frame(tmp_path, frame, drop_bad_rows=limit)

    assert bars.content_hash == read_frame(tmp_path, daily_frame(100).drop(index=[50, 70])).content_hash
    assert one_note(bars, "left out").startswith(
        f"2 bad rows left out by --drop-bad-rows {limit}: lines 52, 72 (Close "
    )


@pytest.mark.parametrize("limit", ["1", "1%", "1.9%"])
def test_more_bad_rows_than_are_allowed_refuse_the_ticker_with_their_number(tmp_path: Path, limit: str) -> None:
    frame = daily_frame(100)
    frame.loc[[50, 70], "Close"] = 0
    assert refusal(tmp_path, frame, drop_bad_rows=limit) == (
        "ACME.csv:52: Close: must be above 0 in lines 52, 72 (found '0.0'); 2 rows bad in all, and "
        f"--drop-bad-rows {limit} leaves out 1 at most"
    )


def test_a_refusal_for_bad_rows_tells_how_to_leave_them_out(tmp_path: Path) -> None:
    frame = daily_frame(100)
    frame.loc[[50, 70], "Close"] = 0
    frame.loc[80, "Volume"] = -1
    assert refusal(tmp_path, frame).splitlines() == [
        "ACME.csv:52: Close: must be above 0 in lines 52, 72 (found '0.0'); "
        "--drop-bad-rows 3 leaves out the 3 bad rows",
        "ACME.csv:82: Volume: must not be negative (found '-1')",
    ]


def test_a_file_of_bad_rows_alone_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    frame = daily_frame(50).assign(Close=0)
    assert "drop-bad-rows" not in refusal(tmp_path, frame)
    assert "must be above 0 in 50 lines, first in 2, 3, 4" in refusal(tmp_path, frame, drop_bad_rows="100%")


def test_a_bad_row_is_not_counted_as_one_without_volume(tmp_path: Path) -> None:
    frame = daily_frame(100).astype(str)
    frame.loc[30, "Open"], frame.loc[30, "Volume"] = "0.24 Dividend", ""
    [note] = read_frame(tmp_path, frame, drop_bad_rows="1").notes
    assert note == "1 bad row left out by --drop-bad-rows 1: line 32 (Open must be a number)"


def test_a_row_with_a_bad_time_can_be_left_out(tmp_path: Path) -> None:
    frame = daily_frame(100).astype({"Date": str})
    frame.loc[30, "Date"] = "someday"
    bars = read_frame(tmp_path, frame, drop_bad_rows="1")
    assert bars.content_hash == read_frame(tmp_path, daily_frame(100).drop(index=30)).content_hash
    assert "line 32 (Date no time that can be read)" in one_note(bars, "left out")


def test_a_time_column_that_cannot_be_read_is_no_bad_row(tmp_path: Path) -> None:
    frame = daily_frame(2).assign(Date=["01/02/2024", "03/04/2024"])
    assert "--drop-bad-rows" not in refusal(tmp_path, frame, drop_bad_rows="1")


# prices in another unit


def pence(factor: float, rows: list[int], bars: int = 300) -> pd.DataFrame:
    frame = daily_frame(bars)
    frame.loc[rows, COLUMNS] *= factor
    return frame


@pytest.mark.parametrize("factor", [100, 0.01])
def test_bars_at_a_hundred_times_the_price_around_them_are_named_and_can_be_left_out(
    tmp_path: Path, factor: float
) -> None:
    frame = pence(factor, [150, 152])

    noted, left_out = read_frame(tmp_path, frame), read_frame(tmp_path, frame, drop_bad_rows="2")

    assert len(noted) == 300
    assert one_note(noted, "pence").endswith(": 2022-08-01, 2022-08-03; --drop-bad-rows 2 leaves such bars out")
    assert left_out.content_hash == read_frame(tmp_path, daily_frame(300).drop(index=[150, 152])).content_hash
    assert "lines 152, 154" in one_note(left_out, "2 bad rows left out", "2022-08-01, 2022-08-03")


def test_bars_in_another_unit_are_no_reason_to_refuse(tmp_path: Path) -> None:
    frame = pence(100, [150, 152])
    frame.loc[200, "Close"] = 0

    bars = read_frame(tmp_path, frame, drop_bad_rows="2")

    assert len(bars) == 299
    assert one_note(bars, "pence").endswith("--drop-bad-rows 3 leaves such bars out")


@pytest.mark.parametrize("rows", [range(150, 300), range(20), range(295, 300), range(150, 200)])
def test_a_price_that_changes_its_level_for_long_or_for_good_is_in_no_other_unit(rows: range) -> None:
    close = daily_frame(300)["Close"].to_numpy().copy()
    close[list(rows)] *= 100
    assert not in_another_unit(close).any()


@pytest.mark.parametrize("bars", [1, 2, 3, 5])
def test_few_bars_are_in_no_other_unit(bars: int) -> None:
    assert not in_another_unit(np.full(bars, 7.0)).any()


# bad beginnings, first dates


def test_a_bad_beginning_is_one_problem_with_the_date_from_which_the_file_is_good(tmp_path: Path) -> None:
    frame = daily_frame(300)
    frame.loc[:99, "Open"] = 0
    frame.loc[[20, 30], "Low"] = -5
    day = f"{frame['Date'][100]:%Y-%m-%d}"

    text = refusal(tmp_path, frame)

    assert text == (
        f"ACME.csv:2: Open: must be above 0 in 100 lines, first in 2, 3, 4 (found '0.0'); all rows from {day} on are "
        f"good: read them with --from {day}, or --from ACME={day} for this ticker alone"
    )
    for option in (day, f"acme={day}"):
        bars = read_frame(tmp_path, frame, from_date=[option])
        assert bars.content_hash == read_frame(tmp_path, daily_frame(300).loc[100:]).content_hash
        assert one_note(bars, "left out") == f"read from {day} on: 100 earlier rows left out"


def test_a_beginning_of_prices_around_0_ends_after_its_last_bad_row(tmp_path: Path) -> None:
    frame = daily_frame(300)
    signs = np.where((frame.index < 80) & ~frame.index.isin([10, 11, 40]), -1, 1)
    frame[COLUMNS] = frame[COLUMNS].mul(signs, axis=0)
    assert f"--from {frame['Date'][80]:%Y-%m-%d}," in refusal(tmp_path, frame)


def test_a_bad_beginning_of_hours_is_cut_at_a_day(tmp_path: Path) -> None:
    frame = daily_frame(300, freq="h")
    frame.loc[:28, "Open"] = 0
    text = refusal(tmp_path, frame)
    assert "--from 2022-01-05," in text
    assert len(read_frame(tmp_path, frame, from_date=["2022-01-05"])) == 300 - 48


def test_rows_that_may_be_left_out_may_follow_a_bad_beginning(tmp_path: Path) -> None:
    frame = daily_frame(300)
    frame.loc[[*range(100), 250], "Open"] = 0
    day = f"{frame['Date'][100]:%Y-%m-%d}"
    assert f"all but 1 row from {day} on are good: read them with --from {day}," in refusal(
        tmp_path, frame, drop_bad_rows="1"
    )
    assert len(read_frame(tmp_path, frame, drop_bad_rows="1", from_date=[day])) == 199


def test_bad_rows_elsewhere_are_no_bad_beginning(tmp_path: Path) -> None:
    frame = daily_frame(300)
    frame.loc[[*range(20), 250], "Open"] = 0
    assert "--from" not in refusal(tmp_path, frame)


def test_a_date_is_for_all_tickers_or_for_one(tmp_path: Path) -> None:
    frame = daily_frame(100)
    options = ["2022-02-01", "OTHER=2022-03-01"]
    assert len(read_frame(tmp_path, frame, from_date=options)) == (frame["Date"] >= "2022-02-01").sum()
    assert len(read_frame(tmp_path, frame, "OTHER", from_date=options)) == (frame["Date"] >= "2022-03-01").sum()


def test_a_date_after_the_last_bar_is_refused(tmp_path: Path) -> None:
    assert "no row with a price from 2030-01-01 on" in refusal(tmp_path, daily_frame(100), from_date=["2030-01-01"])


@pytest.mark.slow
@SHARED
@given(st.data())
def test_bad_rows_leave_the_good_ones_as_they_are_and_all_are_counted(tmp_path: Path, data: st.DataObject) -> None:
    frame = daily_frame(80)
    bad = data.draw(st.lists(st.integers(0, 79), min_size=1, max_size=30, unique=True))
    texts = frame.astype(str)
    for row in bad:
        column = data.draw(st.sampled_from([*COLUMNS, "Volume"]))
        texts.loc[row, column] = data.draw(st.sampled_from(["-1", "x", "inf", "1e400"]))

    bars = read_frame(tmp_path, texts, drop_bad_rows=str(len(bad)))

    assert bars.content_hash == read_frame(tmp_path / "plain", frame.drop(index=bad)).content_hash
    assert one_note(bars, "left out").startswith(f"{len(bad)} bad row")
    with pytest.raises(DataError):
        read_frame(tmp_path, texts, drop_bad_rows=str(len(bad) - 1))
