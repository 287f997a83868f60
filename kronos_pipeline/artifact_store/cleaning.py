"""Versions in the store that are no longer current, and their deletion, for `kronos clean`.

A version stays if the pointer names it, if it is one of the newest of its artifact, or if it was uploaded within two
days: its pointer may be on the way, or a machine may be downloading it. The pointer is read again before a deletion.
"""

from __future__ import annotations

import re
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from functools import partial

from kronos_pipeline.artifact_store.exchange import SharedFolder
from kronos_pipeline.artifact_store.names import group_of
from kronos_pipeline.artifact_store.objects import ObjectStore, retry_changed
from kronos_pipeline.artifact_store.pointers import VERSIONS, read_pointer
from kronos_pipeline.removal import Removal

_KEPT = 2
"""Newest versions of an artifact that stay beside the current version."""
_IN_USE = timedelta(days=2)
_KEY = re.compile(
    rf"{VERSIONS}(?P<name>.+?)/(?P<version>(?:[^/]+-)?(?P<stamp>\d{{8}}T\d{{12}})-[0-9a-f]{{8}})/(?P<file>.+)"
)


def unused_versions(folder: SharedFolder, rule: str, now: datetime) -> list[Removal]:
    """Return the removals of the versions that are no longer needed.

    Raises:
        StoreError: the store does not answer, or refuses.
    """
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    keys: dict[tuple[str, str], list[str]] = defaultdict(list)
    stamps: dict[str, dict[str, str]] = defaultdict(dict)
    for key, size in folder.store.sizes(VERSIONS).items():
        if found := _KEY.fullmatch(key):
            identity = found["name"], found["version"]
            sizes[identity] += size
            keys[identity].append(key)
            stamps[found["name"]][found["version"]] = found["stamp"]
    removals = []
    for name, versions in sorted(stamps.items()):
        group = group_of(name)
        newest_first = sorted(versions, key=lambda version: versions[version], reverse=True)
        old = [version for version in newest_first[_KEPT:] if _moment(versions[version]) < now - _IN_USE]
        if group is None or not old:
            continue
        pointed = read_pointer(folder.store, group).artifacts.get(name)
        for version in old:
            if pointed is None or version != pointed.version:
                delete = partial(_delete, folder.store, group, name, version, keys[name, version])
                removals.append(Removal(rule, f"{folder.store.url}/{name}/{version}", sizes[name, version], delete))
    return removals


def forget(folder: SharedFolder, name: str) -> None:
    """Take an artifact out of its group's pointer, so that no machine fetches it any more.

    Raises:
        StoreError: the store does not answer, or refuses.
    """
    group = group_of(name)
    if group is None:
        return

    def remove() -> None:
        pointer = read_pointer(folder.store, group)
        if name in pointer.artifacts:
            pointer.replaced(folder.store, {key: value for key, value in pointer.artifacts.items() if key != name})

    with folder.records.exclusive(group):
        retry_changed(remove)
        record = folder.records.read(group)
        if record.artifacts.pop(name, None):
            folder.records.write(group, record.model_copy(update={"tag": None}))


def _delete(store: ObjectStore, group: str, name: str, version: str, keys: list[str]) -> None:
    pointed = read_pointer(store, group).artifacts.get(name)
    if pointed is None or pointed.version != version:
        for key in keys:
            store.remove(key)


def _moment(stamp: str) -> datetime:
    return datetime.strptime(stamp, "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
