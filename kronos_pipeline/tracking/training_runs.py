"""The MLflow runs of trainings that run together: each starts and ends with its training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel

from kronos_pipeline.artifacts import mlflow_run_of
from kronos_pipeline.errors import KronosError, count
from kronos_pipeline.tracking.run_page import NOTE, describe_run, model_tags, process_tags, run_name

if TYPE_CHECKING:
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.tracking.tracked_run import TrackedRun
    from kronos_pipeline.training.plan import TrainingJob
    from kronos_pipeline.training.publish import TrainingResult


class TrainingRuns:
    """The MLflow runs of trainings, of adapters at the same time.

    A run starts and ends with its training. As a context manager, mark runs that an error leaves open as FAILED or
    KILLED.
    """

    def __init__(self, tracker: Tracker, config: BaseModel) -> None:
        """Set the common arguments of the runs.

        Args:
            tracker: writes the runs.
            config: the settings of all runs.
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

    def start(self, job: TrainingJob, tags: Mapping[str, str] | None = None) -> TrainingJob:
        """Start the run of a training, or go on with the run of a training that is resumed; attach it to the job.

        Raises:
            TrackingError: the store cannot be used.
        """
        stack = ExitStack()
        kind = "refit" if job.refit else "checkpoint" if job.adapter is None else "adapter"
        subject = job.adapter or (job.name if job.refit else f"over {count(len(job.windows), 'ticker')}")
        all_tags = {**process_tags(), **model_tags(kind, job.windows), **(tags or {})}
        all_tags[NOTE] = describe_run(f"{kind} {subject}", all_tags)
        run = stack.enter_context(
            self._tracker.training_run(run_name(kind, subject), self._config, all_tags, state=job.state)
        )
        run.log_datasets(job.windows)
        self._open[job.name] = stack, run
        return replace(job, listener=run, mlflow_run=run.run_id)

    def end(self, job: TrainingJob, ended: TrainingResult | KronosError) -> tuple[TrackedRun, TrainingResult]:
        """End the run of a training: log its result, or mark the run FAILED and raise the error.

        A training that did not start, as another run had trained it, has the run of that training.

        Raises:
            KronosError: the training failed, or the store cannot be used.
        """
        if job.name not in self._open:
            if isinstance(ended, KronosError):
                raise ended  # failed before the run started
            return self._tracker.run_of(str(mlflow_run_of(ended.folder))), ended
        stack, run = self._open.pop(job.name)
        with stack:
            if isinstance(ended, KronosError):
                raise ended
            run.finish(ended.summary, ended.history, ended.folder)
        return run, ended
