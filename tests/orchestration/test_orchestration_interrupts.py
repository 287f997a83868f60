"""A run that a person terminates ends at once, and the next run goes on from its state."""

from __future__ import annotations

import signal

import dagster as dg
import pytest
from code_locations import Location, failed_steps

from kronos_pipeline.orchestration.failures import as_failure
from kronos_pipeline.training.callback import Callback

pytestmark = pytest.mark.slow

STATUS = dg.DagsterRunStatus


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


def test_an_error_that_may_pass_is_retried_and_an_interrupt_is_not() -> None:
    with pytest.raises(dg.RetryRequested) as retried, as_failure("adapter"):
        raise MemoryError
    assert retried.value.max_retries == 2
    with pytest.raises(dg.DagsterExecutionInterruptedError), as_failure("adapter"):
        raise dg.DagsterExecutionInterruptedError
