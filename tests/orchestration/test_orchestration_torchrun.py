"""A checkpoint that several processes train, started from a run by torchrun."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import dagster as dg
import interrupted_ranks
import pytest
from code_locations import Location, failed_steps
from interrupted_ranks import DAGSTER, KILLED, PIDS, TOLD_AT
from mlflow import MlflowClient
from safetensors.torch import load_file
from small_trainings import small_recipe
from tiny_models import save_tiny_base

from kronos_pipeline.errors import DataError, KronosError, Problem, SettingsError
from kronos_pipeline.orchestration import failures, torchrun
from kronos_pipeline.orchestration.torchrun import count_processes, explain
from kronos_pipeline.orchestration.training_process import Ending
from kronos_pipeline.signals import Interrupted
from kronos_pipeline.tracking.store import TrackingError

CHECKPOINT = ("raw_bars", "windows", "checkpoint")
TICKERS = ("AAPL", "MSFT")
BATCH = 8
STATUS = dg.DagsterRunStatus


@pytest.fixture
def plain_location(tmp_path: Path) -> Location:
    """Return a location with a base model without dropout, which one and two processes train alike."""
    save_tiny_base(tmp_path / "base", dropout=False)
    location = Location(tmp_path, tmp_path / "base")
    location.write(*TICKERS)
    return location


def training(location: Location, processes: int) -> dg.ExecuteInProcessResult:
    """Train a checkpoint over all tickers, with the same windows in each step for any number of processes."""
    settings = {
        "epochs": 2,
        "evaluations_per_epoch": 7,
        "batch_size": BATCH // processes,
        "nproc_per_node": str(processes),
    }
    return location.select(CHECKPOINT, *TICKERS, settings=settings)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def _interruptible(tmp_path: Path, empty_mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of trainings be those of `interrupted_ranks`, with an MLflow store of their own."""
    store = shutil.copy(empty_mlflow_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    monkeypatch.setenv("PYTHONPATH", str(Path(interrupted_ranks.__file__).parent), os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torchrun, "MODULE", interrupted_ranks.__name__)
    monkeypatch.setattr(failures, "_RETRY_SECONDS", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("_interruptible")
def test_two_processes_end_at_terminate_and_the_next_run_ends_with_the_checkpoint_of_one_process(
    plain_location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, pids = plain_location, tmp_path / "pids"
    pids.mkdir()
    monkeypatch.setenv(DAGSTER, str(os.getpid()))
    monkeypatch.setenv(PIDS, str(pids))

    def terminate(*_: object) -> None:
        location.instance.report_run_canceling(location.instance.get_runs()[0])
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGUSR1, terminate)
    try:
        terminated = training(location, 2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not any(event.is_step_up_for_retry for event in terminated.all_events)
    (run,) = location.instance.get_runs()
    assert run.status == STATUS.CANCELED
    lines = [entry.user_message for entry in location.instance.all_logs(run.run_id)]
    assert any(f"at step {TOLD_AT + 1} of 14 is saved; the next run goes on from there" in line for line in lines)
    assert len(trained := [int(path.name) for path in pids.iterdir()]) == 2
    assert not any(map(is_alive, trained))

    whole = training(location, 2)
    assert whole.success, failed_steps(whole)
    metadata = location.metadata("checkpoint")
    assert (metadata["resumed from step"], metadata["processes"]) == (TOLD_AT + 1, 2)
    client = MlflowClient()
    (tracked,) = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert tracked.info.run_id == metadata["MLflow run"]
    assert tracked.info.status == "FINISHED"
    (version,) = client.search_model_versions("name = 'kronos-all'")
    assert version.run_id == tracked.info.run_id
    weights = [load_file(location.root / "base/predictor/model.safetensors")]
    weights.append(load_file(location.layout.last_checkpoint / "model.safetensors"))
    alone = training(location, 1)
    assert alone.success, failed_steps(alone)
    assert location.metadata("checkpoint").keys() == metadata.keys() - {"processes"}
    weights.append(load_file(location.layout.last_checkpoint / "model.safetensors"))
    untrained, two, one = weights
    moved = max(float((one[name] - untrained[name]).abs().max()) for name in one)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 5e-4 * moved


@pytest.fixture
def _single(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Pipes start a single process as torchrun would."""
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("_single", "_interruptible")
def test_a_process_that_is_killed_fails_the_step_by_name_after_two_more_attempts(
    plain_location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KILLED, "1")
    result = training(plain_location, 2)
    assert failed_steps(result) == {
        "checkpoint": "checkpoint failed: Killed, as the system does if memory runs out: process 0 of 2. "
        "The next attempt goes on from the saved state."
    }
    assert sum(event.is_step_up_for_retry for event in result.all_events) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("_single")
def test_an_error_in_a_process_is_the_description_of_the_failure(plain_location: Location) -> None:
    result = plain_location.select(CHECKPOINT, *TICKERS, settings={"nproc_per_node": "2", "precision": "fp16"})
    assert failed_steps(result) == {
        "checkpoint": "checkpoint failed:\n`precision: fp16` needs a GPU; use bf16 or fp32 on a CPU."
    }
    assert not any(event.is_step_up_for_retry for event in result.all_events)


@pytest.mark.parametrize(
    "error",
    [
        DataError([Problem("A.csv", "is low", line=3, column="Low", value="1", lines=(3, 4), count=2)]),
        TrackingError("the store is away"),
    ],
)
def test_an_error_of_a_process_keeps_its_class_and_its_problems(error: KronosError) -> None:
    ended = {0: Ending(), 1: Ending.of(error)}
    same = explain(ended, 2, "exit code 1")
    assert type(same) is type(error)
    assert str(same) == str(error)
    assert getattr(same, "problems", None) == getattr(error, "problems", None)


@pytest.mark.parametrize(
    ("endings", "sentence"),
    [
        (
            {0: Ending.of(RuntimeError("Connection closed by peer")), 1: Ending()},
            "Killed, as the system does if memory runs out: process 1 of 2.",
        ),
        ({0: Ending(), 1: Ending()}, "Killed, as the system does if memory runs out: process 0, 1 of 2."),
        (
            {0: Ending.of(Interrupted(signal.SIGTERM)), 1: Ending.of(ValueError("no"))},
            "Process 1 of 2 ended by ValueErr",
        ),
        ({}, "torchrun did not train: exit code 1. The captured stderr"),
    ],
)
def test_a_process_that_dies_is_named_and_the_step_may_be_tried_again(
    endings: dict[int, Ending], sentence: str
) -> None:
    failure = explain(endings, 2, "exit code 1")
    assert isinstance(failure, dg.Failure)
    assert failure.allow_retries
    assert str(failure.description).startswith(f"checkpoint failed: {sentence}")


def test_the_number_of_processes_is_checked_and_one_without_a_gpu(tiny_base: Path) -> None:
    recipe = small_recipe(tiny_base)
    assert [count_processes(setting, recipe) for setting in ("1", "4", "gpu")] == [1, 4, 1]
    for wrong in ("0", "-1", "65", "two", "²", ""):
        with pytest.raises(SettingsError, match="must be a number from 1 to 64, or gpu"):
            count_processes(wrong, recipe)
    with pytest.raises(SettingsError, match="A refit trains in one process"):
        count_processes("2", recipe.model_copy(update={"refit_all": True}))
