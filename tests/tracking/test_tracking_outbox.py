"""A tracking server that goes away: trainings and evaluations go on, and their runs are delivered when it is back."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pandas as pd
import pytest
from ended_trainings import RECIPE, RESULT, ROWS
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_servers import MlflowServer

from kronos_pipeline.errors import KronosError
from kronos_pipeline.tracking import tracked_run
from kronos_pipeline.tracking.outbox import WAITING
from kronos_pipeline.tracking.run_record import FORMER_RUN
from kronos_pipeline.tracking.runs import Leaderboard, Tracker
from kronos_pipeline.tracking.store import TrackingError
from kronos_pipeline.tracking.training_runs import TrainingRuns
from kronos_pipeline.training.plan import TrainingJob

pytestmark = pytest.mark.slow


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


def runs_named(uri: str, ticker: str) -> list[Run]:
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run for run in client.search_runs(experiments) if f" {ticker} " in f" {run.info.run_name} "]


def losses(uri: str, run: Run) -> list[tuple[int, float]]:
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "train_loss")
    return sorted((metric.step, metric.value) for metric in history)


def train_as_the_server_goes_away(working: MlflowServer, output: Path, ticker: str, adapter: Path) -> Tracker:
    """Train and evaluate a ticker with a server that ends as the training ends; return the tracker."""
    tracker = Tracker(working.uri, output)
    with TrainingRuns(tracker, RECIPE) as runs:
        job = runs.start(TrainingJob(ticker, [], state=output / "state" / ticker))
        assert job.listener is not None
        job.listener.on_log(1, {"train_loss": ROWS[0][2]})
        working.end()
        run, _ = runs.end(job, RESULT)
    tracker.register_trained(adapter, f"kronos-{ticker}", run.run_id)
    plot = output / "plots" / f"{ticker}.png"
    plot.parent.mkdir(exist_ok=True)
    plot.write_bytes(b"plot")
    tracker.log_evaluation(run.run_id, {"holdout/mae": 0.5}, [plot], pd.DataFrame({"symbol": [ticker], "mae": [0.5]}))
    return tracker


def test_a_run_whose_server_goes_away_as_its_training_ends_is_delivered_whole_by_the_next_command(
    working: MlflowServer, output: Path, adapter: Path
) -> None:
    tracker = train_as_the_server_goes_away(working, output, "AAPL", adapter)
    assert "1 run waits for the MLflow store" in str(tracker.outbox.sentence())
    working.start()
    following = Tracker(working.uri, output)
    assert "1 run that waited delivered" in following.deliver()[0]
    assert following.outbox.sentence() is None
    [run] = runs_named(working.uri, "AAPL")
    assert run.info.status == "FINISHED"
    assert losses(working.uri, run) == [(int(row[0]), row[2]) for row in ROWS]
    assert (run.data.metrics["holdout/mae"], run.data.metrics["training/steps"]) == (0.5, 4.0)
    client = MlflowClient(working.uri)
    folders = ("training", "plots", "evaluation")
    files = {file.path for folder in folders for file in client.list_artifacts(run.info.run_id, folder)}
    assert {"training/history.csv", "training/losses.png", "plots/AAPL.png", "evaluation/AAPL.csv"} <= files
    [version] = client.search_model_versions("name = 'kronos-AAPL'")
    assert (version.run_id, version.tags["measured"]) == (run.info.run_id, "no")


def test_a_training_that_starts_while_the_server_is_away_gets_its_run_later(
    working: MlflowServer, output: Path
) -> None:
    with Tracker(working.uri, output).training_run("first", RECIPE):
        pass
    working.end()
    tracker = Tracker(working.uri, output)  # a later command: the folder knows the server
    with TrainingRuns(tracker, RECIPE) as runs:
        job = runs.start(TrainingJob("META", [], state=output / "state" / "META"))
        assert str(job.mlflow_run).startswith(WAITING)
        runs.end(job, RESULT)
    working.start()
    later = Tracker(working.uri, output)
    later.log_evaluation(str(job.mlflow_run), {"holdout/mae": 0.25})  # the id in the adapter's manifest
    [run] = runs_named(working.uri, "META")
    assert (run.info.status, run.data.metrics["holdout/mae"]) == ("FINISHED", 0.25)
    assert len(losses(working.uri, run)) == len(ROWS)
    assert run.data.params["model_name"] == "kronos-nano"


def test_a_delivery_that_is_killed_is_repeated_without_a_second_run_or_loss(
    working: MlflowServer, output: Path, adapter: Path
) -> None:
    train_as_the_server_goes_away(working, output, "MSFT", adapter)
    waiting = output / "mlflow_waiting"
    shutil.copytree(waiting, output / "kept")
    working.start()
    Tracker(working.uri, output).deliver()
    shutil.rmtree(waiting)
    shutil.copytree(output / "kept", waiting)  # as if the process had died before it removed the run
    Tracker(working.uri, output).deliver()
    [run] = runs_named(working.uri, "MSFT")
    assert losses(working.uri, run) == [(int(row[0]), row[2]) for row in ROWS]
    assert len(MlflowClient(working.uri).search_model_versions("name = 'kronos-MSFT'")) == 1


def test_a_model_that_was_damaged_while_it_waited_is_named_and_its_run_is_delivered(
    working: MlflowServer, output: Path, adapter: Path
) -> None:
    own = shutil.copytree(adapter, output.parent / "adapter")  # the model that waits may be a hard link to its files
    train_as_the_server_goes_away(working, output, "INTC", own)
    [weights] = (output / "mlflow_waiting").rglob("adapter_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    working.start()
    tracker = Tracker(working.uri, output)
    [delivered, damaged] = tracker.deliver()
    assert "kronos-INTC has no version of it" in damaged
    assert "adapter_model.safetensors" in damaged
    assert "delivered" in delivered
    [run] = runs_named(working.uri, "INTC")
    assert (run.info.status, MlflowClient(working.uri).search_model_versions("name = 'kronos-INTC'")) == (
        "FINISHED",
        [],
    )
    assert tracker.outbox.sentence() is None


def test_a_run_that_was_deleted_while_its_end_waited_is_made_anew_and_names_it(
    working: MlflowServer, output: Path, adapter: Path
) -> None:
    train_as_the_server_goes_away(working, output, "NVDA", adapter)
    working.start()
    [run] = runs_named(working.uri, "NVDA")
    MlflowClient(working.uri).delete_run(run.info.run_id)
    tracker = Tracker(working.uri, output)
    tracker.deliver()
    assert tracker.outbox.sentence() is None
    client = MlflowClient(working.uri)
    found = client.search_runs([run.info.experiment_id], f"tags.{FORMER_RUN} = '{run.info.run_id}'")
    assert [new.info.status for new in found] == ["FINISHED"]


def test_a_leaderboard_waits_too(working: MlflowServer, output: Path) -> None:
    with Tracker(working.uri, output).training_run("first", RECIPE):
        pass
    working.end()
    board = Leaderboard("a key", "of 3 tickers", {"mae": 0.5}, pd.DataFrame({"symbol": ["AAPL"], "mae": [0.5]}))
    Tracker(working.uri, output).log_leaderboard(board, RECIPE)
    working.start()
    again = Tracker(working.uri, output)
    again.deliver()
    assert again.log_leaderboard(board, RECIPE).run_id == runs_named(working.uri, "leaderboard")[0].info.run_id
    assert runs_named(working.uri, "leaderboard")[0].data.metrics == {"mae": 0.5}


def test_a_server_that_was_never_reached_is_an_error_at_once_as_its_address_may_be_wrong(
    working: MlflowServer, output: Path
) -> None:
    working.end()
    tracker, job = Tracker(working.uri, output), TrainingJob("AAPL", [])
    message = f"The MLflow store {working.uri} cannot be used: .* mend MLFLOW_TRACKING_URI"
    with TrainingRuns(tracker, RECIPE) as runs, pytest.raises(TrackingError, match=message):
        runs.start(job)
    assert not (output / "mlflow_waiting").exists()


def test_a_database_that_failed_once_is_asked_again_by_the_same_command(
    own_mlflow_store: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    tracker = Tracker(own_mlflow_store, output)
    with monkeypatch.context() as patch, tracker.training_run("a run of a database", RECIPE):
        patch.setattr(tracked_run, "send_parts", failing)
    assert tracker.outbox.runs()
    tracker.deliver()
    assert not tracker.outbox.runs()
    assert [run.info.status for run in runs_named(own_mlflow_store, "database")] == ["FINISHED"]


def test_a_damaged_run_that_waits_is_named_and_stops_no_other(
    working: MlflowServer, output: Path, adapter: Path
) -> None:
    train_as_the_server_goes_away(working, output, "TSLA", adapter)
    damaged = output / "mlflow_waiting" / "waiting-x" / "run.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    working.start()
    notes = Tracker(working.uri, output).deliver()
    assert any("waiting-x cannot be delivered" in note for note in notes)
    assert any("1 run that waited delivered" in note for note in notes)


def test_a_disk_without_room_for_what_waits_is_told(
    working: MlflowServer, output: Path, monkeypatch: pytest.MonkeyPatch, adapter: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(KronosError, match="No space left on device"):
        train_as_the_server_goes_away(working, output, "FULL", adapter)
