"""`kronos doctor --system`: a line for each part of the machine and the output folder, and what to do about it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.base_models import NANO_FOLDER
from kronos_pipeline.cli.app import main
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.pipeline import status as status_module
from kronos_pipeline.tracking.store_checks import check_champions, check_store

pytestmark = pytest.mark.slow


@pytest.fixture
def layout(tmp_path: Path, empty_mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactLayout:
    """An output folder with an empty MLflow store, and a ticker in the data folder beside it."""
    for variable in ("MLFLOW_TRACKING_URI", "DAGSTER_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("KRONOS_BASE_MODEL", "kronos-nano")
    write_simulated(tmp_path / "data", tickers=["AAPL"], bars=40)
    (tmp_path / "out").mkdir()
    shutil.copy(empty_mlflow_store, tmp_path / "out" / "mlflow.db")
    return ArtifactLayout(tmp_path / "out")


def doctor(layout: ArtifactLayout, *flags: str) -> int:
    data = layout.root.parent / "data"
    return main(["doctor", "--system", "--data-dir", str(data), "--output-dir", str(layout.root), *flags])


def findings(
    layout: ArtifactLayout, capsys: pytest.CaptureFixture[str], *flags: str
) -> dict[str, tuple[str, str, str]]:
    doctor(layout, "--json", *flags)
    found = json.loads(capsys.readouterr().out)
    return {finding["subject"]: (finding["state"], finding["text"], finding["remedy"]) for finding in found}


def test_a_sound_machine_has_no_error_and_a_line_for_each_part(
    layout: ArtifactLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(layout) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}


def test_what_is_broken_is_named_with_a_remedy_and_does_not_hide_the_rest(
    layout: ArtifactLayout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = shutil.copytree(NANO_FOLDER, tmp_path / "base")
    weights = base / "predictor" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    weights.with_name("manifest.json").write_text(json.dumps({"files": {"model.safetensors": "of another file"}}))
    layout.mlflow_database.write_bytes(layout.mlflow_database.read_bytes()[:50_000])
    (layout.root / "metrics").mkdir()
    (layout.root / "metrics" / "AAPL.json.damaged").write_text("x")
    later = time.time() + 3600
    os.utime(layout.mlflow_database, (later, later))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

    found = findings(layout, capsys, "--model-name", str(base))

    states = {subject: state for subject, (state, *_) in found.items()}
    errors = {"base model", "MLflow store", "champions", "disk", "clock"}
    assert {subject for subject, state in states.items() if state == "error"} == errors
    assert {"output folder", "Dagster"} <= {subject for subject, state in states.items() if state == "warning"}
    assert "restore a backup" in found["MLflow store"][2]
    assert "kronos clean" in found["disk"][2]
    assert "timedatectl" in found["clock"][2]
    assert doctor(layout) == 2


def test_bars_in_the_future_and_held_locks_are_seen(
    layout: ArtifactLayout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tomorrow = status_module.TickerStatus("AAPL", bars=1, last_bar="2999-01-01T00:00:00")
    monkeypatch.setattr(
        status_module, "read_status", lambda *_: status_module.FolderStatus((tomorrow,), notes=(), settings={})
    )
    (layout.root / "state").mkdir()
    with FileLock(layout.root / "state" / ".adapters-AAPL.lock"):
        found = findings(layout, capsys)
    assert found["bars and models"][:2] == ("error", "bars in the future: AAPL")
    assert f"process {os.getpid()}" in found["locks"][1]


def test_a_schema_of_another_mlflow_and_lost_files_of_a_champion_are_errors(layout: ArtifactLayout) -> None:
    uri = f"sqlite:///{layout.mlflow_database}"
    assert check_store(uri)[0] == "ok"
    with sqlite3.connect(layout.mlflow_database) as database:
        database.execute("UPDATE alembic_version SET version_num = 'older'")
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute("INSERT INTO registered_models (name) VALUES ('kronos-AAPL')")
        columns = "name, version, creation_time, current_stage, source, run_id"
        row = f"'kronos-AAPL', 1, 0, 'None', '{layout.mlflow_artifacts.as_uri()}/models/m-1/artifacts', 'r'"
        database.execute(f"INSERT INTO model_versions ({columns}) VALUES ({row})")
        alias = "name, alias, version"
        database.execute(f"INSERT INTO registered_model_aliases ({alias}) VALUES ('kronos-AAPL', 'champion-mean', 1)")
    assert "mlflow db upgrade" in check_store(uri)[2]
    assert check_champions(uri)[:2] == ("error", "the files of 1 champion are gone: kronos-AAPL version 1")
    (layout.mlflow_artifacts / "models" / "m-1" / "artifacts" / "artifacts" / "model").mkdir(parents=True)
    assert check_champions(uri)[0] == "ok"
    assert check_store("http://127.0.0.1:9")[0] == "error"
