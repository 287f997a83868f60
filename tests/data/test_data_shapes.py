"""Rows in the shapes that people have: read right, or refused for a cause that is in the file, in one sentence.

Each test writes a frame of bars as a program writes it, and reads the folder as the pipeline does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_shapes import (
    assert_same_bars,
    daily,
    dates,
    has_note,
    hourly,
    lines,
    milliseconds,
    ohlcv,
    pick,
    plain,
    problem_of,
    read,
    read_one,
    write,
)

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import build_windows

# Highs and lows


def test_a_high_in_the_last_bits_below_the_close_is_widened_and_counted(tmp_path: Path) -> None:
    frame = daily()
    text = plain(frame)
    for row, column in ((50, 2), (120, 2), (200, 3)):
        cells = text[row].split(",")
        extreme = max(float(cells[1]), float(cells[4])) if column == 2 else min(float(cells[1]), float(cells[4]))
        cells[column] = repr(float(np.nextafter(extreme, 0 if column == 2 else np.inf)))
        frame.loc[row - 1, "high" if column == 2 else "low"] = extreme
        text[row] = ",".join(cells)
    write(tmp_path / "ZZB.csv", text)

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "widened", "3")


def high_below_open(folder: Path) -> pd.DataFrame:
    frame = daily()
    text = plain(frame)
    cells = text[78].split(",")
    cells[2] = f"{max(float(cells[1]), float(cells[4])) * 0.997:.4f}"
    text[78] = ",".join(cells)
    write(folder / "ZZC.csv", text)
    return frame


def test_a_high_well_below_the_open_is_refused_with_its_line(tmp_path: Path) -> None:
    high_below_open(tmp_path)

    assert f"{tmp_path / 'ZZC.csv'}:79: High: is below" in problem_of(tmp_path)


@pytest.mark.parametrize("limit", ["1", "5", "1%"])
def test_bad_rows_up_to_the_number_that_is_allowed_are_left_out_and_named(tmp_path: Path, limit: str) -> None:
    frame = high_below_open(tmp_path)

    bars = read_one(tmp_path, drop_bad_rows=limit)

    assert_same_bars(bars.frame, frame.drop(index=77))
    assert has_note(bars, "79", "left out")


def test_more_bad_rows_than_are_allowed_refuse_the_ticker(tmp_path: Path) -> None:
    high_below_open(tmp_path)

    assert ":79: High: is below" in problem_of(tmp_path, drop_bad_rows="0.1%")


# Rows without any number


def test_rows_without_any_number_are_left_out_and_counted(tmp_path: Path) -> None:
    frame = daily()
    text = plain(frame)
    for row in (61, 162):
        text[row] = text[row].split(",")[0] + ",,,,,"
    write(tmp_path / "ZZD.csv", text)

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame.drop(index=[60, 161]))
    assert has_note(bars, "2", "62")


# Several files of a ticker, several tickers of a file


def month_lines(frame: pd.DataFrame) -> list[str]:
    return lines({"timestamp": list(milliseconds(frame["timestamps"])), **ohlcv(frame)})


def test_a_file_per_month_is_one_ticker(tmp_path: Path) -> None:
    frame = hourly()
    write(tmp_path / "ZZUSDT-1h-2023-12.csv", month_lines(frame[384:]))
    write(tmp_path / "ZZUSDT-1h-2023-11.csv", month_lines(frame[:384]))

    bars = read_one(tmp_path)

    assert bars.ticker == "ZZUSDT"
    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "ZZUSDT-1h-2023-11.csv", "ZZUSDT-1h-2023-12.csv")


def test_bars_in_two_files_with_the_same_values_are_read_once(tmp_path: Path) -> None:
    frame = hourly()
    write(tmp_path / "ZZUSDT-1h-2023-11.csv", month_lines(frame[:390]))
    write(tmp_path / "ZZUSDT-1h-2023-12.csv", month_lines(frame[380:]))

    assert_same_bars(read_one(tmp_path).frame, frame)


def test_bars_in_two_files_with_other_values_are_refused(tmp_path: Path) -> None:
    frame = hourly()
    other = frame.assign(volume=frame["volume"] + 1)
    write(tmp_path / "ZZUSDT-1h-2023-11.csv", month_lines(frame[:390]))
    write(tmp_path / "ZZUSDT-1h-2023-12.csv", month_lines(other[380:]))

    problem = problem_of(tmp_path)

    assert "ZZUSDT-1h-2023-11.csv" in problem
    assert "ZZUSDT-1h-2023-12.csv" in problem


@pytest.mark.parametrize("by_date", [False, True])
def test_a_file_of_several_tickers_gives_each_of_them(tmp_path: Path, by_date: bool) -> None:
    frames = {"ZZJ": daily(seed=5), "ZZK": daily(380, seed=6), "ZZL": daily(seed=7)}
    rows = pd.concat([frame.assign(Name=ticker) for ticker, frame in frames.items()], ignore_index=True)
    if by_date:
        rows = rows.sort_values(["timestamps", "Name"], ignore_index=True)
    columns = {"date": dates(rows), **ohlcv(rows)}
    write(tmp_path / "all_stocks.csv", lines({**columns, "Name": list(rows["Name"])}))

    bars = read(tmp_path)

    assert list(bars) == list(frames)
    for ticker, frame in frames.items():
        assert_same_bars(bars[ticker].frame, frame)


# Jumps


def test_days_in_another_unit_of_money_are_named_and_can_be_dropped(tmp_path: Path) -> None:
    frame = daily()
    for name in ("open", "high", "low", "close"):
        frame.loc[[150, 151], name] = (frame.loc[[150, 151], name] / 100).round(4)
    write(tmp_path / "ZZO.L.csv", plain(frame))
    first, second = (f"{frame.loc[row, 'timestamps']:%Y-%m-%d}" for row in (150, 151))

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, first, second)
    dropped = read_one(tmp_path, drop_bad_rows="2")
    assert_same_bars(dropped.frame, frame.drop(index=[150, 151]))
    assert has_note(dropped, "left out", "152, 153")


def test_an_unadjusted_split_is_a_note_and_no_window_crosses_it(tmp_path: Path) -> None:
    frame = daily()
    for name in ("open", "high", "low", "close"):
        frame.loc[150:, name] = (frame.loc[150:, name] / 10).round(4)
    write(tmp_path / "ZZR.csv", plain(frame))
    recipe = Recipe(lookback=16, horizon=4, validation_days=20, selection_days=20)

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, f"{frame.loc[150, 'timestamps']:%Y-%m-%d}", "10:1")
    rows = build_windows(bars, recipe).rows
    assert not ((rows["start"] < 150) & (rows["end"] > 150)).any()
    rows_across_jumps = build_windows(bars, recipe.model_copy(update={"keep_jumps": True})).rows
    assert ((rows_across_jumps["start"] < 150) & (rows_across_jumps["end"] > 150)).any()


# A line too many


def test_a_line_of_text_at_the_end_is_a_note(tmp_path: Path) -> None:
    frame = daily()
    write(tmp_path / "ZZY.csv", [*plain(frame), "Data delayed by 15 minutes"])

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "402")


def test_a_repeated_row_and_two_swapped_rows_are_put_right(tmp_path: Path) -> None:
    frame = daily()
    text = plain(frame)
    text.insert(201, text[200])
    text[301], text[302] = text[302], text[301]
    write(tmp_path / "ZZZ.csv", text)

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "202")
    assert has_note(bars, "303") or has_note(bars, "sorted")


def test_a_row_that_repeats_a_time_with_other_values_is_refused(tmp_path: Path) -> None:
    text = plain(daily())
    text.insert(201, text[200].rpartition(",")[0] + ",1")
    write(tmp_path / "ZZZ.csv", text)

    problem = problem_of(tmp_path)

    assert ":202: Date: " in problem
    assert "201" in problem


# Volumes


def test_volumes_with_a_suffix_are_read(tmp_path: Path) -> None:
    frame = daily()
    frame["volume"] = (frame["volume"] / 10_000).round() * 10_000
    columns = {
        "Date": dates(frame),
        **pick(frame, close="Close", open="Open", high="High", low="Low"),
        "Volume": [f"{volume / 1e6:.2f}M" for volume in frame["volume"]],
    }
    write(tmp_path / "ZAC.csv", lines(columns))

    assert_same_bars(read_one(tmp_path).frame, frame)


def test_a_volume_called_vol_is_the_volume(tmp_path: Path) -> None:
    frame = daily()
    columns = {"Date": dates(frame), **pick(frame, close="Close", open="Open", high="High", low="Low", volume="Vol.")}
    write(tmp_path / "ZAD.csv", lines(columns))

    assert_same_bars(read_one(tmp_path).frame, frame)


# Further shapes


def test_columns_between_spaces_are_read(tmp_path: Path) -> None:
    frame = daily()
    text = lines({"Date": dates(frame), **ohlcv(frame, title=True)}, separator="  ")
    write(tmp_path / "AAPL.txt", text)

    bars = read_one(tmp_path)

    assert_same_bars(bars.frame, frame)
    assert has_note(bars, "separated by spaces")
