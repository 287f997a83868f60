"""Resumable state of trainings, so that the same command continues a killed training.

    state/<key>/run.json    the artifact of the training, and the parts that shape its weights; <key> is their hash
    state/<key>/state.pt    weights, best weights, optimiser, schedule, random numbers, position in the data; see
                            `state_file` for the state before it
    state/<key>/tokens-*    tokens of the windows, if they are too many for memory

The parts are the data before the holdout, the settings that training reads, the base model, the code and the device.
Adapters that train jointly share a `state.pt`, in a folder whose parts are their keys; each has its own `run.json`.

A damaged file is renamed to `*.damaged` and named in a line: a `run.json` is then written anew, and a `state.pt` falls
back to the state before it. The key vouches for the state, so a training with a damaged `run.json` still resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from kronos_pipeline.artifact_store.sharing import shared_training
from kronos_pipeline.artifacts import ArtifactLayout, write_json
from kronos_pipeline.atomic_writes import check_writable, set_aside
from kronos_pipeline.checksums import read_json_bytes, text_hash
from kronos_pipeline.config import Recipe, Role, settings_of
from kronos_pipeline.errors import ArtifactError, first_sentence
from kronos_pipeline.locks import check_held, folder_lock
from kronos_pipeline.training.devices import acquire, acquire_device, process
from kronos_pipeline.training.host_copy import state_to_host
from kronos_pipeline.training.progress import Say
from kronos_pipeline.training.state_file import has_state, load_state, remove_states, save_state

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
    def lock(self) -> FileLock:
        """The lock of the artifact."""
        return folder_lock(self.layout.root, f"state/{lock_file(self.folder.parent, self.artifact).name}")

    @property
    def finished(self) -> bool:
        """Whether this training has ended in a run of several trainings that has not ended."""
        return bool(_read(self._run_file).get("finished"))

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

    def load(self, say: Say) -> dict[str, Any] | None:
        """Load the newest whole state, or return None if there is none; set damaged states aside, each with a line."""
        state, damaged = load_state(self.folder)
        then = "the training starts anew" if state is None else "the training resumes from the state before it"
        for path, reason in damaged.items():
            _set_aside(path, reason, f"{self.artifact}: {then}", say)
        return state

    def save(self, state: Mapping[str, Any], say: Say) -> bool:
        """Save the state and keep the state before it; return whether that succeeded.

        A training goes on without a saved state, with a line that says so: its disk may have room again later.

        Raises:
            LeaseError: another process has taken over the lock of the training.
        """
        check_held(self.lock)
        try:
            save_state(self.folder, state_to_host(dict(state)))
        except ArtifactError as error:
            kept = "the state before it is kept" if has_state(self.folder) else "no state of it is saved yet"
            say(f"{self.artifact}: {error} The training goes on; {kept}.")
            return False
        return True

    def finish(self, *, keep_mark: bool) -> None:
        """Remove the state of this ended training, and the states of earlier attempts at the same artifact.

        Args:
            keep_mark: leave a mark that it has ended, for a run of several trainings; `clear_states` removes the mark.
        """
        if keep_mark:
            record = {**_read(self._run_file), "artifact": self.artifact, "parts": dict(self.parts)}
            write_json(self._run_file, {**record, "finished": True})
            remove_states(self.folder)
            for tokens in self.folder.glob("**/tokens-*"):
                tokens.unlink()
        for folder in self._folders():
            if folder != self.folder or not keep_mark:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _run_file(self) -> Path:
        return self.folder / _RUN

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
            if has_state(run.parent):
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

    Models of machines that share a store are fetched below the locks, and delivered before their release.

    Every process takes the locks in this order, artifacts by name, so that two processes never block each other. Then
    each damaged `run.json` is set aside, as a training reads the records of all.
    """
    for folder in {state.folder.parent for state in states}:
        check_writable(folder)
    with ExitStack() as stack:
        if device.type != "cpu":
            stack.callback(acquire_device(device, states[0].artifact, say).release)
        for state in sorted(states, key=lambda state: (str(state.layout.root), state.artifact)):
            stack.callback(acquire(state.lock, state.artifact, say).release)
        for layout in {state.layout for state in states}:
            _set_damaged_runs_aside(layout, say)
        for root in {state.layout.root for state in states}:
            models = [state.artifact for state in states if state.layout.root == root]
            names = [name.removeprefix("adapters/") for name in models if name.startswith("adapters/")]
            stack.enter_context(shared_training(root, names))
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
    """Return the artifact of a training; "" if its run.json is damaged or another process has removed its state."""
    try:
        return _artifact_read(run)
    except (OSError, ValueError):
        return ""


@lru_cache(maxsize=65536)
def _artifact_read(run: Path) -> str:
    """Return the artifact of a training; the path contains a hash of the artifact, so the result is cached."""
    return str(_parse(run)["artifact"])


def _read(run: Path) -> dict[str, Any]:
    """Read a run.json; return an empty dictionary if it is damaged or another process has removed it."""
    try:
        return _parse(run)
    except (OSError, ValueError):
        return {}


def _parse(run: Path) -> dict[str, Any]:
    """Read a run.json.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    try:
        content = read_json_bytes(run)
        artifacts = content.get("artifacts", [])
        named = isinstance(content.get("artifact"), str) and isinstance(content.get("parts"), dict)
        if not named or not isinstance(artifacts, list) or not all(isinstance(name, str) for name in artifacts):
            raise ValueError("it is not the record of a training")
        _flat(content["parts"])
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ArtifactError as error:
        raise ValueError("it was edited or damaged") from error
    return content


def _set_damaged_runs_aside(layout: ArtifactLayout, say: Say) -> None:
    for run in _runs(layout):
        try:
            _artifact_read(run)
        except FileNotFoundError:
            continue  # another process has removed it
        except (OSError, ValueError) as error:
            _set_aside(run, first_sentence(error), "a new record is made when its training runs again", say)


def _set_aside(path: Path, reason: str, then: str, say: Say) -> None:
    """Rename a damaged file of a state, in the first of several processes alone, and say so."""
    if process() > 0:
        return
    try:
        kept = f"it is now {set_aside(path).name}"
    except FileNotFoundError:
        return  # another process has set it aside
    except OSError as error:
        kept = f"it cannot be renamed ({error.strerror})"
    say(f"{path} is damaged ({reason}): {kept}; {then}.")


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
