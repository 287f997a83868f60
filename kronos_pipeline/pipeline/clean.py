"""What an output folder no longer needs, and its deletion, for `kronos clean` and the scheduled job.

The rules, and nothing else is deleted:

- published versions: folders of adapters, checkpoints and refits, and copies of champions for a time without MLflow,
  that no link points to, after two days; a reader may have the previous version open
- known champions: what is kept of registered models that no forecast has read for `days`, while it read others
- temporary files: of processes that were killed, after two days
- states of trainings: unchanged for `days`, and locked by no process; unfinished folds of backtests likewise
- damaged files: set aside by the project, after `days`
- bars without a CSV: bars and windows of tickers whose CSV has been gone for `days`, unless the ledger has the ticker
- versions in the artifact store: beside the current version and the newest two, after two days, see
  `artifact_store.cleaning`
- registered versions, logged models and MLflow runs: beyond the newest `keep` of each ticker and kind, see
  `tracking.retention`

So these always stay: champions and former champions of every target, versions that a person decided on or gave an
alias, the ledger, current artifacts, forecasts, metrics, plots and backtests. Nothing outside the output folder is
deleted, and no symbolic link is followed. Every rule is checked again at the deletion, so trainings, forecasts and
promotions may run meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from filelock import Timeout

from kronos_pipeline.artifact_store.cleaning import forget, unused_versions
from kronos_pipeline.artifact_store.exchange import SharedFolder
from kronos_pipeline.artifact_store.sharing import shared_folder
from kronos_pipeline.artifacts import ArtifactLayout, mlflow_run_of
from kronos_pipeline.errors import ArtifactError, KronosError
from kronos_pipeline.locks import folder_lock
from kronos_pipeline.names import NAME
from kronos_pipeline.pipeline.status import reading_of_last_evaluation
from kronos_pipeline.removal import TEMPORARY, Removal, entries, newest_change, path_removal, unchanged_since

KEEP, DAYS = 5, 30
"""A trading week of nightly trainings, and the days after which an unfinished training counts as given up."""
_READERS = timedelta(days=2)
"""Time after which no reader has a replaced version open, and no process writes to a temporary file."""
_PUBLISHED, _TEMPORARY, _STATES = "published versions", "temporary files", "states of trainings"
_CHAMPIONS = "known champions"
_DAMAGED, _BARS, _STORED = "damaged files", "bars without a CSV", "versions in the store"
_LEFT_OUT = ("mlruns", "ledger")
"""Folders of the output folder that no rule for files concerns."""


@dataclass(frozen=True)
class CleaningPlan:
    """What can go.

    Attributes:
        removals: what can go, in the order of deletion.
        notes: what stays although a rule may concern it, a sentence each.
        errors: what could not be looked at, a sentence each.
    """

    removals: tuple[Removal, ...]
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class CleaningRules:
    """The amounts of the rules.

    Attributes:
        keep: number of newest MLflow runs and versions that stay of each ticker and kind.
        days: days after which an unfinished training, a damaged file and a vanished CSV count as given up.
    """

    keep: int = KEEP
    days: int = DAYS


def plan_cleaning(
    layout: ArtifactLayout, data_dir: Path, store: str, rules: CleaningRules, now: datetime
) -> CleaningPlan:
    """Find out what can go, and delete nothing.

    Args:
        layout: the layout of the artifacts.
        data_dir: the folder of CSVs.
        store: the URI of the MLflow store.
        rules: the amounts of the rules.
        now: the current time, with a zone.
    """
    from kronos_pipeline.training.old_states import old_states  # imports torch

    removals, notes, errors = [], [], []
    given_up = now - timedelta(days=rules.days)
    for part in _parts(layout):
        removals += _old_publications(part, layout.root, now - _READERS)
        removals += old_states(part, _STATES, given_up)
    removals += _unread_champions(layout, timedelta(days=rules.days))
    removals += _files(layout.root, _TEMPORARY, lambda name: bool(TEMPORARY.fullmatch(name)), now - _READERS)
    removals += _files(layout.root, _DAMAGED, lambda name: name.endswith(".damaged"), given_up)
    bars, why = _vanished_bars(layout, data_dir, given_up)
    removals += bars
    notes += why
    try:
        if folder := shared_folder(layout.root):
            removals = [_also_in_store(removal, folder) if removal.rule == _BARS else removal for removal in removals]
            removals += unused_versions(folder, _STORED, now)
    except KronosError as error:
        errors.append(str(error))
    try:
        from kronos_pipeline.tracking.retention import Retention, unused_tracking

        retention = Retention(rules.keep, given_up, now, frozenset(_runs_on_disk(layout)))
        tracked, of_tracking = unused_tracking(store, layout, retention)
        removals += tracked
        notes += of_tracking
    except KronosError as error:
        errors.append(str(error))
    return CleaningPlan(tuple(removals), tuple(notes), tuple(errors))


def carry_out(plan: CleaningPlan, layout: ArtifactLayout) -> list[str]:
    """Delete what a plan says; return the errors, a sentence each. A failure does not affect the other removals.

    Raises:
        ArtifactError: another process cleans the folder.
    """
    errors = []
    try:
        with folder_lock(layout.root, ".clean.lock").acquire(timeout=0):
            for removal in plan.removals:
                try:
                    removal.delete()
                except KronosError as error:
                    errors.append(str(error))
    except Timeout as error:
        raise ArtifactError(f"Another process cleans {layout.root}; wait until it has ended.") from error
    return list(dict.fromkeys(errors))


def _parts(layout: ArtifactLayout) -> Iterator[ArtifactLayout]:
    """Return the output folder, and the output folders of the trainings with other seeds in it."""
    yield layout
    for folder in entries(layout.root / "seeds", "[0-9]*", layout.root):
        if folder.is_dir() and not folder.is_symlink():
            yield ArtifactLayout(folder)


def _old_publications(part: ArtifactLayout, root: Path, before: datetime) -> list[Removal]:
    """Return the versions of published folders that no link points to."""
    parents = [part.best_checkpoint.parent, part.adapter("X").parent, part.refit("X").parent]
    parents += entries(part.champions, "[!.]*", root)
    removals = []
    for parent in parents:
        versions = entries(parent / ".versions", "[!.]*", root)
        linked = _linked_versions(parent) if versions else set()  # once for thousands of versions
        for version in versions:
            if version.name not in linked and unchanged_since(version, before):
                removals.append(path_removal(_PUBLISHED, version, root, partial(_is_unused, version, before)))
    return removals


def _unread_champions(layout: ArtifactLayout, age: timedelta) -> list[Removal]:
    """Return what is kept of registered models that were last read so long before the newest reading of any model.

    The age counts from the newest reading and not from now: while MLflow is away, nothing is read.
    """
    folders = [folder for folder in entries(layout.champions, "[!.]*", layout.root) if folder.is_dir()]
    before = datetime.fromtimestamp(max(map(newest_change, folders), default=0.0), UTC) - age
    return [
        path_removal(_CHAMPIONS, folder, layout.root, partial(unchanged_since, folder, before))
        for folder in folders
        if unchanged_since(folder, before)
    ]


def _is_unused(version: Path, before: datetime) -> bool:
    return version.name not in _linked_versions(version.parents[1]) and unchanged_since(version, before)


def _linked_versions(parent: Path) -> set[str]:
    """Return the names of the versions that the links of a folder lead to."""
    with os.scandir(parent) as found:
        return {Path(entry.path).readlink().name for entry in found if entry.is_symlink()}


def _files(root: Path, rule: str, matches: Callable[[str], bool], before: datetime) -> list[Removal]:
    """Return the files, folders and links with a matching name below the output folder that did not change lately."""
    removals = []
    for folder, folders, files in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in _LEFT_OUT]
        for name in sorted([*folders, *files]):
            path = Path(folder) / name
            if matches(name) and unchanged_since(path, before):
                removals.append(path_removal(rule, path, root, partial(unchanged_since, path, before)))
        folders[:] = [name for name in folders if not matches(name)]
    return removals


def _vanished_bars(layout: ArtifactLayout, data_dir: Path, before: datetime) -> tuple[list[Removal], list[str]]:
    """Return the stored bars and windows of tickers without a CSV, and why some stay.

    The ledger compares forecasts with the stored bars of its tickers. If the data folder has none of the tickers, it is
    another folder, or it is not mounted.
    """
    from kronos_pipeline.data.csv_files import find_csv_files
    from kronos_pipeline.evaluation import ledger

    files = entries(layout.root / "bars", "[!.]*.parquet", layout.root)
    stored = {path.stem: path for path in files if NAME.fullmatch(path.stem)}
    if not stored:
        return [], []
    try:
        found = find_csv_files(data_dir, reading_of_last_evaluation(layout))
        present = {*found.files, *found.problems}
    except KronosError as error:
        return [], [f"Stored bars stay: {error}"]
    gone = [ticker for ticker in stored if ticker not in present]
    if len(gone) == len(stored):
        return [], [f"Stored bars stay: {data_dir} has a CSV of none of their tickers; name the folder by --data-dir."]
    if not gone:
        return [], []
    entered = ledger.read(layout, gone)
    if entered.notes:
        return [], [f"Stored bars stay: {note}" for note in entered.notes]
    issued = set(entered.rows["unique_id"])
    paths = [path for ticker in gone if ticker not in issued for path in (stored[ticker], layout.windows(ticker))]
    return [
        path_removal(_BARS, path, layout.root, partial(unchanged_since, path, before))
        for path in paths
        if path.exists() and unchanged_since(path, before)
    ], []


def _also_in_store(removal: Removal, folder: SharedFolder) -> Removal:
    """Return a removal that takes the artifact out of the store too, or another machine would bring it back."""

    def delete() -> None:
        removal.delete()
        if not (folder.root / removal.name).exists():
            forget(folder, removal.name)

    return replace(removal, delete=delete)


def _runs_on_disk(layout: ArtifactLayout) -> Iterator[str]:
    """Return the MLflow runs that trained the adapters, checkpoints and refits of the output folder."""
    for parent in ("adapters", "checkpoints", "refits"):
        for folder in sorted((layout.root / parent).glob("[!.]*")):
            try:
                if run := mlflow_run_of(folder):
                    yield run
            except ArtifactError:
                continue  # a damaged manifest names no run


def total_size(removals: Sequence[Removal]) -> int:
    """Return the bytes of removals."""
    return sum(removal.size for removal in removals)
