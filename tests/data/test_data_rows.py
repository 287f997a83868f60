"""Rows on their way to bars: nothing is left out or changed without a note, and a refusal names the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from market_files import NOW, daily_frame, write_frame, write_lines

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bad_rows import in_another_unit
from kronos_pipeline.data.bar_cache import read_files_cached
from kronos_pipeline.data.bars import PRICES, Bars, save_bars
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.ingest import read_bars, read_files, read_folder
from kronos_pipeline.errors import DataError, SettingsError

COLUMNS = ["Open", "High", "Low", "Close"]
FORMATS = ("%Y-%m-%d", "%d.%m.%Y", "%Y%m%d", "%d-%b-%Y")
SHARED = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(SHARED, max_examples=10)


def read(folder: Path, frame: pd.DataFrame, ticker: str = "ACME", **options: Any) -> Bars:
    return read_bars(write_frame(folder, ticker, frame), ReadingSettings(**options), now=NOW)


def refusal(folder: Path, frame: pd.DataFrame, **options: Any) -> str:
    """The problems of a frame, without the folder's name."""
    with pytest.raises(DataError) as caught:
        read(folder, frame, **options)
    return str(caught.value).replace(f"{folder}/", "")


def one_note(bars: Bars, *parts: str) -> str:
    [note] = [note for note in bars.notes if all(word in note for word in parts)]
    return note


# gaps


def test_rows_without_a_price_are_gaps_that_a_note_counts(tmp_path: Path) -> None:
    frame = daily_frame(100).astype(object)
    frame.loc[[10, 20], [*COLUMNS, "Volume"]] = ""
    frame.loc[30, COLUMNS], frame.loc[30, "Volume"] = "null", 0

    bars = read(tmp_path, frame.astype(str))

    assert bars.content_hash == read(tmp_path, daily_frame(100).drop(index=[10, 20, 30])).content_hash
    assert one_note(bars, "without a price") == "3 rows without a price left out: lines 12, 22, 32"


def test_a_row_with_volume_and_without_a_price_is_bad(tmp_path: Path) -> None:
    frame = daily_frame(100).astype(str)
    frame.loc[10, COLUMNS] = ""
    assert "ACME.csv:12: Open: has no value; --drop-bad-rows 1" in refusal(tmp_path, frame)


def test_a_gap_in_a_newest_first_file_is_named_by_its_line(tmp_path: Path) -> None:
    frame = daily_frame(100)[::-1].reset_index(drop=True).astype(str)
    frame.loc[10, [*COLUMNS, "Volume"]] = ""
    bars = read(tmp_path, frame)
    assert one_note(bars, "without a price").endswith("left out: line 12")
    assert one_note(bars, "reversed") == "the file is newest first: reversed"


def test_a_file_of_gaps_alone_is_refused(tmp_path: Path) -> None:
    frame = daily_frame(5).assign(**dict.fromkeys(COLUMNS, "")).assign(Volume=0)
    assert refusal(tmp_path, frame) == "ACME.csv: no row has a price"


def test_an_empty_volume_of_a_row_with_prices_is_0_and_counted(tmp_path: Path) -> None:
    frame = daily_frame(100).astype({"Volume": object}).assign(Amount="7")
    frame.loc[[5, 6], "Volume"] = ""
    frame.loc[6, "Amount"] = ""

    bars = read(tmp_path, frame)

    assert bars.frame.loc[[5, 6], "volume"].tolist() == [0, 0]
    assert bars.frame.loc[[5, 6], "amount"].tolist() == [7, 0]
    assert one_note(bars, "no volume in") == "no volume in 2 rows with prices, taken as 0: lines 7, 8"
    assert one_note(bars, "no amount in") == "no amount in 1 row with prices, taken as 0: line 8"


# order and repeats


def test_rows_out_of_order_are_sorted_and_repeats_are_read_once(tmp_path: Path) -> None:
    frame = daily_frame(100)
    rows = [*range(40), 42, 41, 40, *range(43, 100), 7, 7]

    bars = read(tmp_path, frame.iloc[rows])

    assert bars.content_hash == read(tmp_path, frame).content_hash
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
        bars = read(tmp_path, frame.sample(frac=1, random_state=seed))
        assert bars.content_hash == read(tmp_path / "plain", frame).content_hash
        assert not [note for note in bars.notes if "reversed" in note]


def test_of_two_rows_of_one_time_the_bad_row_can_be_left_out(tmp_path: Path) -> None:
    frame = daily_frame(50)
    rows = pd.concat([frame, frame.iloc[[3]].assign(Close=-1)])
    bars = read(tmp_path, rows, drop_bad_rows="1")
    assert bars.content_hash == read(tmp_path, frame).content_hash


# ranges of bars


@pytest.mark.parametrize(("column", "factor"), [("High", 1 - 9e-7), ("Low", 1 + 9e-7)])
def test_a_range_that_misses_the_close_by_a_rounding_error_is_widened(
    tmp_path: Path, column: str, factor: float
) -> None:
    frame = daily_frame(100)
    extreme = frame[["Open", "Close"]].max(axis=1) if column == "High" else frame[["Open", "Close"]].min(axis=1)
    frame.loc[[4, 8], column] = extreme[[4, 8]] * factor

    bars = read(tmp_path, frame)

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


# bad rows


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["0", "-1", "", "x", "inf"])
@pytest.mark.parametrize("limit", ["2", "2%", "2.5%"])
def test_bad_rows_are_left_out_as_many_as_are_allowed_and_named(tmp_path: Path, cell: str, limit: str) -> None:
    frame = daily_frame(100).astype(str)
    frame.loc[[50, 70], "Close"] = cell

    bars = read(tmp_path, frame, drop_bad_rows=limit)

    assert bars.content_hash == read(tmp_path, daily_frame(100).drop(index=[50, 70])).content_hash
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
    [note] = read(tmp_path, frame, drop_bad_rows="1").notes
    assert note == "1 bad row left out by --drop-bad-rows 1: line 32 (Open must be a number)"


def test_a_row_with_a_bad_time_can_be_left_out(tmp_path: Path) -> None:
    frame = daily_frame(100).astype({"Date": str})
    frame.loc[30, "Date"] = "someday"
    bars = read(tmp_path, frame, drop_bad_rows="1")
    assert bars.content_hash == read(tmp_path, daily_frame(100).drop(index=30)).content_hash
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

    noted, left_out = read(tmp_path, frame), read(tmp_path, frame, drop_bad_rows="2")

    assert len(noted) == 300
    assert one_note(noted, "pence").endswith(": 2022-08-01, 2022-08-03; --drop-bad-rows 2 leaves such bars out")
    assert left_out.content_hash == read(tmp_path, daily_frame(300).drop(index=[150, 152])).content_hash
    assert "lines 152, 154" in one_note(left_out, "2 bad rows left out", "2022-08-01, 2022-08-03")


def test_bars_in_another_unit_are_no_reason_to_refuse(tmp_path: Path) -> None:
    frame = pence(100, [150, 152])
    frame.loc[200, "Close"] = 0

    bars = read(tmp_path, frame, drop_bad_rows="2")

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
        bars = read(tmp_path, frame, from_date=[option])
        assert bars.content_hash == read(tmp_path, daily_frame(300).loc[100:]).content_hash
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
    assert len(read(tmp_path, frame, from_date=["2022-01-05"])) == 300 - 48


def test_rows_that_may_be_left_out_may_follow_a_bad_beginning(tmp_path: Path) -> None:
    frame = daily_frame(300)
    frame.loc[[*range(100), 250], "Open"] = 0
    day = f"{frame['Date'][100]:%Y-%m-%d}"
    assert f"all but 1 row from {day} on are good: read them with --from {day}," in refusal(
        tmp_path, frame, drop_bad_rows="1"
    )
    assert len(read(tmp_path, frame, drop_bad_rows="1", from_date=[day])) == 199


def test_bad_rows_elsewhere_are_no_bad_beginning(tmp_path: Path) -> None:
    frame = daily_frame(300)
    frame.loc[[*range(20), 250], "Open"] = 0
    assert "--from" not in refusal(tmp_path, frame)


def test_a_date_is_for_all_tickers_or_for_one(tmp_path: Path) -> None:
    frame = daily_frame(100)
    options = ["2022-02-01", "OTHER=2022-03-01"]
    assert len(read(tmp_path, frame, from_date=options)) == (frame["Date"] >= "2022-02-01").sum()
    assert len(read(tmp_path, frame, "OTHER", from_date=options)) == (frame["Date"] >= "2022-03-01").sum()


def test_a_date_after_the_last_bar_is_refused(tmp_path: Path) -> None:
    assert "no row with a price from 2030-01-01 on" in refusal(tmp_path, daily_frame(100), from_date=["2030-01-01"])


# adjusted closes


def adjusted_frame() -> pd.DataFrame:
    frame = daily_frame(200)
    return frame.assign(**{"Adj Close": (frame["Close"] * np.where(frame.index < 120, 0.5, 1)).round(6)})


def test_adjusted_prices_are_scaled_by_the_adjusted_close(tmp_path: Path) -> None:
    frame = adjusted_frame()

    bars = read(tmp_path, frame, adjusted=True)

    np.testing.assert_array_equal(bars.frame["close"], frame["Adj Close"])
    factor = frame["Adj Close"] / frame["Close"]
    for name in ("Open", "High", "Low"):
        np.testing.assert_allclose(bars.frame[name.lower()], frame[name] * factor, rtol=1e-12)
    np.testing.assert_array_equal(bars.frame["volume"], frame["Volume"])
    note = one_note(bars, "scaled by Adj Close / Close")
    assert "from 2022-01-03 on, by a factor of 2 at most; volume is as in the file" in note


def test_prices_that_differ_from_the_adjusted_close_are_said_to_be_unadjusted(tmp_path: Path) -> None:
    frame = adjusted_frame()
    bars = read(tmp_path, frame)
    np.testing.assert_array_equal(bars.frame["close"], frame["Close"])
    assert one_note(bars, "unadjusted: ") == (
        "Close is unadjusted: Adj Close differs from it from 2022-01-03 on, by a factor of 2 at most; "
        "--adjusted scales the prices"
    )


def test_an_adjusted_close_that_is_the_close_is_no_note(tmp_path: Path) -> None:
    frame = daily_frame(200)
    assert read(tmp_path, frame.assign(**{"Adj Close": frame["Close"] * (1 + 1e-9)})).notes == ()


def test_rounded_factors_put_no_close_out_of_its_range(tmp_path: Path) -> None:
    frame = daily_frame(500)
    frame["High"], frame["Low"] = frame[["Open", "Close"]].max(axis=1), frame[["Open", "Close"]].min(axis=1)
    frame["Adj Close"] = frame["Close"] * np.random.default_rng(1).uniform(0.1, 1, 500)
    bars = read(tmp_path, frame, adjusted=True)
    assert not [note for note in bars.notes if "widened" in note]


@pytest.mark.parametrize(("cell", "rule"), [("", "has no value"), ("0", "must be above 0"), ("?", "must be a number")])
def test_a_bad_adjusted_close_is_a_bad_row_where_it_is_used(tmp_path: Path, cell: str, rule: str) -> None:
    frame = adjusted_frame().astype({"Adj Close": str})
    frame.loc[30, "Adj Close"] = cell
    assert refusal(tmp_path, frame, adjusted=True).startswith(f"ACME.csv:32: Adj Close: {rule}")
    assert len(read(tmp_path, frame, adjusted=True, drop_bad_rows="1")) == 199
    assert len(read(tmp_path, frame)) == 200


def test_a_ticker_without_adjusted_closes_is_a_note_and_a_folder_without_any_an_error(tmp_path: Path) -> None:
    write_frame(tmp_path, "A", daily_frame(50))
    adjusted = ReadingSettings(adjusted=True)
    with pytest.raises(SettingsError, match="no CSV has a column Adj Close"):
        read_folder(tmp_path, adjusted, now=NOW)
    write_frame(tmp_path, "B", adjusted_frame())
    bars, errors = read_folder(tmp_path, adjusted, now=NOW)
    assert errors == {}
    assert bars["A"].notes == ("no column Adj Close: --adjusted changes nothing",)


# several files of a ticker


def two_files(folder: Path, first: pd.DataFrame, second: pd.DataFrame, **options: Any) -> Bars:
    """The bars of a ticker of two files, the second of another dialect."""
    file = write_frame(folder, "A", first)
    further = folder / "B.csv"
    second.to_csv(further, index=False, sep=";")
    ticker = CsvFile("ACME", file.path, (further,))
    return read_bars(ticker, ReadingSettings(**options), now=NOW)


def test_files_of_a_ticker_are_joined_each_with_its_dialect(tmp_path: Path) -> None:
    frame = daily_frame(100)
    second = frame.loc[60:].rename(columns=str.lower)[::-1]

    bars = two_files(tmp_path, frame.loc[:59], second)

    assert bars.content_hash == read(tmp_path, frame).content_hash
    assert one_note(bars, "newest first") == "B.csv: the file is newest first: reversed"


def test_bars_that_two_files_have_alike_are_read_once(tmp_path: Path) -> None:
    frame = daily_frame(100)
    bars = two_files(tmp_path, frame.loc[:60], frame.loc[58:])
    assert bars.content_hash == read(tmp_path, frame).content_hash
    assert one_note(bars, "exactly").endswith(
        f"count once: {', '.join(f'{tmp_path}/B.csv:{line}' for line in (2, 3, 4))}"
    )


def test_bars_that_two_files_have_otherwise_are_refused_with_both_files_and_lines(tmp_path: Path) -> None:
    frame = daily_frame(100)
    with pytest.raises(DataError) as caught:
        two_files(tmp_path, frame.loc[:60], frame.loc[58:].assign(Volume=1))
    [problem] = caught.value.problems
    assert str(problem).startswith(
        f"{tmp_path}/B.csv:2: Date: is the same time as in {tmp_path}/A.csv:60, with other values in lines 2, 3, 4"
    )


def test_bad_rows_of_several_files_are_named_with_their_file(tmp_path: Path) -> None:
    frame = daily_frame(100)
    frame.loc[[10, 70, 71], "Close"] = 0
    first, second = frame.loc[:59], frame.loc[60:]
    with pytest.raises(DataError) as caught:
        two_files(tmp_path, first, second)
    assert [(problem.file, problem.line, problem.count) for problem in caught.value.problems] == [
        (f"{tmp_path}/A.csv", 12, 1),
        (f"{tmp_path}/B.csv", 12, 2),
    ]
    bars = two_files(tmp_path, first, second, drop_bad_rows="3")
    assert f"{tmp_path}/A.csv:12; {tmp_path}/B.csv:12, 13 (Close" in one_note(bars, "3 bad rows left out")


def test_files_before_and_after_a_change_of_clocks_are_one_zone(tmp_path: Path) -> None:
    times = pd.date_range("2024-02-01", periods=100, freq="B", tz="America/New_York")
    frame = daily_frame(100).assign(Date=[time.isoformat() for time in times])
    summer = times.tz_convert("UTC").hour == 4
    bars = two_files(tmp_path, frame[~summer], frame[summer])
    assert bars.time_zone == "UTC-05:00/UTC-04:00"
    assert list(bars.frame["timestamps"]) == list(times.tz_localize(None))


def test_a_file_that_cannot_tell_days_from_months_is_read_as_the_other_files_are(tmp_path: Path) -> None:
    times = pd.to_datetime(["2024-01-02", "2024-01-15", "2024-02-03", "2024-03-02"])
    frame = daily_frame(4).assign(Date=times.strftime("%d/%m/%Y"))
    bars = two_files(tmp_path, frame.loc[:1], frame.loc[2:])
    assert list(bars.frame["timestamps"]) == list(times)


def test_files_with_and_without_a_zone_are_refused(tmp_path: Path) -> None:
    frame = daily_frame(10)
    zoned = frame.assign(Date=frame["Date"].dt.strftime("%Y-%m-%d 00:00:00+09:00"))
    with pytest.raises(DataError, match="time zone"):
        two_files(tmp_path, frame.loc[:5], zoned.loc[6:])


def test_an_amount_that_one_file_has_is_kept_and_derived_for_the_other(tmp_path: Path) -> None:
    frame = daily_frame(20)
    bars = two_files(tmp_path, frame.loc[:9].assign(Amount=7), frame.loc[10:]).frame
    assert (bars["amount"][:10] == 7).all()
    np.testing.assert_allclose(bars["amount"][10:], (bars["volume"] * bars[list(PRICES)].mean(axis=1))[10:])


# a file of several tickers


@pytest.fixture
def market(tmp_path: Path) -> tuple[dict[str, pd.DataFrame], list[CsvFile]]:
    """Frames of three tickers, and the file of all of them, by date."""
    frames = {name: daily_frame(60, seed=seed) for seed, name in enumerate(("AA", "BB", "CC"))}
    rows = pd.concat([frame.assign(Name=name) for name, frame in frames.items()]).sort_values("Date", kind="stable")
    path = write_frame(tmp_path, "market", rows).path
    return frames, [CsvFile(name, path, symbol=name) for name in frames]


def record_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths of the CSVs that are read from now on."""
    paths: list[Path] = []
    plainly = Path.read_bytes

    def recording(path: Path) -> bytes:
        paths.append(path)
        return plainly(path)

    monkeypatch.setattr(Path, "read_bytes", recording)
    return paths


def test_a_file_of_several_tickers_is_split_once_for_all_of_them(
    market: tuple[dict[str, pd.DataFrame], list[CsvFile]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, files = market
    read_paths = record_reads(monkeypatch)

    bars, errors = read_files(files, now=NOW)

    assert (read_paths, errors) == ([files[0].path], {})
    for name, frame in frames.items():
        assert bars[name].content_hash == read(tmp_path, frame, name).content_hash


def test_a_bad_row_in_a_file_of_several_tickers_is_of_its_ticker_and_line(tmp_path: Path) -> None:
    lines = [f"2024-01-{day:02},10,12,9,11,{name}" for day in (2, 3, 4) for name in ("AA", "BB")]
    lines[3] = lines[3].replace("10,12", "10,1")
    path = write_lines(tmp_path, "market", *lines, header="Date,Open,High,Low,Close,Symbol").path
    files = [CsvFile(name, path, symbol=name) for name in ("AA", "BB", "DD")]

    bars, errors = read_files(files, now=NOW)

    assert list(bars) == ["AA"]
    assert f"{path}:5: High: is below" in str(errors["BB"])
    assert "no row of the symbol DD" in str(errors["DD"])


def test_a_problem_of_a_file_of_several_tickers_is_the_same_for_each_and_told_once(tmp_path: Path) -> None:
    lines = [f"2024-01-{day:02},10,12,9,11,{name}" for day in (2, 3, 4) for name in ("AA", "BB")]
    path = write_lines(tmp_path, "market", *lines, "2024-01-05,1", header="Date,Open,High,Low,Close,Symbol").path

    _, errors = read_files([CsvFile(name, path, symbol=name) for name in ("AA", "BB")], now=NOW)

    assert {name: error.ticker for name, error in errors.items()} == {"AA": "AA", "BB": "BB"}
    joined = DataError([problem for error in errors.values() for problem in error.problems])
    assert joined.problems == errors["AA"].problems == errors["BB"].problems


def test_a_file_of_several_tickers_is_read_once_for_its_hash(
    market: tuple[dict[str, pd.DataFrame], list[CsvFile]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, files = market
    layout = ArtifactLayout(tmp_path / "out")
    for ticker, bars in read_files(files, now=NOW)[0].items():
        save_bars(layout.bars(ticker), bars)
    read_paths = record_reads(monkeypatch)

    assert read_files_cached(files, layout.bars, now=NOW)[2] == {"AA", "BB", "CC"}
    assert read_paths == [files[0].path]


# anything that people do to rows


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

    parsed = read(tmp_path, texts)

    assert parsed.content_hash == read(tmp_path / "plain", frame).content_hash
    repeats = len(rows) - bars
    assert any(note.startswith(f"{repeats} row") and "exactly" in note for note in parsed.notes) == (repeats > 0)
    assert any(note.startswith(f"{len(gaps)} row") and "a price" in note for note in parsed.notes) == bool(gaps)


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

    bars = read(tmp_path, texts, drop_bad_rows=str(len(bad)))

    assert bars.content_hash == read(tmp_path / "plain", frame.drop(index=bad)).content_hash
    assert one_note(bars, "left out").startswith(f"{len(bad)} bad row")
    with pytest.raises(DataError):
        read(tmp_path, texts, drop_bad_rows=str(len(bad) - 1))


@FEW
@given(st.data())
def test_bars_come_back_from_files_of_any_part_of_them_in_any_dialect(tmp_path: Path, data: st.DataObject) -> None:
    bars = data.draw(st.integers(20, 80))
    frame = daily_frame(bars, seed=data.draw(st.integers(0, 9)))
    cuts = sorted(data.draw(st.lists(st.integers(3, bars - 3), min_size=1, max_size=3, unique=True)))
    paths = []
    overlap = 0
    for number, (first, last) in enumerate(zip([0, *cuts], [*cuts, bars], strict=True)):
        before = data.draw(st.integers(0, min(first, 3)))
        overlap += before
        part = frame.iloc[first - before : last]
        path = tmp_path / f"part-{number}.csv"
        (part[::-1] if data.draw(st.booleans()) else part).to_csv(
            path, index=False, sep=data.draw(st.sampled_from(",;\t")), date_format=data.draw(st.sampled_from(FORMATS))
        )
        paths.append(path)

    joined = read_bars(CsvFile("ACME", paths[0], tuple(paths[1:])), now=NOW)

    assert joined.content_hash == read(tmp_path / "plain", frame).content_hash
    assert any(note.startswith(f"{overlap} row") and "exactly" in note for note in joined.notes) == (overlap > 0)
