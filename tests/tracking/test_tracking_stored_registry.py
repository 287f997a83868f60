"""The registry as `kronos status` reads it, without MLflow."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from kronos_pipeline.tracking.stored_registry import read_registered_models


def test_models_are_read_after_a_kill_in_a_transaction(empty_mlflow_store: Path, tmp_path: Path) -> None:
    alive, killed = tmp_path / "alive.db", tmp_path / "killed.db"
    shutil.copy(empty_mlflow_store, alive)
    with closing(sqlite3.connect(alive)) as database:
        database.execute("INSERT INTO registered_models (name) VALUES ('kronos-AAPL')")
        database.execute("INSERT INTO model_versions (name, version, creation_time) VALUES ('kronos-AAPL', 1, 0)")
        database.commit()
        database.execute("PRAGMA cache_size = 1")  # pages go to the file, and their old content to the journal, at once
        values = [(f"kronos-{number}", "x" * 4000) for number in range(50)]
        database.executemany("INSERT INTO registered_models (name, description) VALUES (?, ?)", values)
        database.execute("DELETE FROM model_versions")
        for end in ("", "-journal"):
            shutil.copy(f"{alive}{end}", f"{killed}{end}")
    models = read_registered_models(f"sqlite:///{killed}")
    assert models is not None
    assert {name: len(model.versions) for name, model in models.items()} == {"kronos-AAPL": 1}
