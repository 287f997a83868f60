"""A training that is killed and resumed keeps its MLflow run and its version."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ended_trainings import RECIPE, RESULT, ROWS
from mlflow import MlflowClient
from mlflow.entities import Run

from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.run_record import (
    FORMER_RUN,
    PROCESS,
    TRACKING_ID,
    is_dead,
    process_name,
    read_record,
    write_record,
)
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.training_runs import TrainingRuns
from kronos_pipeline.training.plan import TrainingJob
from kronos_pipeline.training.trainer_state import HISTORY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from kronos_pipeline.config import Recipe
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.training_runs import TrainingRuns
from kronos_pipeline.training.plan import TrainingJob
store, output, state = sys.argv[1:]
runs = TrainingRuns(Tracker(store, Path(output)), Recipe(model_name="kronos-nano"))
job = runs.start(TrainingJob("AAPL", [], state=Path(state)))
job.listener.on_log(1, {"train_loss": 2.9, "epoch": 1})
job.listener.on_log(2, {"train_loss": 2.8, "epoch": 1})
job.listener.send()
job.listener.on_log(3, {"train_loss": 2.7, "epoch": 1})  # in the buffer, and lost
os.kill(os.getpid(), signal.SIGKILL)
"""


abandoned: list[TrainingRuns] = []
"""Runs that nothing ends during a test; Python ends them when it frees them."""


@pytest.fixture(autouse=True)
def free_abandoned() -> Iterator[None]:
    yield
    abandoned.clear()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def state(output: Path) -> Path:
    return output / "state" / "key"


def runs_of(store: str) -> list[Run]:
    client = MlflowClient(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments))


def train(store: str, output: Path, state: Path) -> str:
    """Train, resumed at step 2, and return the run's id."""
    with TrainingRuns(Tracker(store, output), RECIPE) as runs:
        job = runs.start(TrainingJob("AAPL", [], state=state))
        assert job.listener is not None
        for row in ROWS[1:]:
            job.listener.on_log(int(row[0]), dict(zip(HISTORY[1:], row[1:], strict=True)))
        run, _ = runs.end(job, RESULT)
    return run.run_id


def start_and_abandon(store: str, output: Path, state: Path, process: str) -> str:
    """Start a training in a process of that name, which is gone before the training ends; return the run's id."""
    abandoned.append(TrainingRuns(Tracker(store, output), RECIPE))
    job = abandoned[-1].start(TrainingJob("AAPL", [], state=state))
    record = read_record(state)
    assert record is not None
    assert record.run_id is not None
    assert record.run_id == job.mlflow_run
    write_record(state, replace(record, process=process))
    MlflowClient(store).set_tag(record.run_id, PROCESS, process)
    return record.run_id


@pytest.fixture
def dead() -> str:
    """Return the name of a process of this host that has ended: this one's number, with another start."""
    host, number, _ = process_name().split(":")
    return f"{host}:{number}:1"


def test_a_killed_training_goes_on_with_its_run_and_its_losses_have_no_gap_and_no_step_twice(
    clean_mlflow_store: str, output: Path, state: Path
) -> None:
    arguments = [sys.executable, "-c", KILLED, clean_mlflow_store, str(output), str(state)]
    assert subprocess.run(arguments, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    [run] = runs_of(clean_mlflow_store)
    assert run.info.status == "RUNNING"
    assert is_dead(run.data.tags[PROCESS])
    assert train(clean_mlflow_store, output, state) == run.info.run_id
    [run] = runs_of(clean_mlflow_store)
    assert run.info.status == "FINISHED"
    losses = MlflowClient(clean_mlflow_store).get_metric_history(run.info.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in sorted(losses, key=lambda metric: metric.step)] == [
        (int(row[0]), row[2]) for row in ROWS
    ]
    assert run.data.metrics["training/steps"] == 4


def test_a_training_that_ended_before_the_kill_of_its_command_keeps_its_finished_run(
    clean_mlflow_store: str, output: Path, state: Path
) -> None:
    first = train(clean_mlflow_store, output, state)
    before = MlflowClient(clean_mlflow_store).get_run(first).info.end_time
    assert train(clean_mlflow_store, output, state) == first
    [run] = runs_of(clean_mlflow_store)
    assert (run.info.status, run.info.end_time) == ("FINISHED", before)


def test_a_kill_between_the_making_of_a_run_and_its_record_makes_no_second_run(
    clean_mlflow_store: str, output: Path, state: Path, dead: str
) -> None:
    run_id = start_and_abandon(clean_mlflow_store, output, state, dead)
    record = read_record(state)
    assert record is not None
    write_record(state, replace(record, run_id=None))
    assert train(clean_mlflow_store, output, state) == run_id
    assert len(runs_of(clean_mlflow_store)) == 1


def test_a_run_that_was_deleted_is_named_by_the_run_in_its_place(
    clean_mlflow_store: str, output: Path, state: Path, dead: str
) -> None:
    former = start_and_abandon(clean_mlflow_store, output, state, dead)
    MlflowClient(clean_mlflow_store).delete_run(former)
    train(clean_mlflow_store, output, state)
    [run] = runs_of(clean_mlflow_store)
    assert (run.data.tags[FORMER_RUN], run.info.status) == (former, "FINISHED")


def test_a_run_in_another_store_is_named_by_the_run_in_its_place(
    clean_mlflow_store: str, empty_mlflow_store: Path, output: Path, state: Path, dead: str, tmp_path: Path
) -> None:
    former = start_and_abandon(clean_mlflow_store, output, state, dead)
    other = f"sqlite:///{shutil.copy(empty_mlflow_store, tmp_path / 'other.db')}"
    train(other, output, state)
    [run] = runs_of(other)
    assert run.data.tags[FORMER_RUN] == former


def test_a_training_of_another_process_keeps_its_run_for_itself(
    clean_mlflow_store: str, output: Path, state: Path
) -> None:
    host = process_name().split(":")[0]
    fields = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
    other = start_and_abandon(clean_mlflow_store, output, state, f"{host}:1:{fields[19]}")
    assert train(clean_mlflow_store, output, state) != other
    record = read_record(state)
    assert record is not None
    assert record.run_id == other


def test_the_run_of_a_killed_process_that_no_one_resumes_is_marked_by_the_next_command(
    clean_mlflow_store: str, output: Path, tmp_path: Path, dead: str
) -> None:
    killed = start_and_abandon(clean_mlflow_store, output, tmp_path / "state", dead)
    elsewhere = start_and_abandon(clean_mlflow_store, output, tmp_path / "elsewhere", "another-host:1:1")
    with Tracker(clean_mlflow_store, output).training_run("next", RECIPE) as run:
        pass
    status = {run.info.run_id: run.info.status for run in runs_of(clean_mlflow_store)}
    assert status == {killed: "KILLED", elsewhere: "RUNNING", run.run_id: "FINISHED"}


def test_a_damaged_record_starts_a_new_run(clean_mlflow_store: str, output: Path, state: Path) -> None:
    state.mkdir(parents=True)
    (state / "mlflow_run.json").write_text('{"run_id": 5')
    train(clean_mlflow_store, output, state)
    [run] = runs_of(clean_mlflow_store)
    assert TRACKING_ID in run.data.tags


def test_weights_that_are_registered_keep_their_version_also_for_another_run(
    tracker: Tracker, registry: Registry, adapter: Path, name: str, run_id: str
) -> None:
    first = registry.register_trained(adapter, name, run_id)
    with tracker.training_run("again", RECIPE) as other:
        pass
    assert registry.register_trained(adapter, name, other.run_id) == first
    assert len(registry.versions(name)) == 1


def test_a_version_whose_files_are_gone_is_registered_anew(
    tracker: Tracker, registry: Registry, adapter: Path, name: str, run_id: str
) -> None:
    first = registry.register_trained(adapter, name, run_id)
    client = MlflowClient(tracker.uri)
    shutil.rmtree(client.get_model_version_download_uri(name, str(first)).removeprefix("file://"))
    with tracker.training_run("again", RECIPE) as other:
        pass
    assert registry.register_trained(adapter, name, other.run_id) == first + 1


def test_a_refit_that_was_registered_before_a_kill_keeps_its_version(
    registry: Registry, register: Callable[[], int], adapter: Path, name: str, run_id: str
) -> None:
    measured = register()
    numbers = [registry.register_refit(adapter, name, run_id, refit_of=measured) for _ in range(2)]
    assert numbers == [measured + 1] * 2
