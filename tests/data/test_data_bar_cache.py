"""Stored bars of an unchanged CSV are reused; any other change reads the CSV again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from market_files import NOW, daily_frame, write_frame
from small_trainings import SMALL

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import KronosTrainingConfig, ReadingSettings
from kronos_pipeline.data import bars as bars_module
from kronos_pipeline.data.bar_cache import read_files_cached
from kronos_pipeline.data.bars import Bars, load_bars, make_bars, save_bars
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.ingest import read_bars
from kronos_pipeline.data.windows import load_windows
from kronos_pipeline.errors import DataError
from kronos_pipeline.pipeline.ingest import Tickers, read_tickers


@pytest.fixture
def layout(tmp_path: Path) -> ArtifactLayout:
    return ArtifactLayout(tmp_path / "out")


@pytest.fixture
def file(tmp_path: Path, layout: ArtifactLayout) -> CsvFile:
    """Return a CSV whose bars are stored."""
    file = write_frame(tmp_path / "data", "ACME", daily_frame(50))
    save_bars(layout.bars("ACME"), read_bars(file, now=NOW))
    return file


def read(file: CsvFile, layout: ArtifactLayout, now: pd.Timestamp = NOW) -> tuple[Bars, bool]:
    """Return the bars of a valid ticker, and whether its file counted as unchanged."""
    good, bad, unchanged = read_files_cached([file], layout.bars, now=now)
    assert not bad
    return good["ACME"], "ACME" in unchanged


def test_the_stored_bars_are_those_of_the_file(file: CsvFile, layout: ArtifactLayout) -> None:
    stored, unchanged = read(file, layout)
    read_anew = read_bars(file, now=NOW)

    assert unchanged
    pd.testing.assert_frame_equal(stored.frame, read_anew.frame)
    no_frame: Any = None
    assert replace(stored, frame=no_frame) == replace(read_anew, frame=no_frame)


def test_an_unchanged_file_is_not_read_though_it_was_touched(file: CsvFile, layout: ArtifactLayout) -> None:
    other = read_bars(file, now=NOW).frame.assign(volume=7.0)
    marked = make_bars("ACME", other, source=file.name, csv_key=load_bars(layout.bars("ACME")).csv_key)
    save_bars(layout.bars("ACME"), marked)
    os.utime(file.path, (1_700_000_000, 1_700_000_000))

    bars, unchanged = read(file, layout)

    assert unchanged
    assert (bars.frame["volume"] == 7).all()


def test_a_file_with_one_bar_more_is_read(file: CsvFile, layout: ArtifactLayout) -> None:
    write_frame(file.path.parent, "ACME", daily_frame(51))
    bars, unchanged = read(file, layout)
    assert (len(bars), unchanged) == (51, False)


@pytest.mark.parametrize(
    "settings",
    [
        {"columns": ["close=Open"]},
        {"adjusted": True},
        {"drop_bad_rows": "1"},
        {"from_date": ["2020-01-01"]},
        {"keep_forming": True},
    ],
)
def test_a_file_is_read_again_with_other_settings(
    file: CsvFile, layout: ArtifactLayout, settings: dict[str, Any]
) -> None:
    changed = ReadingSettings.model_validate(settings)
    assert not read_files_cached([file], layout.bars, changed, now=NOW)[2]
    assert read_files_cached([file], layout.bars, now=NOW)[2] == {"ACME"}


def test_a_file_that_was_moved_is_read_so_that_messages_name_it(file: CsvFile, layout: ArtifactLayout) -> None:
    moved_file = CsvFile("ACME", file.path.rename(file.path.parent.parent / "ACME.csv"))
    bars, unchanged = read(moved_file, layout)
    assert (bars.source, unchanged) == (moved_file.name, False)


@pytest.mark.parametrize("damage", ["other bars", "half a file", "no parquet"])
def test_damaged_bars_are_made_anew(file: CsvFile, layout: ArtifactLayout, damage: str) -> None:
    path = layout.bars("ACME")
    content = path.read_bytes()
    if damage == "other bars":
        bars = load_bars(path)
        save_bars(path, replace(bars, frame=bars.frame.assign(close=1.0)))
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "half a file" else b"damaged")

    bars_read, unchanged = read(file, layout)

    assert not unchanged
    assert bars_read.content_hash == read_bars(file, now=NOW).content_hash


def test_bars_that_another_version_of_the_code_read_are_made_anew(
    file: CsvFile, layout: ArtifactLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars_module, "layers_version", lambda *_: "another")
    assert not read(file, layout)[1]


def test_a_file_that_has_become_bad_is_told_though_good_bars_are_stored(file: CsvFile, layout: ArtifactLayout) -> None:
    write_frame(file.path.parent, "ACME", daily_frame(50).assign(Close="?"))
    good, bad, unchanged = read_files_cached([file], layout.bars)
    assert (good, list(bad), unchanged) == ({}, ["ACME"], set())


def test_a_file_that_is_gone_is_told_though_its_bars_are_stored(file: CsvFile, layout: ArtifactLayout) -> None:
    file.path.unlink()
    _, bad, _ = read_files_cached([file], layout.bars)
    assert "cannot be read" in str(bad["ACME"])


def test_a_last_bar_that_was_left_out_while_it_formed_is_read_when_it_is_over(
    tmp_path: Path, layout: ArtifactLayout
) -> None:
    frame = daily_frame(50)
    last = frame["Date"].iloc[-1].tz_localize("UTC")
    frame["Date"] = frame["Date"].dt.strftime("%Y-%m-%d 00:00:00+00:00")
    file = write_frame(tmp_path / "data", "ACME", frame)
    early, _ = read(file, layout, now=last + pd.Timedelta(hours=12))
    save_bars(layout.bars("ACME"), early)

    late, unchanged = read(file, layout, now=last + pd.Timedelta(days=2))

    assert "is still forming and is left out" in early.notes[-1]
    assert (len(early), len(late)) == (49, 50)
    assert (late.notes, unchanged) == ((), False)
    save_bars(layout.bars("ACME"), late)
    assert read(file, layout, now=last + pd.Timedelta(days=2))[1]


def run(data: Path, layout: ArtifactLayout, **settings: object) -> Tickers:
    config = KronosTrainingConfig(
        **{**SMALL, "model_name": "kronos-nano", **settings}, data_dir=str(data), output_dir=str(layout.root)
    )
    return read_tickers(config, layout)


def test_the_command_says_that_a_lookback_is_cut(
    tmp_path: Path, layout: ArtifactLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    write_frame(tmp_path / "data", "A", daily_frame(50))
    with pytest.raises(DataError, match="--horizon 500"):
        run(tmp_path / "data", layout, horizon=500)
    assert "--lookback 16 is cut to 11 bars" in capsys.readouterr().out


def test_the_command_says_how_many_were_unchanged_and_leaves_their_bars_as_they_are(
    tmp_path: Path, layout: ArtifactLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for ticker in ("A", "B", "C"):
        write_frame(data, ticker, daily_frame(150))
    first = run(data, layout)
    first_output = capsys.readouterr().out
    inodes = {ticker: layout.bars(ticker).stat().st_ino for ticker in first.windows}
    write_frame(data, "B", daily_frame(151))

    second = run(data, layout, horizon=6)

    second_output = capsys.readouterr().out
    assert "not changed" not in first_output
    assert second_output.startswith("2 of 3 CSVs are as they were when they were last read\n")
    assert len(second.windows["B"].bars) == 151
    assert {ticker for ticker in inodes if layout.bars(ticker).stat().st_ino != inodes[ticker]} == {"B"}
    for ticker, windows in second.windows.items():
        stored = load_windows(layout.windows(ticker), load_bars(layout.bars(ticker)))
        assert stored.horizon == 6
        assert stored.training_hash == windows.training_hash


def test_a_bad_file_among_unchanged_ones_is_told_each_time(
    tmp_path: Path, layout: ArtifactLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_frame(data, "A", daily_frame(150))
    write_frame(data, "BAD", daily_frame(150).assign(Close="?"))
    for _ in range(2):
        assert list(run(data, layout).skipped) == ["BAD"]
        assert "BAD: skipped" in capsys.readouterr().err
    (data / "A.csv").unlink()
    with pytest.raises(DataError, match=r"BAD\.csv:2"):
        run(data, layout)
