"""The pointer of a group: one small object that says which version of each artifact is current.

    pointers/AAPL.json     {"artifacts": {"adapters/AAPL": {"version": "AAPL-20260102T...-1f2e3d4c", ...}, ...}}
    versions/adapters/AAPL/AAPL-20260102T...-1f2e3d4c/adapter_config.json ...

A publication uploads a version, which nobody changes, and then replaces the pointer on condition that no other machine
has. So a reader sees all artifacts of a ticker before the publication or after it, and no version is lost unnoticed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

from kronos_pipeline.artifact_store.names import is_file, is_folder
from kronos_pipeline.artifact_store.objects import DamagedError, MissingError, ObjectStore
from kronos_pipeline.checksums import json_bytes, parse_json, verify
from kronos_pipeline.errors import ArtifactError

POINTERS, VERSIONS = "pointers/", "versions/"
_FILE = re.compile(r"(?:[A-Za-z0-9_^=-][A-Za-z0-9._^=-]{0,99}/){0,3}[A-Za-z0-9_^=-][A-Za-z0-9._^=-]{0,99}")
_VERSION = r"[A-Za-z0-9_^=-][A-Za-z0-9.^=_-]{0,119}"
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Version(BaseModel):
    """A version of an artifact.

    Attributes:
        version: its name.
        files: SHA-256 by file.
        by: the machine and process that published it.
        at: the time of the publication, in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Annotated[str, StringConstraints(pattern=rf"^{_VERSION}$")]
    files: dict[str, _Digest]
    by: str
    at: AwareDatetime

    def told(self) -> str:
        """Return who published the version and when, in words."""
        return f"{self.by}, {self.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


class _Content(BaseModel):
    model_config = ConfigDict(extra="ignore")

    artifacts: dict[str, Version]


@dataclass(frozen=True)
class Pointer:
    """The pointer of a group as it was read.

    Attributes:
        group: a ticker, the name of an adapter, or `@all`.
        artifacts: the current version by name.
        tag: compared when the pointer is replaced; None if there is no pointer yet.
    """

    group: str
    artifacts: dict[str, Version]
    tag: str | None

    def replaced(self, store: ObjectStore, artifacts: dict[str, Version]) -> Pointer:
        """Replace the pointer in the store, and return the new pointer.

        Raises:
            ChangedError: another process has replaced it since it was read.
            StoreError: the store does not answer, or refuses.
        """
        content: dict[str, Any] = _Content(artifacts=artifacts).model_dump()
        tag = store.replace(pointer_key(self.group), json_bytes(content), self.tag)
        return Pointer(self.group, artifacts, tag)


def pointer_key(group: str) -> str:
    """Return the key of a group's pointer."""
    return f"{POINTERS}{group}.json"


def version_key(name: str, version: str, file: str) -> str:
    """Return the key of a file of a version."""
    return f"{VERSIONS}{name}/{version}/{file}"


def read_pointer(store: ObjectStore, group: str) -> Pointer:
    """Read the pointer of a group; without one, the group has no artifacts.

    Raises:
        StoreError: the store does not answer or refuses, or the pointer is damaged.
    """
    key = pointer_key(group)
    try:
        content, tag = store.read(key)
    except MissingError:
        return Pointer(group, {}, None)
    try:
        verify(Path(key), content)
        artifacts = _Content.model_validate(parse_json(content)).artifacts
    except (ArtifactError, ValueError, ValidationError):
        raise damaged(
            store, key, f"remove it; `kronos sync {group} --keep folder` on a machine with the artifacts makes it again"
        ) from None
    for name, version in artifacts.items():
        folder = is_folder(name, group) and version.version.startswith(f"{name.rpartition('/')[2]}-")
        known = is_file(name, group) or folder
        if not known or any(_FILE.fullmatch(file) is None for file in version.files):
            raise damaged(store, key, f"it names {name!r}, which is no artifact of {group}; remove the pointer")
    return Pointer(group, artifacts, tag)


def damaged(store: ObjectStore, key: str, remedy: str) -> DamagedError:
    """Return the error of an object that is not as it was written."""
    return DamagedError(f"{store.url}/{key} is damaged or missing in the artifact store; {remedy}.")
