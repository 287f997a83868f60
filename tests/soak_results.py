"""What a machine has at the end of a soak, and how two machines differ."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from fault_scenarios import content_hash
from unattended_machine import CLEANING, UnattendedMachine

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.removal import TEMPORARY
from kronos_pipeline.tracking.outbox import Outbox
from kronos_pipeline.tracking.stored_registry import read_registered_models

_FILES = (
    "bars/{}.parquet",
    "windows/{}.parquet",
    "adapters/{}/adapter_model.safetensors",
    "adapters/{}/adapter_config.json",
    "metrics/{}.json",
    "metrics/{}.parquet",
    "forecasts/{}.parquet",
)
"""The files of a ticker."""
_OF_AN_ISSUE = ["issued", "version"]
"""Columns of the ledger that differ between two machines: the time, and the number of a version."""

ForecastBar = tuple[str, pd.Timestamp, int]
"""Ticker, cutoff and step of a bar that was forecast."""


class Remains(NamedTuple):
    """What a machine has in the end: its tickers, its output folder, and the file of its MLflow store."""

    tickers: Sequence[str]
    output: Path
    store: Path


def compare(
    expected: Remains, found: Remains, excused: Collection[ForecastBar], altered: Collection[ForecastBar]
) -> tuple[int, list[str]]:
    """Return the number of forecast bars that a machine did not issue, and its differences from another machine.

    Args:
        expected: of the machine without faults.
        found: of the machine with faults.
        excused: the bars that may be missing; a bar that was issued must be equal.
        altered: the bars that must have been issued, and may differ.
    """
    broken = []
    for ticker in expected.tickers:
        right, state = _state(expected, ticker), _state(found, ticker)
        broken += [f"{ticker}: another {name}" for name in right if state[name] != right[name]]
    right_bars, bars = _issued(expected.output), _issued(found.output)
    missed = set(right_bars) - set(bars)
    differing = [key for key in set(right_bars) & set(bars) if right_bars[key] != bars[key]]
    for name, keys in (
        ("no forecast", missed - set(excused)),
        ("a further forecast", set(bars) - set(right_bars)),
        ("another forecast", set(differing) - set(altered)),
    ):
        forecasts = sorted({(ticker, cutoff) for ticker, cutoff, _ in keys})
        broken += [f"{ticker}: {name} from {cutoff:%Y-%m-%d}" for ticker, cutoff in forecasts]
    return len(missed), broken


def find_leftovers(machine: UnattendedMachine, full_disks: Collection[pd.Timestamp]) -> list[str]:
    """List what no machine may keep after its nights: unfinished runs, and trainings with several MLflow runs."""
    broken = [f"left unfinished: {run}" for run in machine.unfinished()]
    with closing(sqlite3.connect(machine.store)) as store:
        running = store.execute("SELECT name FROM runs WHERE status = 'RUNNING'").fetchall()
        broken += [f"MLflow's run {name} is still running" for (name,) in running]
        trainings = store.execute(
            "SELECT ticker.value, bars.value, COUNT(*) FROM runs"
            " JOIN tags ticker ON ticker.run_uuid = runs.run_uuid AND ticker.key = 'ticker'"
            " JOIN tags bars ON bars.run_uuid = runs.run_uuid AND bars.key = 'bars'"
            " WHERE runs.lifecycle_stage = 'active' GROUP BY ticker.value, bars.value"
        ).fetchall()
    excused = [f" to {date:%Y-%m-%d}," for date in full_disks]
    broken += [
        f"{ticker}: {count} MLflow runs of the training on the bars {bars}"
        for ticker, bars, count in trainings
        if count > 1 and not any(date in bars for date in excused)
    ]
    if waits := Outbox(ArtifactLayout(machine.output).mlflow_waiting, machine.mlflow.uri).sentence():
        broken.append(waits)
    return broken


def clean_up(machine: UnattendedMachine) -> None:
    """Let the weekly clean-up run."""
    now = machine.now()
    sunday = (now + timedelta(days=6 - now.weekday())).replace(hour=14, minute=0, second=0, microsecond=0)
    machine.start_schedules(CLEANING)
    machine.advance_to(sunday)
    machine.settle(CLEANING, sunday)


def find_temporary_files(machine: UnattendedMachine) -> list[str]:
    """List temporary files, states and locks of runs that are left."""
    temporary = [path for path in machine.output.rglob("*") if TEMPORARY.fullmatch(path.name)]
    states = [path for path in machine.output.glob("state/*") if path.is_dir()]
    locks = list((machine.home / "run_locks").glob("*"))
    return [f"left over: {path.relative_to(machine.folder)}" for path in (*temporary, *states, *locks)]


def _state(machine: Remains, ticker: str) -> dict[str, object]:
    files = {name.format(ticker): machine.output / name.format(ticker) for name in _FILES}
    state: dict[str, object] = {name: content_hash(path) if path.exists() else "none" for name, path in files.items()}
    models = read_registered_models(f"sqlite:///{machine.store}") or {}
    model = models.get(f"kronos-{ticker}")
    versions = {version.number: version for version in model.versions} if model else {}
    champions = model.champions.numbers if model else {}
    state["champion"] = {
        str(target): (versions[number].tags["weights_hash"], versions[number].tags.get(f"decided_by.{target}"))
        for target, number in champions.items()
    }
    return state


def _issued(output: Path) -> Mapping[ForecastBar, list[str]]:
    """Return the forecasts of a ledger, without replays: the rows of each bar, one unless it was issued again."""
    rows = ledger.read(ArtifactLayout(output)).rows
    rows = rows[~rows["replay"]].drop(columns=_OF_AN_ISSUE)
    issued: dict[ForecastBar, list[str]] = {}
    for row in rows.itertuples(index=False):
        key = str(row.unique_id), pd.Timestamp(str(row.cutoff)), int(str(row.step))
        issued.setdefault(key, []).append(str(row))
    return issued
