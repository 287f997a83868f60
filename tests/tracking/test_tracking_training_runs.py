"""Joint training of adapters: each has its own MLflow run, which ends with its training."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import DataError, ModelError, Problem
from kronos_pipeline.tracking.runs import Tracker, TrainingRuns
from kronos_pipeline.training.plan import TrainingJob
from kronos_pipeline.training.publish import TrainingResult
from kronos_pipeline.training.trainer_state import HISTORY

pytestmark = pytest.mark.slow

RECIPE = Recipe(model_name="kronos-nano")
RESULT = TrainingResult(Path("none"), pd.DataFrame([[1, 1, 2.0, 3.0, 0.1, 5.0]], columns=list(HISTORY)), {"steps": 7})


@pytest.fixture
def tracker(made_mlflow_store: str, tmp_path: Path) -> Tracker:
    return Tracker(made_mlflow_store, tmp_path)


def status(tracker: Tracker, job: TrainingJob) -> str:
    assert job.mlflow_run is not None
    return str(MlflowClient(tracker.uri).get_run(job.mlflow_run).info.status)


def test_each_run_ends_as_its_training_does_while_the_others_go_on(tracker: Tracker) -> None:
    with TrainingRuns(tracker, RECIPE) as runs:
        good, bad, slow = (runs.start(TrainingJob(name, []), {"ticker": name}) for name in ("GOOD", "BAD", "SLOW"))
        assert good.listener is not None
        good.listener.on_log(1, {"train_loss": 2.0})
        run, result = runs.end(good, RESULT)
        with pytest.raises(ModelError, match="no number"):
            runs.end(bad, ModelError("no number"))
        assert result is RESULT
        assert run.run_id == good.mlflow_run
        assert [status(tracker, job) for job in (good, bad, slow)] == ["FINISHED", "FAILED", "RUNNING"]
        runs.end(slow, RESULT)
    record = MlflowClient(tracker.uri).get_run(run.run_id)
    assert (record.info.run_name, record.data.tags["ticker"]) == ("adapter GOOD", "GOOD")
    assert (record.data.metrics["train_loss"], record.data.metrics["training/steps"]) == (2.0, 7.0)


def test_a_training_that_never_began_has_no_run(tracker: Tracker) -> None:
    with TrainingRuns(tracker, RECIPE) as runs, pytest.raises(DataError, match="no window"):
        runs.end(TrainingJob("EMPTY", []), DataError(Problem("EMPTY.csv", "no window")))


@pytest.mark.parametrize(("error", "ended"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_error_of_all_marks_the_runs_that_are_open(tracker: Tracker, error: type[BaseException], ended: str) -> None:
    jobs: list[TrainingJob] = []

    def train() -> None:
        with TrainingRuns(tracker, RECIPE) as runs:
            jobs.extend(runs.start(TrainingJob(name, [])) for name in ("AAPL", "MSFT"))
            raise error

    with pytest.raises(error):
        train()
    assert [status(tracker, job) for job in jobs] == [ended, ended]
