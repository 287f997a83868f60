"""What a clean-up deletes from MLflow, and what stays: never a champion, nor what a rollback restores."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from registered_models import GOOD, evidence, promotions
from registered_models import number as number_of

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.scoring.targets import TARGETS
from kronos_pipeline.removal import Removal, delete_path
from kronos_pipeline.tracking import retention
from kronos_pipeline.tracking.champions import Champions
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry, Version, registered_name
from kronos_pipeline.tracking.retention import Retention, unused_tracking, unused_versions
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.stored_registry import read_registered_models
from kronos_pipeline.tracking.version_store import VersionStore

NOW = datetime.now(UTC)


def version(number: int, aliases: Sequence[str] = (), **tags: str) -> Version:
    return Version("kronos-AAPL", number, f"run {number}", tuple(aliases), {"measured": "yes", **tags}, NOW)


def test_champions_former_champions_and_what_people_chose_stay_however_old() -> None:
    versions = [
        version(1),
        version(2),
        version(3),
        version(4, ["mine"]),
        version(5, **{"decided_by.mean": "person"}),
        version(6, refit_of="2", measured="no"),
        version(7, refit_of="2", measured="no"),
        version(8, refit_of="1", measured="no"),
        *map(version, range(9, 12)),
    ]
    champions = Champions({"mean": 2}, {"mean": (3,), "distribution": (), "volatility": ()})
    unused = [unused.number for unused in unused_versions(versions, champions, keep=2)]
    assert unused == [1, 6, 8, 9], "the newest refit of a version that stays is what forecasts"


@pytest.fixture
def tracker(empty_mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    """A tracker of a store of the test's own, in its output folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mlflow.db").write_bytes(empty_mlflow_store.read_bytes())
    return Tracker(None, tmp_path / "out")


@pytest.fixture
def train(tracker: Tracker, adapter: Path) -> Callable[[str], int]:
    """Return a function that records a training of a ticker as a run and a measured version, without training."""

    def record(ticker: str) -> int:
        tags = {"kind": "adapter", "ticker": ticker}
        with tracker.training_run(f"adapter {ticker}", Recipe(), tags) as run:
            pass
        table = EvidenceTable(evidence(GOOD))
        return Registry(tracker).register(adapter, registered_name(ticker), run.run_id, evidence=table, metrics={})

    return record


def plan(tracker: Tracker, keep: int, *, later: timedelta = timedelta(0)) -> list[Removal]:
    now = datetime.now(UTC) + later
    return unused_tracking(tracker.uri, layout_of(tracker), Retention(keep, now - timedelta(days=30), now))[0]


def layout_of(tracker: Tracker) -> ArtifactLayout:
    return ArtifactLayout(Path(tracker.uri.removeprefix("sqlite:///")).parent)


def clean(tracker: Tracker, keep: int) -> list[str]:
    removals = plan(tracker, keep)
    for removal in removals:
        removal.delete()
    return [f"{removal.rule}: {removal.name}" for removal in removals]


def numbers(tracker: Tracker, name: str) -> list[int]:
    return [version.number for version in Registry(tracker).versions(name)]


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def check_consistent(tracker: Tracker, into: Path) -> None:
    """Every version of the registry has its files and its run."""
    registry, client = Registry(tracker), MlflowClient(tracker.uri)
    for name in registry.names():
        for found in registry.versions(name):
            assert (registry.fetch(found, into / f"{name}-{found.number}") / "adapter_model.safetensors").is_file()
            assert registry.evidence(found) is not None
            assert client.get_run(found.run_id).info.lifecycle_stage == "active"


@pytest.mark.slow
def test_old_trainings_go_with_their_files_and_rows_and_the_champion_and_its_predecessor_stay(
    tracker: Tracker, train: Callable[[str], int], tmp_path: Path
) -> None:
    registry, client, name = Registry(tracker), MlflowClient(tracker.uri), registered_name("AAPL")
    for ticker in ("AAPL", "AAPL", "AAPL", "AAPL", "MSFT"):
        number = train(ticker)
        if number <= 2 and ticker == "AAPL":
            registry.record_decision(name, number, promotions())
    gone = registry.version(name, 3)
    before = files_below(layout_of(tracker).mlflow_artifacts)

    assert clean(tracker, 1) == [
        "registered versions: kronos-AAPL version 3",
        "files of versions: kronos-AAPL version 3",
        "MLflow runs: adapter AAPL",
    ]

    assert numbers(tracker, name) == [1, 2, 4]
    assert numbers(tracker, registered_name("MSFT")) == [1]
    check_consistent(tracker, tmp_path / "fetched")
    assert len(files_below(layout_of(tracker).mlflow_artifacts)) < len(before)
    for view in (ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY):
        runs = client.search_runs([client.get_run(registry.version(name, 4).run_id).info.experiment_id], "", view)
        assert gone.run_id not in {run.info.run_id for run in runs}
    with closing(sqlite3.connect(layout_of(tracker).mlflow_database)) as database:
        for table in ("params", "tags", "metrics"):
            query = f"SELECT count(*) FROM {table} WHERE run_uuid = ?"
            assert database.execute(query, [gone.run_id]).fetchone() == (0,)
        tags = database.execute("SELECT count(*) FROM model_version_tags WHERE name = ? AND version = 3", [name])
        assert tags.fetchone() == (0,)
    stored = read_registered_models(tracker.uri)
    assert stored is not None
    assert [version.number for version in stored[name].versions] == [1, 2, 4], "`kronos status` reads the file itself"
    restored = registry.rollback(name, "worse").champions
    assert {target: number_of(champion) for target, champion in restored.items()} == dict.fromkeys(TARGETS, 1)
    assert clean(tracker, 1) == [], "a version that a person decided on stays"
    assert train("AAPL") == 5, "no number is given twice"


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_kill_in_the_middle_leaves_registry_and_files_in_agreement_and_the_next_clean_up_ends_it(
    step: int, tracker: Tracker, train: Callable[[str], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        train("AAPL")
    left = [step]

    def killed_at(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: object) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            write(*arguments)

        return wrapped

    store = MlflowClient(tracker.uri)._tracking_client.store
    with monkeypatch.context() as patch:
        patch.setattr(retention, "delete_path", killed_at(delete_path))
        patch.setattr(VersionStore, "delete", killed_at(VersionStore.delete))
        for method in ("_hard_delete_run", "_hard_delete_logged_model"):
            patch.setattr(type(store), method, killed_at(getattr(type(store), method)))
        with pytest.raises(KeyboardInterrupt):
            clean(tracker, 1)
    check_consistent(tracker, tmp_path / "between")

    later = plan(tracker, 1, later=timedelta(days=3))  # a model without a version may be of a registration in progress
    for removal in later:
        removal.delete()
    check_consistent(tracker, tmp_path / "after")
    assert numbers(tracker, registered_name("AAPL")) == [2]
    models = {path.name for path in (layout_of(tracker).mlflow_artifacts / "models").iterdir()}
    assert len(models) == 1
    assert plan(tracker, 1, later=timedelta(days=3)) == []


@pytest.mark.slow
def test_a_version_that_is_promoted_after_the_look_stays_with_its_files(
    tracker: Tracker, train: Callable[[str], int], tmp_path: Path
) -> None:
    for _ in range(2):
        train("AAPL")
    removals = plan(tracker, 1)
    assert removals
    Registry(tracker).promote(registered_name("AAPL"), 1, "it is better")
    for removal in removals:
        removal.delete()
    assert numbers(tracker, registered_name("AAPL")) == [1, 2]
    check_consistent(tracker, tmp_path / "fetched")


@pytest.mark.slow
def test_files_outside_the_output_folder_stay_with_their_versions(
    tracker: Tracker, train: Callable[[str], int], tmp_path: Path
) -> None:
    for _ in range(2):
        train("AAPL")
    artifacts = layout_of(tracker).mlflow_artifacts
    elsewhere = artifacts.rename(tmp_path / "elsewhere")
    artifacts.symlink_to(elsewhere)
    before = files_below(elsewhere)
    now = datetime.now(UTC)
    removals, notes = unused_tracking(tracker.uri, layout_of(tracker), Retention(1, now, now))
    assert removals == []
    assert "lie outside" in notes[0]
    assert files_below(elsewhere) == before
    assert numbers(tracker, registered_name("AAPL")) == [1, 2]


@pytest.mark.slow
def test_runs_of_artifacts_on_disk_and_runs_that_may_go_on_stay(tracker: Tracker) -> None:
    client, ids = MlflowClient(tracker.uri), []
    for _ in range(3):
        with tracker.training_run("adapter AAPL", Recipe(), {"kind": "adapter", "ticker": "AAPL"}) as run:
            ids.append(run.run_id)
    client.update_run(ids[0], status="RUNNING")
    now = datetime.now(UTC)
    layout = layout_of(tracker)
    kept = Retention(1, now - timedelta(days=30), now, {ids[1]})
    assert unused_tracking(tracker.uri, layout, kept)[0] == []
    month_later = Retention(1, now + timedelta(days=1), now + timedelta(days=31), {ids[1]})
    removals, _ = unused_tracking(tracker.uri, layout, month_later)
    for removal in removals:
        removal.delete()
    experiment = client.get_run(ids[1]).info.experiment_id
    assert {run.info.run_id for run in client.search_runs([experiment])} == {ids[1], ids[2]}


def test_a_store_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert unused_tracking(uri, ArtifactLayout(tmp_path), Retention(1, NOW, NOW)) == ([], [])
    assert not list(tmp_path.iterdir())


def test_a_plan_for_many_models_searches_no_more_often_than_for_few(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracker.uri, tracker.uri)
    searches: list[str] = []
    for name in ("search_registered_models", "search_model_versions"):
        search = getattr(MlflowClient, name)

        def counted(self: MlflowClient, *arguments: object, search: Any = search, **settings: object) -> Any:
            searches.append(search.__name__)
            return search(self, *arguments, **settings)

        monkeypatch.setattr(MlflowClient, name, counted)
    counts = []
    for names in (["kronos-A"], ["kronos-B", "kronos-C", "kronos-D"]):
        for name in names:
            client.create_registered_model(name)
        searches.clear()
        plan(tracker, 5)
        counts.append(len(searches))
    assert sorted(VersionStore(tracker.uri).models()) == ["kronos-A", "kronos-B", "kronos-C", "kronos-D"]
    assert counts[0] == counts[1]
