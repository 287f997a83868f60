"""`kronos doctor` reads a folder by the settings of the reading, and prints the names of columns that it knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from csv_shapes import daily, lines, pick, texts, write

from kronos_pipeline.cli.app import main


@pytest.fixture
def file(tmp_path: Path) -> Path:
    frame = daily(300)
    columns = pick(frame, open="Open", high="High", low="Low", volume="Volume")
    days = list(frame["timestamps"].dt.strftime("%Y-%m-%d"))
    return write(tmp_path / "ACME.csv", lines({"Date": days, **columns, "Fixing": texts(frame)["close"]}))


def doctor(file: Path, *flags: str) -> int:
    return main(["doctor", "--data-dir", str(file), "--model-name", "kronos-nano", "--lookback", "16", *flags])


def test_columns_alone_print_the_table_of_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--columns"]) == 0
    printed = capsys.readouterr().out
    for word in ("adj_close", "Schlusskurs", "成交量", "tickvol"):
        assert word in printed


def test_columns_alone_print_the_table_though_the_environment_names_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KRONOS_COLUMNS", "close=Fixing")

    assert main(["doctor", "--columns"]) == 0
    assert "Schlusskurs" in capsys.readouterr().out


@pytest.mark.slow
def test_a_column_that_no_name_tells_is_given_by_a_flag(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(file) == 2
    assert "close" in capsys.readouterr().out
    assert doctor(file, "--columns", "close=Fixing,volume=Volume", "--columns", "open=Open") == 0


@pytest.mark.slow
def test_a_column_that_no_name_tells_is_given_by_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRONOS_COLUMNS", "close=Fixing")

    assert doctor(file) == 0


def test_a_meaning_that_is_none_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(file, "--columns", "end=Fixing") == 2
    assert "--columns: 'end=Fixing' is not meaning=name" in capsys.readouterr().err


def test_other_files_of_a_folder_are_counted(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "more.xlsx").touch()

    doctor(file.parent)

    assert "note: 1 other file not read: 1 .xlsx; save a table as CSV" in capsys.readouterr().out


@pytest.mark.slow
def test_a_lookback_that_is_cut_is_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(file, "--columns", "close=Fixing", "--horizon", "500")
    assert "--lookback 16 is cut to 11 bars" in capsys.readouterr().out


@pytest.mark.slow
def test_the_doctor_says_whether_a_verdict_can_come(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--columns", "close=Fixing", "--horizon", "5", "--validation-days", "10"]
    assert doctor(file, *few) == 0
    printed = capsys.readouterr().out
    assert "A verdict needs 8 cutoffs (times to forecast from); the holdout has 2 cutoffs per ticker." in printed
    assert "No verdict can come for any ticker" in printed
    assert "--backtest-origins 8" in printed
    assert doctor(file, *few, "--backtest-origins", "8") == 0
    printed = capsys.readouterr().out
    assert "the backtest has 8 cutoffs per ticker" in printed
    assert "No verdict can come" not in printed
