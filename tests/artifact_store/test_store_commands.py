"""Commands of machines that share a bucket: one trains, another with an empty folder forecasts, promotes, records."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from market_files import daily_frame, write_frame
from small_trainings import small_flags

from kronos_pipeline.artifact_store.objects import STORE, open_store
from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.cli import app as cli
from kronos_pipeline.evaluation import ledger

if TYPE_CHECKING:
    from moto_server import MotoServer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean_mlflow_store")]


@pytest.fixture
def environment(tmp_path: Path, moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The store of the machines `a` and `b`, and the only ticker of their CSVs."""
    for name, value in {**moto.environment, STORE: moto.new_url(), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    write_frame(tmp_path / "data", "AAPL", daily_frame(110))
    return dict(os.environ)


def flags(tmp_path: Path, machine: str) -> list[str]:
    return ["--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / machine), "--device", "cpu"]


def test_what_a_process_trains_another_machine_forecasts_promotes_and_records(
    tmp_path: Path, tiny_base: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    training = ["train", *flags(tmp_path, "a"), "--adapter", "lora", *small_flags(tiny_base)]
    process = [sys.executable, "-m", "kronos_pipeline.cli", *training]
    trained = subprocess.run(process, env=environment, capture_output=True, text=True, check=False)
    assert trained.returncode == 0, trained.stderr
    assert f"artifacts to {environment[STORE]}" in trained.stderr

    assert cli.main(["promote", "AAPL", "--output-dir", str(tmp_path / "b")]) == 0
    assert cli.main(["forecast", "AAPL", *flags(tmp_path, "b")]) == 0
    assert cli.main(["record", "AAPL", *flags(tmp_path, "b")]) == 0
    printed = capsys.readouterr()
    assert "kronos-AAPL version 1" in printed.out
    a, b = ArtifactLayout(tmp_path / "a"), ArtifactLayout(tmp_path / "b")
    for path in (file for file in a.adapter("AAPL").rglob("*") if file.is_file()):
        assert (b.adapter("AAPL") / path.relative_to(a.adapter("AAPL"))).read_bytes() == path.read_bytes()
    for part in (trained.stdout, trained.stderr, printed.out, printed.err):
        assert "SECRETSECRET" not in part

    assert cli.main(["sync", "--output-dir", str(tmp_path / "a")]) == 0
    assert ledger.read(a).rows.equals(ledger.read(b).rows)
    assert not ledger.read(a).rows.empty


def test_a_training_goes_on_while_the_store_is_away_and_the_next_command_delivers(
    tmp_path: Path,
    tiny_base: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["sync", "--output-dir", str(tmp_path / "a")]) == 0
    url = environment[STORE]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    open_store.cache_clear()  # as in a new process
    training = ["train", *flags(tmp_path, "a"), "--adapter", "lora", *small_flags(tiny_base, epochs=1)]
    assert cli.main(training) == 0
    told = capsys.readouterr().err
    assert f"The artifact store {url} cannot be reached" in told
    assert "artifacts wait in this folder; the next command delivers" in told
    monkeypatch.setenv("AWS_ENDPOINT_URL", environment["AWS_ENDPOINT_URL"])
    open_store.cache_clear()
    assert cli.main(["doctor", "--system", *flags(tmp_path, "a")[:4], "--model-name", str(tiny_base)]) in (0, 2)
    assert "obeys conditional writes" in (doctor := " ".join(capsys.readouterr().out.split()))
    assert "to deliver" in doctor
    assert cli.main(["status", *flags(tmp_path, "a")[:4]]) == 0
    assert cli.main(["sync", "--output-dir", str(tmp_path / "b")]) == 0
    assert (ArtifactLayout(tmp_path / "b").adapter("AAPL") / "adapter_model.safetensors").is_file()
