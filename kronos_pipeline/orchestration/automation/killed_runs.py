"""The sensor that finds runs of killed processes and marks them as failed.

Dagster does not notice a process that ends by kill -9 or by lack of memory. The run stays "started" and keeps its slot
in the pool, so that no queued training starts. So each run holds a lock, which is free when its process has ended, and
the sensor looks for started runs with a free lock:

    lock held          the run goes on
    lock free          its process was killed: the run fails, and the instance's `run_retries` starts it once more
    no lock, twice     its process was killed before it took the lock: likewise, at the second tick that finds none

A run that another run took over, and that was terminated, is marked as canceled. The sensor also asks once more for the
retry of a failed run if the code server was away when the daemon tried it: Dagster gives the retry up then.

With a registry on PostgreSQL the lock is a lease, see `locks`, and the sensor finds killed runs of other machines too.
Where the launcher knows its processes, on Ray and Kubernetes, Dagster's run monitoring does this, and resumes the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.launcher import WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.tags import RUN_FAILURE_REASON_TAG, WILL_RETRY_TAG
from filelock import FileLock, Timeout
from pydantic import BaseModel, Field
from sqlalchemy.exc import IntegrityError

from kronos_pipeline.locks import is_left_over, named_lock, was_taken
from kronos_pipeline.orchestration.automation.sensor_state import read_cursor

_BEGINNING, _END = 200, 1000
"""Characters of a worker's message that are shown: how it ended, and the end of its output, which has the cause."""
GPU = "gpu"
"""The pool of assets that use a GPU; the instance's settings limit its runs, see `KRONOS_GPUS`."""
TAKEN_OVER_BY = "kronos/taken_over_by"
"""The tag of a run that names the run which took over its tickers."""
_RETRY_ASKED = "kronos/retry_asked"
"""The tag of a failed run whose lost retry was asked for again."""
_RETRY_WITHIN = timedelta(days=1)
_CANCELED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)


@contextmanager
def hold_run_lock(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Hold the run's lock during the block, unless another process of the run holds it already."""
    lock = _run_lock(instance, run_id)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield
        return
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def was_killed(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether the run has a lock that no process holds, so its process ended before the run did."""
    return is_left_over(_run_lock(instance, run_id))


def has_process(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether a process holds the run's lock."""
    lock = _run_lock(instance, run_id)
    return was_taken(lock) and not is_left_over(lock)


def is_watched(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Return whether the launcher knows the run's process, so that Dagster's run monitoring notices its end.

    The launcher does not know a run of `dagster asset materialize`, which is a process of the command.
    """
    watched = instance.run_monitoring_enabled and instance.run_launcher.supports_check_run_worker_health
    return watched and run.remote_job_origin is not None


def set_pool_limit(instance: dg.DagsterInstance) -> None:
    """Give the pool the limit of the instance's settings, unless a person has set another limit in the UI.

    On a new instance the queue's first tick would otherwise know no limit, and start all runs. Dagster's own change of
    a limit fails on PostgreSQL, where the failed insert of the existing row ends the transaction.
    """
    storage = instance.event_log_storage
    limit = {pool.name: pool for pool in storage.get_pool_limits()}.get(GPU)
    if limit and (not limit.from_default or limit.limit == instance.global_op_concurrency_default_limit):
        return
    if limit:
        storage.delete_concurrency_limit(GPU)
    with suppress(IntegrityError):  # the queue made it meanwhile
        storage.initialize_concurrency_limit_to_default(GPU)


def is_canceled(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether a person has terminated a run."""
    run = instance.get_run_by_id(run_id)
    return run is not None and run.status in _CANCELED


def _has_no_lock(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether a run on this machine has no lock file: it takes one as it starts, and drops it as it ends."""
    of_this_machine = isinstance(instance.run_launcher, DefaultRunLauncher)
    return of_this_machine and not was_taken(_run_lock(instance, run_id))


class _Cursor(BaseModel):
    """Runs that had no lock at the last tick."""

    without_lock: list[str] = Field(default_factory=list)


def make_killed_runs_sensor() -> dg.SensorDefinition:
    """Return the sensor `killed_runs`, which is on by default: without it the queue stops after a killed run."""

    @dg.sensor(
        name="killed_runs",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Marks runs of killed processes as failed, so that the next training can start.",
    )
    def killed_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        set_pool_limit(context.instance)
        without_lock, ended_runs = read_cursor(context, _Cursor).without_lock, []
        found_without_lock = []
        for run in context.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
            if is_watched(context.instance, run):
                continue
            lockless = _has_no_lock(context.instance, run.run_id)
            if was_killed(context.instance, run.run_id) or (lockless and run.run_id in without_lock):
                _end(context.instance, run)
                Path(_run_lock(context.instance, run.run_id).lock_file).unlink(missing_ok=True)
                ended_runs.append(run.run_id)
            elif lockless:
                found_without_lock.append(run.run_id)
        ended_runs += _fail_lost_launches(context.instance)
        _remove_locks_of_ended_runs(context.instance)
        context.update_cursor(_Cursor(without_lock=found_without_lock).model_dump_json())
        asked = _ask_for_lost_retries(context.instance)
        lines = [f"Marked as failed: {', '.join(ended_runs)}."] if ended_runs else ["No run was killed."]
        lines += [f"Asked for the retry of {', '.join(asked)} once more."] if asked else []
        return dg.SkipReason(" ".join(lines))

    return killed_runs


def _fail_lost_launches(instance: dg.DagsterInstance) -> list[str]:
    """Mark launched runs as failed whose worker ended before the run began, and return their ids.

    Dagster's monitoring would wait for the end of `start_timeout_seconds`.
    """
    failed: list[str] = []
    if not instance.run_launcher.supports_check_run_worker_health:
        return failed
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING])):
        health = instance.run_launcher.check_run_worker_health(run)
        now = instance.get_run_by_id(run.run_id)
        if health.status == WorkerStatus.FAILED and now and now.status == dg.DagsterRunStatus.STARTING:
            reason = health.msg or ""
            if len(reason) > _BEGINNING + _END:
                reason = f"{reason[:_BEGINNING]} … {reason[-_END:]}"
            instance.report_run_failed(now, f"The worker of this run ended before the run began: {reason}")
            failed.append(run.run_id)
    return failed


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Mark a run whose process was killed as failed, or as canceled with the run that took it over."""
    text = "The process of this run was killed."
    if TAKEN_OVER_BY in run.tags and is_canceled(instance, run.tags[TAKEN_OVER_BY]):
        instance.report_run_canceled(run, text)
    else:
        instance.report_run_failed(run, text)


def _ask_for_lost_retries(instance: dg.DagsterInstance) -> list[str]:
    """Report the failure of runs again whose retry the daemon gave up, as an error kept it from their code location.

    The daemon marks such a run as one that is not retried, like one whose retries are used up.
    """
    if not instance.run_retries_enabled:
        return []
    since = datetime.now(UTC) - _RETRY_WITHIN
    given_up = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE], tags={WILL_RETRY_TAG: "false"}, updated_after=since
    )
    asked = []
    for run in instance.get_runs(given_up):
        reason = run.tags.get(RUN_FAILURE_REASON_TAG)
        if _RETRY_ASKED in run.tags or not auto_reexecution_should_retry_run(
            instance, run, RunFailureReason(reason) if reason else None
        ):
            continue
        instance.add_run_tags(run.run_id, {_RETRY_ASKED: "true"})
        instance.report_run_failed(run, "The retry of this run was given up, and is asked for once more.")
        asked.append(run.run_id)
    return asked


def _remove_locks_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """Remove the locks of killed processes whose runs Dagster has ended: the code server notices a kill of its own."""
    for path in _lock_folder(instance).glob("*.lock"):
        run = instance.get_run_by_id(path.stem)
        if run is not None and run.is_finished and was_killed(instance, run.run_id):
            path.unlink(missing_ok=True)


def _lock_folder(instance: dg.DagsterInstance) -> Path:
    return Path(instance.storage_directory()).parent / "run_locks"


def _run_lock(instance: dg.DagsterInstance, run_id: str) -> FileLock:
    folder = _lock_folder(instance)
    folder.mkdir(parents=True, exist_ok=True)
    return named_lock(folder / f"{run_id}.lock", f"runs/{run_id}")
