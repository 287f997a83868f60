"""The exchange around a command: fetch at its start, deliver at its end, and go on while the store is away."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kronos_pipeline.artifact_store.exchange import SharedFolder
from kronos_pipeline.artifact_store.exchanged import Exchanged
from kronos_pipeline.artifact_store.objects import StoreAwayError, StoreError, open_store, store_url
from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.errors import KronosError, count

_shared: set[Path] = set()
"""Output folders whose artifacts a command or run of this process shares now."""


@dataclass
class Sharing:
    """The errors of the artifacts that could not be fetched or delivered, by group; the others were."""

    errors: dict[str, KronosError] = field(default_factory=dict)


def shared_folder(root: Path) -> SharedFolder | None:
    """Return the output folder with the store of `KRONOS_ARTIFACT_STORE`; None without that variable.

    Raises:
        StoreError: the address is invalid.
    """
    url = store_url()
    if url is None or os.environ.get("RANK", "0") != "0":  # of several processes of a training, the first
        return None
    return SharedFolder(ArtifactLayout(root), open_store(url))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def shared_artifacts(
    root: Path,
    groups: Collection[str] | None = None,
    say: Callable[[str], None] = _say,
    *,
    refuse: bool = True,
) -> Iterator[Sharing]:
    """Fetch what other machines published before the block, and deliver what it made after it.

    If the store does not answer, a line says so: the block works with the artifacts of the folder, and the next command
    delivers what waits. The block's own error is raised after the delivery. An interrupt is raised at once.

    Args:
        root: the output folder.
        groups: the tickers and adapters of the command; all by default.
        say: receives lines for people.
        refuse: whether damaged artifacts of the only ticker are an error, rather than a part of the result.

    Raises:
        StoreError: the store refuses, or this folder has never reached it and it does not answer; or the artifacts of
            the only ticker of the command are damaged there.
    """
    sharing = Sharing()
    folder = shared_folder(root)
    if folder is None:
        yield sharing
        return
    if fetched := _attempt(folder, lambda: folder.fetch(groups), say, "Work goes on with this machine's artifacts."):
        sharing.errors |= fetched.errors
        if refuse and groups and len(groups) == 1 and (error := sharing.errors.get(next(iter(groups)))):
            raise error
        _tell(fetched, f"{count(len(fetched.fetched), 'artifact')} from", folder, say, fetched.fetched)
    _shared.add(root.absolute())
    try:
        yield sharing
    except KronosError:
        with contextlib.suppress(KronosError):  # the error of the block says more
            sharing.errors |= deliver(folder, groups, say).errors
        raise
    finally:
        _shared.discard(root.absolute())
    sharing.errors |= deliver(folder, groups, say).errors


def deliver(folder: SharedFolder, groups: Collection[str] | None, say: Callable[[str], None]) -> Exchanged:
    """Deliver what a folder made, and say what was delivered or waits.

    Raises:
        StoreError: the store refuses.
    """
    delivered = _attempt(folder, lambda: folder.deliver(groups), say) or Exchanged()
    _tell(delivered, f"{count(len(delivered.delivered), 'artifact')} to", folder, say, delivered.delivered)
    return delivered


@contextmanager
def shared_training(root: Path, groups: Collection[str]) -> Iterator[None]:
    """Exchange the models of a command at the start and at the end of the block, in which the caller has their locks.

    So a machine that waited for a lock sees what the holder before it trained. Trainings of a folder that no command
    shares, such as folds of a backtest, stay there. Errors are reported by the exchange around the command.

    Args:
        root: the output folder, or a folder in it with the trainings of another seed.
        groups: the names of the adapters.
    """
    whole = root.absolute().parents[1] if root.parent.name == "seeds" else root.absolute()
    folder = shared_folder(whole) if whole in _shared else None
    if folder is None:
        yield
        return
    with contextlib.suppress(StoreError):
        folder.fetch(groups)
    yield
    with contextlib.suppress(KronosError):
        folder.deliver(groups)


@contextmanager
def shared_ledger(root: Path) -> Iterator[None]:
    """Have all machines' entries in the ledger during the block, and give its new entries to all.

    A store that is away, or refuses, is reported by the exchange around the command.
    """
    folder = shared_folder(root)
    if folder is not None:
        with contextlib.suppress(StoreError):
            folder.exchange_ledger()
    yield
    if folder is not None:
        with contextlib.suppress(StoreError):
            folder.exchange_ledger()


def _attempt(
    folder: SharedFolder, exchange: Callable[[], Exchanged], say: Callable[[str], None], go_on: str = ""
) -> Exchanged | None:
    """Return the result of an exchange; None if the store is away, which a line says."""
    try:
        return exchange()
    except StoreAwayError as error:
        if not folder.records.met:
            raise
        if waiting := folder.records.waiting():
            verb = "waits" if len(waiting) == 1 else "wait"
            go_on = (
                f"{count(len(waiting), 'artifact')} {verb} in this folder; the next command delivers. {go_on}".strip()
            )
        if go_on:
            say(f"{error} {go_on}")
        return None


def _tell(
    exchanged: Exchanged, what: str, folder: SharedFolder, say: Callable[[str], None], names: Collection[str]
) -> None:
    if names:
        say(f"artifact store: {what} {folder.store.url}")
    for note in exchanged.notes:
        say(note)
    for error in exchanged.errors.values():
        say(f"error: {error}")
