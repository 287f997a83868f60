"""One machine without a person: runs that were dropped or killed, time-outs, and the instance's settings."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from code_locations import Location
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import create_execution_plan, execute_run
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import should_retry
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from mlflow import MlflowClient

from kronos_pipeline.orchestration.automation.killed_runs import make_killed_runs_sensor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """Return an instance with the project's own settings."""
    shutil.copy(ROOT / "kronos_pipeline" / "orchestration" / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def code_server_that_is_away() -> tuple[GrpcServerTarget, RemoteRepositoryOrigin]:
    """Return a code server's address, at which nothing answers, and the origin of its repository."""
    server = GrpcServerTarget(host="127.0.0.1", port=closed_port(), socket=None, location_name="kronos")
    location = GrpcServerCodeLocationOrigin(host=server.host, port=server.port, location_name="kronos")
    return server, RemoteRepositoryOrigin(location, "__repository__")


def run_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def test_a_run_whose_code_server_does_not_answer_waits_in_the_queue(
    instance: dg.DagsterInstance, location: Location
) -> None:
    location.write("AAPL")
    server, origin = code_server_that_is_away()
    run = instance.create_run_for_job(
        location.definitions.resolve_job_def("ingest"), remote_job_origin=origin.get_job_origin("ingest")
    )
    instance.report_dagster_event(dg.DagsterEvent.job_enqueue(run), run.run_id)
    with create_test_daemon_workspace_context(server, instance) as workspace:
        list(QueuedRunCoordinatorDaemon(interval_seconds=5).run_iteration(workspace))
    assert run_of(instance, run.run_id).status == dg.DagsterRunStatus.QUEUED


def test_a_dropped_or_killed_run_starts_once_more_and_a_failed_step_does_not(
    instance: dg.DagsterInstance, location: Location
) -> None:
    location.write("AAPL")
    job = location.definitions.resolve_job_def("ingest")

    first = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    instance.report_run_failed(first)
    assert should_retry(run_of(instance, first.run_id), instance)
    again = instance.create_run_for_job(
        job,
        parent_run_id=first.run_id,
        root_run_id=first.run_id,
        tags={"dagster/parent_run_id": first.run_id, "dagster/root_run_id": first.run_id},
    )
    instance.report_run_failed(again)
    assert not should_retry(run_of(instance, again.run_id), instance)

    location.write_bad("AAPL")
    bad = job.execute_in_process(instance=instance, partition_key="AAPL", raise_on_error=False)
    assert run_of(instance, bad.run_id).status == dg.DagsterRunStatus.FAILURE
    assert not should_retry(run_of(instance, bad.run_id), instance)


def test_a_retry_that_failed_as_the_code_server_was_away_is_asked_for_once_more(
    instance: dg.DagsterInstance, location: Location
) -> None:
    location.write("AAPL")
    server, origin = code_server_that_is_away()
    run = instance.create_run_for_job(
        location.definitions.resolve_job_def("ingest"),
        status=dg.DagsterRunStatus.STARTED,
        remote_job_origin=origin.get_job_origin("ingest"),
    )
    daemon = EventLogConsumerDaemon()
    sensor, messages = make_killed_runs_sensor(), []
    with create_test_daemon_workspace_context(server, instance) as workspace:
        list(daemon.run_iteration(workspace))  # it begins with the events after this
        instance.report_run_failed(run)
        list(daemon.run_iteration(workspace))
        assert not should_retry(run_of(instance, run.run_id), instance), "Dagster keeps retries now"
        for _ in range(2):
            messages.append(sensor.evaluate_tick(dg.build_sensor_context(instance=instance)).skip_message)
        assert should_retry(run_of(instance, run.run_id), instance)
        list(daemon.run_iteration(workspace))
    tried = [entry for entry in instance.all_logs(run.run_id) if "Failed to retry run" in str(entry.dagster_event)]
    assert len(tried) == 2
    assert messages == [
        f"No run was killed. Asked for the retry of {run.run_id} once more.",
        "No run was killed.",
    ]


def test_a_run_that_died_before_it_took_its_lock_is_marked_as_failed_at_the_second_tick(
    instance: dg.DagsterInstance, location: Location
) -> None:
    location.write("AAPL")
    job = location.definitions.resolve_job_def("ingest")
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    sensor, cursor, messages = make_killed_runs_sensor(), None, []
    for _ in range(2):
        result = sensor.evaluate_tick(dg.build_sensor_context(instance=instance, cursor=cursor))
        cursor = result.cursor
        messages.append(result.skip_message)
    assert messages == ["No run was killed.", f"Marked as failed: {run.run_id}."]
    assert should_retry(run_of(instance, run.run_id), instance)


def test_the_lock_of_a_killed_run_that_dagster_has_ended_is_removed(
    instance: dg.DagsterInstance, location: Location
) -> None:
    location.write("AAPL")
    run = instance.create_run_for_job(location.definitions.resolve_job_def("ingest"))
    lock = Path(instance.storage_directory()).parent / "run_locks" / f"{run.run_id}.lock"
    lock.parent.mkdir()
    lock.touch()
    make_killed_runs_sensor().evaluate_tick(dg.build_sensor_context(instance=instance))
    assert lock.exists(), "the run may be about to take it"
    instance.report_run_failed(run)
    make_killed_runs_sensor().evaluate_tick(dg.build_sensor_context(instance=instance))
    assert not lock.exists()


def test_a_retried_run_leaves_out_the_tickers_that_failed_in_the_steps_that_it_skips(
    instance: dg.DagsterInstance, location: Location
) -> None:
    location.write("AAPL", "MSFT")
    location.instance = instance
    job = location.definitions.resolve_job_def("ingest")
    assert location.run("ingest", "AAPL", "MSFT").success
    location.write_bad("MSFT")
    killed = location.run("ingest", "AAPL", "MSFT")
    run = instance.create_run_for_job(
        job,
        parent_run_id=killed.run_id,
        root_run_id=killed.run_id,
        tags=dict(run_of(instance, killed.run_id).tags),
        execution_plan=create_execution_plan(job, step_keys_to_execute=["windows", "windows_complete"]),
    )
    assert execute_run(InMemoryJob(job), run, instance).success
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    assert [record.partition_key for record in records] == ["AAPL"]


def mlflow_runs() -> int:
    """Count the runs of trainings."""
    client = MlflowClient()
    names = {experiment.experiment_id: experiment.name for experiment in client.search_experiments()}
    runs = client.search_runs(list(names), max_results=1000)
    return sum("leaderboard" not in names[run.info.experiment_id] for run in runs)


def test_two_requests_at_once_train_a_ticker_once_and_a_later_request_trains_it_again(location: Location) -> None:
    """The second run waits in the queue, or for the artifact's lock, while the first trains."""
    location.write("AAPL")
    job = location.definitions.resolve_job_def("retrain_adapter")
    second = location.instance.create_run_for_job(job, tags={"dagster/partition": "AAPL"})
    adapter = location.layout.adapter("AAPL")

    before = mlflow_runs()
    assert location.run("retrain_adapter", "AAPL").success
    by_the_first = adapter.resolve()
    tracked = location.metadata("adapter", "AAPL")["MLflow run"]
    assert execute_run(InMemoryJob(job), second, location.instance).success
    assert adapter.resolve() == by_the_first
    said = [entry.user_message for entry in location.instance.all_logs(second.run_id)]
    assert "adapters/AAPL: another run trained it since it was asked for, kept" in said
    assert location.metadata("adapter", "AAPL")["selection loss (nats)"] > 0
    assert location.metadata("adapter", "AAPL")["MLflow run"] == tracked
    assert mlflow_runs() == before + 1, "no run is opened where nothing is trained"

    assert location.run("retrain_adapter", "AAPL").success
    assert adapter.resolve() != by_the_first
