"""Runs that wait on the disk for an MLflow store that is away, with all that is to be sent.

    <output-dir>/mlflow_waiting/
      known_store         the address of the server that this folder used last
      <run>/run.json      name, settings, losses, status; <run> is the run's id, or `waiting-<training id>`
      <run>/files/        plots, tables and the manifest
      <run>/model/        the adapter or checkpoint to register
      gate/<model>.json   a model that the gate decides on when the registry is back

A training that ends while the store is away leaves its run here, and goes on to its evaluation. The next command that
reaches the store delivers the runs. `run.json` is replaced at once, and a delivery that is killed is repeated: it finds
the run by the training's id, and sends no measurement twice.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from kronos_pipeline.addresses import without_password
from kronos_pipeline.artifacts import read_json, write_json
from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.errors import ArtifactError, count
from kronos_pipeline.tracking.run_parts import RunParts
from kronos_pipeline.tracking.store_errors import TrackingError, is_sqlite

WAITING = "waiting-"
"""Prefix of the id of a run that MLflow has not made yet; the training's id follows."""
_RUN, _FILES, _MODEL, _KNOWN, _GATE = "run.json", "files", "model", "known_store", "gate"
_AWAY_SECONDS = 60.0
"""Seconds after a failure in which the store is not asked again: each question may take seconds."""
_log = logging.getLogger(__name__)


class Outbox:
    """The runs of an output folder that wait for a store."""

    def __init__(self, folder: Path, uri: str) -> None:
        """Name the folder and the store.

        Args:
            folder: see `ArtifactLayout.mlflow_waiting`; it is made when the first run waits.
            uri: the store.
        """
        self.folder, self._uri = folder, uri
        self._store = without_password(uri)
        self._failure: tuple[float, TrackingError] | None = None

    @property
    def failure(self) -> TrackingError | None:
        """The failure of the store within the last minute, or None."""
        if self._failure is None or time.monotonic() - self._failure[0] > _AWAY_SECONDS:
            return None
        return self._failure[1]

    @property
    def is_away(self) -> bool:
        """Whether the store has failed since it was last reached."""
        return self._failure is not None

    def note_failure(self, error: TrackingError) -> None:
        """Note that the store is away now, and say once that the runs wait."""
        if self._failure is not None and error is self._failure[1]:
            return
        if self._failure is None:
            _log.warning("%s Work goes on; runs wait in %s until a command reaches the store.", error, self.folder)
        self._failure = time.monotonic(), error

    def ask_again(self) -> None:
        """Let a database on this machine be asked at once after a failure: it may have failed for a moment."""
        if self._failure is not None and is_sqlite(self._uri):
            self._failure = -math.inf, self._failure[1]

    def note_success(self) -> None:
        """Note that the store can be reached again."""
        self._failure = None

    def remember_store(self) -> None:
        """Note that this folder has used the store, so that its address is right."""
        if not is_sqlite(self._uri) and self._read_known() != self._store:
            write_file(self.folder / _KNOWN, lambda handle: handle.write(self._store.encode()))

    @property
    def knows_store(self) -> bool:
        """Whether an earlier command of this output folder has reached this server, so that its address is right."""
        return not is_sqlite(self._uri) and self._read_known() == self._store

    def runs(self) -> list[str]:
        """List the runs that wait, the oldest first."""
        found = sorted(self.folder.glob(f"*/{_RUN}"), key=lambda path: (path.stat().st_mtime_ns, path))
        return [path.parent.name for path in found]

    def holds(self, run_id: str) -> bool:
        """Return whether a run waits here, so that what is added to it has to wait too."""
        return (self.folder / run_id / _RUN).is_file()

    def start(self, run_id: str, description: Mapping[str, Any]) -> None:
        """Keep a run that MLflow has not made: its name, purpose, tags and start."""
        self._change(run_id, {"description": dict(description)})

    def add(self, run_id: str, parts: RunParts) -> None:
        """Keep parts of a run, with copies of their files.

        Raises:
            ArtifactError: they cannot be written.
        """
        with _readable(self.folder):
            for path, folder in parts.files:
                target = self.folder / run_id / _FILES / folder / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        content = asdict(replace(parts, files=()))
        self._change(run_id, {key: value for key, value in content.items() if value})

    def add_model(self, run_id: str, folder: Path, name: str) -> None:
        """Keep a trained model that is to be registered, by hard links where the disk allows it.

        Raises:
            ArtifactError: it cannot be written.
        """
        target = self.folder / run_id / _MODEL
        with _readable(self.folder):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder.resolve(), target, copy_function=_link)
        self._change(run_id, {"registered_model": name})

    def read(self, run_id: str) -> tuple[dict[str, Any], RunParts, tuple[Path, str] | None]:
        """Return a waiting run: its description, its parts, and the model to register with its name.

        Raises:
            ArtifactError: it is damaged.
        """
        folder = self.folder / run_id
        content = read_json(folder / _RUN)
        description, name = content.pop("description", {}), content.pop("registered_model", None)
        files = [
            (path, path.parent.relative_to(folder / _FILES).as_posix().removeprefix("."))
            for path in sorted((folder / _FILES).rglob("*"))
            if path.is_file()
        ]
        content.pop("store", None)
        try:
            parts = RunParts(**content, files=files)
        except TypeError as error:
            raise ArtifactError(f"{folder / _RUN} is damaged ({error}); remove the folder.") from error
        return description, parts, (folder / _MODEL, name) if name else None

    def remove(self, run_id: str) -> None:
        """Remove a run that was delivered."""
        (self.folder / run_id / _RUN).unlink(missing_ok=True)  # first: a kill leaves no half run
        shutil.rmtree(self.folder / run_id, ignore_errors=True)

    def add_submission(self, name: str, submission: Mapping[str, Any]) -> None:
        """Keep a model that the gate could not decide on without the registry, by the registered model's name."""
        write_json(self.folder / _GATE / f"{name}.json", dict(submission))

    def submissions(self) -> dict[str, dict[str, Any]]:
        """Return the models that wait for the gate, by name; a damaged file is removed: a training submits anew."""
        found = {}
        for path in sorted((self.folder / _GATE).glob("*.json")):
            try:
                found[path.stem] = read_json(path)
            except ArtifactError:
                path.unlink(missing_ok=True)
        return found

    def remove_submission(self, name: str) -> None:
        """Remove a model that the gate has decided on."""
        (self.folder / _GATE / f"{name}.json").unlink(missing_ok=True)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock of the folder: one process at a time changes or delivers its runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            yield

    def sentence(self) -> str | None:
        """Return a line on the runs that wait, or None."""
        if not (waiting := len(self.runs())):
            return None
        verb = "waits" if waiting == 1 else "wait"
        return (
            f"{count(waiting, 'run')} {verb} for the MLflow store {self._store} in {self.folder}; the next command "
            "that reaches the store delivers them"
        )

    def _change(self, run_id: str, new: Mapping[str, Any]) -> None:
        """Merge into the file of a run: mappings are united, lists appended, values replaced."""
        path = self.folder / run_id / _RUN
        with _readable(self.folder), self.exclusive():
            content = read_json(path) if path.is_file() else {}
            for key, value in new.items():
                if isinstance(value, dict):
                    value = {**content.get(key, {}), **value}
                elif isinstance(value, list | tuple):
                    value = [*content.get(key, []), *value]
                content[key] = value
            write_json(path, content)

    def _read_known(self) -> str | None:
        try:
            return (self.folder / _KNOWN).read_text()
        except (OSError, ValueError):
            return None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be written ({error.strerror or error}); free space there.") from error
