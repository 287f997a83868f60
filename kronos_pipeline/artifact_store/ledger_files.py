"""Files of the ledger in the store: each is written once, under a name of its own, and every machine has all."""

from __future__ import annotations

from pathlib import Path

from kronos_pipeline.artifact_store.exchanged import Exchanged
from kronos_pipeline.artifact_store.names import LEDGER_FILE
from kronos_pipeline.artifact_store.objects import ChangedError, MissingError, ObjectStore
from kronos_pipeline.artifact_store.pointers import damaged
from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.checksums import verify
from kronos_pipeline.errors import ArtifactError


def fetch_ledger(root: Path, store: ObjectStore, result: Exchanged) -> None:
    """Fetch the files of the ledger that this machine lacks, and add them to a result; a damaged file is an error.

    Raises:
        StoreError: the store does not answer, or refuses.
    """
    for name in store.keys("ledger"):
        path = root / name
        if not LEDGER_FILE.fullmatch(name) or path.exists():
            continue
        try:
            content, _ = store.read(name)
            verify(path, content)
        except (MissingError, ArtifactError):
            remedy = "remove it; the machine that issued its forecasts delivers it again"
            result.errors[name] = damaged(store, name, remedy)
            continue
        write_file(path, lambda handle, content=content: handle.write(content))  # type: ignore[misc]
        result.fetched.append(name)


def deliver_ledger(root: Path, store: ObjectStore, result: Exchanged) -> None:
    """Deliver the files of the ledger that the store lacks, and add them to a result; a damaged file is an error.

    Raises:
        StoreError: the store does not answer, or refuses.
    """
    local = {path.relative_to(root).as_posix(): path for path in root.glob("ledger/month=*/*.parquet")}
    if not local:
        return
    present = set(store.keys("ledger"))
    for name in sorted(set(local) - present):
        if not LEDGER_FILE.fullmatch(name):
            continue
        content = local[name].read_bytes()
        try:
            verify(local[name], content)
            store.replace(name, content, None)
        except ArtifactError as error:
            result.errors[name] = error
        except ChangedError:
            continue  # another process of this machine was faster
        else:
            result.delivered.append(name)
