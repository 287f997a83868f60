"""Resumable state of trainings, so that the same command continues a killed training.

    state/<key>/run.json    the artifact of the training, and the parts that shape its weights; <key> is their hash
    state/<key>/state.pt    weights, best weights, optimiser, schedule, random numbers, position in the data
    state/<key>/tokens-*    tokens of the windows, if they are too many for memory

The parts are the data before the holdout, the settings that training reads, the base model, the code and the device.
Adapters that train jointly share a `state.pt`, in a folder whose parts are their keys; each has its own `run.json`.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from kronos_pipeline.artifacts import ArtifactLayout, check_writable, read_json, text_hash, write_file, write_json
from kronos_pipeline.config import Recipe, Role, settings_of
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.training.devices import acquire, device_lock
from kronos_pipeline.training.host_copy import state_to_host
from kronos_pipeline.training.progress import Say

_RUN, _MAX_PREDICTORS = "run.json", "together "
_SHAPES_WEIGHTS = Role.MODEL | Role.WINDOWS | Role.TRAINING | Role.ROUNDING
"""Roles of the settings in a training's key, which has a hash of the data and the resolved device beside them."""


@dataclass(frozen=True)
class ResumeState:
    """Resumable state of one training.

    Attributes:
        layout: folders of artifacts.
        artifact: the artifact that the training makes, such as "adapters/AAPL".
        parts: everything that shapes its weights, by name.
    """

    layout: ArtifactLayout
    artifact: str
    parts: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hash of the artifact and of all that its weights depend on."""
        return text_hash(self.artifact, json.dumps(self.parts, sort_keys=True))[:32]

    @property
    def folder(self) -> Path:
        """Folder of the state."""
        return self.layout.state(self.key)

    @property
    def finished(self) -> bool:
        """Whether this training has ended in a run of several trainings that has not ended."""
        return self._run_file.is_file() and bool(read_json(self._run_file).get("finished"))

    def begin(self, say: Say) -> None:
        """Write the parts of this training, and report the changes since an interrupted training of the artifact.

        Raises:
            ArtifactError: the state cannot be read or written.
        """
        if not self._run_file.is_file():
            for other in self._unfinished_others():
                changes = _changes(other["parts"], dict(self.parts))
                say(f"{self.artifact}: starting anew, not from the training that was interrupted: {changes}")
            write_json(self._run_file, {"artifact": self.artifact, "parts": dict(self.parts)})

    def load(self) -> dict[str, Any] | None:
        """Load the saved state, or return None if there is none.

        Raises:
            ArtifactError: the state cannot be read.
        """
        if not self._state_file.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self._state_file, map_location="cpu", weights_only=True)
            return state
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise ArtifactError(f"{self._state_file} cannot be read; remove its folder to start anew.") from error

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state atomically: a kill during the write leaves the previous state."""
        on_host = state_to_host(dict(state))
        write_file(self._state_file, lambda handle: torch.save(on_host, handle))

    def finish(self, *, keep_mark: bool) -> None:
        """Remove the state of this ended training, and the states of earlier attempts at the same artifact.

        Args:
            keep_mark: leave a mark that it has ended, for a run of several trainings; `clear_states` removes the mark.
        """
        if keep_mark:
            write_json(self._run_file, {**read_json(self._run_file), "finished": True})
            self._state_file.unlink(missing_ok=True)
            for tokens in self.folder.glob("**/tokens-*"):
                tokens.unlink()
        for folder in self._folders():
            if folder != self.folder or not keep_mark:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _run_file(self) -> Path:
        return self.folder / _RUN

    @property
    def _state_file(self) -> Path:
        return self.folder / "state.pt"

    def _folders(self) -> list[Path]:
        """List the folders of all trainings of this artifact, including this one."""
        return [run.parent for run in _runs(self.layout) if _artifact_of(run) == self.artifact]

    def _unfinished_others(self) -> list[dict[str, Any]]:
        others = [_read(folder / _RUN) for folder in self._folders() if folder != self.folder]
        return [other for other in others if other and not other.get("finished")]


def group_state(layout: ArtifactLayout, members: Sequence[ResumeState], say: Say) -> ResumeState:
    """Make the shared state of adapters that train jointly; the caller holds their locks.

    States of other groups with one of these adapters are removed, and the change is reported: all train anew.
    """
    keys = sorted(member.key for member in members)
    group = ResumeState(layout, f"{_MAX_PREDICTORS}{text_hash(*keys)}", {"members": keys})
    artifacts = {str((member.layout.root / member.artifact).absolute()) for member in members}
    for run in _runs(layout):
        of_a_group = run.parent != group.folder and _artifact_of(run).startswith(_MAX_PREDICTORS)
        if of_a_group and artifacts & (before := set(_read(run).get("artifacts", ()))):
            if (run.parent / "state.pt").is_file():
                changes = _members_changed(before, artifacts)
                say(f"starting anew: the adapters that train together have changed: {changes}")
            shutil.rmtree(run.parent, ignore_errors=True)
    write_json(group.folder / _RUN, {"artifact": group.artifact, "parts": group.parts, "artifacts": sorted(artifacts)})
    return group


def clear_states(states: Sequence[ResumeState]) -> None:
    """Remove the states of all trainings of these artifacts."""
    artifacts = {(state.layout, state.artifact) for state in states}
    for layout in {state.layout for state in states}:
        for run in _runs(layout):
            if (layout, _artifact_of(run)) in artifacts:
                shutil.rmtree(run.parent, ignore_errors=True)


@contextmanager
def locked(states: Sequence[ResumeState], device: torch.device, say: Say) -> Iterator[None]:
    """Hold the locks of the GPU, if any, and of the artifacts; the system releases them if the process dies.

    Every process takes the locks in this order, artifacts by name, so that two processes never block each other.
    """
    locks = {}
    for state in states:
        check_writable(state.folder.parent)
        locks[lock_file(state.folder.parent, state.artifact)] = state.artifact
    with ExitStack() as stack:
        if device.type != "cpu":
            stack.callback(acquire(device_lock(device), states[0].artifact, say).release)
        for path, artifact in sorted(locks.items()):
            stack.callback(acquire(FileLock(path), artifact, say).release)
        yield


def lock_file(states: Path, artifact: str) -> Path:
    """Return the file whose lock a training of an artifact holds, in the folder of all states."""
    return states / f".{artifact.replace('/', '-')}.lock"


def training_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe that shape weights, as plain data."""
    return recipe.model_dump(mode="json", include=set(settings_of(_SHAPES_WEIGHTS)))


def _runs(layout: ArtifactLayout) -> list[Path]:
    return sorted((layout.root / "state").glob(f"*/{_RUN}"))


def _artifact_of(run: Path) -> str:
    """Return the artifact of a training, or "" if another process has removed its state."""
    try:
        return _artifact_read(run)
    except ArtifactError:
        if run.exists():
            raise
        return ""


@lru_cache(maxsize=65536)
def _artifact_read(run: Path) -> str:
    """Return the artifact of a training; the path contains a hash of the artifact, so the result is cached."""
    return str(read_json(run).get("artifact"))


def _read(run: Path) -> dict[str, Any]:
    """Read a run.json, or return an empty dictionary if another process has removed it."""
    try:
        return read_json(run)
    except ArtifactError:
        if run.exists():
            raise
        return {}


def _members_changed(before: set[str], after: set[str]) -> str:
    changes = [(after - before, "came"), (before - after, "went")]
    described = [
        f"{', '.join(sorted(Path(artifact).name for artifact in artifacts))} {verb}"
        for artifacts, verb in changes
        if artifacts
    ]
    return ", ".join(described) or "the data or the settings of some are others"


def _changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Describe the differences between the parts of two keys for people."""
    old, new = _flat(before), _flat(after)
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    described = [f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}" for name in names[:6]]
    more = [f"and {len(names) - 6} more"] if len(names) > 6 else []
    return "; ".join(described + more) + "."


def _flat(parts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in parts.items():
        flat |= _flat(value, f"{prefix}{key} ") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of PyTorch's random generators, of the CPU and of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore the states of PyTorch's random generators."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])
