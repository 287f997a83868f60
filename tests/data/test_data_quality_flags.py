"""Unusual bars are flagged and stay unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from market_files import NOW, daily_frame, read_frame, write_frame

from kronos_pipeline.data.bars import PRICES, Bars
from kronos_pipeline.data.ingest import read_bars

COLUMNS = ["Open", "High", "Low", "Close"]


def notes_with(bars: Bars, text: str) -> list[str]:
    return [note for note in bars.notes if text in note]


def session_frame(days: int) -> pd.DataFrame:
    """Half-hour bars, 09:30 to 15:30, with a lunch break, on weekdays."""
    dates = pd.date_range("2024-01-01", periods=days, freq="B")
    minutes = [570, 600, 630, 660, 780, 810, 840, 870, 900, 930]
    times = [date + pd.Timedelta(minutes=minute) for date in dates for minute in minutes]
    return daily_frame(len(times)).assign(Date=times)


def test_ordinary_daily_bars_have_no_note(tmp_path: Path) -> None:
    assert read_frame(tmp_path, daily_frame(1000)).notes == ()


@pytest.mark.parametrize(("factor", "text"), [(0.5, "about 2:1"), (1 / 3, "about 3:1"), (10, "about 1:10")])
def test_a_jump_like_an_unadjusted_split_is_flagged_with_date_and_ratio(
    tmp_path: Path, factor: float, text: str
) -> None:
    frame = daily_frame(500)
    frame.loc[300:, COLUMNS] *= factor

    [note] = notes_with(read_frame(tmp_path, frame), "unadjusted splits")

    assert f"{frame['Date'][300]:%Y-%m-%d} ({text})" in note


def test_a_crash_within_a_day_is_no_split(tmp_path: Path) -> None:
    frame = daily_frame(500)
    frame.loc[300:, COLUMNS] *= 0.5
    frame.loc[300:300, ["Open", "High"]] *= 2

    assert notes_with(read_frame(tmp_path, frame), "split") == []


def test_bars_without_volume_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    frame = daily_frame(100)
    frame.loc[[40, 41, 42], "Volume"] = 0

    [note] = notes_with(read_frame(tmp_path, frame), "without volume")

    assert note == f"bars without volume, as in a trading halt: 3, the first at {frame['Date'][40]}"


@pytest.mark.parametrize("present", [False, True])
def test_a_volume_that_is_absent_or_empty_is_zero_and_said_once(tmp_path: Path, present: bool) -> None:
    frame = daily_frame(100)
    bars = read_frame(tmp_path, frame.assign(Volume="") if present else frame.drop(columns="Volume"))

    assert (bars.frame[["volume", "amount"]] == 0).all(axis=None)
    assert bars.notes == ("no volume: taken as 0",)


def test_an_amount_that_is_absent_is_volume_times_the_mean_price_and_one_that_is_there_is_kept(tmp_path: Path) -> None:
    frame = daily_frame(100)
    derived = read_frame(tmp_path, frame).frame
    stated = read_frame(tmp_path, frame.assign(AMOUNT=7.0)).frame

    np.testing.assert_allclose(derived["amount"], derived["volume"] * derived[list(PRICES)].mean(axis=1))
    assert (stated["amount"] == 7).all()


def test_nights_weekends_and_lunch_breaks_are_no_holes(tmp_path: Path) -> None:
    assert notes_with(read_frame(tmp_path, session_frame(60)), "hole") == []


def test_a_hole_in_a_session_is_flagged_with_its_length(tmp_path: Path) -> None:
    frame = session_frame(60)
    # Three bars before the lunch break and the one after it.
    [note] = notes_with(read_frame(tmp_path, frame.drop(index=[301, 302, 303, 304])), "hole")

    assert note == f"holes: 1, 4 bars missing; the longest, of 4, after {frame['Date'][300]}"


def test_a_holiday_in_daily_bars_is_no_hole_but_weeks_without_a_bar_are(tmp_path: Path) -> None:
    frame = daily_frame(400)

    assert notes_with(read_frame(tmp_path, frame.drop(index=[100, 200, 201])), "hole") == []
    [note] = notes_with(read_frame(tmp_path, frame.drop(index=range(100, 115))), "hole")
    assert "of 15, after" in note


def test_prices_too_small_for_the_models_normalisation_are_flagged(tmp_path: Path) -> None:
    frame = daily_frame(200)
    small = frame.assign(**{name: frame[name] * 1e-8 for name in COLUMNS})

    assert notes_with(read_frame(tmp_path, frame), "so small") == []
    assert len(notes_with(read_frame(tmp_path, small), "multiply the prices")) == 1


def test_a_last_bar_off_the_grid_of_the_others_is_forming_and_is_left_out(tmp_path: Path) -> None:
    frame = daily_frame(200, freq="5min")
    frame.loc[199:199, "Date"] -= pd.Timedelta(minutes=2, seconds=13)

    bars = read_frame(tmp_path, frame)

    [note] = notes_with(bars, "still forming")
    assert "off the grid" in note
    assert len(bars) == 199


@pytest.mark.parametrize(("now", "flagged"), [("12:04:59", True), ("12:05:00", False)])
def test_a_zoned_last_bar_whose_time_is_not_up_is_forming(tmp_path: Path, now: str, flagged: bool) -> None:
    times = pd.date_range(end="2024-06-03 08:00", periods=200, freq="5min", tz="America/New_York")
    file = write_frame(tmp_path, "ACME", daily_frame(200).assign(Date=[time.isoformat() for time in times]))

    bars = read_bars(file, now=pd.Timestamp(f"2024-06-03 {now}", tz="UTC"))

    assert bool(notes_with(bars, "still forming")) is flagged
    assert len(bars) == (199 if flagged else 200)


def test_without_a_zone_the_clock_says_nothing_of_the_last_bar(tmp_path: Path) -> None:
    file = write_frame(tmp_path, "ACME", daily_frame(200, start=str(NOW.date()), freq="5min"))
    assert read_bars(file, now=NOW).notes == ()


def test_a_flag_changes_no_bar(tmp_path: Path) -> None:
    frame = daily_frame(500)
    frame.loc[300:, COLUMNS] *= 0.5
    frame.loc[40, "Volume"] = 0

    bars = read_frame(tmp_path, frame)

    assert len(bars.notes) == 2
    np.testing.assert_array_equal(bars.frame[list(PRICES)], frame[COLUMNS])
