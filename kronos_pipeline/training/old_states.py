"""States of trainings that nobody resumes: unchanged for long, and held by no process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from filelock import Timeout

from kronos_pipeline.artifacts import ArtifactLayout, read_json
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.locks import folder_lock
from kronos_pipeline.removal import Removal, delete_path, entries, size_of, unchanged_since
from kronos_pipeline.training.checkpoint import lock_file


def old_states(layout: ArtifactLayout, rule: str, before: datetime) -> list[Removal]:
    """Return the states, and the folds of backtests without a result, that have not changed since a moment.

    Each is deleted below the locks of its trainings, and stays if a process holds any.

    Args:
        layout: the layout of the artifacts.
        rule: the rule that the removals name.
        before: the moment, with a zone.
    """
    root = layout.root
    states = [folder for folder in entries(root / "state", "[!.]*", root) if unchanged_since(folder, before)]
    folds = [
        folder
        for folder in entries(root / "backtest" / "folds", "[!.]*", root)
        if not (folder / "predictions.parquet").exists() and unchanged_since(folder, before)
    ]
    return [
        *(_removal(root, folder, rule, before, _locks_of(folder)) for folder in states),
        *(_removal(root, folder, rule, before, _locks_in(folder / "state")) for folder in folds),
    ]


def _removal(root: Path, folder: Path, rule: str, before: datetime, locks: Sequence[Path]) -> Removal:
    def delete() -> None:
        with _held(locks) as free:
            if free and unchanged_since(folder, before):
                delete_path(folder, root)

    return Removal(rule, folder.relative_to(root).as_posix(), size_of(folder), delete)


@contextmanager
def _held(locks: Sequence[Path]) -> Iterator[bool]:
    """Hold locks that no process holds; yield whether all were free."""
    with ExitStack() as stack:
        try:
            for path in locks:
                stack.enter_context(folder_lock(path.parent.parent, f"state/{path.name}").acquire(timeout=0))
        except Timeout:
            yield False
            return
        yield True


def _locks_of(state: Path) -> list[Path]:
    """Return the lock files of a state's artifacts, see `checkpoint.locked`; all there are if it does not name any."""
    try:
        run = read_json(state / "run.json")
        # Adapters that train jointly are listed by their absolute folders, such as /home/me/artifacts/adapters/AAPL.
        names = ["/".join(Path(artifact).parts[-2:]) for artifact in run.get("artifacts", [run["artifact"]])]
    except (ArtifactError, KeyError, TypeError):
        return _locks_in(state.parent)
    return [lock_file(state.parent, name) for name in sorted(names)]


def _locks_in(states: Path) -> list[Path]:
    return sorted(states.glob(".*.lock"))
