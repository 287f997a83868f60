"""A run that a person terminates ends at once, and the next run goes on from its state."""

from __future__ import annotations

import signal
from pathlib import Path

import dagster as dg
import pytest
from code_locations import Location, failed_steps
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from kronos_pipeline.orchestration.automation.killed_runs import GPU
from kronos_pipeline.orchestration.failures import as_failure
from kronos_pipeline.training.callback import Callback

pytestmark = pytest.mark.slow

STATUS = dg.DagsterRunStatus
ROOT = Path(__file__).parents[2]
LAUNCHES_NOTHING = "run_launcher: {module: dagster._core.test_utils, class: MockedRunLauncher}"


def terminate_at_step(patch: pytest.MonkeyPatch, instance: dg.DagsterInstance, step: int) -> None:
    """Do in a training what Terminate in the UI does: mark its run as canceling, and interrupt the process."""

    def on_step_end(_: Callback, done: int) -> None:
        if done == step:
            instance.report_run_canceling(instance.get_runs()[-1])  # the oldest
            signal.raise_signal(signal.SIGINT)

    patch.setattr(Callback, "on_step_end", on_step_end)


def test_a_terminated_training_saves_its_state_is_not_retried_and_goes_on_in_the_next_run(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.write("AAPL")
    with monkeypatch.context() as patch:
        terminate_at_step(patch, location.instance, 2)
        result = location.run("retrain_adapter", "AAPL", settings={"epochs": 2})
    kinds = {event.event_type for event in result.all_events}
    assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in kinds
    assert [event.event_type for event in result.all_events if event.is_job_event][
        -1
    ] == dg.DagsterEventType.RUN_CANCELED
    assert set(failed_steps(result)) == {"adapter"}
    assert "holdout_metrics" not in {event.step_key for event in result.all_events}
    (run,) = location.instance.get_runs()
    assert run.status == STATUS.CANCELED
    again = location.run("retrain_adapter", "AAPL", settings={"epochs": 2})
    assert again.success, failed_steps(again)
    assert location.metadata("adapter", "AAPL")["resumed from step"] == 2


def test_the_queue_starts_the_next_run_of_the_pool_when_a_terminated_run_has_ended(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (ROOT / "kronos_pipeline/orchestration/dagster.yaml").read_text()
    (tmp_path / "dagster.yaml").write_text(f"{settings}\n{LAUNCHES_NOTHING}")
    location.write("AAPL", "MSFT")
    job, server = (
        location.definitions.resolve_job_def("retrain_adapter"),
        GrpcServerTarget("127.0.0.1", 9, None, "none"),
    )
    origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("none"), "__repository__").get_job_origin(job.name)
    with (
        dg.DagsterInstance.from_config(str(tmp_path)) as instance,
        create_test_daemon_workspace_context(server, instance) as workspace,
    ):
        instance.event_log_storage.initialize_concurrency_limit_to_default(GPU)
        first, second = (
            instance.create_run_for_job(
                job, tags={"dagster/partition": ticker}, status=STATUS.QUEUED, remote_job_origin=origin
            )
            for ticker in ("AAPL", "MSFT")
        )

        def statuses() -> list[dg.DagsterRunStatus]:
            list(QueuedRunCoordinatorDaemon(interval_seconds=5).run_iteration(workspace))
            return [run.status for run in reversed(instance.get_runs())]

        def on_step_end(_: Callback, done: int) -> None:
            if done == 1:
                assert statuses() == [STATUS.STARTED, STATUS.QUEUED]
                instance.report_run_canceling(first)
                assert statuses() == [STATUS.CANCELING, STATUS.QUEUED]
                signal.raise_signal(signal.SIGINT)

        assert statuses() == [STATUS.STARTING, STATUS.QUEUED]
        monkeypatch.setattr(Callback, "on_step_end", on_step_end)
        started = instance.get_run_by_id(first.run_id)
        assert started is not None
        assert not execute_run(InMemoryJob(job), started, instance).success
        assert statuses() == [STATUS.CANCELED, STATUS.STARTING]
        assert instance.get_runs(dg.RunsFilter(statuses=[STATUS.STARTING]))[0].run_id == second.run_id


def test_an_error_that_may_pass_is_retried_and_an_interrupt_is_not() -> None:
    with pytest.raises(dg.RetryRequested) as retried, as_failure("adapter"):
        raise MemoryError
    assert retried.value.max_retries == 2
    with pytest.raises(dg.DagsterExecutionInterruptedError), as_failure("adapter"):
        raise dg.DagsterExecutionInterruptedError
