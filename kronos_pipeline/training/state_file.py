"""Files of a training's state: the last two saved states, each with a digest that is checked before it is loaded.

    state.pt            SHA-256 of the rest (32 bytes), then the file of `torch.save`
    state.previous.pt   the state before it, which a damaged `state.pt` falls back to
    *.damaged           a state whose digest was wrong, for inspection

The previous state takes its name before the new state is written, so at any moment one of the two is whole, and the
disk never holds more than two.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.errors import ArtifactError, first_sentence
from kronos_pipeline.model.weights import save_torch

_STATE, _PREVIOUS = "state.pt", "state.previous.pt"
_DIGEST = hashlib.sha256().digest_size


class _Digest:
    """File for writing that hashes what is written to another file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.hash = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Write and hash bytes."""
        self.hash.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        """Do nothing: `write_file` flushes the file."""


def has_state(folder: Path) -> bool:
    """Return whether a state is saved in a folder, whole or not."""
    return any((folder / name).exists() for name in (_STATE, _PREVIOUS))


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Save a state on the host and keep the state before it; a kill or an error leaves a whole state.

    Raises:
        ArtifactError: it cannot be written.
    """
    newest = folder / _STATE
    try:
        if newest.is_file():
            newest.replace(folder / _PREVIOUS)
    except OSError as error:
        raise ArtifactError(f"{newest} cannot be renamed ({error.strerror}); mend its folder.") from error
    write_file(newest, partial(_write, state))


def load_state(folder: Path) -> tuple[dict[str, Any] | None, dict[Path, str]]:
    """Load the newest whole state of a folder.

    Returns:
        The state, or None if there is no whole state; and the newer states that are damaged, with the reason.
    """
    damaged: dict[Path, str] = {}
    for path in (folder / _STATE, folder / _PREVIOUS):
        try:
            return _read(path), damaged
        except FileNotFoundError:
            continue
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            damaged[path] = first_sentence(error)
    return None, damaged


def remove_states(folder: Path) -> None:
    """Remove the states of a folder."""
    for path in (folder / _STATE, folder / _PREVIOUS):
        path.unlink(missing_ok=True)


def _write(state: Mapping[str, Any], file: IO[bytes]) -> None:
    file.write(bytes(_DIGEST))
    digest: Any = _Digest(file)
    save_torch(state, digest)
    file.seek(0)
    file.write(digest.hash.digest())


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = file.read(_DIGEST)
        if hashlib.file_digest(file, "sha256").digest() != digest:
            raise ValueError("its digest is wrong")
        file.seek(_DIGEST)
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return state
