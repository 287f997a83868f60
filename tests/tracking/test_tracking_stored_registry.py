"""The registry as `kronos status` reads it, without MLflow."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kronos_pipeline.tracking.stored_registry import read_registered_models
from kronos_pipeline.tracking.version import Version


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


@pytest.mark.slow
def test_a_look_at_champions_reads_a_few_tags_of_each_version(empty_mlflow_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_mlflow_store, path)
    tags = {
        "trained_on": "AAPL",
        "decided_at": "2026-01-01",
        "decided_at.mean": "2026-01-02",
        "reason.mean": "a reason",
    }
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO registered_models (name) VALUES ('kronos-AAPL')")
        database.execute("INSERT INTO model_versions (name, version, creation_time) VALUES ('kronos-AAPL', 1, 0)")
        insert = "INSERT INTO model_version_tags (name, version, key, value) VALUES ('kronos-AAPL', 1, ?, ?)"
        database.executemany(insert, tags.items())
        alias = "INSERT INTO registered_model_aliases (name, version, alias) VALUES ('kronos-AAPL', 1, 'champion-mean')"
        database.execute(alias)
        database.commit()
    complete, brief = (
        (read_registered_models(f"sqlite:///{path}", champions_only=only) or {})["kronos-AAPL"]
        for only in (False, True)
    )
    assert complete.champions == brief.champions
    assert complete.versions[0].tags == tags
    assert brief.versions[0].tags == {key: tags[key] for key in tags if key != "reason.mean"}


class CountedTags(Mapping[str, str]):
    """Tags that count how often one is read."""

    read = 0

    def __init__(self, tags: dict[str, str]) -> None:
        self._tags = tags

    def __getitem__(self, key: str) -> str:
        self.read += 1
        return self._tags[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tags)

    def __len__(self) -> int:
        return len(self._tags)


def test_a_checkpoint_of_many_tickers_is_asked_for_each_of_them_and_its_list_is_split_once() -> None:
    names = [f"T{number}" for number in range(100)]
    tags = CountedTags({"trained_on": ",".join(names)})
    version = Version("kronos-all", 1, "run", (), tags, datetime(2026, 1, 1, tzinfo=UTC))
    assert all(version.covers(name) for name in names)
    assert not version.covers("T")
    assert tags.read == 1
