"""Which runs, logged models and registered versions of an MLflow store are no longer in use, and their deletion.

A registered version stays if it is or was champion of a target, has an alias, was decided on by a person, is among the
newest of its model, or is the newest refit of a version that stays. A run stays if it is among the newest of its kind
and ticker, has a version that stays, trained an artifact on disk, or may go on. A logged model stays as long as a
version points to it.

The order of deletion keeps registry and files consistent if the process is killed: first the version, so that nothing
points to the files, then the files, then the record of the model or run. A record whose files are gone belongs to a run
that the next clean-up deletes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.errors import count
from kronos_pipeline.removal import Removal, delete_path, is_within, size_of
from kronos_pipeline.tracking.champions import Champions, read_champions
from kronos_pipeline.tracking.moved_folder import local_path
from kronos_pipeline.tracking.run_page import KIND, TICKER
from kronos_pipeline.tracking.store import EXPERIMENT, LEADERBOARDS, is_sqlite, open_store, readable_errors, sqlite_path
from kronos_pipeline.tracking.version import Version
from kronos_pipeline.tracking.version_store import PREFIX, VersionStore

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

VERSIONS, MODELS, RUNS = "registered versions", "files of versions", "MLflow runs"
_Thing = TypeVar("_Thing")
_REGISTRATION = timedelta(days=2)
"""Age from which a logged model without a version counts as left behind by a registration that was killed."""
_TIME = re.compile(r" \d{4}-\d{2}-\d{2} \d{2}:\d{2}$")


@dataclass(frozen=True)
class Retention:
    """What stays.

    Attributes:
        keep: number of newest versions of a registered model, and of newest runs of a kind and ticker.
        dead_before: time before which an unfinished run, or a run in MLflow's trash, counts as given up.
        now: the current time, with a zone.
        in_use: MLflow runs of the artifacts on disk.
    """

    keep: int
    dead_before: datetime
    now: datetime
    in_use: Collection[str] = field(default_factory=frozenset)


def unused_versions(versions: Sequence[Version], champions: Champions, keep: int) -> list[Version]:
    """Return the versions of a registered model that are no longer in use, oldest first.

    Args:
        versions: all versions of the model, oldest first.
        champions: its champions and former champions, which a rollback restores.
        keep: number of newest trainings to keep.
    """
    former = {number for numbers in champions.former.values() for number in numbers}
    newest = [version.number for version in versions if not version.is_refit][-keep:]
    kept = {*champions.numbers.values(), *former, *newest}
    kept |= {version.number for version in versions if version.aliases or _is_of_a_person(version)}
    refits = {version.tags["refit_of"]: version.number for version in versions if version.is_refit}
    kept |= {refit for number, refit in refits.items() if number in {str(measured) for measured in kept}}
    return [version for version in versions if version.number not in kept]


def unused_tracking(uri: str, layout: ArtifactLayout, retention: Retention) -> tuple[list[Removal], list[str]]:
    """Return what can go from an MLflow store, in the order of its deletion, and notes on what stays although old.

    A store that does not exist has nothing. A tracking server keeps the records of deleted runs until `mlflow gc`.

    Args:
        uri: the store.
        layout: the layout of the artifacts; local files outside its folder of MLflow's artifacts stay.
        retention: what stays.

    Raises:
        TrackingError: the store cannot be used.
    """
    if is_sqlite(uri) and not sqlite_path(uri).is_file():
        return [], []
    client = open_store(uri)
    with readable_errors(uri):
        return _Store(uri, client, VersionStore(uri), layout).plan(retention)


@dataclass
class _Store:
    uri: str
    client: MlflowClient
    registry: VersionStore
    layout: ArtifactLayout

    def plan(self, retention: Retention) -> tuple[list[Removal], list[str]]:
        experiments = self._experiments()
        registered = self.registry.models()
        locations = {
            (record.name, int(record.version)): str(record.source)
            for record in self._records(f"name LIKE '{PREFIX}%'")  # after the versions, so that no new one is missing
        }
        unused, versions_outside = self._divided(
            [
                version
                for versions, tags in registered.values()
                for version in unused_versions(versions, read_champions(versions, tags), retention.keep)
            ],
            lambda version: locations.get((version.name, version.number), ""),
        )
        names = {locations[version.name, version.number]: str(version) for version in unused}
        staying = {location for location in locations.values() if location not in names}
        left_behind = (retention.now - _REGISTRATION).timestamp() * 1000
        used_models: list[LoggedModel] = []
        loose: list[LoggedModel] = []
        for model in self._logged_models(experiments):
            location = model.artifact_location
            goes = location in names or (location not in staying and model.creation_timestamp < left_behind)
            (loose if goes else used_models).append(model)
        going = {(version.name, version.number) for version in unused}
        in_use = {*retention.in_use, *(model.source_run_id for model in used_models)}
        in_use |= {
            version.run_id
            for versions, _ in registered.values()
            for version in versions
            if (version.name, version.number) not in going
        }
        old_runs = [run for run in self._old_runs(experiments, retention) if run.info.run_id not in in_use]
        models, models_outside = self._divided(loose, _location)
        runs, runs_outside = self._divided(old_runs, _location)
        notes = []
        if outside := [*versions_outside, *models_outside, *runs_outside]:
            notes.append(
                f"{count(len(outside), 'old run or version')} of MLflow stays: the files lie outside "
                f"{self.layout.mlflow_artifacts}, such as {outside[0]}."
            )
        if runs and not hasattr(self._tracking, "_hard_delete_run"):
            notes.append("The records of deleted runs stay in MLflow's trash until `mlflow gc` on its server.")
        files = {model.artifact_location: names.get(model.artifact_location, model.model_id) for model in models}
        return [
            *(self._version_removal(version, retention.keep) for version in unused),
            *(self._removal(MODELS, files[_location(model)], model, self._delete_model) for model in models),
            *(self._removal(RUNS, str(run.info.run_name), run, self._delete_run) for run in runs),
        ], notes

    def _divided(
        self, things: Sequence[_Thing], location_of: Callable[[_Thing], str]
    ) -> tuple[list[_Thing], list[str]]:
        """Return the things whose files may be deleted, and the locations of the others."""
        inside = [thing for thing in things if self._may_delete(location_of(thing))]
        outside = [location for thing in things if not self._may_delete(location := location_of(thing))]
        return inside, outside

    def _experiments(self) -> list[str]:
        """Return the ids of the project's experiments; a moved output folder has experiments of its own."""
        found = _pages(lambda token: self.client.search_experiments(page_token=token))
        ours = (EXPERIMENT, LEADERBOARDS)
        return [
            experiment.experiment_id
            for experiment in found
            if experiment.name in ours or experiment.name.startswith(tuple(f"{name} in " for name in ours))
        ]

    def _unused(self, name: str, versions: Sequence[Version], keep: int) -> list[Version]:
        return unused_versions(versions, read_champions(versions, self.registry.tags(name)), keep)

    def _records(self, condition: str) -> list[ModelVersion]:
        return _pages(lambda token: self.client.search_model_versions(condition, page_token=token))

    def _logged_models(self, experiments: list[str]) -> list[LoggedModel]:
        if not experiments:
            return []
        search = self.client.search_logged_models
        return _pages(lambda token: search(experiments, max_results=1000, page_token=token))

    def _old_runs(self, experiments: list[str], retention: Retention) -> list[Run]:
        """Return the runs that are not among the newest of their group, and may not go on."""
        if not experiments:
            return []
        groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
        search = self.client.search_runs
        order = ["attributes.start_time DESC"]
        for run in _pages(lambda token: search(experiments, max_results=1000, order_by=order, page_token=token)):
            groups[_group(run)].append(run)
        dead = retention.dead_before.timestamp() * 1000
        old = [run for runs in groups.values() for run in runs[retention.keep :]]
        ended = [run for run in old if run.info.status != "RUNNING" or run.info.start_time < dead]
        return [*self._trash(experiments, retention), *ended]

    def _trash(self, experiments: list[str], retention: Retention) -> list[Run]:
        """Return the runs that people deleted in MLflow long ago; a server keeps its trash."""
        if not hasattr(self._tracking, "_get_deleted_runs"):
            return []
        age = int((retention.now - retention.dead_before).total_seconds() * 1000)
        runs = (self.client.get_run(run_id) for run_id in self._tracking._get_deleted_runs(age))
        return [run for run in runs if run.info.experiment_id in experiments]

    def _may_delete(self, location: str) -> bool:
        path = local_path(location)
        return bool(location) and (
            path is None or all(is_within(path, root) for root in (self.layout.root, self.layout.mlflow_artifacts))
        )

    def _removal(self, rule: str, name: str, thing: Any, delete: Callable[[Any], None]) -> Removal:
        path = local_path(_location(thing))

        def delete_readably() -> None:
            with readable_errors(self.uri):
                delete(thing)

        return Removal(rule, name, 0 if path is None else size_of(path), delete_readably)

    def _version_removal(self, version: Version, keep: int) -> Removal:
        """Return the removal of a version; its files go with its logged model."""

        def delete() -> None:
            versions = self.registry.search(version.name)
            if any(unused.number == version.number for unused in self._unused(version.name, versions, keep)):
                self.registry.delete(version)

        return Removal(VERSIONS, str(version), 0, delete)

    def _delete_model(self, model: LoggedModel) -> None:
        if any(record.source == model.artifact_location for record in self._records(_of_run(model.source_run_id))):
            return  # somebody has registered it since, or promoted its version
        self._delete_files(model.artifact_location)
        if hasattr(self._tracking, "_hard_delete_logged_model"):
            self._tracking._hard_delete_logged_model(model.model_id)
        else:
            self.client.delete_logged_model(model.model_id)

    def _delete_run(self, run: Run) -> None:
        run_id = run.info.run_id
        if self._records(_of_run(run_id)):
            return  # as in `_delete_model`
        self._delete_files(run.info.artifact_uri)
        if hasattr(self._tracking, "_hard_delete_run"):
            self._tracking._hard_delete_run(run_id)
        elif run.info.lifecycle_stage == "active":
            self.client.delete_run(run_id)

    def _delete_files(self, location: str) -> None:
        path = local_path(location)
        if path is None:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            repository: Any = get_artifact_repository(location, tracking_uri=self.uri)
            repository.delete_artifacts()
            return
        delete_path(path, self.layout.mlflow_artifacts)
        if path.name == "artifacts" and path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()  # MLflow's folder of the run

    @property
    def _tracking(self) -> Any:
        """The store behind the client: `mlflow gc` deletes records by methods that the client lacks."""
        return self.client._tracking_client.store


def _group(run: Run) -> tuple[str, ...]:
    """Return the group whose newest runs stay: the trainings of a kind and ticker, the leaderboards."""
    kind, ticker = run.data.tags.get(KIND, ""), run.data.tags.get(TICKER)
    if kind == "adapter" and ticker is None:  # an adapter over several tickers
        return run.info.experiment_id, kind, _TIME.sub("", str(run.info.run_name))
    return run.info.experiment_id, kind, ticker or ""


def _of_run(run_id: str | None) -> str:
    return f"run_id = '{run_id}'"


def _is_of_a_person(version: Version) -> bool:
    return any(key.startswith("decided_by") and value == "person" for key, value in version.tags.items())


def _location(thing: Any) -> str:
    """Return where MLflow has the files of a run or a logged model."""
    return str(thing.info.artifact_uri if hasattr(thing, "info") else thing.artifact_location)


def _pages(search: Callable[[Any], Iterable[Any]]) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = cast("Any", search(token))
        found += page
        if not (token := page.token):
            return found
