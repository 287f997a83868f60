"""An open MLflow run of a training: losses by step as they come, and the results at the end."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import BaseModel

from kronos_pipeline.artifacts import MANIFEST, read_json, write_json
from kronos_pipeline.config import Recipe
from kronos_pipeline.tracking.run_page import dataset_inputs
from kronos_pipeline.tracking.run_record import PROCESS, is_dead, process_name
from kronos_pipeline.tracking.store import TrackingError, readable_errors
from kronos_pipeline.training.callback import Callback

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

    from kronos_pipeline.data.windows import WindowSet

_SEND_SECONDS = 5.0
"""Seconds between two requests with losses: a request per step would cost more than the step."""
_AFTER_FAILURE_SECONDS = 60.0
_METRICS_PER_REQUEST = 1000
_PARAMS_PER_REQUEST = 100
_TRAINING_METRICS = ("selection_loss", "untouched_loss", "best_step", "steps", "seconds")
"""The numbers of a training that people compare; `training/summary.json` has all."""
_LOSSES = ("epoch", "train_loss", "selection_loss", "learning_rate", "windows_per_second")
"""Metrics that a training logs by step."""
_log = logging.getLogger(__name__)


class TrackedRun(Callback):
    """An open run: the trainer's listener during the training, and the writer of the results after it.

    Attributes:
        run_id: MLflow's id of the run.
        link: the run's page in an MLflow UI, or None.
    """

    def __init__(
        self, client: MlflowClient, uri: str, run_id: str, link: str | None, record: Run | None = None
    ) -> None:
        """Take an open run.

        Args:
            client: a client of the store.
            uri: the store.
            run_id: MLflow's id of the run.
            link: the run's page in an MLflow UI, or None.
            record: MLflow's record of a run that a resumed training goes on with; None for a new run.
        """
        self.run_id = run_id
        self.link = link
        self._client = client
        self._uri = uri
        self._record = record
        self._logged: set[tuple[str, int]] = set()  # metrics and steps that are sent or in the buffer
        self._pending: list[Metric] = []
        self._next_send = time.monotonic() + _SEND_SECONDS

    def reopen(self) -> None:
        """Go on with the run of an interrupted training: no step that the run has is logged again."""
        record = self._record
        if record is None:
            return
        with readable_errors(self._uri):
            for key in record.data.metrics:
                if key in _LOSSES:
                    self._logged |= {(key, metric.step) for metric in self._client.get_metric_history(self.run_id, key)}
            if record.info.status != "FINISHED":
                self._client.set_tag(self.run_id, PROCESS, process_name())
                self._client.update_run(self.run_id, status="RUNNING")

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Buffer metrics of an optimiser step, without NaN and known steps; the buffer is sent every few seconds.

        A store that is unavailable for a while does not stop a training: unsent metrics stay in the buffer and are sent
        later. Only the end of the run raises the error.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = {
            key: float(value)
            for key, value in values.items()
            if not math.isnan(value) and (key, step) not in self._logged
        }
        self._logged |= {(key, step) for key in new}
        self._pending += [Metric(key, value, now, step) for key, value in new.items()]
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
        for row in history.to_dict("records"):  # steps that an interruption, or a store that was away, has lost
            self.on_log(int(row["step"]), {str(key): value for key, value in row.items() if key != "step"})
        known = self._record.data.metrics if self._record else {}
        results = {f"training/{key}": numbers[key] for key in _TRAINING_METRICS if key in numbers}
        self.on_log(0, {key: value for key, value in results.items() if known.get(key) != value})
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
        """Log the bars of a training as the datasets of the run, unless the run has them."""
        if self._record is not None and self._record.inputs.dataset_inputs:
            return
        with readable_errors(self._uri):
            self._client.log_inputs(self.run_id, dataset_inputs(windows))

    def log_params(self, config: BaseModel) -> None:
        """Log each setting, and each value derived from a recipe, as a parameter; lists are joined with commas.

        A run of a resumed training keeps its parameters: those that differ shape no weights.
        """
        from mlflow.entities import Param

        settings = config.model_dump(mode="json")
        if isinstance(config, Recipe):
            settings |= config.derived
        params = [
            Param(key, ",".join(map(str, value)) if isinstance(value, list) else str(value))
            for key, value in settings.items()
            if self._record is None or key not in self._record.data.params
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

    def end(self) -> None:
        """Mark the run FINISHED; a run that had ended before its training was run again keeps its time."""
        if self._record is None or self._record.info.status != "FINISHED":
            with readable_errors(self._uri):
                self._client.set_terminated(self.run_id, "FINISHED")

    def terminate(self, status: str) -> None:
        """Set the final status of a failed run; log a tracking error, as the training's own error matters more."""
        try:
            self.send()
            with readable_errors(self._uri):
                self._client.set_terminated(self.run_id, status)
        except TrackingError as error:
            _log.warning("%s MLflow run %s is not marked %s.", error, self.run_id, status)


def end_killed_runs(client: MlflowClient, experiment: str) -> None:
    """Mark the runs of killed processes of this host as KILLED; a training that is resumed opens its run again."""
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if is_dead(run.data.tags.get(PROCESS, "")):
            client.set_terminated(run.info.run_id, "KILLED")
