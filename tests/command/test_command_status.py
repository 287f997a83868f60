"""`kronos status`: what is there, what is stale, what failed, and the next command, without torch and MLflow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_evaluations import SKIPPED, manifest_of, predictions_of, windows_of

from kronos_pipeline.artifacts import ArtifactLayout, write_manifest
from kronos_pipeline.cli.app import main
from kronos_pipeline.data.bars import save_bars
from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.data.ingest import read_files
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.evaluation.scoring.report import save_evaluation

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a verdict of too little evidence on AAPL; ACME failed."""
    layout, windows = ArtifactLayout(tmp_path_factory.mktemp("evaluated")), [windows_of("AAPL")]
    save_evaluation(layout, predictions_of(windows), "adapter", SKIPPED, manifest_of(windows))
    return layout.root


@pytest.fixture
def folders(evaluated: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two tickers, read; AAPL has an adapter and an evaluation."""
    data, layout = tmp_path / "data", ArtifactLayout(tmp_path / "out")
    shutil.copytree(evaluated, layout.root)
    write_simulated(data, tickers=["AAPL", "MSFT"], bars=40)
    bars, _ = read_files(list(find_csv_files(data).files.values()))
    for ticker, of_ticker in bars.items():
        save_bars(layout.bars(ticker), of_ticker)
    layout.adapter("AAPL").mkdir(parents=True)
    write_manifest(layout.adapter("AAPL"), {})
    return data, layout.root


def status(capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path], *arguments: str) -> str:
    data, output = folders
    assert main(["status", *arguments, "--data-dir", str(data), "--output-dir", str(output)]) == 0
    return capsys.readouterr().out


def test_each_ticker_has_a_line_and_what_failed_and_the_next_command_follow(
    capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    text = status(capsys, folders)
    assert re.search(r"^AAPL    \d{4}-\d\d-\d\d, \d+ \w+ +adapter 0 min ago +little evidence +-$", text, re.MULTILINE)
    assert re.search(r"^MSFT    \d{4}-\d\d-\d\d, \d+ \w+ +- +- +-$", text, re.MULTILINE)
    assert "Failed in the last run\n  ACME: ACME.csv:3: Close" in text
    assert re.search(r"kronos (train|backtest) --data-dir .*--lookback 8", text.splitlines()[-1])
    assert max(map(len, text.splitlines()[1:6])) <= 80


def test_a_csv_that_changed_is_stale_and_a_new_time_alone_is_not(
    capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    csv = folders[0] / "MSFT/MSFT.csv"
    os.utime(csv, (4e9, 4e9))
    assert "its CSV has changed" not in status(capsys, folders, "MSFT")
    csv.write_text("\n".join(csv.read_text().splitlines()[:-1]) + "\n")
    os.utime(csv, (4e9, 4e9))
    assert "MSFT: its CSV has changed since it was read" in status(capsys, folders, "MSFT")


def test_json_is_for_scripts(capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]) -> None:
    (ticker,) = json.loads(status(capsys, folders, "aapl", "--json"))["tickers"]
    assert (ticker["ticker"], ticker["bars"], ticker["champions"]) == ("AAPL", 40, {})
    assert set(ticker["evaluated"]["verdicts"].values()) == {"too little evidence"}


def test_many_tickers_are_grouped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_simulated(data, tickers=[f"T{number}" for number in range(30)], bars=5)
    text = status(capsys, (data, tmp_path / "out"))
    assert "30 tickers  not read yet" in text
    assert len(text.splitlines()) < 10


def test_an_unknown_ticker_and_an_empty_folder_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = status(capsys, (tmp_path / "none", tmp_path / "out"))
    assert "no such folder" in text
    write_simulated(tmp_path / "data", tickers=["AAPL"], bars=5)
    assert main(["status", "XYZ", "--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")]) == 2
    assert "error: XYZ: no such ticker here; there are: AAPL" in capsys.readouterr().err


def test_a_look_imports_neither_torch_nor_mlflow(folders: tuple[Path, Path]) -> None:
    data, output = folders
    script = f"""
import sys
from kronos_pipeline.cli import main
assert main(["status", "--data-dir", {str(data)!r}, "--output-dir", {str(output)!r}]) == 0
print(sorted(sys.modules.keys() & {{"torch", "mlflow", "sktime", "dagster", "matplotlib"}}))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "[]"), result.stderr


def test_a_look_reads_the_sum_over_all_tickers_and_no_report_of_a_ticker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    read: list[str] = []
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(path.relative_to(folders[1]).as_posix())
        return read_bytes(path)

    (folders[1] / "metrics/AAPL.json").write_text("{}")
    monkeypatch.setattr(Path, "read_bytes", counted)
    status(capsys, folders)
    assert sorted(read) == ["bars/AAPL.parquet", "bars/MSFT.parquet", "metrics/evaluation.json"]
