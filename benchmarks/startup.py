"""Measure start-up: the whole time of short commands, and the stages of a small training.

    python benchmarks/startup.py
    python benchmarks/startup.py --beside ../before               # in turns with another checkout of this project
    python benchmarks/startup.py --quick                          # each command once, no training: a smoke test

Each command is a process of its own. Python writes its compiled files to a new folder, so the table separates the first
start, which compiles, from later starts. On an idle machine processor time and wall-clock time agree; on a busy machine
trust the processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speed.table import Goal, Report, Table, percent, seconds
from speed.timing import Spread

ROOT = Path(__file__).resolve().parent.parent
HELP, VALIDATE = "kronos --help", "dagster definitions validate, {:,} tickers"
GOALS = {HELP: 0.5, VALIDATE.format(1000): 5.0}
"""Maximum of seconds."""
TORCH = "python -c 'import torch'"
LOADED = "run_training until the base model is loaded"
FORECAST = "kronos forecast of one ticker"
TRAINING = "a training by stage"
UNTIL_LOADED = """
import builtins, os, sys
show = print

def show_until_loaded(*words, **settings):
    show(*words, **settings)
    if str(words[0]).startswith("base model"):
        os._exit(0)

builtins.print = show_until_loaded
from kronos_pipeline.run_training import main
main(["--data-dir", sys.argv[1], "--output-dir", sys.argv[2], "--model-name", "kronos-nano", "--device", "cpu"])
"""
STAGES = """
import json, sys, time
from pathlib import Path

told = []

def stage(name, work):
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    told.append((name, time.perf_counter() - wall, time.process_time() - processor))
    return result

def load(*modules):
    for module in modules:
        __import__(module)

stage("import settings and flags", lambda: load("kronos_pipeline.run_training"))
try:
    from kronos_pipeline.cli import command
except ImportError:  # an older checkout
    from kronos_pipeline import command_line as command
getattr(command, "tune_garbage_collection", lambda: None)()  # as run_command does; an older checkout lacks it
stage("import pandas, pyarrow, pandera", lambda: load("kronos_pipeline.data.windows", "kronos_pipeline.data.doctor"))
from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.pipeline.ingest import read_tickers

data, output = Path(sys.argv[1]), Path(sys.argv[2])
config = KronosTrainingConfig(
    data_dir=str(data), output_dir=str(output), model_name="kronos-nano", device="cpu", epochs=1, stride=8
)
tickers = stage("read one ticker", lambda: read_tickers(config, ArtifactLayout(output)))
stage("import torch", lambda: load("torch"))
stage("import accelerate, PEFT, transformers", lambda: load("accelerate", "peft"))
stage("import upstream's model, by sktime", lambda: load("kronos_pipeline.model.upstream"))
stage("import matplotlib, metrics, trainer", lambda: load("kronos_pipeline.training.trainer",
    "kronos_pipeline.evaluation.holdout", "kronos_pipeline.evaluation.reports.tables"))
stage("import MLflow", lambda: load("mlflow", "mlflow.store.tracking.sqlalchemy_store"))
from kronos_pipeline.tracking.store import find_store_uri, open_store
stage("make an MLflow store", lambda: open_store(find_store_uri(None, output)))
from kronos_pipeline.training.trainer import KronosTrainer
trainer = KronosTrainer(config.recipe, output)
stage("train four steps and publish", lambda: trainer.train_checkpoint(list(tickers.windows.values())))
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Timed:
    """Wall-clock seconds, processor seconds and printed output of one process."""

    wall: float
    processor: float
    output: str


def report(quick: bool, beside: Path | None = None) -> Report:
    """Measure commands and stages; if another checkout is given, in turns with its commands."""
    rounds, counts = (1, (2,)) if quick else (3, (12, 1000))
    checkouts = {"this": ROOT, **({} if beside is None else {"beside": beside.resolve()})}
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(Path(folder), counts, stages=not quick)
        runs_by_key: dict[tuple[str, str], list[Timed]] = {}
        for number in range(rounds + (not quick)):
            for name, command in commands.items():
                for checkout, root in checkouts.items():
                    output = Path(folder) / f"{checkout} {number}"
                    timed = _run(command, root, output, None if quick else Path(folder) / "compiled" / checkout)
                    runs_by_key.setdefault((checkout, name), []).append(timed)
    names = [name for name in commands if name != TRAINING]
    tables = [_of_commands(runs_by_key, names, checkout, first=not quick) for checkout in checkouts]
    if TRAINING in commands:
        tables += [_of_stages(runs_by_key[checkout, TRAINING][1:], checkout) for checkout in checkouts]
    return Report(tables, [_goal(runs_by_key["this", name], name) for name in names if name in GOALS])


def _commands(folder: Path, counts: Sequence[int], *, stages: bool) -> Mapping[str, list[str]]:
    """Return the arguments of each command to the interpreter.

    DATA and a folder first in a command set its data folder; the word OUT stands for a new output folder.
    """
    for count in counts:
        for number in range(count):
            path = folder / f"data {count}" / f"T{number:04}.csv"
            path.parent.mkdir(exist_ok=True)
            path.write_text("date,open,high,low,close\n")
    module = folder / "bare_location.py"
    module.write_text("import dagster as dg\ndefs = dg.Definitions()\n")
    apple = str(ROOT / "trainingdata" / "AAPL")
    validate = ["-m", "dagster", "definitions", "validate"]
    return {
        "python -c pass": ["-c", "pass"],
        HELP: ["-m", "kronos_pipeline.cli", "--help"],
        "run_training --help": ["-m", "kronos_pipeline.run_training", "--help"],
        "dagster definitions validate, no assets": [*validate, "-f", str(module)],
        **{
            VALIDATE.format(count): [
                "DATA",
                str(folder / f"data {count}"),
                *validate,
                "-m",
                "kronos_pipeline.definitions",
            ]
            for count in counts
        },
        **(_loading(apple) if stages else {}),
    }


def _loading(data: str) -> Mapping[str, list[str]]:
    """Return the commands that load PyTorch and a base model."""
    forecast = ["-m", "kronos_pipeline.cli", "forecast", "AAPL", "--data-dir", data, "--output-dir", "OUT"]
    return {
        TORCH: ["-c", "import torch"],
        LOADED: ["-c", UNTIL_LOADED, data, "OUT"],
        FORECAST: [*forecast, "--model-name", "kronos-nano", "--device", "cpu"],
        TRAINING: ["-c", STAGES, data, "OUT"],
    }


def _run(arguments: Sequence[str], root: Path, output: Path, compiled: Path | None) -> Timed:
    """Run a command in a checkout, with a new Dagster home and a new output folder."""
    shutil.rmtree(output, ignore_errors=True)
    (output / "home").mkdir(parents=True)
    shutil.copy(ROOT / "kronos_pipeline" / "orchestration" / "dagster.yaml", output / "home")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("KRONOS_", "MLFLOW_"))}
    environment |= {"PYTHONPATH": str(root), "DAGSTER_HOME": str(output / "home")}
    if compiled is not None:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(compiled)
    if arguments[0] == "DATA":
        environment["KRONOS_DATA_DIR"], arguments = arguments[1], arguments[2:]
    command = [sys.executable, *(str(output / "out") if word == "OUT" else word for word in arguments)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr}")
    return Timed(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, result.stdout)


def _of_commands(
    runs_by_key: Mapping[tuple[str, str], Sequence[Timed]], names: Sequence[str], checkout: str, *, first: bool
) -> Table:
    rows = []
    torch = [run.processor for run in runs_by_key.get((checkout, TORCH), [])[first:]]
    for name in names:
        runs = runs_by_key[checkout, name]
        warm = runs[first:]
        rows.append(
            [
                name,
                Spread.of([run.wall for run in warm]).text(seconds),
                Spread.of([run.processor for run in warm]).text(seconds),
                f"{Spread.of([run.processor for run in warm]).median / Spread.of(torch).median:.2f}" if torch else "",
                seconds(runs[0].processor) if first else "",
                seconds(GOALS[name]) if name in GOALS else "",
            ]
        )
    columns = ("command", "wall clock", "processor", "times import torch", "processor, first start of all", "goal")
    return Table(f"Commands from start to end{_which(checkout)}", columns, rows)


def _of_stages(runs: Sequence[Timed], checkout: str) -> Table:
    stages_of_runs = [json.loads(run.output.splitlines()[-1]) for run in runs]
    processor = [run.processor for run in runs]
    rows = []
    for stages in zip(*stages_of_runs, strict=True):
        name = stages[0][0]
        walls, processors = [wall for _, wall, _ in stages], [cpu_time for _, _, cpu_time in stages]
        rows.append(_stage(name, walls, processors, processor))
    ends = [run.wall - sum(wall for _, wall, _ in stages) for run, stages in zip(runs, stages_of_runs, strict=True)]
    rest = [
        run.processor - sum(cpu_time for _, _, cpu_time in stages)
        for run, stages in zip(runs, stages_of_runs, strict=True)
    ]
    rows.append(_stage("Python's own start and end", ends, rest, processor))
    rows.append(_stage("in all", [run.wall for run in runs], processor, processor))
    columns = ("stage", "wall clock", "processor", "share")
    return Table(f"A training of kronos-nano from the process's start, by stage{_which(checkout)}", columns, rows)


def _stage(name: str, walls: Sequence[float], processors: Sequence[float], total: Sequence[float]) -> list[str]:
    share = percent(Spread.of(processors).median / Spread.of(total).median)
    return [name, Spread.of(walls).text(seconds), Spread.of(processors).text(seconds), share]


def _which(checkout: str) -> str:
    return "" if checkout == "this" else ": the other checkout"


def _goal(runs: Sequence[Timed], name: str) -> Goal:
    median = Spread.of([run.wall for run in runs[1:] or runs]).median
    return Goal(name, seconds(GOALS[name]), seconds(median), median <= GOALS[name])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="each command once, few tickers, no training")
    parser.add_argument("--beside", type=Path, help="another checkout of this project")
    options = parser.parse_args()
    print(report(options.quick, options.beside).text())
