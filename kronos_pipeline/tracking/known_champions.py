"""The champions that a forecast needs: read from the registry and kept, or as last known while MLflow is away.

    <output-dir>/champions/kronos-AAPL/
      champions.json     the champion of each target with its tags, refits, the store, and the time of the reading
      model-5/           the adapter or checkpoint of version 5: its files, and their hashes in copy.json
      evidence-5/        its evidence, which the measurement of drift reads

Each reading of a registered model replaces `champions.json`. The files of a version are fetched once, and again if its
tags have changed or the copy is damaged. They come before the record, so the champions of a record have their files.

A store that refuses or is damaged is an error; what is kept stands in only for a store that does not answer. Nothing is
kept of a store in an SQLite file, which is on this machine.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kronos_pipeline.addresses import without_password
from kronos_pipeline.artifacts import check_folder, read_json, read_manifest, write_json
from kronos_pipeline.atomic_writes import publish_folder
from kronos_pipeline.checksums import file_hash, json_text, text_hash
from kronos_pipeline.errors import ArtifactError, KronosError
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, MEAN, TARGETS, Target
from kronos_pipeline.tracking.champions import Champions
from kronos_pipeline.tracking.packaging import (
    EVIDENCE,
    FOLDER,
    WEIGHTS_HASH,
    EvidenceTable,
    read_evidence,
    trained_weights_hash,
)
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.store_errors import TrackingError, UnreachableError, is_sqlite
from kronos_pipeline.tracking.version import Version
from kronos_pipeline.tracking.version_store import is_registered_name

RECORD, _COPY, _FILES = "champions.json", "copy.json", "files"
_LABELS = {FOLDER: "model", EVIDENCE: "evidence"}
"""Names of the folders of copies, by the part of a version."""
_COPY_NAME = re.compile(rf"(?:{'|'.join(_LABELS.values())})-(\d+)")
_FORECAST: tuple[Target, ...] = (MEAN, DISTRIBUTION)
"""The targets whose champions forecast."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownModel:
    """What is known of a registered model: the champion of each target, refits by number, and the time in UTC."""

    champions: Mapping[Target, Version]
    refits: Mapping[int, Version]
    read_at: datetime

    @property
    def serving(self) -> Version | None:
        """The version that serves a forecast."""
        by_number = {version.number: version for version in self.champions.values()}
        numbers = {target: version.number for target, version in self.champions.items()}
        number = Champions(numbers, {}).serving
        return None if number is None else by_number[number]


class KnownChampions:
    """The champions of registered models for one ticker, each model read once."""

    def __init__(self, registry: Registry) -> None:
        """Name the registry; its output folder keeps what is read."""
        self._registry = registry
        self._store = without_password(registry.uri)
        self._models: dict[str, KnownModel] = {}
        self._recalled: set[str] = set()

    @property
    def warning(self) -> str | None:
        """The sentence for a forecast by champions that are known from an earlier reading, or None."""
        if not self._recalled:
            return None
        oldest = min(self._models[name].read_at for name in self._recalled)
        return f"MLflow at {self._store} does not answer; the champions are those known at {oldest:%Y-%m-%d %H:%M} UTC"

    def champion(self, name: str, target: Target | None = None) -> Version | None:
        """Return the champion of a target, or None; see `Registry.champion`.

        Raises:
            TrackingError: the store cannot be used; if it does not answer, nothing of the model is kept.
        """
        model = self._model(name)
        return model.serving if target is None else model.champions.get(target)

    def refit_of(self, champion: Version) -> Version | None:
        """Return the newest refit of a champion, or None."""
        return self._model(champion.name).refits.get(champion.number)

    def fetch(self, version: Version, into: Path) -> Path:
        """Return the folder of a version's adapter or checkpoint, kept or fetched below the folder `into`, for reading.

        Raises:
            TrackingError: the files are missing, or the store does not answer and has no whole copy.
        """
        return self._part(version, FOLDER, into)

    def evidence_table(self, version: Version) -> EvidenceTable:
        """Load the evidence of a version; see `Registry.evidence_table`."""
        if not version.measured:
            return self._registry.evidence_table(version)  # raises
        with TemporaryDirectory() as temporary:
            try:
                return read_evidence(self._part(version, EVIDENCE, Path(temporary)))
            except ArtifactError as error:
                raise TrackingError(f"The evidence of {version} is damaged: {error}") from error

    def refresh(self, name: str) -> None:
        """Keep the champions of a registered model after a change of them; a failure is left to the next reading."""
        if self._keeps:
            with suppress(KronosError):
                self._keep(name, self._ask(name))

    @cached_property
    def _keeps(self) -> bool:
        return not is_sqlite(self._registry.uri)

    def _model(self, name: str) -> KnownModel:
        if name not in self._models:
            self._models[name] = self._read(name)
        return self._models[name]

    def _read(self, name: str) -> KnownModel:
        if not self._keeps:
            return self._ask(name)
        # A failure of the last minute: the store is asked once for all tickers.
        failure: TrackingError | None = self._registry.outbox.failure
        if not isinstance(failure, UnreachableError):
            try:
                model = self._ask(name)
                self._keep(name, model)
                return model
            except UnreachableError as error:
                self._registry.outbox.note_failure(error)
                failure = error
        model = self._recall(name, failure)
        self._recalled.add(name)
        return model

    def _ask(self, name: str) -> KnownModel:
        champions = self._registry.champions(name)
        refits = {version.number: self._registry.refit_of(version) for version in champions.values()}
        known_refits = {number: refit for number, refit in refits.items() if refit is not None}
        return KnownModel(champions, known_refits, datetime.now(UTC))

    def _keep(self, name: str, model: KnownModel) -> None:
        """Keep the files that forecasts and drift read, then the champions; drop the files of former champions.

        Raises:
            UnreachableError: the store went away meanwhile.
        """
        forecasting = [model.champions[target] for target in _FORECAST if target in model.champions]
        wanted = {(version.number, FOLDER): version for version in (model.refits.get(v.number, v) for v in forecasting)}
        if model.serving is not None and model.serving.measured:
            wanted |= {(model.serving.number, part): model.serving for part in _LABELS}  # drift is of this version
        for (_, part), version in wanted.items():
            with TemporaryDirectory() as temporary:
                try:
                    self._fetch(version, part, Path(temporary))
                except UnreachableError:
                    raise
                except TrackingError:
                    continue  # files that are gone are an error of the command that needs them
        try:
            write_json(self._folder(name) / RECORD, _content(model, self._store))
            self._drop_former(name, model)
        except (ArtifactError, OSError) as error:
            _log.warning("The champions of %s cannot be kept for a time without MLflow: %s", name, error)

    def _recall(self, name: str, failure: UnreachableError) -> KnownModel:
        """Return what is kept of a registered model.

        Raises:
            UnreachableError: nothing is kept, or it is damaged.
        """
        path = self._folder(name) / RECORD
        kept = f"{failure} Until then"
        if not path.is_file():
            raise UnreachableError(f"{kept} no champion of {name} is known: no forecast has read them from this store.")
        try:
            content = read_json(path)
            if content["store"] != self._store:
                raise UnreachableError(f"{kept} no champion of {name} is known: {path} is of {content['store']}.")
            return _model(content)
        except ArtifactError as damage:
            raise UnreachableError(f"{kept} no champion of {name} is known: {damage}") from damage
        except (KeyError, TypeError, ValueError, AttributeError) as damage:
            raise UnreachableError(
                f"{kept} no champion of {name} is known: {path} is damaged ({damage!r})."
            ) from damage

    def _part(self, version: Version, part: str, into: Path) -> Path:
        self._model(version.name)
        if not self._keeps:
            return self._registry.fetch(version, into, part)
        if version.name not in self._recalled:
            return self._fetch(version, part, into)
        copy = self._copy_of(version, part)
        try:
            return self._whole(copy, version, part)
        except ArtifactError as damage:
            why = str(damage) if copy.is_symlink() else f"{copy} is missing."
            raise UnreachableError(
                f"MLflow at {self._store} does not answer, and the copy of {version} here cannot be used: {why}"
            ) from damage

    def _fetch(self, version: Version, part: str, into: Path) -> Path:
        """Return the kept copy of a part, or fetch the part and keep it."""
        copy = self._copy_of(version, part)
        try:
            return self._whole(copy, version, part)
        except _OtherStateError:
            pass
        except ArtifactError as damage:
            if copy.is_symlink():
                _log.warning("%s It is fetched from MLflow anew.", damage)
        fetched = self._registry.fetch(version, into, part)
        try:
            _check(fetched, version, part)
            with publish_folder(copy) as folder:
                (folder / _FILES).mkdir()
                target = folder / _FILES / Path(part).name
                copy_file_or_folder = shutil.copytree if fetched.is_dir() else shutil.copyfile
                copy_file_or_folder(fetched, target)
                write_json(folder / _COPY, {"version": self._state(version), "files": _hashes(folder / _FILES)})
        except (KronosError, OSError, KeyError) as error:
            _log.warning("%s cannot be kept for a time without MLflow: %s", version, error)
        return fetched

    def _whole(self, copy: Path, version: Version, part: str) -> Path:
        """Return the path of a part in its copy.

        Raises:
            _OtherStateError: it is a copy of a former state of the version.
            ArtifactError: it is missing or damaged.
        """
        folder = copy.resolve()  # one version of the copy, whatever is published meanwhile
        content = read_json(folder / _COPY)
        if content.get("version") != self._state(version):
            raise _OtherStateError(f"{copy} is of a former state of {version}.")
        if content.get("files") != _hashes(folder / _FILES):
            raise ArtifactError(f"{copy} was edited or damaged after it was written.")
        return folder / _FILES / Path(part).name

    def _state(self, version: Version) -> str:
        """Return a hash of a version and its store; a decision or a measurement changes it."""
        return text_hash(self._store, json_text(_version_content(version) | {"aliases": []}))

    def _copy_of(self, version: Version, part: str) -> Path:
        return self._folder(version.name) / f"{_LABELS[part]}-{version.number}"

    def _folder(self, name: str) -> Path:
        if not is_registered_name(name):
            raise ArtifactError(f"{name!r} is no name of a registered model of this project.")
        return self._registry.layout.champions / name

    def _drop_former(self, name: str, model: KnownModel) -> None:
        """Remove the links to copies of versions that are no longer champion; `kronos clean` deletes their files."""
        numbers = {version.number for version in (*model.champions.values(), *model.refits.values())}
        for entry in self._folder(name).iterdir():
            found = _COPY_NAME.fullmatch(entry.name)
            if found and entry.is_symlink() and int(found[1]) not in numbers:
                entry.unlink(missing_ok=True)


class _OtherStateError(ArtifactError):
    """Error of a whole copy of a version whose tags have changed since."""


def _check(fetched: Path, version: Version, part: str) -> None:
    """Check that what was fetched is whole and of the version.

    Raises:
        ArtifactError: it is damaged, or of another version.
    """
    if part == EVIDENCE:
        read_manifest(fetched)
        return
    check_folder(fetched)
    expected = version.tags.get(WEIGHTS_HASH)
    if expected is not None and (found := trained_weights_hash(fetched)) != expected:
        raise ArtifactError(f"its weights are not those that were registered ({found[:12]}, not {expected[:12]}).")


def _hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file below a folder."""
    return {
        path.relative_to(folder).as_posix(): file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _content(model: KnownModel, store: str) -> dict[str, Any]:
    versions = {version.number: version for version in (*model.champions.values(), *model.refits.values())}
    return {
        "store": store,
        "read_at": model.read_at.isoformat(),
        "champions": {target: version.number for target, version in model.champions.items()},
        "refits": {str(number): refit.number for number, refit in model.refits.items()},
        "versions": [_version_content(version) for version in versions.values()],
    }


def _model(content: Mapping[str, Any]) -> KnownModel:
    versions = {int(entry["number"]): _version(entry) for entry in content["versions"]}
    champions = {target: versions[content["champions"][target]] for target in TARGETS if target in content["champions"]}
    refits = {int(number): versions[refit] for number, refit in content["refits"].items()}
    return KnownModel(champions, refits, datetime.fromisoformat(content["read_at"]))


def _version_content(version: Version) -> dict[str, Any]:
    return {
        "name": version.name,
        "number": version.number,
        "run_id": version.run_id,
        "aliases": list(version.aliases),
        "tags": dict(sorted(version.tags.items())),
        "registered_at": version.registered_at.isoformat(),
    }


def _version(content: Mapping[str, Any]) -> Version:
    return Version(
        str(content["name"]),
        int(content["number"]),
        str(content["run_id"]),
        tuple(content["aliases"]),
        {str(key): str(value) for key, value in content["tags"].items()},
        datetime.fromisoformat(content["registered_at"]),
    )
