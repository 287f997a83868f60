"""Verdicts of the doctor: fit tickers, enough data, and the problems of the other tickers."""

from __future__ import annotations

from pathlib import Path

import pytest
from market_files import daily_frame, write_frame
from rich.console import Console

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.doctor import FolderReport, doctor_table, examine_folder
from kronos_pipeline.errors import DataError


@pytest.fixture
def report(tmp_path: Path) -> FolderReport:
    write_frame(tmp_path, "GOOD", daily_frame(1000))
    write_frame(tmp_path, "HALTED", daily_frame(1000).assign(Volume=[0] + [5] * 999))
    write_frame(tmp_path, "LITTLE", daily_frame(300))
    write_frame(tmp_path, "SHORT", daily_frame(100))
    write_frame(tmp_path, "BROKEN", daily_frame(1000).assign(Close="?"))
    write_frame(tmp_path, "HOURLY", daily_frame(3000, freq="h"))
    return examine_folder(tmp_path, Recipe(validation_days=10, selection_days=40))


def test_each_ticker_is_fit_or_not_and_has_enough_or_not(report: FolderReport) -> None:
    verdicts = {ticker.ticker: (ticker.fit, ticker.enough) for ticker in report.tickers}
    assert verdicts == {
        "BROKEN": (False, False),
        "GOOD": (True, True),
        "HALTED": (True, True),
        "HOURLY": (True, True),
        "LITTLE": (True, False),
        "SHORT": (False, False),
    }
    assert not report.fit


def test_enough_counts_horizons_that_could_be_laid_end_to_end(report: FolderReport) -> None:
    [good] = [ticker for ticker in report.tickers if ticker.ticker == "GOOD"]
    assert good.horizons == (1000 - 50 - 64) // 30
    assert report.horizons == sum(ticker.horizons for ticker in report.tickers) >= 100
    assert report.enough_for_checkpoint


def test_the_lines_hold_verdicts_problems_doubts_and_notes(report: FolderReport) -> None:
    text = "\n".join(report.lines())

    assert text.startswith("4 of 6 tickers are fit for training, 3 have enough to train an adapter.")
    assert "LITTLE: not enough: training targets hold 6 horizons end to end, and 20 are the least" in text
    assert "LITTLE: not enough: training covers 25" in text
    assert "SHORT.csv: 100 bars, and 145 are needed" in text
    assert "BROKEN.csv:2: Close: must be a number in 1,000 lines, first in 2, 3, 4 (found '?')" in text
    assert "HALTED: note: bars without volume" in text
    assert "note: bars of different intervals (1 h: HOURLY; 1 day: GOOD, HALTED, LITTLE): a checkpoint over" in text


def test_the_table_fits_80_columns_and_has_a_row_per_ticker(report: FolderReport) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(doctor_table(report))
    rows = console.export_text().splitlines()

    assert len(rows) == 2 + 6
    assert all(len(row) <= 80 for row in rows)
    assert rows[3].split() == ["GOOD", "1000", "2022-01-03", "2025-10-31", "1", "day", "856", "10", "1", "enough"]
    assert rows[5].split()[4:6] == ["1", "h"]


def test_a_folder_without_a_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no CSV"):
        examine_folder(tmp_path, Recipe())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> FolderReport:
    folder = tmp_path_factory.mktemp("many")
    for number in range(30):
        write_frame(folder, f"T{number:02}", daily_frame(600 + number).assign(Volume=[0] + [5] * (599 + number)))
    for number in range(3):
        write_frame(folder, f"BAD{number}", daily_frame(300 + number).assign(Close="?"))
    return examine_folder(folder, Recipe(validation_days=10, selection_days=40))


def test_many_tickers_are_summed_up_by_kind(many: FolderReport) -> None:
    lines = many.lines()

    assert lines[2:] == [
        "not enough: training targets hold # horizons end to end, and # are the least to learn from: "
        "30 tickers (T00, T01, T02 and 27 more)",
        "note: bars without volume, as in a trading halt: 30 tickers (T00, T01, T02 and 27 more)",
        "problem: must be a number: 3 tickers (BAD0, BAD1, BAD2)",
        "--ticker BAD0 shows a ticker in full.",
    ]


def test_the_table_of_many_tickers_has_a_row_per_verdict(many: FolderReport) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(doctor_table(many))
    rows = [row.split() for row in console.export_text().splitlines()[2:]]

    assert [(row[0], row[-2:]) for row in rows] == [("3", ["not", "fit"]), ("30", ["1", "little"])]
    assert rows[1][1] == "600-629"


def test_some_tickers_of_many_are_shown_in_full(many: FolderReport) -> None:
    excerpt = many.of(["t07", "BAD1"])

    assert [report.ticker for report in excerpt.tickers] == ["T07", "BAD1"]
    assert any(line.startswith("T07: note: bars without volume, as in a trading halt: 1") for line in excerpt.lines())
    with pytest.raises(DataError, match="no such ticker here; there are: BAD0, BAD1"):
        many.of(["NONE"])
