"""MLflow's store on PostgreSQL: registration, promotion, the reading of both, several machines, a server that ends.

A machine is here a folder of file locks of its own: what two machines do not share are the locks of their files.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from postgres_server import PostgresServer
from registered_models import GOOD, aliases, evidence, promotions
from small_trainings import small_flags

from kronos_pipeline import locks
from kronos_pipeline.artifacts import ArtifactLayout, read_json
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.leases import Leases
from kronos_pipeline.locks import folder_lock
from kronos_pipeline.tracking.known_champions import KnownChampions
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry, registered_name
from kronos_pipeline.tracking.run_record import PROCESS
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.store import TrackingError
from kronos_pipeline.tracking.stored_registry import fetch_registered_models, read_registered_models

pytestmark = pytest.mark.slow

NAME = registered_name("AAPL")


@pytest.fixture
def tracker(mlflow_database: str, tmp_path: Path) -> Tracker:
    return Tracker(mlflow_database, tmp_path / "out")


@pytest.fixture
def register(registry: Registry, tracker: Tracker, adapter: Path) -> Callable[[], int]:
    with tracker.training_run("made", Recipe()) as run:
        pass
    table = EvidenceTable(evidence(GOOD))
    return lambda: registry.register(adapter, NAME, run.run_id, evidence=table, metrics={"holdout/adapter/mae": 0.5})


def test_models_are_registered_promoted_rolled_back_and_read_without_mlflow(
    registry: Registry, register: Callable[[], int], tmp_path: Path, mlflow_database: str
) -> None:
    assert read_registered_models(mlflow_database) == {}
    registry.record_decision(NAME, register(), promotions())
    registry.promote(NAME, register(), "better " * 580, ["mean"])
    assert "champion-mean" in aliases(registry, NAME)[2]
    first, last = pd.Timestamp("2024-01-01"), pd.Timestamp("2024-02-01")
    recipes = [[f"{recipe:016x}", "2023-01-01T00:00:00", "2023-02-01T00:00:00"] for recipe in range(59)]
    registry._store.set_tag(NAME, "recipes_tried", json.dumps(recipes))
    assert [registry.record_recipe(NAME, recipe, first, last).count for recipe in ("a", "b", "a")] == [1, 2, 2]

    stored, fetched = read_registered_models(mlflow_database), fetch_registered_models(mlflow_database)
    assert stored is not None
    assert stored[NAME].champions == fetched[NAME].champions
    assert stored[NAME].champions.numbers == {"mean": 2, "distribution": 1, "volatility": 1}
    assert [version.aliases for version in stored[NAME].versions] == [
        version.aliases for version in fetched[NAME].versions
    ]
    registry.rollback(NAME, "worse", ["mean"])
    again = read_registered_models(mlflow_database)
    assert again is not None
    assert again[NAME].champions.numbers["mean"] == 1
    assert registry.evidence(registry.version(NAME, 1)).shape == evidence(GOOD).shape
    assert (registry.fetch(registry.version(NAME, 1), tmp_path) / "adapter_config.json").is_file()


def test_two_machines_that_register_and_promote_at_once_lose_nothing(
    registry: Registry,
    register: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def own_folder() -> Path:
        folder = tmp_path / threading.current_thread().name
        folder.mkdir(exist_ok=True)
        return folder

    monkeypatch.setattr(locks, "_local_folder", own_folder)
    together = threading.Barrier(2)

    def work(_: int) -> list[int]:
        together.wait()
        numbers = [register() for _ in range(2)]
        for number in numbers:
            registry.promote(NAME, number, "to try it")
        return numbers

    with ThreadPoolExecutor(2) as pool:
        made = [number for numbers in pool.map(work, range(2)) for number in numbers]
    assert sorted(made) == [1, 2, 3, 4]
    champions = fetch_registered_models(registry.uri)[NAME].champions
    for target, number in champions.numbers.items():
        assert sorted([*champions.former[target], number]) == [1, 2, 3, 4], "each was champion once"


def test_a_restart_of_the_server_is_survived_and_its_absence_is_a_sentence_without_the_password(
    postgres: PostgresServer, tracker: Tracker, registry: Registry, register: Callable[[], int], tmp_path: Path
) -> None:
    with tracker.training_run("restarted", Recipe()) as run:
        run.on_log(1, {"loss": 1.0})
        postgres.restart()
        run.on_log(2, {"loss": 0.5})
    number = register()
    postgres.restart()
    registry.promote(NAME, number, "to try it")

    postgres.stop()
    try:
        with pytest.raises(TrackingError, match=r"cannot be read: .*Connection refused") as caught:
            read_registered_models(registry.uri)
        assert postgres.password not in str(caught.value)
        with pytest.raises(TrackingError, match=r"MLflow store .* cannot be used: .*Connection refused") as caught:
            Registry(Tracker(f"{registry.uri}?application_name=other", tmp_path)).names()
        assert postgres.password not in str(caught.value)
    finally:
        postgres.start()
    assert registry.champion(NAME) is not None


def test_the_champions_of_a_database_that_is_away_are_those_known_last(
    postgres: PostgresServer, mlflow_database: str, tmp_path: Path
) -> None:
    def known_champions() -> KnownChampions:
        return KnownChampions(Registry(Tracker(mlflow_database, tmp_path)))

    known = known_champions()
    assert (known.champion(NAME), known.warning) == (None, None)
    postgres.stop()
    try:
        without = known_champions()
        assert without.champion(NAME) is None
        assert "does not answer; the champions are those known at" in str(without.warning)
        assert postgres.password not in str(without.warning)
    finally:
        postgres.start()
    refused = mlflow_database.replace(postgres.password, "another")
    with pytest.raises(TrackingError, match="password authentication failed"):
        KnownChampions(Registry(Tracker(refused, tmp_path))).champion(NAME)


def test_two_machines_that_are_asked_for_one_ticker_at_once_train_it_once_in_an_empty_database(
    postgres: PostgresServer, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_simulated(tmp_path / "data", tickers=("AAPL",), bars=130)
    uri = postgres.url(postgres.new_database()).replace("postgresql+psycopg2", "postgresql")
    flags = ["--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out"), *small_flags(tiny_base)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    processes, outputs = [], []
    (tmp_path / "out" / "state").mkdir(parents=True)
    with folder_lock(tmp_path / "out", "state/.adapters-AAPL.lock"):  # a third machine, until both others wait
        for machine in ("one", "two"):
            (tmp_path / machine).mkdir()
            command = [sys.executable, "-m", "kronos_pipeline.run_training", *flags, "--adapter", "lora"]
            with (tmp_path / machine / "output").open("w") as output:
                environment = {**os.environ, "TMPDIR": str(tmp_path / machine), "PYTHONUNBUFFERED": "1"}
                processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
            outputs.append(tmp_path / machine / "output")
        while not all("waiting for another training" in output.read_text() for output in outputs):
            assert [process.poll() for process in processes] == [None, None], [path.read_text() for path in outputs]
            time.sleep(0.1)
    texts = [output.read_text() for process, output in zip(processes, outputs, strict=True) if process.wait() == 0]
    trained = ["adapters/AAPL: step " in text for text in texts]
    kept = [re.search(r"adapters/AAPL: .*, kept", text) is not None for text in texts]
    assert sorted(zip(trained, kept, strict=True)) == [(False, True), (True, False)], texts
    assert not any(postgres.password in text for text in texts)

    layout = ArtifactLayout(tmp_path / "out")
    assert len(list((layout.root / "adapters" / ".versions").iterdir())) == 1
    models = read_registered_models(postgres.url(f"kronos_{postgres._databases}"))
    assert models is not None
    assert [version.number for version in models[NAME].versions] == list(range(1, 1 + len(models[NAME].versions)))
    assert read_json(layout.adapter("AAPL") / "manifest.json")["mlflow_run"] in {
        version.run_id for version in models[NAME].versions
    }
    everything = [path.read_bytes() for path in layout.root.rglob("*") if path.is_file()]
    assert not any(postgres.password.encode() in content for content in everything)


def test_a_run_of_another_host_is_ended_as_killed_if_its_process_holds_no_lease(
    tracker: Tracker, mlflow_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KRONOS_LEASE_DATABASE", mlflow_database)
    with tracker.training_run("first", Recipe()) as first:
        pass
    client = MlflowClient(mlflow_database)
    experiment = client.get_run(first.run_id).info.experiment_id
    alive, dead = (
        client.create_run(experiment, tags={PROCESS: process}).info.run_id for process in ("host7:412:1", "host8:412:1")
    )
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "host7")
        patch.setattr(os, "getpid", lambda: 412)
        assert Leases(mlflow_database, "host 7").take("adapters/AAPL")
    with Tracker(mlflow_database, tmp_path / "out").training_run("second", Recipe()):
        pass
    assert [client.get_run(run).info.status for run in (alive, dead)] == ["RUNNING", "KILLED"]
