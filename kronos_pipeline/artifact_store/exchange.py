r"""Exchange of an output folder with the artifact store: fetch what others published, deliver what was made here.

              record: what both had when they last met
             /                                         \
    output folder differs: deliver          pointer differs: fetch          both differ: see below

Two machines that train a ticker at once: the first to replace the pointer wins. The other gets an error that names it,
and its next command takes over the version of the first; its own version stays in `.versions/`. Files beside models,
such as forecasts and tables, belong to the command that ended last, as in an output folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from kronos_pipeline.artifact_store.exchanged import Exchanged
from kronos_pipeline.artifact_store.known import Known, Record, Records, local_state
from kronos_pipeline.artifact_store.ledger_files import deliver_ledger, fetch_ledger
from kronos_pipeline.artifact_store.names import ALL, files_of, group_of, is_folder, is_group, local_groups
from kronos_pipeline.artifact_store.objects import (
    ChangedError,
    DamagedError,
    MissingError,
    ObjectStore,
    StoreAwayError,
    StoreError,
    retry_changed,
)
from kronos_pipeline.artifact_store.pointers import (
    POINTERS,
    Pointer,
    Version,
    damaged,
    read_pointer,
    version_key,
)
from kronos_pipeline.artifacts import MANIFEST, SAMPLING, ArtifactLayout, check_folder
from kronos_pipeline.atomic_writes import VERSIONS, link_version, publish_version, version_of, write_file
from kronos_pipeline.checksums import bytes_hash, file_hash, json_bytes, parse_json, verify
from kronos_pipeline.errors import KronosError, enumerate_some
from kronos_pipeline.locks import set_folder_id

Keep = Literal["store", "folder"]
_IDENTITY = "store.json"
_THREADS = 8
_FEW = 16
"""Groups whose pointers are asked for one by one; more are listed."""


class SharedFolder:
    """An output folder that exchanges its artifacts with a store."""

    def __init__(self, layout: ArtifactLayout, store: ObjectStore) -> None:
        self.root, self.store = layout.root, store
        self.records = Records(layout.root, store.url)

    def fetch(self, groups: Collection[str] | None = None, keep: Keep | None = None) -> Exchanged:
        """Fetch the artifacts of some groups, or of all, that other machines have published since the last exchange.

        Args:
            groups: tickers and names of adapters; what belongs to no ticker is always fetched too.
            keep: who wins where both sides have changed a model: the store, or this folder.

        Returns:
            What was fetched. A damaged object is an error of its group, whose artifacts stay as they were.

        Raises:
            StoreAwayError: the store does not answer.
            StoreError: the store refuses.
        """
        result = Exchanged()
        self._meet()
        if groups is None or len(groups) > _FEW:
            found = self.published()
            wanted = [group for group in found if is_group(group) and (groups is None or group in (*groups, ALL))]
        else:
            found, wanted = {}, [ALL, *groups]
        # What belongs to all comes first: the sampling of a ticker lies in the folder of the checkpoint.
        for part in ([ALL] if ALL in wanted else [], [group for group in wanted if group != ALL]):
            self._each(part, lambda group: self._fetch_group(group, found.get(group), keep, result), result)
        fetch_ledger(self.root, self.store, result)
        return result

    def published(self) -> dict[str, str | None]:
        """Return the groups of the store with the tag of their pointer, None if the store has no tags.

        Raises:
            StoreError: see `fetch`.
        """
        tags = self.store.tags(POINTERS)
        return {key.removeprefix(POINTERS).removesuffix(".json"): tag for key, tag in tags.items()}

    def deliver(self, groups: Collection[str] | None = None, keep: Keep | None = None) -> Exchanged:
        """Deliver the artifacts of some groups, or of all, that were made here since the last exchange.

        Args:
            groups: as in `fetch`.
            keep: "folder" publishes everything that is here, also over models of another machine.

        Returns:
            What was delivered. An artifact that is damaged, or of which another machine has published another version
            meanwhile, is an error of its group, of which nothing is delivered.

        Raises:
            StoreAwayError: the store does not answer; what waits stays in the folder.
            StoreError: the store refuses.
        """
        result = Exchanged()
        self._meet()
        wanted = local_groups(self.root) if groups is None else [ALL, *groups]
        self._each(wanted, lambda group: self._deliver_group(group, keep, result), result)
        deliver_ledger(self.root, self.store, result)
        return result

    def probe(self) -> float:
        """Write a small object on condition, read and remove it, and return the seconds that it took.

        Raises:
            StoreError: the store does not answer, refuses, or ignores conditions of writes.
        """
        start, key = time.monotonic(), f"probe/{uuid.uuid4().hex}"
        try:
            self.store.replace(key, b"probe", None)
            self._check_conditions(key)
            self.store.read(key)
        except MissingError:
            raise StoreError(f"{self.store.url} does not return what was just written to it.") from None
        finally:
            with contextlib.suppress(StoreError):
                self.store.remove(key)
        return time.monotonic() - start

    def _check_conditions(self, key: str) -> None:
        """Check that the store refuses to make an object that is there."""
        with contextlib.suppress(ChangedError):
            self.store.replace(key, b"", None)
            raise StoreError(
                f"{self.store.url} ignores conditions of writes (If-None-Match), so machines could lose each other's "
                "artifacts; use a store that obeys them, such as Amazon S3."
            )

    def exchange_ledger(self) -> None:
        """Fetch and deliver the files of the ledger, of which every machine has all.

        Raises:
            StoreError: see `fetch`; a damaged file is an error too.
        """
        result = Exchanged()
        fetch_ledger(self.root, self.store, result)
        deliver_ledger(self.root, self.store, result)
        for error in result.errors.values():
            raise error

    def _meet(self) -> None:
        """At the first contact, check that the store can be shared, and take over its id.

        Leases of the folder's locks have the id in their name, so they hold on all machines that share the store.
        """
        if self.records.met:
            self.store.check_mounted(_IDENTITY)
            return
        own = json_bytes({"id": uuid.uuid4().hex})
        try:
            self.store.replace(_IDENTITY, own, None)
            self._check_conditions(_IDENTITY)
        except ChangedError:
            own, _ = self.store.read(_IDENTITY)
        try:
            set_folder_id(self.root.absolute(), str(parse_json(own)["id"]))
        except (KeyError, ValueError):
            raise damaged(self.store, _IDENTITY, "remove it") from None
        self.records.note_meeting(self.store.url)

    def _each(self, groups: Iterable[str], work: Callable[[str], None], result: Exchanged) -> None:
        """Work on groups in threads; an error of a group is noted, unless the store is away."""

        def attempt(group: str) -> None:
            try:
                with self.records.exclusive(group):
                    work(group)
            except StoreAwayError:
                raise
            except KronosError as error:
                result.errors[group] = error

        threads = ThreadPoolExecutor(_THREADS)
        try:
            list(threads.map(attempt, dict.fromkeys(groups)))
        finally:
            threads.shutdown(cancel_futures=True)  # after an error or an interrupt, groups that have not begun stay

    def _fetch_group(self, group: str, tag: str | None, keep: Keep | None, result: Exchanged) -> None:
        record = self.records.read(group)
        if tag is not None and tag == record.tag and self._has_all(group, record):
            return
        pointer = read_pointer(self.store, group)
        stale, conflicts = self._compare(pointer, record)
        models = [name for name in conflicts if is_folder(name, group)]
        if models and keep is None and any(name not in record.artifacts for name in models):
            raise StoreError(
                f"{self.root} and {self.store.url} have {enumerate_some(models)} of their own; choose one by "
                f"`kronos sync {group} --keep store` or `--keep folder`."
            )
        if (models and keep != "folder") or keep == "store":
            stale += conflicts
            for name in models:
                theirs = pointer.artifacts[name]
                own = (self.root / name).parent / VERSIONS / str(version_of(self.root / name))
                result.notes.append(
                    f"{name}: the version of {theirs.told()}, replaces that of this machine, which was not published "
                    f"and stays in {own}."
                )
        record = record.model_copy(update={"tag": None, "damaged": {}})
        try:
            for name in sorted(stale, key=lambda name: (not is_folder(name, group), name)):
                version = pointer.artifacts[name]
                try:
                    fetched = self._fetch_artifact(group, name, version)
                except DamagedError:
                    record.damaged[name] = version.version
                    raise
                if fetched:
                    state = local_state(self.root, group, name)
                    record.artifacts[name] = Known(version=version.version, local=str(state))
                    result.fetched.append(name)
            record.tag = pointer.tag
        finally:
            self.records.write(group, record)

    def _has_all(self, group: str, record: Record) -> bool:
        return all(local_state(self.root, group, name) is not None for name in record.artifacts)

    def _compare(self, pointer: Pointer, record: Record) -> tuple[list[str], list[str]]:
        """Return the artifacts to fetch, and those that both sides have changed; note those that are the same."""
        stale, conflicts = [], []
        for name, version in pointer.artifacts.items():
            state, known = local_state(self.root, pointer.group, name), record.artifacts.get(name)
            if state is None or (known and known.local == state):
                if state is None or known is None or known.version != version.version:
                    stale.append(name)
            elif known and known.version == version.version:
                continue  # made here since, and waits
            elif self._is_same(pointer.group, name, version):
                record.artifacts[name] = Known(version=version.version, local=state)
            else:
                conflicts.append(name)
        return stale, conflicts

    def _is_same(self, group: str, name: str, version: Version) -> bool:
        path = self.root / name
        if is_folder(name, group):
            return _holds(path, version)
        return [*version.files.values()] == [file_hash(path)]

    def _fetch_artifact(self, group: str, name: str, version: Version) -> bool:
        """Fetch a version and put it in place; return False for the sampling of a model that is not here."""
        path = self.root / name
        if not is_folder(name, group):
            model = name.partition(f"/{SAMPLING}/")[0]
            if model != name and group_of(model) and not (self.root / model).is_symlink():
                return False
            content = self._read_file(name, version, path.name)
            write_file(path, lambda handle: handle.write(content))
            _set_time(path, version)
            return True
        stored = path.parent / VERSIONS / version.version
        if stored.is_dir() and _holds(stored, version):
            link_version(path, version.version)
            _set_time(path, version)
            return True
        shutil.rmtree(stored, ignore_errors=True)  # of a process that was killed
        with publish_version(path, version.version) as folder:
            for file, digest in version.files.items():
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                key = version_key(name, version.version, file)
                try:
                    self.store.download(key, target)
                except MissingError:
                    raise damaged(self.store, key, _remedy(group)) from None
                if file_hash(target) != digest:
                    raise damaged(self.store, key, _remedy(group))
                _set_time(target, version)
        _set_time(path, version)
        return True

    def _read_file(self, name: str, version: Version, file: str) -> bytes:
        key, group = version_key(name, version.version, file), Path(name).stem
        try:
            content, _ = self.store.read(key)
        except MissingError:
            raise damaged(self.store, key, _remedy(group)) from None
        if bytes_hash(content) != version.files.get(file):
            raise damaged(self.store, key, _remedy(group))
        return content

    def _deliver_group(self, group: str, keep: Keep | None, result: Exchanged) -> None:
        record = self.records.read(group)
        changed = self.records.changed(group, Record() if keep == "folder" else record)
        if not changed:
            return
        own: dict[str, Version] = {}

        def publish() -> None:
            pointer = read_pointer(self.store, group)
            if keep != "folder":
                self._check_rivals(pointer, record, changed, own)
            for name in changed:
                if name not in own:
                    own[name] = self._upload(group, name, None if keep == "folder" else pointer.artifacts.get(name))
            replaced = pointer
            if any(pointer.artifacts.get(name) != version for name, version in own.items()):
                replaced = pointer.replaced(self.store, {**pointer.artifacts, **own})
                result.delivered.extend(name for name in own if pointer.artifacts.get(name) != own[name])
            for name, version in own.items():
                record.artifacts[name] = Known(version=version.version, local=changed[name])
            tag = replaced.tag if pointer.tag == record.tag else None  # other artifacts may be newer there
            self.records.write(group, record.model_copy(update={"tag": tag}))

        retry_changed(publish)

    def _check_rivals(self, pointer: Pointer, record: Record, changed: dict[str, str], own: dict[str, Version]) -> None:
        for name in changed:
            theirs, known = pointer.artifacts.get(name), record.artifacts.get(name)
            if theirs is None or not is_folder(name, pointer.group) or theirs == own.get(name):
                continue
            replaceable = (known and known.version, record.damaged.get(name))
            if theirs.version not in replaceable and not self._is_same(pointer.group, name, theirs):
                raise StoreError(
                    f"{name}: {theirs.told()}, published another version while this machine made its own, so the "
                    f"store keeps that version. Yours stays in {self.root / name}; run the command again to go on "
                    f"from theirs, or publish yours by `kronos sync {pointer.group} --keep folder`."
                )

    def _upload(self, group: str, name: str, present: Version | None) -> Version:
        """Upload an artifact as a new version, unless the store's version is the same.

        Raises:
            ArtifactError: it is damaged here.
        """
        path = self.root / name
        now = datetime.now(UTC)
        by = f"{socket.gethostname()}, process {os.getpid()}"
        if is_folder(name, group):
            folder = path.resolve()
            if (folder / MANIFEST).is_file():
                check_folder(folder)
            files = {file: file_hash(folder / file) for file in files_of(folder)}
            version = Version(version=folder.name, files=files, by=by, at=now)
            if present and present.version == version.version and present.files == files:
                return present
            for file in files:
                self.store.upload(version_key(name, version.version, file), folder / file)
            return version
        content = path.read_bytes()
        verify(path, content)
        digest = bytes_hash(content)
        if present and present.files == {path.name: digest}:
            return present
        stamp = now.strftime("%Y%m%dT%H%M%S%f")
        version = Version(version=f"{stamp}-{digest[:8]}", files={path.name: digest}, by=by, at=now)
        self.store.upload(version_key(name, version.version, path.name), content)
        return version


def _set_time(path: Path, version: Version) -> None:
    """Give a file or a link the time of its publication, by which commands tell the age of a training."""
    seconds = version.at.timestamp()
    os.utime(path, (seconds, seconds), follow_symlinks=False)


def _holds(folder: Path, version: Version) -> bool:
    """Return whether a published folder has exactly the files of a version."""
    resolved = folder.resolve()
    try:
        names = files_of(resolved)
        return set(names) == set(version.files) and all(
            file_hash(resolved / file) == digest for file, digest in version.files.items()
        )
    except FileNotFoundError:
        return False


def _remedy(group: str) -> str:
    return f"`kronos sync {group} --keep folder` on a machine that has it writes it again, and so does a new training"
