"""What a killed training leaves behind, so that the same command goes on where it was.

    state/<key>/run.json    the artifact it makes, and all that shapes its weights: the parts that <key> is a hash of
    state/<key>/state.pt    weights, best weights, optimiser, schedule, random numbers, position in the data
    state/<key>/tokens-*    the windows' tokens, where they are too many for memory

The parts are the data before the holdout, the settings that training reads, the base model, the code and the device.
Adapters that train together have a `state.pt` in common, in a folder whose parts are their keys; what each of them has
of its own is its `run.json`.
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
"""Roles of the settings in a training's key: the data before the holdout is hashed itself, the device is resolved."""


@dataclass(frozen=True)
class ResumeState:
    """The resumable state of one training.

    Attributes:
        layout: where artifacts lie.
        artifact: the artifact that it makes, such as "adapters/AAPL".
        parts: all that shapes its weights, by name.
    """

    layout: ArtifactLayout
    artifact: str
    parts: Mapping[str, Any]

    @property
    def key(self) -> str:
        return text_hash(self.artifact, json.dumps(self.parts, sort_keys=True))[:32]

    @property
    def folder(self) -> Path:
        return self.layout.state(self.key)

    @property
    def finished(self) -> bool:
        """Whether this very training has ended, in a run of several trainings that has not."""
        return self._run_file.is_file() and bool(read_json(self._run_file).get("finished"))

    def begin(self, say: Say) -> None:
        """Note what is trained here, and say what changed since a training of the artifact that was interrupted.

        Raises:
            ArtifactError: the state cannot be read or written.
        """
        if not self._run_file.is_file():
            for other in self._unfinished_others():
                changes = _changes(other["parts"], dict(self.parts))
                say(f"{self.artifact}: starting anew, not from the training that was interrupted: {changes}")
            write_json(self._run_file, {"artifact": self.artifact, "parts": dict(self.parts)})

    def load(self) -> dict[str, Any] | None:
        """The state to go on from, or None where the training starts anew.

        Raises:
            ArtifactError: the state cannot be read.
        """
        if not self._state_file.is_file():
            return None
        try:
            return torch.load(self._state_file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise ArtifactError(f"{self._state_file} cannot be read; remove its folder to start anew.") from error

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state, atomically: a kill while it is written leaves the one before."""
        on_host = state_to_host(dict(state))
        write_file(self._state_file, lambda handle: torch.save(on_host, handle))

    def finish(self, *, keep_mark: bool) -> None:
        """Drop the state of a training that has ended, and those of earlier tries at the same artifact.

        Args:
            keep_mark: leave a note that it has ended, for a run of several trainings; `forget` removes it.
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
        """The folders of every training of this artifact, this one's included."""
        return [run.parent for run in _runs(self.layout) if _artifact_of(run) == self.artifact]

    def _unfinished_others(self) -> list[dict[str, Any]]:
        others = [_read(folder / _RUN) for folder in self._folders() if folder != self.folder]
        return [other for other in others if other and not other.get("finished")]


def group_state(layout: ArtifactLayout, members: Sequence[ResumeState], say: Say) -> ResumeState:
    """The state in common of adapters that train together; their locks are to be held.

    States of other groups with one of them in it are dropped, and it is said what changed: it is trained anew.
    """
    keys = sorted(one.key for one in members)
    group = ResumeState(layout, f"{_MAX_PREDICTORS}{text_hash(*keys)}", {"members": keys})
    artifacts = {str((one.layout.root / one.artifact).absolute()) for one in members}
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
    """Remove all that is left of trainings of these artifacts."""
    artifacts = {(one.layout, one.artifact) for one in states}
    for layout in {one.layout for one in states}:
        for run in _runs(layout):
            if (layout, _artifact_of(run)) in artifacts:
                shutil.rmtree(run.parent, ignore_errors=True)


@contextmanager
def locked(states: Sequence[ResumeState], device: torch.device, say: Say) -> Iterator[None]:
    """Hold the GPU, where there is one, and then the artifacts, for one training; the system frees all if we die.

    Every process takes them in this order, artifacts by name, so that two of them never hold half each.
    """
    locks = {}
    for state in states:
        check_writable(state.folder.parent)
        locks[state.folder.parent / f".{state.artifact.replace('/', '-')}.lock"] = state.artifact
    with ExitStack() as stack:
        if device.type != "cpu":
            stack.callback(acquire(device_lock(device), states[0].artifact, say).release)
        for path, artifact in sorted(locks.items()):
            stack.callback(acquire(FileLock(path), artifact, say).release)
        yield


def training_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that shape weights, as plain data."""
    return recipe.model_dump(mode="json", include=set(settings_of(_SHAPES_WEIGHTS)))


def _runs(layout: ArtifactLayout) -> list[Path]:
    return sorted((layout.root / "state").glob(f"*/{_RUN}"))


def _artifact_of(run: Path) -> str:
    """What a training makes; "" where another process, whose training has ended, has removed it."""
    try:
        return _artifact_read(run)
    except ArtifactError:
        if run.exists():
            raise
        return ""


@lru_cache(maxsize=65536)
def _artifact_read(run: Path) -> str:
    """What a training makes; its folder is named by a hash of that, so it is read once."""
    return str(read_json(run).get("artifact"))


def _read(run: Path) -> dict[str, Any]:
    """What a run.json says; nothing where another process, whose training has ended, has removed it."""
    try:
        return read_json(run)
    except ArtifactError:
        if run.exists():
            raise
        return {}


def _members_changed(before: set[str], after: set[str]) -> str:
    changes = [(after - before, "came"), (before - after, "went")]
    told = [f"{', '.join(sorted(Path(one).name for one in some))} {verb}" for some, verb in changes if some]
    return ", ".join(told) or "the data or the settings of some are others"


def _changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What differs between the parts of two keys, as people say it."""
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
    """The states of PyTorch's generators: the processor's, and the device's own."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put those states back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])
