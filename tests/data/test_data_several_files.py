"""Several files of a ticker, and a file of several tickers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_files import NOW, SHARED, daily_frame, one_note, read_frame, write_frame, write_lines

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data import csv_content
from kronos_pipeline.data.bar_cache import read_files_cached
from kronos_pipeline.data.bars import PRICES, Bars, save_bars
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.ingest import read_bars, read_files
from kronos_pipeline.errors import DataError

FORMATS = ("%Y-%m-%d", "%d.%m.%Y", "%Y%m%d", "%d-%b-%Y")
FEW = settings(SHARED, max_examples=10)

# several files of a ticker


def two_files(folder: Path, first: pd.DataFrame, second: pd.DataFrame, **options: Any) -> Bars:
    """Return the bars of a ticker of two files, the second in another dialect."""
    file = write_frame(folder, "A", first)
    further = folder / "B.csv"
    second.to_csv(further, index=False, sep=";")
    ticker = CsvFile("ACME", file.path, (further,))
    return read_bars(ticker, ReadingSettings(**options), now=NOW)


def test_files_of_a_ticker_are_joined_each_with_its_dialect(tmp_path: Path) -> None:
    frame = daily_frame(100)
    second = frame.loc[60:].rename(columns=str.lower)[::-1]

    bars = two_files(tmp_path, frame.loc[:59], second)

    assert bars.content_hash == read_frame(tmp_path, frame).content_hash
    assert one_note(bars, "newest first") == "B.csv: the file is newest first: reversed"


def test_bars_that_two_files_have_alike_are_read_once(tmp_path: Path) -> None:
    frame = daily_frame(100)
    bars = two_files(tmp_path, frame.loc[:60], frame.loc[58:])
    assert bars.content_hash == read_frame(tmp_path, frame).content_hash
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
    """Record the paths of the CSVs that are read."""
    paths: list[Path] = []
    plainly = csv_content.open_regular

    def recording(path: Path) -> AbstractContextManager[BinaryIO]:
        paths.append(path)
        return plainly(path)

    monkeypatch.setattr(csv_content, "open_regular", recording)
    return paths


def test_a_file_of_several_tickers_is_split_once_for_all_of_them(
    market: tuple[dict[str, pd.DataFrame], list[CsvFile]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, files = market
    read_paths = record_reads(monkeypatch)

    bars, errors = read_files(files, now=NOW)

    assert (read_paths, errors) == ([files[0].path], {})
    for name, frame in frames.items():
        assert bars[name].content_hash == read_frame(tmp_path, frame, name).content_hash


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


@pytest.mark.slow
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

    assert joined.content_hash == read_frame(tmp_path / "plain", frame).content_hash
    assert any(note.startswith(f"{overlap} row") and "exactly" in note for note in joined.notes) == (overlap > 0)
