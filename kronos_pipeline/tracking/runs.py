"""MLflow runs, one per training: settings, losses by step, plots, and later the holdout metrics.

Every call passes the run's id to a client. MLflow's global "active run" would leak between the trainings and threads of
a process.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
from pydantic import BaseModel

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json, write_json
from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import KronosError, count
from kronos_pipeline.tracking.run_page import (
    KIND,
    NOTE,
    dataset_inputs,
    describe_run,
    model_tags,
    process_tags,
    run_name,
)
from kronos_pipeline.tracking.store import (
    EXPERIMENT,
    LEADERBOARDS,
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

    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.training.plan import TrainingJob
    from kronos_pipeline.training.publish import TrainingResult

_SEND_SECONDS = 5.0
"""Seconds between two requests with losses: a request per step would cost more than the step."""
_AFTER_FAILURE_SECONDS = 60.0
_METRICS_PER_REQUEST = 1000
_PARAMS_PER_REQUEST = 100
_BOARD_KEY = "leaderboard_key"
_MODE = "?workflowType=machine_learning"
"""Makes MLflow open a page in "Model training" and not in "GenAI", its default."""
_TRAINING_METRICS = ("selection_loss", "untouched_loss", "best_step", "steps", "seconds")
"""The numbers of a training that people compare; `training/summary.json` has all."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leaderboard:
    """The scores over all tickers, to record.

    Attributes:
        key: a hash of all that the scores depend on.
        subject: the tickers in words, for the name of the run.
        metrics: the result of `evaluation.reports.tables.leaderboard_metrics`.
        table: see `Tracker.log_evaluation`.
        plots: see `Tracker.log_evaluation`.
    """

    key: str
    subject: str
    metrics: Mapping[str, float]
    table: pd.DataFrame
    plots: Sequence[Path] = ()


class Tracker:
    """Write trainings to an MLflow store, which is opened, and created if needed, at the first use."""

    def __init__(self, tracking_uri: str | None, output_dir: Path, ui_address: str | None = None) -> None:
        """Name the store.

        Args:
            tracking_uri: an MLflow tracking URI; by default MLFLOW_TRACKING_URI, else `<output_dir>/mlflow.db`.
            output_dir: folder for artifacts; may be relative to the current working directory.
            ui_address: address of an MLflow UI, for links; by default the tracking server, if the URI is of a server.
        """
        self.uri = find_store_uri(tracking_uri, output_dir)
        self._artifacts = ArtifactLayout(output_dir.absolute()).mlflow_artifacts
        self._ui_address = ui_address or (without_password(self.uri) if self.uri.startswith("http") else None)
        self._experiments: dict[str, str] = {}

    @contextmanager
    def training_run(self, name: str, config: BaseModel, tags: Mapping[str, str] | None = None) -> Iterator[TrackedRun]:
        """Record the training in the block as a run: FINISHED, FAILED on an error, or KILLED on an interrupt.

        Args:
            name: the run's name, see `run_page.run_name`.
            config: the settings; each field becomes a parameter.
            tags: tags for searches: kind, ticker, Dagster run, asset, partition, commit.

        Raises:
            TrackingError: the store cannot be used.
        """
        with self._run(self._experiment(EXPERIMENT), name, config, tags) as run:
            yield run

    def log_leaderboard(
        self, board: Leaderboard, config: BaseModel, tags: Mapping[str, str] | None = None
    ) -> TrackedRun:
        """Record the scores over all tickers as a run, or return the run that has the scores of the same models.

        Args:
            board: the scores.
            config: the settings; each field becomes a parameter.
            tags: tags for searches.

        Raises:
            TrackingError: the store cannot be used.
        """
        experiment, client = self._experiment(LEADERBOARDS), self._client
        with readable_errors(self.uri):
            known = client.search_runs(
                [experiment], f"tags.{_BOARD_KEY} = '{board.key}' and attributes.status = 'FINISHED'", max_results=1
            )
        if known:
            run_id = known[0].info.run_id
            return TrackedRun(client, self.uri, run_id, self._link(experiment, run_id))
        own_tags = {**(tags or {}), KIND: "leaderboard", _BOARD_KEY: board.key}
        with self._run(experiment, run_name("leaderboard", board.subject), config, own_tags) as run:
            self.log_evaluation(run.run_id, board.metrics, board.plots, board.table)
        return run

    @contextmanager
    def _run(
        self, experiment: str, name: str, config: BaseModel, tags: Mapping[str, str] | None
    ) -> Iterator[TrackedRun]:
        client = self._client
        with readable_errors(self.uri):
            run_id = client.create_run(experiment, run_name=name, tags={**process_tags(), **(tags or {})}).info.run_id
            if not run_id:
                raise ValueError("it made a run without an id")
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
        """Add holdout metrics to the run of the measured training, so that a row of MLflow's table has both.

        Args:
            run_id: the training's run, finished or not.
            metrics: the result of `evaluation.reports.tables.run_metrics`.
            plots: pictures, stored under `plots/` with the name of their folder.
            table: the scores per symbol and model, stored as CSV under `evaluation/`, one file per symbol.

        Raises:
            TrackingError: the store cannot be used, or the run does not exist.
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
                    self._client.log_text(
                        run_id, rows.to_csv(index=False, float_format="%.6g"), f"evaluation/{symbol}.csv"
                    )

    def link(self, run_id: str) -> str | None:
        """Return the address of the page of a training's run, or None if the address of the MLflow UI is unknown."""
        return self._link(self._experiment(EXPERIMENT), run_id) if self._ui_address else None

    @cached_property
    def _client(self) -> MlflowClient:
        return open_store(self.uri)

    def _experiment(self, purpose: str) -> str:
        if purpose not in self._experiments:
            client = self._client
            with readable_errors(self.uri):
                artifacts = self._artifacts if is_local(self.uri) else None
                self._experiments[purpose] = open_experiment(client, artifacts, purpose)
        return self._experiments[purpose]

    def _link(self, experiment: str, run_id: str) -> str | None:
        if not self._ui_address:
            return None
        return f"{self._ui_address.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}{_MODE}"


class TrackedRun(Callback):
    """An open run: the trainer's listener during the training, and the writer of the results after it.

    Attributes:
        run_id: MLflow's id of the run.
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
        """Buffer metrics of an optimiser step, without NaN; the buffer is sent every few seconds.

        A store that is unavailable for a while does not stop a training: unsent metrics stay in the buffer and are sent
        later. Only the end of the run raises the error.
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
        """Log the results of a training: summary, history as CSV and as a plot, and manifest.

        If the manifest says that the base model may have seen the holdout, the run gets the tag `contamination`.

        Args:
            summary: `TrainingResult.summary`; losses and duration become metrics `training/...`, and texts become tags.
            history: `TrainingResult.history`.
            folder: the published adapter or checkpoint; its manifest is logged.

        Raises:
            TrackingError: the store cannot be used.
        """
        from kronos_pipeline.evaluation.reports.plots import loss_plot  # imports matplotlib

        numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        texts = {key: str(value) for key, value in summary.items() if key not in numbers and value is not None}
        self.on_log(0, {f"training/{key}": numbers[key] for key in _TRAINING_METRICS if key in numbers})
        self.send()
        with readable_errors(self._uri), tempfile.TemporaryDirectory() as name:
            temporary = Path(name)
            history.to_csv(temporary / "history.csv", index=False)
            write_json(temporary / "summary.json", dict(summary))
            (temporary / "losses.png").write_bytes(loss_plot(history, "Losses by step"))
            self._client.log_artifacts(self.run_id, name, "training")
            for key, text in texts.items():
                self._client.set_tag(self.run_id, f"training.{key}", text)
            if folder is not None and (folder / MANIFEST).is_file():
                self._client.log_artifact(self.run_id, str(folder / MANIFEST))
                if contamination := read_json(folder / MANIFEST).get("contamination"):
                    self._client.set_tag(self.run_id, "contamination", contamination)

    def log_datasets(self, windows: Sequence[WindowSet]) -> None:
        """Log the bars of a training as the datasets of the run."""
        with readable_errors(self._uri):
            self._client.log_inputs(self.run_id, dataset_inputs(windows))

    def log_params(self, config: BaseModel) -> None:
        """Log each setting, and each value derived from a recipe, as a parameter; lists are joined with commas."""
        from mlflow.entities import Param

        settings = config.model_dump(mode="json")
        if isinstance(config, Recipe):
            settings |= config.derived
        params = [
            Param(key, ",".join(map(str, value)) if isinstance(value, list) else str(value))
            for key, value in settings.items()
        ]
        with readable_errors(self._uri):
            for start in range(0, len(params), _PARAMS_PER_REQUEST):
                self._client.log_batch(self.run_id, params=params[start : start + _PARAMS_PER_REQUEST])

    def send(self) -> None:
        """Send the buffered metrics in as few requests as the store allows; unsent metrics stay in the buffer."""
        with readable_errors(self._uri):
            while self._pending:
                self._client.log_batch(self.run_id, metrics=self._pending[:_METRICS_PER_REQUEST])
                del self._pending[:_METRICS_PER_REQUEST]

    def terminate(self, status: str) -> None:
        """Set the final status of a failed run; log a tracking error, as the training's own error matters more."""
        try:
            self.send()
            with readable_errors(self._uri):
                self._client.set_terminated(self.run_id, status)
        except TrackingError as error:
            _log.warning("%s MLflow run %s is not marked %s.", error, self.run_id, status)


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
        """Start the run of a training, and return the job with the run attached.

        Raises:
            TrackingError: the store cannot be used.
        """
        stack = ExitStack()
        kind = "checkpoint" if job.adapter is None else "adapter"
        subject = f"over {count(len(job.windows), 'ticker')}" if job.adapter is None else job.adapter
        all_tags = {**process_tags(), **model_tags(kind, job.windows), **(tags or {})}
        all_tags[NOTE] = describe_run(f"{kind} {subject}", all_tags)
        run = stack.enter_context(self._tracker.training_run(run_name(kind, subject), self._config, all_tags))
        run.log_datasets(job.windows)
        self._open[job.name] = stack, run
        return replace(job, listener=run, mlflow_run=run.run_id)

    def end(self, job: TrainingJob, ended: TrainingResult | KronosError) -> tuple[TrackedRun, TrainingResult]:
        """End the run of a training: log its result, or mark the run FAILED and raise the error.

        Raises:
            KronosError: the training failed, or the store cannot be used.
        """
        if job.name not in self._open and isinstance(ended, KronosError):
            raise ended  # failed before the run started
        stack, run = self._open.pop(job.name)
        with stack:
            if isinstance(ended, KronosError):
                raise ended
            run.finish(ended.summary, ended.history, ended.folder)
        return run, ended
