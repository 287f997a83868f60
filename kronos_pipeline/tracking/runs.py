"""One MLflow run per training: its settings, its losses by step, its plots, and the holdout metrics when they come.

Everything goes through a client that is told the run's id each time. MLflow's global "active run" would leak between
the trainings and threads of one process.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
from pydantic import BaseModel

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json
from kronos_pipeline.errors import KronosError
from kronos_pipeline.tracking.store import (
    TrackingError,
    find_store_uri,
    is_local,
    open_experiment,
    open_store,
    readable_errors,
    without_password,
)
from kronos_pipeline.training.callback import Callback

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from kronos_pipeline.training.publish import TrainingResult
    from kronos_pipeline.training.single import AdapterJob

_SEND_SECONDS = 5.0
"""Losses are sent together, this often: a request per step would cost more than the step."""
_AFTER_FAILURE_SECONDS = 60.0
_METRICS_PER_REQUEST = 1000
_PARAMS_PER_REQUEST = 100
_log = logging.getLogger(__name__)


class Tracker:
    """Writes trainings to one MLflow store. The store is opened, and made if need be, at the first use."""

    def __init__(self, tracking_uri: str | None, output_dir: Path, ui_address: str | None = None) -> None:
        """Name the store.

        Args:
            tracking_uri: an MLflow tracking URI; by default MLFLOW_TRACKING_URI, else `<output_dir>/mlflow.db`.
            output_dir: folder for artifacts; may be relative to the working directory of now.
            ui_address: address of an MLflow UI, for links; by default the tracking server's, where there is one.
        """
        self.uri = find_store_uri(tracking_uri, output_dir)
        self._artifacts = ArtifactLayout(output_dir.absolute()).mlflow_artifacts
        self._ui_address = ui_address or (without_password(self.uri) if self.uri.startswith("http") else None)

    @contextmanager
    def training_run(self, name: str, config: BaseModel, tags: Mapping[str, str] | None = None) -> Iterator[TrackedRun]:
        """Record what the block trains as one run: FINISHED when it ends well, else FAILED, or KILLED on an interrupt.

        Args:
            name: the run's name, such as "adapter AAPL".
            config: the settings; each field becomes a parameter.
            tags: whatever should be found again: Dagster run, asset, partition, commit.

        Raises:
            TrackingError: the store cannot be used.
        """
        client, experiment = self._client, self._experiment
        with readable_errors(self.uri):
            run_id = client.create_run(experiment, run_name=name, tags=dict(tags or {})).info.run_id
        run = TrackedRun(client, self.uri, run_id, self._link(experiment, run_id))
        try:
            run.log_params(config)
            yield run
            run.send()
        except BaseException as error:
            run.terminate("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        with readable_errors(self.uri):
            client.set_terminated(run_id, "FINISHED")

    def log_evaluation(
        self, run_id: str, metrics: Mapping[str, float], plots: Sequence[Path] = (), table: pd.DataFrame | None = None
    ) -> None:
        """Add holdout metrics to the run of the training that they measure, so that one row of MLflow's compares all.

        Args:
            run_id: the training's run, finished or not.
            metrics: as `evaluation.tables.flat_metrics` makes them.
            plots: pictures, kept under `plots/` with the name of their folder.
            table: the scores per symbol and model, kept as CSV under `evaluation/`, one file per symbol.

        Raises:
            TrackingError: the store cannot be used, or has no such run.
        """
        run = TrackedRun(self._client, self.uri, run_id, None)
        run.on_log(0, metrics)
        run.send()
        with readable_errors(self.uri):
            for plot in plots:
                folder = "plots" if plot.parent.name == "plots" else f"plots/{plot.parent.name}"
                self._client.log_artifact(run_id, str(plot), folder)
            if table is not None:
                for symbol, rows in table.groupby("symbol", sort=True):
                    self._client.log_text(run_id, rows.to_csv(index=False), f"evaluation/{symbol}.csv")

    def link(self, run_id: str) -> str | None:
        """The run's page, where the address of an MLflow UI is known."""
        return self._link(self._experiment, run_id) if self._ui_address else None

    @cached_property
    def _client(self) -> MlflowClient:
        return open_store(self.uri)

    @cached_property
    def _experiment(self) -> str:
        client = self._client
        with readable_errors(self.uri):
            return open_experiment(client, self._artifacts if is_local(self.uri) else None)

    def _link(self, experiment: str, run_id: str) -> str | None:
        if not self._ui_address:
            return None
        return f"{self._ui_address.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


class TrackedRun(Callback):
    """A run that is being written: the trainer's listener, and what is added when the training is done.

    Attributes:
        run_id: MLflow's id.
        link: the run's page in an MLflow UI, or None.
    """

    def __init__(self, client: MlflowClient, uri: str, run_id: str, link: str | None) -> None:
        self.run_id = run_id
        self.link = link
        self._client = client
        self._uri = uri
        self._pending: list[Metric] = []
        self._next_send = time.monotonic() + _SEND_SECONDS

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Note metrics of an optimiser step (a NaN is no measurement and is left out); they are sent every few seconds.

        A store that is away for a while does not stop a training: what could not be sent is kept and tried again, and
        only the end insists.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [
            Metric(key, float(value), now, step) for key, value in values.items() if not math.isnan(value)
        ]
        if time.monotonic() < self._next_send:
            return
        try:
            self.send()
            self._next_send = time.monotonic() + _SEND_SECONDS
        except TrackingError as error:
            _log.warning("%s The training goes on; its metrics are kept and sent later.", error)
            self._next_send = time.monotonic() + _AFTER_FAILURE_SECONDS

    def finish(self, summary: Mapping[str, Any], history: pd.DataFrame, folder: Path | None = None) -> None:
        """Add what a training left: its summary, its history as CSV and as a plot, and its manifest.

        Where the manifest says that the base model may have seen the holdout, the tag `contamination` says it too.

        Args:
            summary: `TrainingResult.summary`; numbers become metrics `training/...`, texts tags.
            history: `TrainingResult.history`.
            folder: the published adapter or checkpoint, whose manifest is kept.

        Raises:
            TrackingError: the store cannot be used.
        """
        from kronos_pipeline.evaluation.reports.plots import loss_plot  # imports matplotlib

        numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        texts = {key: str(value) for key, value in summary.items() if key not in numbers and value is not None}
        self.on_log(0, {f"training/{key}": value for key, value in numbers.items()})
        self.send()
        with readable_errors(self._uri), tempfile.TemporaryDirectory() as name:
            temporary = Path(name)
            history.to_csv(temporary / "history.csv", index=False)
            (temporary / "losses.png").write_bytes(loss_plot(history, "Losses by step"))
            self._client.log_artifacts(self.run_id, name, "training")
            for key, text in texts.items():
                self._client.set_tag(self.run_id, f"training.{key}", text)
            if folder is not None and (folder / MANIFEST).is_file():
                self._client.log_artifact(self.run_id, str(folder / MANIFEST))
                if mark := read_json(folder / MANIFEST).get("contamination"):
                    self._client.set_tag(self.run_id, "contamination", mark)

    def log_params(self, config: BaseModel) -> None:
        """Record each setting as a parameter; lists are joined with commas."""
        from mlflow.entities import Param

        settings = config.model_dump(mode="json")
        params = [
            Param(key, ",".join(map(str, value)) if isinstance(value, list) else str(value))
            for key, value in settings.items()
        ]
        with readable_errors(self._uri):
            for start in range(0, len(params), _PARAMS_PER_REQUEST):
                self._client.log_batch(self.run_id, params=params[start : start + _PARAMS_PER_REQUEST])

    def send(self) -> None:
        """Send what is pending, as few requests as the store allows; what cannot be sent stays pending."""
        with readable_errors(self._uri):
            while self._pending:
                self._client.log_batch(self.run_id, metrics=self._pending[:_METRICS_PER_REQUEST])
                del self._pending[:_METRICS_PER_REQUEST]

    def terminate(self, status: str) -> None:
        """Mark a run whose training ended with an error, which matters more than one of the store's."""
        try:
            self.send()
            with readable_errors(self._uri):
                self._client.set_terminated(self.run_id, status)
        except TrackingError as error:
            _log.warning("%s MLflow run %s is not marked %s.", error, self.run_id, status)


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

    def start(self, job: AdapterJob, tags: Mapping[str, str] | None = None) -> AdapterJob:
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
