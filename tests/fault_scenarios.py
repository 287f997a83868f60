"""Commands to interrupt, each on an output folder that holds older results, and what must hold afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from faulty_commands import Fault, FaultyCommands, Outcome
from market_files import daily_frame, write_frame
from small_trainings import small_flags
from tiny_models import save_tiny_base

from kronos_pipeline.tracking.stored_registry import read_registered_models

COMMANDS = ("train", "promote", "backtest", "forecast", "rollback")
"""The commands to interrupt, in this order."""
_NEEDED = ("train", "promote")
"""The commands that the later commands build on."""
TICKER = "ACME"
_UNCHECKED = ("mlflow.db", "mlruns", "state")
"""Beginnings of the names that are not compared file by file: the store is compared by what it says, and a state ends
with its training."""

_REMAINS = (".*.tmp", "*.damaged")
_OF_ONE_RUN = {"mlflow_run", "mlflow_runs", "seconds", "windows_per_second", "resumed_from_step", "checksum", "files"}
"""Keys and columns that differ between two trainings of the same bytes; hashes of files that contain them."""
_RESULTS = {
    "train": (f"adapters/{TICKER}/adapter_model.safetensors", "metrics/evaluation.json", "metrics/predictions.parquet"),
    "promote": (),
    "backtest": ("backtest/adapter.json", f"backtest/adapter/{TICKER}.parquet"),
    "forecast": (f"forecasts/{TICKER}.parquet",),
    "rollback": (),
}
"""The files of each command that two runs without a fault must agree on."""

Files = Mapping[str, str]
"""Digests of files by relative path; links are followed."""


@dataclass(frozen=True)
class Result:
    """What an output folder says: its files, registered versions, and the states of MLflow's runs."""

    files: Files
    versions: Mapping[str, tuple[tuple[int, tuple[str, ...]], ...]]
    """Number and aliases of each version, by model."""
    runs: Mapping[str, int]
    """Number of runs by status."""
    waiting: int
    """Runs that wait for the store."""
    remains: frozenset[str]
    """Temporary files and damaged files that were set aside, by name."""


@dataclass
class Scenario:
    """A command, with the results before it and after it when nothing fails."""

    name: str
    arguments: list[str]
    template: Path
    before: Result
    after: Result
    calls: list[str]
    """Name and path of each call that changes a file, in order."""
    stable: frozenset[str] = field(default_factory=frozenset)
    """The files that are the same to the byte in each run without a fault."""


class Scenarios:
    """Makes scenarios in a folder, and plays them with faults."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.output = folder, folder / "data", folder / "out"
        self._flags = small_flags(save_tiny_base(folder / "base"), epochs=1, evaluations_per_epoch=1)
        self.commands = FaultyCommands(self.output, folder)

    def make(self, names: Sequence[str]) -> Iterator[Scenario]:
        """Prepare these scenarios, each as it is asked for: an older training is champion, then newer bars came."""
        write_frame(self.data, TICKER, daily_frame(120))
        for command in self._arguments(self.folder / "warm").values():
            self.commands.warm_up(command)
        arguments = self._arguments(self.output)
        for name in _NEEDED:
            self._succeed(arguments[name])
        write_frame(self.data, TICKER, daily_frame(130))
        for name in COMMANDS:
            command = arguments[name]
            template = self.folder / f"before-{name}"
            shutil.copytree(self.output, template, symlinks=True)
            if name in names:
                yield self._measure(name, command, template)
            elif name in _NEEDED:
                self._succeed(command)

    def play(self, scenario: Scenario, fault: Fault, nth: int) -> list[str]:
        """Let the nth call meet the fault, run the command once more, and return the promises that do not hold."""
        self._restore(scenario.template)
        outcome = self.commands.run(scenario.arguments, fault, nth)
        if not outcome.failed:
            return []  # two runs differ by some calls of the database
        broken = [*_broken_by(outcome, fault), *self._broken_promises(scenario, outcome, fault)]
        return [*broken, f"{outcome.where}: ended with {outcome.exit_code}, {_last(outcome)}"] if broken else []

    def _broken_promises(self, scenario: Scenario, outcome: Outcome, fault: Fault) -> list[str]:
        """Check what a command that met a fault has left, and what the same command makes of it."""
        result = read_result(self.output)
        broken = _mixed(result.files, scenario)
        left = sorted(result.remains - scenario.before.remains)
        if len(left) > (fault is Fault.KILL or outcome.where.startswith("unlink")):
            broken.append(f"the command leaves {', '.join(left)}")
        told = result.waiting > 0 and "wait" in outcome.printed
        if outcome.exit_code == 0:
            broken += _differences(result, scenario, "though the command ended with 0", waiting=told)
            if not told:
                return broken
        again = self.commands.run(scenario.arguments)
        if again.exit_code != 0:
            return [*broken, f"the same command then ends with {again.exit_code}: {_last(again)}"]
        result = read_result(self.output)
        if outcome.exit_code == 0 and set(result.runs) == {"FINISHED"}:  # it was a training, and this is another
            result = replace(result, runs=scenario.after.runs)
        return [*broken, *_differences(result, scenario, "after the same command")]

    def _arguments(self, output: Path) -> dict[str, list[str]]:
        """Return the commands by name, with this output folder."""
        folders = ["--data-dir", str(self.data), "--output-dir", str(output)]
        train = [*self._flags, *folders, "--adapter", "lora", "--adapter-name", TICKER]
        return {
            "train": ["train", *train],
            "promote": ["promote", TICKER, "--output-dir", str(output)],
            "backtest": ["backtest", *train, "--backtest-origins", "2", "--backtest-refit-every", "2"],
            "forecast": ["forecast", TICKER, *folders, "--device", "cpu", "--eval-samples", "3"],
            "rollback": ["rollback", TICKER, "--output-dir", str(output)],
        }

    def close(self) -> None:
        """End the process of the commands."""
        self.commands.close()

    def _measure(self, name: str, command: list[str], template: Path) -> Scenario:
        before = read_result(template)
        calls = self.commands.list_calls(command)
        after = read_result(self.output)
        self._restore(template)
        self._succeed(command)
        again = read_result(self.output)
        stable = frozenset(path for path, digest in after.files.items() if again.files.get(path) == digest)
        if missing := set(_RESULTS[name]) - stable:
            raise RuntimeError(f"two runs of {name} without a fault differ in {sorted(missing)}")
        return Scenario(name, command, template, before, after, calls, stable)

    def _restore(self, template: Path) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        shutil.copytree(template, self.output, symlinks=True)

    def _succeed(self, command: Sequence[str]) -> None:
        outcome = self.commands.run(command)
        if outcome.exit_code != 0:
            raise RuntimeError(f"{command} fails without a fault: {outcome.printed}")


def read_result(output: Path) -> Result:
    """Read what an output folder says."""
    files = {str(path.relative_to(output)): content_hash(path) for path in _published(output)}
    database = output / "mlflow.db"
    models = read_registered_models(f"sqlite:///{database}") or {}
    versions = {
        name: tuple((version.number, version.aliases) for version in model.versions) for name, model in models.items()
    }
    with closing(sqlite3.connect(database)) as connection:
        runs = dict(connection.execute("SELECT status, COUNT(*) FROM runs GROUP BY status").fetchall())
    waiting = len(list((output / "mlflow_waiting").glob("*/run.json")))
    remains = frozenset(path.name for pattern in _REMAINS for path in output.rglob(pattern))
    return Result(files, versions, runs, waiting, remains)


def _differences(result: Result, scenario: Scenario, when: str, *, waiting: bool = False) -> list[str]:
    """List what is not as after the command without a fault; runs and versions may wait for the store if that is told.

    A command that ends killed leaves a temporary file at most, and the same command adds none.
    """
    expected = scenario.after
    wrong = sorted(name for name in scenario.stable if result.files.get(name) != expected.files[name])
    found = [f"{name} is another file {when}" for name in wrong]
    if waiting:
        return found
    if result.versions != expected.versions:
        found.append(f"the registry holds {dict(result.versions)}, not {dict(expected.versions)}, {when}")
    if result.runs != expected.runs:
        found.append(f"MLflow's runs are {dict(result.runs)}, not {dict(expected.runs)}, {when}")
    if result.waiting:
        found.append(f"{result.waiting} runs wait for the store {when}")
    if len(left := sorted(result.remains - expected.remains)) > 1:
        found.append(f"{', '.join(left)} are left {when}")
    return found


def content_hash(path: Path) -> str:
    """Hash what a file says, without the times and the run that each training has of its own."""
    if path.suffix == ".parquet":
        content: str = pd.read_parquet(path).to_csv()
    elif path.suffix == ".csv":
        content = pd.read_csv(path).drop(columns=list(_OF_ONE_RUN), errors="ignore").to_csv()
    elif path.suffix == ".json":
        content = json.dumps(_lasting(json.loads(path.read_text())), sort_keys=True)
    else:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256(content.encode()).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(part) for key, part in value.items() if key not in _OF_ONE_RUN}
    return [_lasting(part) for part in value] if isinstance(value, list) else value


def _published(output: Path) -> list[Path]:
    """List the files that a reader opens: none that is hidden, and versions by their links."""
    found = []
    for folder, folders, names in os.walk(output, followlinks=True):
        inner = Path(folder) != output
        folders[:] = [name for name in folders if not name.startswith(".") and (inner or name not in _UNCHECKED)]
        found += [
            Path(folder, name)
            for name in names
            if not name.startswith(".") and (inner or not name.startswith(_UNCHECKED))
        ]
    return found


def _broken_by(outcome: Outcome, fault: Fault) -> list[str]:
    """Check exit code and message of a command that met a fault."""
    if fault is Fault.KILL:
        return [] if outcome.exit_code == -9 else [f"the command ends with {outcome.exit_code} after a kill"]
    if "Traceback" in outcome.printed:
        return [f"a traceback: {_last(outcome)}"]
    if outcome.exit_code not in (0, 2):
        return [f"exit code {outcome.exit_code}: {_last(outcome)}"]
    errors = [line for line in outcome.printed.splitlines() if line.startswith("error: ")]
    if outcome.exit_code == 2 and not 1 <= len(errors) <= 2:  # of the ticker, and that no ticker is left
        return [f"{len(errors)} lines of errors: {' / '.join(errors)}"]
    return []


def _mixed(files: Files, scenario: Scenario) -> list[str]:
    """List the files that are neither those before the command nor those after it."""
    before, after = scenario.before.files, scenario.after.files
    return [
        f"{name} is neither the file before nor the file after"
        for name in sorted(scenario.stable)
        if (
            name in files or (name in before and "/sampling/" not in name)
        )  # a new adapter has none until it is measured
        and files.get(name) not in (before.get(name), after[name])
    ]


def _last(outcome: Outcome) -> str:
    return outcome.printed.strip().splitlines()[-1] if outcome.printed.strip() else "nothing"
