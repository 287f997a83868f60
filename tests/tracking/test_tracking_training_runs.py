"""Joint training of adapters: each has its own MLflow run, which ends with its training."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from small_trainings import simulated_windows

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import DataError, ModelError, Problem
from kronos_pipeline.tracking import run_page
from kronos_pipeline.tracking.run_page import process_tags, run_name
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.training_runs import TrainingRuns
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


def test_each_run_ends_as_its_training_does_while_the_others_go_on(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2026, 11, 28, 20, 15)
    monkeypatch.setattr(run_page, "datetime", type("Clock", (datetime,), {"now": staticmethod(lambda: now)}))
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
    assert (record.info.run_name, record.data.tags["ticker"]) == (run_name("adapter", "GOOD", now), "GOOD")
    assert (record.data.metrics["train_loss"], record.data.metrics["training/steps"]) == (2.0, 7.0)


def test_a_run_says_its_kind_ticker_night_bars_and_dataset(tracker: Tracker) -> None:
    [windows] = simulated_windows(RECIPE.model_copy(update={"lookback": 16, "horizon": 5}), ["META"])
    first, last = (f"{windows.bars.frame['timestamps'].iloc[place]:%Y-%m-%d}" for place in (0, -1))
    with TrainingRuns(tracker, RECIPE) as runs:
        job = runs.start(TrainingJob("META", [windows]))
        runs.end(job, RESULT)
    assert job.mlflow_run is not None
    record = MlflowClient(tracker.uri).get_run(job.mlflow_run)
    assert record.info.run_name.startswith("adapter META 20")
    assert (record.data.tags["kind"], record.data.tags["ticker"]) == ("adapter", "META")
    assert record.data.tags["bars"].startswith(f"{first} to {last}, holdout from ")
    assert f"Bars: {first} to {last}" in record.data.tags["mlflow.note.content"]
    assert record.inputs is not None
    [used] = record.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("META bars", windows.bars.content_hash[:12])
    assert json.loads(str(used.dataset.profile))["bars"] == len(windows.bars)


@pytest.mark.parametrize(
    ("hour", "night"), [(20, "2026-11-28"), (13, "2026-11-28"), (3, "2026-11-27"), (11, "2026-11-27")]
)
def test_the_runs_of_a_night_have_one_tag_from_noon_to_noon(hour: int, night: str) -> None:
    assert process_tags(datetime(2026, 11, 28, hour))["night"] == night


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        (
            ["/x/bin/python", "-m", "kronos_pipeline.run_training", "--data-dir", "my data"],
            "python -m kronos_pipeline.run_training --data-dir 'my data'",
        ),
        (["/x/bin/python", "-u", "-m", "kronos_pipeline.cli", "backtest"], "python -m kronos_pipeline.cli backtest"),
        (["/x/bin/python", "/x/bin/kronos", "backtest", "--rivals", "lightgbm"], "kronos backtest --rivals lightgbm"),
        (["/x/bin/python", "-m", "pytest"], None),
        (["/x/bin/python"], None),
    ],
)
def test_the_command_is_the_one_that_was_typed(
    typed: list[str], command: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", typed)
    assert process_tags().get("command") == command


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
