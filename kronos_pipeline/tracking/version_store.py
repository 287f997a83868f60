"""Versions of registered models in an MLflow store: add, search, tag, alias and fetch them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kronos_pipeline.addresses import without_password, without_secrets
from kronos_pipeline.errors import enumerate_some
from kronos_pipeline.names import NAME
from kronos_pipeline.tracking.packaging import (
    FOLDER,
    WEIGHTS_HASH,
    EvidenceTable,
    manifest_tags,
    save_evidence,
    save_pyfunc,
    trained_weights_hash,
)
from kronos_pipeline.tracking.run_page import BARS, COMMAND
from kronos_pipeline.tracking.store import TrackingError, change_model, check_server, open_store, readable_errors
from kronos_pipeline.tracking.store_errors import root_cause
from kronos_pipeline.tracking.version import TRAINED_AT, Version
from kronos_pipeline.tracking.version_page import describe, describe_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHECKPOINT_NAME = "kronos-all"
CHAMPION, CHALLENGER, REFIT = "champion", "challenger", "refit"
PREFIX = "kronos-"
_MODELS_PER_PAGE = 1000
"""The most that MLflow allows."""


def registered_name(adapter: str | None) -> str:
    """Return a model's name in the registry: `kronos-<adapter>`, or `kronos-all` for the checkpoint (None).

    An adapter named "all", in any case as some stores ignore case, is `kronos-all~adapter`: an adapter name cannot
    contain a ~.
    """
    if adapter is None:
        return CHECKPOINT_NAME
    return f"{PREFIX}{adapter}{'~adapter' if adapter.casefold() == 'all' else ''}"


def is_registered_name(name: str) -> bool:
    """Return whether a text is a name that `registered_name` gives."""
    return NAME.fullmatch(name.removeprefix(PREFIX).removesuffix("~adapter")) is not None


class VersionStore:
    """The registered models of an MLflow store, opened at the first use.

    Every method raises TrackingError if the store cannot be used.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def add(
        self,
        folder: Path,
        name: str,
        run_id: str,
        evidence: EvidenceTable | None,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> int:
        """Log a model to a run, register it as a version after all files are uploaded, and return the number.

        Raises:
            ArtifactError: the folder has no manifest of a training.
        """
        known_tags = manifest_tags(folder)
        client = self._client
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

        with TemporaryDirectory() as temporary:
            packed = Path(temporary) / "packed"
            with readable_errors(self._uri):
                run = client.get_run(run_id)
                logged = client.create_logged_model(run.info.experiment_id, known_tags["kind"], source_run_id=run_id)
            ids: dict[str, Any] = {"run_id": run_id, "model_id": logged.model_id}
            record = Model(artifact_path=logged.artifact_location, model_uuid=logged.model_id, **ids)
            save_pyfunc(folder, packed, record, evidence)
            with readable_errors(self._uri):
                client.log_model_artifacts(logged.model_id, str(packed))
        with readable_errors(self._uri):
            client.finalize_logged_model(logged.model_id, "READY")
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
            self._log_metrics(metrics, run_id, logged.model_id)
            now = int(time.time() * 1000)
            ended = datetime.fromtimestamp((run.info.end_time or now) / 1000, UTC)
            of_run = {key: run.data.tags[key] for key in (BARS, COMMAND) if key in run.data.tags}
            all_tags = {**known_tags, TRAINED_AT: ended.isoformat(timespec="seconds"), **of_run, **tags}
            model, about = self._model(name), describe_model(name, all_tags["trained_on"].split(","))
            if model is None:
                client.create_registered_model(name, description=about)
            elif not model.description:
                client.update_registered_model(name, about)
            # Pass the location and not models:/<id>, which MLflow would look up in its default store.
            version = client.create_model_version(
                name,
                logged.artifact_location,
                run_id,
                all_tags,
                description=describe(Version(name, 0, run_id, (), all_tags, ended)),
                model_id=logged.model_id,
            )
            link = json.dumps([{"name": name, "version": int(version.version)}])  # read by MLflow's pages
            client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: link})
        return int(version.version)

    def add_trained(self, folder: Path, name: str, run_id: str) -> int:
        """Register an adapter or checkpoint without scores; weights that are registered keep their version.

        Args:
            folder: the adapter or checkpoint, with its manifest.
            name: name of the registered model.
            run_id: the MLflow run of the training.

        Returns:
            The version's number.
        """
        with change_model(self._uri, name):
            known = self.of_training(name, folder, run_id)
            return known[-1].number if known else self.add(folder, name, run_id, None, {}, {"measured": "no"})

    def of_training(self, name: str, folder: Path, run_id: str) -> list[Version]:
        """List the versions of a training, oldest first, without refits.

        A version is known by its weights, as a training that is repeated or resumed may have another MLflow run; a
        version whose files are gone does not count.

        Args:
            name: name of the registered model.
            folder: the adapter or checkpoint.
            run_id: the MLflow run of the training.
        """
        weights = trained_weights_hash(folder)
        return [
            version
            for version in self.search(name)
            if not version.is_refit
            and (version.run_id == run_id or (version.tags.get(WEIGHTS_HASH) == weights and self.has_files(version)))
        ]

    def add_evidence(
        self, version: Version, folder: Path, evidence: EvidenceTable, metrics: Mapping[str, float]
    ) -> None:
        """Add the evidence of a version and its scores, and the sampling settings that the evaluation fitted.

        Args:
            version: the version.
            folder: the adapter or checkpoint of the version.
            evidence: the evidence, in place of any earlier evidence.
            metrics: scores by MLflow metric name, without undefined scores.
        """
        with TemporaryDirectory() as temporary:
            save_evidence(folder, Path(temporary), evidence)
            with readable_errors(self._uri):
                model_id = self._logged_model(version)
                self._client.log_model_artifacts(model_id, temporary)
                self._log_metrics(metrics, version.run_id, model_id)

    def names(self) -> list[str]:
        """List the names of the project's registered models, sorted, without models that others named alike."""
        with readable_errors(self._uri):
            return sorted(model.name for model in self._models())

    def models(self) -> dict[str, tuple[list[Version], dict[str, str]]]:
        """Return the versions, oldest first, and the tags of each of the project's registered models, by name.

        The number of searches grows with the pages of the answer, and not with the models.
        """
        with readable_errors(self._uri):
            records = _all_pages(self._client.search_model_versions, f"name LIKE '{PREFIX}%'")
            models = {model.name: model for model in self._models()}
        found: dict[str, tuple[list[Version], dict[str, str]]] = {
            name: ([], dict(model.tags)) for name, model in sorted(models.items())
        }
        for record in sorted(records, key=lambda record: int(record.version)):
            if record.name in found:
                found[record.name][0].append(_version(record, models[record.name].aliases))
        return found

    def search(self, name: str, condition: str = "") -> list[Version]:
        """List a model's versions that match an MLflow filter, oldest first; empty if the model does not exist."""
        return self.read(name, condition)[0]

    def read(self, name: str, condition: str = "") -> tuple[list[Version], dict[str, str]]:
        """Return a model's versions, as `search`, and its tags, which belong to the versions' aliases."""
        with readable_errors(self._uri):
            records = _all_pages(self._client.search_model_versions, f"name = '{name}'{condition}")
            model = self._model(name)
        aliases = model.aliases if model else {}
        versions = sorted((_version(record, aliases) for record in records), key=lambda version: version.number)
        return versions, dict(model.tags) if model else {}

    def get(self, name: str, number: int) -> Version:
        """Return a version.

        Raises:
            TrackingError: the version does not exist.
        """
        version = next((version for version in self.search(name) if version.number == number), None)
        if version is None:
            raise TrackingError(f"{name} has no version {number}. {self.describe_available(name)}")
        return version

    def set_alias(self, version: Version, alias: str) -> None:
        """Point an alias to a version, and no longer to any other."""
        with readable_errors(self._uri):
            self._client.set_registered_model_alias(version.name, alias, str(version.number))

    def remove_alias(self, version: Version, alias: str) -> None:
        """Remove an alias from a version if the alias points to it."""
        if alias in version.aliases:
            with readable_errors(self._uri):
                self._client.delete_registered_model_alias(version.name, alias)

    def tag_version(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version, where they differ, and the description in MLflow's pages, which follows from them."""
        description = describe(replace(version, tags={**version.tags, **tags}))
        with readable_errors(self._uri):
            for key, value in tags.items():
                if version.tags.get(key) != value:
                    self._client.set_model_version_tag(version.name, str(version.number), key, value)
            self._client.update_model_version(version.name, str(version.number), description)

    def delete(self, version: Version) -> None:
        """Delete a version from the registry, with the tags that MLflow would keep; its files stay."""
        with readable_errors(self._uri):
            self._client.delete_model_version(version.name, str(version.number))
            client: Any = self._client  # MLflow has no types here
            store = client._get_registry_client().store
            if not hasattr(store, "ManagedSessionMaker"):
                return  # a server
            from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
            from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag

            of_name = SqlModelVersion.name == version.name, SqlModelVersion.current_stage == STAGE_DELETED_INTERNAL
            with store.ManagedSessionMaker(read_only=False) as session:
                deleted = session.query(SqlModelVersion.version).filter(*of_name)
                of_deleted = SqlModelVersionTag.name == version.name, SqlModelVersionTag.version.in_(deleted)
                session.query(SqlModelVersionTag).filter(*of_deleted).delete(synchronize_session=False)

    def set_tag(self, name: str, key: str, value: str) -> None:
        """Set a tag of a registered model; register a model without versions if there is none."""
        with readable_errors(self._uri):
            if self._model(name) is None:
                self._client.create_registered_model(name)
            self._client.set_registered_model_tag(name, key, value)

    def remove_tag(self, name: str, key: str) -> None:
        """Remove a tag of a registered model, if it has the tag."""
        with readable_errors(self._uri):
            self._client.delete_registered_model_tag(name, key)

    def tags(self, name: str) -> dict[str, str]:
        """Return the tags of a registered model; empty if the model does not exist."""
        with readable_errors(self._uri):
            model = self._model(name)
        return dict(model.tags) if model else {}

    def fetch(self, version: Version, part: str, into: Path) -> Path:
        """Copy a file or folder of a version below the folder `into`, and return its path.

        Raises:
            TrackingError: the file or folder is missing.
        """
        from mlflow.artifacts import download_artifacts

        with readable_errors(self._uri):
            location = self._client.get_model_version_download_uri(version.name, str(version.number))
        try:
            uri = f"{location.rstrip('/')}/{part}"
            return Path(download_artifacts(artifact_uri=uri, dst_path=str(into), tracking_uri=self._uri))
        except Exception as error:  # of MLflow, or of the client of an object store, in any family
            failure = error
        if self._uri.startswith(("http://", "https://")):
            with readable_errors(self._uri):
                check_server(self._uri)  # raises if the server went away meanwhile: no file is lost then
        place = without_password(location)
        raise TrackingError(
            f"The files of {version} cannot be fetched from {place}: "
            f"{without_secrets(_fetch_advice(failure), location)}."
        ) from failure

    def has_files(self, version: Version) -> bool:
        """Return whether the files of a version are where the registry says."""
        from mlflow.artifacts import list_artifacts

        with readable_errors(self._uri):
            location = self._client.get_model_version_download_uri(version.name, str(version.number))
        try:
            return bool(list_artifacts(artifact_uri=f"{location.rstrip('/')}/{FOLDER}", tracking_uri=self._uri))
        except Exception:  # of the client of any object store
            return False

    def describe_available(self, name: str) -> str:
        """Return a sentence for error messages that names the available versions or models."""
        if versions := self.search(name):
            return f"Its versions are {', '.join(str(version.number) for version in versions)}."
        if names := self.names():
            return f"The registered models are {enumerate_some(names)}."
        return "There is no registered model yet; train first, or name another --output-dir."

    def _logged_model(self, version: Version) -> str:
        """Return the id of the logged model of a version. MLflow's SQL store does not keep it with the version."""
        source = self._client.get_model_version(version.name, str(version.number)).source
        outputs = self._client.get_run(version.run_id).outputs
        for output in outputs.model_outputs if outputs else ():
            if self._client.get_logged_model(output.model_id).artifact_location == source:
                return str(output.model_id)
        raise TrackingError(f"MLflow run {version.run_id} does not have the logged model of {version}; train again.")

    def _log_metrics(self, metrics: Mapping[str, float], run_id: str, model_id: str) -> None:
        """Log scores of a model to the run of its training, and to the model."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        scores = [Metric(key, value, now, 0, run_id=run_id, model_id=model_id) for key, value in metrics.items()]
        self._client.log_batch(run_id, scores)

    @cached_property
    def _client(self) -> MlflowClient:
        return open_store(self._uri)

    def _models(self) -> list[RegisteredModel]:
        search = partial(self._client.search_registered_models, max_results=_MODELS_PER_PAGE)
        models = _all_pages(search, f"name LIKE '{PREFIX}%'")
        return [model for model in models if is_registered_name(model.name)]

    def _model(self, name: str) -> RegisteredModel | None:
        models = self._client.search_registered_models(f"name = '{name}'")
        return models[0] if models else None


def _version(record: ModelVersion, aliases: Mapping[str, Any]) -> Version:
    # A search result has no aliases; the registered model has the aliases of all versions.
    own_aliases = tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(record.version)))
    registered_at = datetime.fromtimestamp(record.creation_timestamp / 1000, UTC)
    return Version(record.name, int(record.version), str(record.run_id), own_aliases, dict(record.tags), registered_at)


def _fetch_advice(error: Exception) -> str:
    """Return why files could not be fetched, and what to do."""
    root = root_cause(error)
    if isinstance(root, ImportError):
        return f"that needs a package that is not installed here ({root}); install the package, or train again"
    reason = str(root).strip().splitlines()[-1] if str(root).strip() else type(root).__name__
    if "registered artifact repository" in reason:
        return "MLflow here knows no such kind of address; install MLflow's plugin for it, or train again"
    return f"{reason.rstrip('.')}; bring them back, or train again"


def _all_pages(search: Callable[..., Any], condition: str) -> list[Any]:
    records, token = [], None
    while True:
        page = search(condition, page_token=token)
        records += page
        if not (token := page.token):
            return records
