"""Rows on their way to bars: nothing is left out or changed without a note, and a refusal names the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from market_files import COLUMNS, NOW, SHARED, daily_frame, one_note, read_frame, refusal, write_frame

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bars import PRICES
from kronos_pipeline.data.ingest import read_folder
from kronos_pipeline.errors import SettingsError

# gaps


def test_rows_without_a_price_are_gaps_that_a_note_counts(tmp_path: Path) -> None:
    frame = daily_frame(100).astype(object)
    frame.loc[[10, 20], [*COLUMNS, "Volume"]] = ""
    frame.loc[30, COLUMNS], frame.loc[30, "Volume"] = "null", 0

    bars = read_frame(tmp_path, frame.astype(str))

    assert bars.content_hash == read_frame(tmp_path, daily_frame(100).drop(index=[10, 20, 30])).content_hash
    assert one_note(bars, "without a price") == "3 rows without a price left out: lines 12, 22, 32"


def test_a_row_with_volume_and_without_a_price_is_bad(tmp_path: Path) -> None:
    frame = daily_frame(100).astype(str)
    frame.loc[10, COLUMNS] = ""
    assert "ACME.csv:12: Open: has no value; --drop-bad-rows 1" in refusal(tmp_path, frame)


def test_a_gap_in_a_newest_first_file_is_named_by_its_line(tmp_path: Path) -> None:
    frame = daily_frame(100)[::-1].reset_index(drop=True).astype(str)
    frame.loc[10, [*COLUMNS, "Volume"]] = ""
    bars = read_frame(tmp_path, frame)
    assert one_note(bars, "without a price").endswith("left out: line 12")
    assert one_note(bars, "reversed") == "the file is newest first: reversed"


def test_a_file_of_gaps_alone_is_refused(tmp_path: Path) -> None:
    frame = daily_frame(5).assign(**dict.fromkeys(COLUMNS, "")).assign(Volume=0)
    assert refusal(tmp_path, frame) == "ACME.csv: no row has a price"


def test_an_empty_volume_of_a_row_with_prices_is_0_and_counted(tmp_path: Path) -> None:
    frame = daily_frame(100).astype({"Volume": object}).assign(Amount="7")
    frame.loc[[5, 6], "Volume"] = ""
    frame.loc[6, "Amount"] = ""

    bars = read_frame(tmp_path, frame)

    assert bars.frame.loc[[5, 6], "volume"].tolist() == [0, 0]
    assert bars.frame.loc[[5, 6], "amount"].tolist() == [7, 0]
    assert one_note(bars, "no volume in") == "no volume in 2 rows with prices, taken as 0: lines 7, 8"
    assert one_note(bars, "no amount in") == "no amount in 1 row with prices, taken as 0: line 8"


# order and repeats


def test_rows_out_of_order_are_sorted_and_repeats_are_read_once(tmp_path: Path) -> None:
    frame = daily_frame(100)
    rows = [*range(40), 42, 41, 40, *range(43, 100), 7, 7]

    bars = read_frame(tmp_path, frame.iloc[rows])

    assert bars.content_hash == read_frame(tmp_path, frame).content_hash
    assert one_note(bars, "sorted") == (
        "rows are sorted by time: 3 rows are earlier than the row before, lines 43, 44, 102"
    )
    assert one_note(bars, "exactly") == "2 rows repeat another row exactly and count once: lines 102, 103"


def test_a_row_with_the_time_of_another_and_other_values_is_refused_with_both_lines(tmp_path: Path) -> None:
    frame = daily_frame(50)
    rows = pd.concat([frame, frame.iloc[[3, 9, 3]].assign(Volume=1)])

    text = refusal(tmp_path, rows, drop_bad_rows="5")

    assert text == (
        "ACME.csv:52: Date: is the same time as in line 5, with other values in lines 52, 53 "
        "(found '2022-01-06'); keep one of the rows"
    )


def test_a_file_of_several_tickers_without_a_column_of_symbols_is_told_to_name_it(tmp_path: Path) -> None:
    rows = pd.concat([daily_frame(50), daily_frame(50, seed=1)])
    text = refusal(tmp_path, rows)
    assert "is the same time as in line 2, with other values in 50 lines, first in 52, 53, 54" in text
    assert text.endswith("--columns symbol=NAME")


def test_an_hour_that_clocks_repeat_is_told_to_need_an_offset(tmp_path: Path) -> None:
    times = pd.date_range("2024-10-20", periods=600, freq="h", tz="America/New_York")
    frame = daily_frame(600).assign(Date=times.tz_localize(None))
    text = refusal(tmp_path, frame)
    assert text.startswith(
        "ACME.csv:340: Date: is the same time as in line 339, with other values (found '2024-11-03 01:"
    )
    assert "if clocks were set back there, export the times in UTC or with their offset" in text


def test_a_shuffled_file_is_sorted_and_not_reversed(tmp_path: Path) -> None:
    frame = daily_frame(100)
    for seed in range(5):
        bars = read_frame(tmp_path, frame.sample(frac=1, random_state=seed))
        assert bars.content_hash == read_frame(tmp_path / "plain", frame).content_hash
        assert not [note for note in bars.notes if "reversed" in note]


def test_of_two_rows_of_one_time_the_bad_row_can_be_left_out(tmp_path: Path) -> None:
    frame = daily_frame(50)
    rows = pd.concat([frame, frame.iloc[[3]].assign(Close=-1)])
    bars = read_frame(tmp_path, rows, drop_bad_rows="1")
    assert bars.content_hash == read_frame(tmp_path, frame).content_hash


# ranges of bars


@pytest.mark.parametrize(("column", "factor"), [("High", 1 - 9e-7), ("Low", 1 + 9e-7)])
def test_a_range_that_misses_the_close_by_a_rounding_error_is_widened(
    tmp_path: Path, column: str, factor: float
) -> None:
    frame = daily_frame(100)
    extreme = frame[["Open", "Close"]].max(axis=1) if column == "High" else frame[["Open", "Close"]].min(axis=1)
    frame.loc[[4, 8], column] = extreme[[4, 8]] * factor

    bars = read_frame(tmp_path, frame)

    frame.loc[[4, 8], column] = extreme[[4, 8]]
    np.testing.assert_array_equal(bars.frame[list(PRICES)], frame[COLUMNS])
    assert one_note(bars, "widened") == (
        "high or low widened by less than 1e-06 in 2 rows to hold open and close: lines 6, 10"
    )


@pytest.mark.parametrize(("column", "factor"), [("High", 1 - 2e-6), ("Low", 1 + 2e-6)])
def test_a_range_that_misses_the_close_by_more_is_bad(tmp_path: Path, column: str, factor: float) -> None:
    frame = daily_frame(100)
    extreme = frame[["Open", "Close"]].max(axis=1) if column == "High" else frame[["Open", "Close"]].min(axis=1)
    frame.loc[4, column] = extreme[4] * factor
    assert refusal(tmp_path, frame).startswith(f"ACME.csv:6: {column}: is ")


# adjusted closes


def adjusted_frame() -> pd.DataFrame:
    frame = daily_frame(200)
    return frame.assign(**{"Adj Close": (frame["Close"] * np.where(frame.index < 120, 0.5, 1)).round(6)})


def test_adjusted_prices_are_scaled_by_the_adjusted_close(tmp_path: Path) -> None:
    frame = adjusted_frame()

    bars = read_frame(tmp_path, frame, adjusted=True)

    np.testing.assert_array_equal(bars.frame["close"], frame["Adj Close"])
    factor = frame["Adj Close"] / frame["Close"]
    for name in ("Open", "High", "Low"):
        np.testing.assert_allclose(bars.frame[name.lower()], frame[name] * factor, rtol=1e-12)
    np.testing.assert_array_equal(bars.frame["volume"], frame["Volume"])
    note = one_note(bars, "scaled by Adj Close / Close")
    assert "from 2022-01-03 on, by a factor of 2 at most; volume is as in the file" in note


def test_prices_that_differ_from_the_adjusted_close_are_said_to_be_unadjusted(tmp_path: Path) -> None:
    frame = adjusted_frame()
    bars = read_frame(tmp_path, frame)
    np.testing.assert_array_equal(bars.frame["close"], frame["Close"])
    assert one_note(bars, "unadjusted: ") == (
        "Close is unadjusted: Adj Close differs from it from 2022-01-03 on, by a factor of 2 at most; "
        "--adjusted scales the prices"
    )


def test_an_adjusted_close_that_is_the_close_is_no_note(tmp_path: Path) -> None:
    frame = daily_frame(200)
    assert read_frame(tmp_path, frame.assign(**{"Adj Close": frame["Close"] * (1 + 1e-9)})).notes == ()


def test_rounded_factors_put_no_close_out_of_its_range(tmp_path: Path) -> None:
    frame = daily_frame(500)
    frame["High"], frame["Low"] = frame[["Open", "Close"]].max(axis=1), frame[["Open", "Close"]].min(axis=1)
    frame["Adj Close"] = frame["Close"] * np.random.default_rng(1).uniform(0.1, 1, 500)
    bars = read_frame(tmp_path, frame, adjusted=True)
    assert not [note for note in bars.notes if "widened" in note]


@pytest.mark.parametrize(("cell", "rule"), [("", "has no value"), ("0", "must be above 0"), ("?", "must be a number")])
def test_a_bad_adjusted_close_is_a_bad_row_where_it_is_used(tmp_path: Path, cell: str, rule: str) -> None:
    frame = adjusted_frame().astype({"Adj Close": str})
    frame.loc[30, "Adj Close"] = cell
    assert refusal(tmp_path, frame, adjusted=True).startswith(f"ACME.csv:32: Adj Close: {rule}")
    assert len(read_frame(tmp_path, frame, adjusted=True, drop_bad_rows="1")) == 199
    assert len(read_frame(tmp_path, frame)) == 200


def test_a_ticker_without_adjusted_closes_is_a_note_and_a_folder_without_any_an_error(tmp_path: Path) -> None:
    write_frame(tmp_path, "A", daily_frame(50))
    adjusted = ReadingSettings(adjusted=True)
    with pytest.raises(SettingsError, match="no CSV has a column Adj Close"):
        read_folder(tmp_path, adjusted, now=NOW)
    write_frame(tmp_path, "B", adjusted_frame())
    bars, errors = read_folder(tmp_path, adjusted, now=NOW)
    assert errors == {}
    assert bars["A"].notes == ("no column Adj Close: --adjusted changes nothing",)


@pytest.mark.slow
@SHARED
@given(st.data())
def test_bars_come_back_whatever_gaps_repeats_and_order_their_rows_have(tmp_path: Path, data: st.DataObject) -> None:
    bars = data.draw(st.integers(3, 60))
    frame = daily_frame(bars, seed=data.draw(st.integers(0, 9)))
    rows = list(range(bars)) + data.draw(st.lists(st.integers(0, bars - 1), max_size=5))
    order = data.draw(st.sampled_from(["as they are", "newest first", "shuffled"]))
    if order == "shuffled":
        rows = data.draw(st.permutations(rows))
    texts = frame.iloc[rows[::-1] if order == "newest first" else rows].astype(str).reset_index(drop=True)
    gaps = data.draw(st.lists(st.integers(0, len(texts)), max_size=4))
    for gap, row in enumerate(sorted(gaps)):
        day = f"{pd.Timestamp('2024-06-03') + pd.Timedelta(days=gap):%Y-%m-%d}"
        empty = pd.DataFrame([[day, "", "", "", "", ""]], columns=texts.columns)
        texts = pd.concat([texts.iloc[: row + gap], empty, texts.iloc[row + gap :]])

    parsed = read_frame(tmp_path, texts)

    assert parsed.content_hash == read_frame(tmp_path / "plain", frame).content_hash
    repeats = len(rows) - bars
    assert any(note.startswith(f"{repeats} row") and "exactly" in note for note in parsed.notes) == (repeats > 0)
    assert any(note.startswith(f"{len(gaps)} row") and "a price" in note for note in parsed.notes) == bool(gaps)
