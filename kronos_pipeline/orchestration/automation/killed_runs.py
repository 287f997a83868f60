"""Runs whose process was killed: found, and marked as failed.

Nobody tells Dagster of a process that ends by kill -9 or for want of memory. Its run stays "started" for ever, and so
does its place in the pool: no training that the daemon queues would begin again. So each run holds a file lock, which
the system frees with its process, and a sensor looks for started runs whose lock is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from filelock import FileLock, Timeout


@contextmanager
def alive(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Hold the run's lock during the block; where another process of the run has it, that one holds it for both."""
    lock = FileLock(_lock_path(instance, run_id))
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
    """Whether the run once held its lock and holds it no more, without having ended."""
    path = _lock_path(instance, run_id)
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return True
    except Timeout:
        return False


def make_killed_runs_sensor() -> dg.SensorDefinition:
    """The sensor `killed_runs`, which is on without being asked, as the queue would stand still without it."""

    @dg.sensor(
        name="killed_runs",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Marks runs as failed whose process was killed, so that the next training may begin.",
    )
    def killed_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        ended = []
        for run in context.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
            if was_killed(context.instance, run.run_id):
                context.instance.report_run_failed(run, "The process of this run was killed.")
                _lock_path(context.instance, run.run_id).unlink(missing_ok=True)
                ended.append(run.run_id)
        return dg.SkipReason(f"Marked as failed: {', '.join(ended)}." if ended else "No run was killed.")

    return killed_runs


def _lock_path(instance: dg.DagsterInstance, run_id: str) -> Path:
    folder = Path(instance.storage_directory()).parent / "run_locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{run_id}.lock"
