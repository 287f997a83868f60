"""A CSV that is cut off or rewritten is refused; what sources do to their files is taken, with a note."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from market_files import COLUMNS, NOW, SHARED, daily_frame, write_frame
from small_trainings import SMALL

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.cli import main
from kronos_pipeline.config import KronosTrainingConfig, ReadingSettings
from kronos_pipeline.data import csv_content
from kronos_pipeline.data.bar_cache import read_files_cached
from kronos_pipeline.data.bars import Bars, load_bars, save_bars
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.ingest import read_bars, read_files
from kronos_pipeline.errors import DataError
from kronos_pipeline.pipeline.ingest import read_tickers

BARS = daily_frame(400)


@pytest.fixture
def layout(tmp_path: Path) -> ArtifactLayout:
    return ArtifactLayout(tmp_path / "out")


def read_after(
    layout: ArtifactLayout, now: pd.DataFrame, before: pd.DataFrame = BARS, **options: Any
) -> tuple[Bars | None, str]:
    """Store the bars of a frame, then read another frame of the ticker; return the bars and the refusal."""
    data = layout.root.parent / "data"
    save_bars(layout.bars("ACME"), read_bars(write_frame(data, "ACME", before), now=NOW))
    good, bad, _ = read_files_cached([write_frame(data, "ACME", now)], layout.bars, now=NOW, **options)
    return good.get("ACME"), str(bad.get("ACME", "")).replace(f"{data}/", "")


def notes_after(layout: ArtifactLayout, now: pd.DataFrame, before: pd.DataFrame = BARS) -> tuple[str, ...]:
    bars, refusal = read_after(layout, now, before)
    assert refusal == ""
    assert bars is not None
    return bars.notes


@pytest.mark.parametrize("kept", [200, 399])
def test_a_file_that_lost_its_newest_bars_is_refused_with_their_number_and_place(
    layout: ArtifactLayout, kept: int
) -> None:
    bars, refusal = read_after(layout, BARS.head(kept))

    assert bars is None
    lost = "1 bar (2023-07-14)" if kept == 399 else "200 bars (2022-10-10 to 2023-07-14)"
    assert f"ACME.csv:{kept + 1}: Date: is the last bar, and {lost} that were read before are gone" in refusal
    assert refusal.endswith("export the file again, or take it as it is with --accept-history")
    assert len(load_bars(layout.bars("ACME"))) == 400


def test_a_file_that_lost_bars_between_others_is_refused_and_a_few_are_a_note(layout: ArtifactLayout) -> None:
    _, refusal = read_after(layout, BARS.drop(index=range(100, 150)))
    assert "50 bars (2022-05-23 to 2022-07-29) that were read before are gone from between the others" in refusal
    [note] = notes_after(layout, BARS.drop(index=[100, 120]))
    assert note == "2 bars (2022-05-23 to 2022-06-20) that were read before are gone from between the others"


@pytest.mark.parametrize("changed", [[100], [100, 101], [7, 100, 200]])
def test_a_close_that_no_split_explains_is_refused_with_line_and_both_values(
    layout: ArtifactLayout, changed: list[int]
) -> None:
    frame = BARS.copy()
    frame.loc[changed, COLUMNS] = (frame.loc[changed, COLUMNS].mul(1 + np.array(changed) / 1000, axis=0)).round(4)
    _, refusal = read_after(layout, frame)
    first = changed[0]
    assert f"ACME.csv:{first + 2}: Close: is not the close that was read before, {BARS['Close'][first]:g} on" in refusal
    assert f"found '{frame['Close'][first]}'" in refusal
    assert f"differ by {changed[-1] / 1000:.2%} at most" in refusal
    if len(changed) == 3:
        assert "in lines 9, 102, 202" in refusal


def test_another_instrument_under_the_same_name_is_refused(layout: ArtifactLayout) -> None:
    _, refusal = read_after(layout, daily_frame(420, seed=5))
    assert "lines, first in 3, 4, 5" in refusal


def test_the_end_of_another_instrument_after_its_own_beginning_is_refused(layout: ArtifactLayout) -> None:
    _, refusal = read_after(layout, pd.concat([BARS.head(250), daily_frame(400, seed=9).iloc[250:]]))
    assert "ACME.csv:252: Close:" in refusal


def test_accept_history_takes_the_bars_and_says_what_changed(layout: ArtifactLayout) -> None:
    bars, refusal = read_after(layout, BARS.head(200), accept_history=True)

    assert refusal == ""
    assert bars is not None
    assert len(bars) == 200
    [note] = bars.notes
    assert note.startswith("--accept-history: ")
    assert "200 bars (2022-10-10 to 2023-07-14) that were read before are gone" in note
    save_bars(layout.bars("ACME"), bars)
    file = CsvFile("ACME", layout.root.parent / "data" / "ACME.csv")
    assert read_files_cached([file], layout.bars, now=NOW)[1:] == ({}, {"ACME"})


def test_a_split_and_dividends_are_a_note(layout: ArtifactLayout) -> None:
    split = BARS.copy()
    split[COLUMNS] = (split[COLUMNS] / 2).round(4)
    [note] = notes_after(layout, split)
    assert note == "closes up to 2023-07-14 are restated by a factor of 0.5 since they were read before"

    dividends = BARS.copy()
    for last in range(60, 400, 63):
        dividends.loc[:last, COLUMNS] *= 0.995
    [note] = notes_after(layout, dividends.round(4))
    assert note == "closes up to 2023-06-12 are restated by 6 factors, 0.9704 to 0.995, since they were read before"


@pytest.mark.slow
@SHARED
@given(st.floats(0.01, 100), st.lists(st.integers(3, 390), max_size=6, unique=True), st.sampled_from([2, 4, 12]))
def test_any_restatement_by_constant_factors_is_taken_whatever_its_rounding(
    layout: ArtifactLayout, factor: float, ends: list[int], digits: int
) -> None:
    ends = [end for end in sorted(ends) if not any(0 < abs(end - other) < 3 for other in ends)]
    frame = BARS.copy()
    frame[COLUMNS] = frame[COLUMNS] * factor
    for end in ends:
        frame.loc[:end, COLUMNS] *= 0.97
    frame[COLUMNS] = frame[COLUMNS].round(digits)
    assert "factor" in notes_after(layout, frame)[0]


def test_a_window_that_moves_on_and_further_bars_are_notes(layout: ArtifactLayout) -> None:
    longer = pd.concat([BARS, daily_frame(40, seed=2, start="2023-07-17")])
    assert notes_after(layout, longer) == ()
    [note] = notes_after(layout, longer.iloc[50:])
    assert note == (
        "50 bars (2022-01-03 to 2022-03-11) that were read before are no longer in the file, which begins later"
    )
    later = longer.iloc[400:]
    assert "400 bars" in notes_after(layout, later)[0]


def test_revised_volumes_and_a_revised_newest_bar_are_notes(layout: ArtifactLayout) -> None:
    frame = BARS.copy()
    frame.loc[:50, "Volume"] += 1
    frame.loc[[30], ["High"]] *= 1.01
    frame.loc[[399], COLUMNS] *= 1.1
    newest, volume, high = notes_after(layout, pd.concat([frame, daily_frame(1, start="2023-07-17")]))
    assert "the newest bar read before, 2023-07-14, is revised: its close was 86.3743 and is" in newest
    assert volume == "volume revised in 51 bars, first on 2022-01-03"
    assert high == "open, high or low revised in 1 bar, first on 2022-02-14"


def test_bars_of_another_interval_are_refused_by_their_interval(layout: ArtifactLayout) -> None:
    _, refusal = read_after(layout, BARS.iloc[::5])
    assert "bars of 7 day, and those read before are of 1 day" in refusal
    assert "gone" not in refusal


def test_other_data_with_the_same_symbol_are_told_from_a_changed_file(tmp_path: Path, layout: ArtifactLayout) -> None:
    save_bars(layout.bars("ACME"), read_bars(write_frame(tmp_path / "old", "ACME", BARS), now=NOW))
    other = write_frame(tmp_path / "new", "ACME", daily_frame(400, seed=5))
    _, bad, _ = read_files_cached([other], layout.bars, now=NOW)
    assert f"the bars were read from {tmp_path}/old/ACME.csv before: give other data a folder of their own" in str(bad)
    assert "--output-dir" in str(bad)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [({"columns": ["close=Close"]}, "--columns"), ({"keep_forming": True}, "--keep-forming")],
)
def test_a_reading_with_other_settings_is_not_compared_and_says_so(
    layout: ArtifactLayout, settings: dict[str, Any], flag: str
) -> None:
    bars, refusal = read_after(layout, BARS.head(300), settings=ReadingSettings(**settings))
    assert refusal == ""
    assert bars is not None
    assert f"not compared with the bars that were read before, as {flag} was another" in bars.notes


def test_a_later_first_date_only_rolls_off_the_oldest_bars(layout: ArtifactLayout) -> None:
    settings = ReadingSettings(from_date=["2023-01-01"])
    bars, _ = read_after(layout, BARS.assign(Volume=5), settings=settings)
    assert bars is not None
    assert any("no longer in the file, which begins later" in note for note in bars.notes)
    assert "are gone" in read_after(layout, BARS.head(300), settings=settings)[1]


def test_the_same_file_that_is_read_otherwise_by_another_version_of_the_code_is_not_compared(
    tmp_path: Path, layout: ArtifactLayout
) -> None:
    file = write_frame(tmp_path, "ACME", BARS)
    bars = read_bars(file, now=NOW)
    longer = replace(
        read_bars(write_frame(tmp_path / "other", "ACME", daily_frame(450)), now=NOW), reading=bars.reading
    )
    save_bars(layout.bars("ACME"), longer)
    good, bad, unchanged = read_files_cached([file], layout.bars, now=NOW)
    assert (good["ACME"].notes, bad, unchanged) == ((), {}, set())


def test_damaged_stored_bars_are_named_as_what_the_file_is_not_compared_with(layout: ArtifactLayout) -> None:
    read_after(layout, BARS)
    path = layout.bars("ACME")
    path.write_bytes(path.read_bytes()[:100])
    file = CsvFile("ACME", layout.root.parent / "data" / "ACME.csv")
    good, _, _ = read_files_cached([file], layout.bars, now=NOW)
    assert "not compared with the bars that were read before: " in good["ACME"].notes[0]


def change_while_it_is_read(monkeypatch: pytest.MonkeyPatch, contents: list[bytes]) -> None:
    """Let another program write the next of some contents into a CSV after each reading of its bytes."""
    plainly = csv_content.open_regular

    @contextmanager
    def opened(path: Path) -> Iterator[BinaryIO]:
        with plainly(path) as stream:
            yield stream
        if contents:
            path.write_bytes(contents.pop(0))

    monkeypatch.setattr(csv_content, "open_regular", opened)
    monkeypatch.setattr(csv_content, "PAUSE", 0)


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_frame(tmp_path, "ACME", BARS)
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[: len(whole) // 2])
    change_while_it_is_read(monkeypatch, [whole])
    assert len(read_bars(file, now=NOW)) == 400


def test_a_file_that_keeps_changing_is_refused_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing, other = write_frame(tmp_path, "AAA", BARS), write_frame(tmp_path, "BBB", BARS)
    whole = growing.path.read_bytes()
    change_while_it_is_read(monkeypatch, [whole + b"x" * number for number in range(1, csv_content.READINGS + 1)])
    good, bad = read_files([growing, other], now=NOW)
    assert list(good) == ["BBB"]
    assert "AAA.csv: the file changed during each of 3 readings" in str(bad["AAA"])


def test_a_last_line_that_does_not_end_is_a_note_and_a_row_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = write_frame(tmp_path, "ACME", BARS.head(50))
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-2])
    assert read_bars(file, now=NOW).notes == ("the last line, 51, has no line end, as of a file that is cut off",)
    file.path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"ACME\.csv:51"):
        read_bars(file, now=NOW)


def test_a_training_leaves_out_the_half_written_ticker_and_takes_the_others(
    layout: ArtifactLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    data = layout.root.parent / "data"
    for ticker in ("A", "B"):
        write_frame(data, ticker, BARS)
    config = KronosTrainingConfig(
        **{**SMALL, "model_name": "kronos-nano"}, data_dir=str(data), output_dir=str(layout.root)
    )
    read_tickers(config, layout)
    write_frame(data, "A", BARS.head(200))
    write_frame(data, "B", daily_frame(401))

    again = read_tickers(config, layout)
    assert (list(again.windows), list(again.skipped)) == (["B"], ["A"])
    assert "A: skipped" in capsys.readouterr().err

    accepted = read_tickers(config.model_copy(update={"accept_history": True}), layout)
    assert len(accepted.windows["A"].bars) == 200
    assert "--accept-history: " in capsys.readouterr().out
    assert list(read_tickers(config, layout).windows) == ["A", "B"]


@pytest.mark.slow
def test_a_forecast_refuses_a_cut_off_file_and_names_the_flag(
    layout: ArtifactLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    data = layout.root.parent / "data"
    read_after(layout, BARS)
    write_frame(data, "ACME", BARS.head(200))
    for command in ("forecast", "record"):
        assert main([command, "ACME", "--data-dir", str(data), "--output-dir", str(layout.root)]) == 2
        assert "200 bars (2022-10-10 to 2023-07-14) that were read before are gone" in capsys.readouterr().err
