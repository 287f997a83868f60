"""MLflow's database is checked when it is opened, backed up once a day, and restored by the command in the error."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from ended_trainings import RECIPE
from mlflow import MlflowClient

from kronos_pipeline.tracking.backups import back_up, back_up_daily, backups_of, find_damage
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.store import TrackingError, open_store
from kronos_pipeline.tracking.stored_registry import read_registered_models

pytestmark = pytest.mark.slow

NOW = datetime(2026, 11, 28, 2, 15)


@pytest.fixture
def database(empty_mlflow_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_mlflow_store, tmp_path / "mlflow.db"))


def damage(database: Path) -> None:
    """Overwrite the middle of every third page but the first."""
    content = bytearray(database.read_bytes())
    for page in range(4096, len(content) - 4096, 3 * 4096):
        content[page : page + 64] = os.urandom(64)
    database.write_bytes(content)


def test_a_damaged_database_is_told_with_the_command_that_restores_the_newest_backup(
    database: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{database}"
    with Tracker(uri, tmp_path).training_run("before the damage", RECIPE):
        pass
    for backup in backups_of(database):
        backup.unlink()
    back_up(database, NOW)
    damage(database)
    with pytest.raises(TrackingError, match=r"it is damaged: .* restore the newest backup") as caught:
        open_store(uri)
    with pytest.raises(TrackingError, match=r"is damaged: .* restore the newest backup"):
        read_registered_models(uri)
    command = str(caught.value).partition("command runs: ")[2].removesuffix(".")
    subprocess.run(["sh", "-c", command], check=True)
    assert find_damage(database, always=True) is None
    with sqlite3.connect(database) as restored:  # MLflow in this process has the damaged file open
        assert restored.execute("SELECT name FROM runs").fetchall() == [("before the damage",)]
    restored.close()
    assert database.with_name("mlflow.db.damaged").is_file()


def test_a_damaged_database_takes_the_place_of_no_good_backup(database: Path) -> None:
    good = back_up(database, NOW)
    damage(database)
    with pytest.raises(sqlite3.DatabaseError):
        back_up(database, NOW + timedelta(days=1))
    assert backups_of(database) == [good]
    assert find_damage(good, always=True) is None


def test_the_first_command_of_a_day_backs_up_and_old_backups_go(database: Path) -> None:
    open_store(f"sqlite:///{database}")
    assert len(backups_of(database)) == 1
    assert back_up_daily(database, NOW) is None, "the backup is of today"
    made = [back_up(database, NOW + timedelta(days=day)) for day in range(8)]
    assert set(backups_of(database)) <= {*made, *backups_of(database)}
    assert len(backups_of(database)) == 5
    assert made[-1] in backups_of(database)


def test_a_backup_is_whole_while_another_process_writes(database: Path) -> None:
    writer = sqlite3.connect(database, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO experiments (name, lifecycle_stage) VALUES ('half', 'active')")
    backup = back_up(database, NOW)
    writer.execute("ROLLBACK")
    writer.close()
    assert find_damage(backup, always=True) is None
    assert [experiment.name for experiment in MlflowClient(f"sqlite:///{backup}").search_experiments()] == ["Default"]


def test_a_large_database_is_checked_once_a_day(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kronos_pipeline.tracking.backups._ALWAYS_CHECKED", 0)
    back_up(database, NOW)
    assert find_damage(database) is None
    damage(database)
    assert find_damage(database) is None, "it was checked today"
    os.utime(database.parent / "mlflow_backups" / "checked", (0, 0))
    assert find_damage(database) is not None
