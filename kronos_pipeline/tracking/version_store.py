"""Versions of registered models in an MLflow store: what they are called, and how they are added, found and fetched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.tracking.packaging import manifest_tags, save_pyfunc
from kronos_pipeline.tracking.store import TrackingError, open_store, readable_errors, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHECKPOINT_NAME = "kronos-all"
CHAMPION, CHALLENGER, REFIT = "champion", "challenger", "refit"
_PREFIX = "kronos-"


def registered_name(adapter: str | None) -> str:
    """What a model is called in the registry: `kronos-<adapter>`, or `kronos-all` for the checkpoint (None).

    An adapter called "all", in any case as some stores do not tell ALL from all, is `kronos-all~adapter`: no adapter's
    own name may hold a ~.
    """
    if adapter is None:
        return CHECKPOINT_NAME
    return f"{_PREFIX}{adapter}{'~adapter' if adapter.casefold() == 'all' else ''}"


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: the registered model's.
        number: counted from 1.
        run_id: the MLflow run that trained it.
        aliases: those that point to it.
        tags: what is known of it and was decided: `kind`, `trained_on`, `base_model`, `base_hash`, `measured`,
            `promoted`, `reason`, `verdict.naive` and the like.
    """

    name: str
    number: int
    run_id: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"

    @property
    def measured(self) -> bool:
        """False for a refit: it has seen all bars, and none is left to measure it on."""
        return self.tags.get("measured") == "yes"

    def covers(self, ticker: str) -> bool:
        """Whether it was trained on that ticker."""
        return ticker in self.tags.get("trained_on", "").split(",")


class VersionStore:
    """The registered models of one MLflow store, which is opened at the first use.

    Every method raises TrackingError where the store cannot be used.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def add(
        self,
        folder: Path,
        name: str,
        run_id: str,
        predictions: pd.DataFrame | None,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> int:
        """Log a model to a run and make it a version, once all of its files are there; the version's number.

        Raises:
            ArtifactError: the folder has no manifest of a training.
        """
        described = manifest_tags(folder)
        client = self._client
        from mlflow.entities import LoggedModelOutput, Metric
        from mlflow.models import Model
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

        with TemporaryDirectory() as temporary:
            packed = Path(temporary) / "packed"
            with readable_errors(self._uri):
                experiment = client.get_run(run_id).info.experiment_id
                logged = client.create_logged_model(experiment, described["kind"], source_run_id=run_id)
            ids: dict[str, Any] = {"run_id": run_id, "model_id": logged.model_id}
            record = Model(artifact_path=logged.artifact_location, model_uuid=logged.model_id, **ids)
            save_pyfunc(folder, packed, record, predictions)
            with readable_errors(self._uri):
                client.log_model_artifacts(logged.model_id, str(packed))
        with readable_errors(self._uri):
            client.finalize_logged_model(logged.model_id, "READY")
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
            now = int(time.time() * 1000)
            client.log_batch(run_id, [Metric(key, value, now, 0, **ids) for key, value in metrics.items()])
            if self._model(name) is None:
                client.create_registered_model(name)
            # Its place, not models:/<id>, which MLflow looks up in the store that is its own default.
            version = client.create_model_version(
                name, logged.artifact_location, run_id, {**described, **tags}, model_id=logged.model_id
            )
            link = json.dumps([{"name": name, "version": int(version.version)}])  # what MLflow's pages go by
            client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: link})
        return int(version.version)

    def names(self) -> list[str]:
        """The project's registered models, sorted."""
        with readable_errors(self._uri):
            found = _all_pages(self._client.search_registered_models, f"name LIKE '{_PREFIX}%'")
        return sorted(model.name for model in found)

    def search(self, name: str, condition: str = "") -> list[Version]:
        """A model's versions that meet a condition of MLflow's, the oldest first; none where there is no such model."""
        with readable_errors(self._uri):
            found = _all_pages(self._client.search_model_versions, f"name = '{name}'{condition}")
            model = self._model(name)
        aliases = model.aliases if model else {}
        return sorted((_version(one, aliases) for one in found), key=lambda one: one.number)

    def get(self, name: str, number: int) -> Version:
        """One version.

        Raises:
            TrackingError: there is no such version.
        """
        found = [one for one in self.search(name) if one.number == number]
        if not found:
            raise TrackingError(f"{name} has no version {number}. {self.describe_available(name)}")
        return found[0]

    def get_by_alias(self, name: str, alias: str) -> Version | None:
        """The version that an alias points to, or None."""
        return next((one for one in self.search(name) if alias in one.aliases), None)

    def set_alias(self, version: Version, alias: str) -> None:
        """Let an alias point to a version, and no longer to another."""
        with readable_errors(self._uri):
            self._client.set_registered_model_alias(version.name, alias, str(version.number))

    def remove_alias(self, version: Version, alias: str) -> None:
        """Take an alias from a version, where it points to that."""
        if alias in version.aliases:
            with readable_errors(self._uri):
                self._client.delete_registered_model_alias(version.name, alias)

    def tag_version(self, version: Version, reason: str, tags: Mapping[str, str]) -> None:
        """Write tags on a version, and a reason, which is its description in MLflow's pages too."""
        with readable_errors(self._uri):
            for key, value in {**tags, "reason": reason}.items():
                self._client.set_model_version_tag(version.name, str(version.number), key, value)
            self._client.update_model_version(version.name, str(version.number), reason)

    def set_tag(self, name: str, key: str, value: str) -> None:
        """Write a tag on a registered model."""
        with readable_errors(self._uri):
            self._client.set_registered_model_tag(name, key, value)

    def get_tag(self, name: str, key: str) -> str:
        """A tag of a registered model; empty where there is none."""
        with readable_errors(self._uri):
            model = self._model(name)
        return str(model.tags.get(key, "")) if model else ""

    def fetch(self, version: Version, part: str, into: Path) -> Path:
        """Copy a file or folder of a version below the folder `into`, and say where it is.

        Raises:
            TrackingError: it is gone.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        with readable_errors(self._uri):
            place = self._client.get_model_version_download_uri(version.name, str(version.number))
        try:
            uri = f"{place.rstrip('/')}/{part}"
            return Path(download_artifacts(artifact_uri=uri, dst_path=str(into), tracking_uri=self._uri))
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"The files of {version} cannot be fetched from {without_password(place)} ({error}); bring them back, "
                "or train again."
            ) from error

    def describe_available(self, name: str) -> str:
        """What there is under a name, as a sentence for messages."""
        if found := self.search(name):
            return f"Its versions are {', '.join(str(one.number) for one in found)}."
        if names := self.names():
            return f"The registered models are {', '.join(names)}."
        return "There is no registered model yet; train first, or name another --output-dir."

    @cached_property
    def _client(self) -> MlflowClient:
        return open_store(self._uri)

    def _model(self, name: str) -> RegisteredModel | None:
        found = self._client.search_registered_models(f"name = '{name}'")
        return found[0] if found else None


def _version(found: ModelVersion, aliases: Mapping[str, Any]) -> Version:
    # A search leaves the aliases out, and the registered model has them all.
    own = tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(found.version)))
    return Version(found.name, int(found.version), str(found.run_id), own, dict(found.tags))


def _all_pages(search: Callable[..., Any], condition: str) -> list[Any]:
    found, token = [], None
    while True:
        page = search(condition, page_token=token)
        found += page
        if not (token := page.token):
            return found
