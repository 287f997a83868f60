"""The MLflow runs of adapters that train at the same time: each begins with its training and ends with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel

from kronos_pipeline.errors import KronosError
from kronos_pipeline.tracking.runs import TrackedRun, Tracker

if TYPE_CHECKING:
    from kronos_pipeline.training.adapters import AdapterJob
    from kronos_pipeline.training.publish import TrainingResult


class TrainingRuns:
    """Runs that are open; a context manager, which marks those that an error leaves open as the error says."""

    def __init__(self, tracker: Tracker, config: BaseModel) -> None:
        """Prepare.

        Args:
            tracker: where runs are written.
            config: the settings of all of them.
        """
        self._tracker, self._config = tracker, config
        self._open: dict[str, tuple[ExitStack, TrackedRun]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            stack, _ = self._open.popitem()[1]
            stack.__exit__(kind, error, trace)

    def begin(self, job: AdapterJob, tags: Mapping[str, str] | None = None) -> AdapterJob:
        """Open the run of a training; the job with it.

        Raises:
            TrackingError: the store cannot be used.
        """
        stack = ExitStack()
        run = stack.enter_context(self._tracker.training_run(f"adapter {job.name}", self._config, tags))
        self._open[job.name] = stack, run
        return replace(job, listener=run, mlflow_run=run.run_id)

    def end(self, job: AdapterJob, ended: TrainingResult | KronosError) -> tuple[TrackedRun, TrainingResult]:
        """Close the run of a training: with what it made, or FAILED.

        Raises:
            KronosError: what the training ended with, or the store cannot be used.
        """
        if job.name not in self._open and isinstance(ended, KronosError):
            raise ended  # it had not begun
        stack, run = self._open.pop(job.name)
        with stack:
            if isinstance(ended, KronosError):
                raise ended
            run.finish(ended.summary, ended.history, ended.folder)
        return run, ended
