"""One MLflow run per training, in a real SQLite store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import matplotlib.image
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from kronos_pipeline.artifacts import read_json
from kronos_pipeline.config import KronosTrainingConfig, Recipe
from kronos_pipeline.tracking import tracked_run
from kronos_pipeline.tracking.run_record import PROCESS, process_name
from kronos_pipeline.tracking.runs import Leaderboard, Tracker
from kronos_pipeline.tracking.store import EXPERIMENT, LEADERBOARDS, TrackingError
from kronos_pipeline.tracking.tracked_run import TrackedRun

pytestmark = pytest.mark.slow

CONFIG = KronosTrainingConfig(model_name="kronos-nano", horizon=5, adapter="lora", learning_rate=3e-4)
HISTORY = pd.DataFrame(
    {
        "step": [10, 20],
        "epoch": [0, 1],
        "train_loss": [2.5, 2.25],
        "selection_loss": [2.75, 2.5],
        "learning_rate": [1e-4, 5e-5],
        "windows_per_second": [100.0, 120.0],
    }
)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """Share one store among the tests of this file, since creating it takes seconds; each test has its own runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Tracker(None, tmp_path_factory.mktemp("output"))


@pytest.fixture(scope="module")
def client(tracker: Tracker) -> MlflowClient:
    with tracker.training_run("first", CONFIG):
        pass
    return MlflowClient(tracker.uri)


def stored(client: MlflowClient, run_id: str) -> Run:
    return client.get_run(run_id)


def artifact(client: MlflowClient, run_id: str, path: str, folder: Path) -> Path:
    return Path(client.download_artifacts(run_id, path, str(folder)))


def test_a_training_is_a_finished_run_with_its_settings_and_tags(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.training_run("adapter AAPL", CONFIG, {"dagster.partition": "AAPL"}) as run:
        assert stored(client, run.run_id).info.status == "RUNNING"
    record = stored(client, run.run_id)
    assert (record.info.status, record.info.run_name) == ("FINISHED", "adapter AAPL")
    assert client.get_experiment(record.info.experiment_id).name == EXPERIMENT
    assert record.data.tags["dagster.partition"] == "AAPL"
    assert record.data.params.keys() == {*KronosTrainingConfig.model_fields, "used_lookback", "peak_learning_rate"}
    params = {key: record.data.params[key] for key in ("model_name", "horizon", "learning_rate", "freeze_backbone")}
    assert params == {"model_name": "kronos-nano", "horizon": "5", "learning_rate": "0.0003", "freeze_backbone": "True"}
    assert record.data.params["adapter_targets"] == "q_proj,k_proj,v_proj,out_proj,w1,w2,w3"
    assert record.data.params["adapter_name"] == "None"


def test_losses_are_kept_by_step_and_a_nan_is_no_measurement(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.training_run("losses", CONFIG) as run:
        run.on_log(10, {"train_loss": 2.5, "selection_loss": float("nan")})
        run.on_log(20, {"train_loss": 2.25, "selection_loss": 2.5})
    train = client.get_metric_history(run.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in train] == [(10, 2.5), (20, 2.25)]
    selection = client.get_metric_history(run.run_id, "selection_loss")
    assert [(metric.step, metric.value) for metric in selection] == [(20, 2.5)]


def test_more_metrics_than_one_request_takes_all_arrive(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.training_run("many", CONFIG) as run:
        for step in range(2500):
            run.on_log(step, {"train_loss": float(step)})
    history = client.get_metric_history(run.run_id, "train_loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(step, float(step)) for step in range(2500)]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("out of memory"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "KILLED")],
)
def test_a_training_that_does_not_end_well_says_so_and_keeps_its_losses(
    error: BaseException, status: str, tracker: Tracker, client: MlflowClient
) -> None:
    runs: list[TrackedRun] = []

    def train() -> None:
        with tracker.training_run("dies", CONFIG) as run:
            runs.append(run)
            run.on_log(3, {"train_loss": 2.0})
            raise error

    with pytest.raises(type(error)) as caught:
        train()
    assert caught.value is error
    record = stored(client, runs[0].run_id)
    assert (record.info.status, record.data.metrics) == (status, {"train_loss": 2.0})


@pytest.mark.pictures
def test_a_finished_training_leaves_summary_history_curve_and_manifest(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"seed": 0}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    summary = {
        "best_step": 20,
        "selection_loss": 2.5,
        "device": "cpu",
        "stopped_early": False,
        "resumed_from_step": None,
    }
    with tracker.training_run("adapter", CONFIG) as run:
        run.finish(summary, HISTORY, folder)
    record = stored(client, run.run_id)
    results = {key: value for key, value in record.data.metrics.items() if key.startswith("training/")}
    assert results == {"training/best_step": 20.0, "training/selection_loss": 2.5}
    assert record.data.metrics["train_loss"] == 2.25, "the losses of the history are there, also if none was sent"
    assert read_json(artifact(client, run.run_id, "training/summary.json", tmp_path)) == summary
    assert record.data.tags["training.device"] == "cpu"
    assert "training.resumed_from_step" not in record.data.tags
    history = pd.read_csv(artifact(client, run.run_id, "training/history.csv", tmp_path))
    pd.testing.assert_frame_equal(history, HISTORY)
    height, width, _ = matplotlib.image.imread(artifact(client, run.run_id, "training/losses.png", tmp_path)).shape
    assert min(height, width) > 200
    assert artifact(client, run.run_id, "manifest.json", tmp_path).read_text() == '{"seed": 0}'
    assert {file.path for file in client.list_artifacts(run.run_id)} == {"training", "manifest.json"}


def test_holdout_metrics_go_to_the_run_of_the_training(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    with tracker.training_run("adapter", CONFIG) as run:
        run.on_log(1, {"train_loss": 2.0})
    plots = [tmp_path / "plots/AAPL.png", tmp_path / "plots/AAPL/fan.png"]
    plots[1].parent.mkdir(parents=True)
    for plot in plots:
        plot.write_bytes(f"the plot {plot.name}".encode())
    table = pd.DataFrame(
        {"symbol": ["AAPL", "AAPL", "BRK.B"], "model": ["naive", "adapter", "naive"], "mae": [1.0, 0.5, 2.0]}
    )
    before = len(client.search_runs([stored(client, run.run_id).info.experiment_id]))
    tracker.log_evaluation(run.run_id, {"holdout/mae": 0.5, "holdout/mape": float("nan")}, plots, table)

    record = stored(client, run.run_id)
    assert record.data.metrics == {"train_loss": 2.0, "holdout/mae": 0.5}
    assert record.info.status == "FINISHED"
    assert len(client.search_runs([record.info.experiment_id])) == before
    assert artifact(client, run.run_id, "plots/AAPL.png", tmp_path).read_bytes() == b"the plot AAPL.png"
    assert artifact(client, run.run_id, "plots/AAPL/fan.png", tmp_path).read_bytes() == b"the plot fan.png"
    predictions = pd.read_csv(artifact(client, run.run_id, "evaluation/AAPL.csv", tmp_path))
    assert predictions.to_dict("list") == {"symbol": ["AAPL", "AAPL"], "model": ["naive", "adapter"], "mae": [1.0, 0.5]}
    assert len(client.list_artifacts(run.run_id, "evaluation")) == 2


def test_artifacts_lie_in_the_output_folder(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    with tracker.training_run("adapter", CONFIG) as run:
        tracker.log_evaluation(run.run_id, {}, [tmp_path / "x.png"])
    output = Path(tracker.uri.removeprefix("sqlite:///")).parent
    assert [file.read_bytes() for file in (output / "mlruns").rglob(f"{run.run_id}/**/x.png")] == [b"x"]


def test_metrics_for_a_run_that_is_not_there_are_an_error(tracker: Tracker) -> None:
    with pytest.raises(TrackingError, match="0123456789abcdef0123456789abcdef"):
        tracker.log_evaluation("0123456789abcdef0123456789abcdef", {"mae": 1.0})


def test_two_trainings_at_a_time_keep_apart(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.training_run("outer", CONFIG) as outer, tracker.training_run("inner", CONFIG) as inner:
        outer.on_log(1, {"train_loss": 1.0})
        inner.on_log(1, {"train_loss": 2.0})
    assert outer.run_id != inner.run_id
    values = [stored(client, run.run_id).data.metrics for run in (outer, inner)]
    assert values == [{"train_loss": 1.0}, {"train_loss": 2.0}]


def test_a_recipe_alone_is_recorded_too(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.training_run("recipe", Recipe(epochs=7)) as run:
        pass
    params = stored(client, run.run_id).data.params
    assert params["epochs"] == "7"
    assert "data_dir" not in params


def test_a_link_is_given_where_the_address_of_a_ui_is_known(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.training_run("without", CONFIG) as run:
        pass
    assert run.link is None
    assert tracker.link(run.run_id) is None
    output = Path(tracker.uri.removeprefix("sqlite:///")).parent
    with Tracker(tracker.uri, output, "http://mlflow.example:5000/").training_run("with", CONFIG) as linked:
        pass
    experiment = stored(client, linked.run_id).info.experiment_id
    assert (
        linked.link
        == f"http://mlflow.example:5000/#/experiments/{experiment}/runs/{linked.run_id}?workflowType=machine_learning"
    )


def test_mlflow_opens_the_experiments_as_model_training(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.training_run("any", CONFIG):
        pass
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    client.delete_experiment_tag(experiment.experiment_id, "mlflow.experimentKind")
    with Tracker(tracker.uri, Path(tracker.uri.removeprefix("sqlite:///")).parent).training_run("any", CONFIG):
        pass
    experiment = client.get_experiment(experiment.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development", "an earlier store gets the tag"


def test_a_leaderboard_of_unchanged_models_makes_no_new_run(tracker: Tracker, client: MlflowClient) -> None:
    table = pd.DataFrame({"symbol": ["AAPL"], "model": ["adapter"], "mae": [0.5]})
    board = Leaderboard("a key", "of 1 ticker", {"holdout/adapter/mae": 0.5}, table)
    first, second = (tracker.log_leaderboard(board, CONFIG) for _ in range(2))
    changed = tracker.log_leaderboard(replace(board, key="another key"), CONFIG)
    assert first.run_id == second.run_id != changed.run_id
    record = stored(client, first.run_id)
    assert client.get_experiment(record.info.experiment_id).name == LEADERBOARDS
    assert record.info.run_name.startswith("leaderboard of 1 ticker 20")
    assert (record.data.metrics, record.data.tags["kind"]) == ({"holdout/adapter/mae": 0.5}, "leaderboard")


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "RUNNING"])
def test_a_leaderboard_that_was_cut_off_is_completed_in_its_run(
    tracker: Tracker, client: MlflowClient, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Leaderboard(f"cut off {status}", "of 1 ticker", {"mae": 0.5}, pd.DataFrame({"symbol": ["AAPL"]}))
    with monkeypatch.context() as patch:
        patch.setattr(tracker, "log_evaluation", Mock(side_effect=OSError("the disk is full")))
        with pytest.raises(OSError, match="full"):
            tracker.log_leaderboard(board, CONFIG)
    [cut_off] = runs_of_key(client, board.key)
    client.update_run(cut_off.info.run_id, status=status)  # as the next command, or nobody, has marked it
    completed = tracker.log_leaderboard(board, CONFIG)
    [record] = runs_of_key(client, board.key)
    assert record.info.run_id == cut_off.info.run_id == completed.run_id
    assert (record.info.status, record.data.metrics) == ("FINISHED", {"mae": 0.5})


def test_a_leaderboard_that_another_process_logs_is_left_to_it(tracker: Tracker, client: MlflowClient) -> None:
    board = Leaderboard("of another process", "of 1 ticker", {"mae": 0.5}, pd.DataFrame({"symbol": ["AAPL"]}))
    first = tracker.log_leaderboard(board, CONFIG).run_id
    client.update_run(first, status="RUNNING")
    fields = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
    client.set_tag(first, PROCESS, f"{process_name().split(':')[0]}:1:{fields[19]}")
    assert tracker.log_leaderboard(board, CONFIG).run_id != first


def runs_of_key(client: MlflowClient, key: str) -> list[Run]:
    experiment = client.get_experiment_by_name(LEADERBOARDS)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"tags.leaderboard_key = '{key}'"))


class AwayAtFirst:
    """Client with a store that fails for some calls of `log_batch`, and then works again."""

    def __init__(self, client: MlflowClient, calls: int) -> None:
        self._client = client
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def log_batch(self, *arguments: Any, **settings: Any) -> None:
        self._calls -= 1
        if self._calls >= 0:
            raise MlflowException("the store is away")
        self._client.log_batch(*arguments, **settings)


@pytest.fixture
def send_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_run, "_SEND_SECONDS", 0.0)
    monkeypatch.setattr(tracked_run, "_AFTER_FAILURE_SECONDS", 0.0)


@pytest.mark.usefixtures("send_at_once")
def test_a_store_that_is_away_for_a_while_does_not_stop_a_training_nor_lose_a_loss(
    tracker: Tracker, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with tracker.training_run("patient", CONFIG) as run:
        unreachable = TrackedRun(AwayAtFirst(client, calls=2), tracker.uri, run.run_id, None)  # type: ignore[arg-type]
        for step in (1, 2, 3):
            unreachable.on_log(step, {"train_loss": float(step)})
    history = client.get_metric_history(run.run_id, "train_loss")
    assert sorted(metric.step for metric in history) == [1, 2, 3]
    assert sum("the store is away" in record.message for record in caplog.records) == 2


def test_the_end_of_a_training_insists_on_the_store(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.training_run("insists", CONFIG) as run:
        pass
    unreachable = TrackedRun(AwayAtFirst(client, calls=1), tracker.uri, run.run_id, None)  # type: ignore[arg-type]
    unreachable.on_log(1, {"train_loss": 1.0})
    with pytest.raises(TrackingError, match="the store is away"):
        unreachable.send()
    unreachable.send()
    assert stored(client, run.run_id).data.metrics == {"train_loss": 1.0}
