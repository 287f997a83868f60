"""An open MLflow run of a training: losses by step as they come, and the results at the end."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import BaseModel

from kronos_pipeline.artifacts import MANIFEST, read_json, write_json
from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import KronosError
from kronos_pipeline.locks import held_leases
from kronos_pipeline.tracking.outbox import Outbox
from kronos_pipeline.tracking.run_page import dataset_inputs
from kronos_pipeline.tracking.run_parts import LOSSES, RunParts, logged_steps, plain_datasets, send_parts
from kronos_pipeline.tracking.run_record import PROCESS, holds_no_lease, is_dead, process_name
from kronos_pipeline.tracking.store_errors import RefusedError, TrackingError, readable_errors
from kronos_pipeline.training.callback import Callback

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from kronos_pipeline.data.windows import WindowSet

_SEND_SECONDS = 5.0
"""Seconds between two requests with losses: a request per step would cost more than the step."""
_AFTER_FAILURE_SECONDS = 60.0
_TRAINING_METRICS = ("selection_loss", "untouched_loss", "best_step", "steps", "seconds")
"""The numbers of a training that people compare; `training/summary.json` has all."""
_log = logging.getLogger(__name__)


class TrackedRun(Callback):
    """An open run: the trainer's listener during the training, and the writer of the results after it.

    Attributes:
        run_id: MLflow's id of the run.
        link: the run's page in an MLflow UI, or None.
    """

    def __init__(
        self,
        client: MlflowClient | None,
        uri: str,
        run_id: str,
        link: str | None,
        record: Run | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        """Take an open run.

        Args:
            client: a client of the store; None for a run that waits in the outbox.
            uri: the store.
            run_id: MLflow's id of the run, or its id in the outbox.
            link: the run's page in an MLflow UI, or None.
            record: MLflow's record of a run that a resumed training goes on with; None for a new run.
            outbox: takes what is to be sent while the store is away; None for an error instead.
        """
        self.run_id = run_id
        self.link = link
        self._client, self._uri, self._outbox = client, uri, outbox
        self._record = record
        self._logged: set[tuple[str, int]] = set()  # metrics and steps that are sent or in the buffer
        self._pending: list[tuple[str, float, int, int]] = []
        self._next_send = time.monotonic() + _SEND_SECONDS

    @property
    def is_finished(self) -> bool:
        """Whether the run had ended well when MLflow's record of it was read."""
        return self._record is not None and self._record.info.status == "FINISHED"

    def reopen(self) -> None:
        """Go on with the run of an interrupted training: no step that the run has is logged again."""
        if self._record is None or self._client is None:
            return
        with readable_errors(self._uri):
            names = [name for name in LOSSES if name in self._record.data.metrics]
            self._logged |= logged_steps(self._client, self.run_id, names)
            if not self.is_finished:
                self._client.set_tag(self.run_id, PROCESS, process_name())
                self._client.update_run(self.run_id, status="RUNNING")

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Buffer metrics of an optimiser step, without NaN and known steps; the buffer is sent every few seconds.

        A store that is unavailable for a while does not stop a training: unsent metrics stay in the buffer and are sent
        later, at last with the end of the run.
        """
        new = {
            key: float(value)
            for key, value in values.items()
            if not math.isnan(value) and (key, step) not in self._logged
        }
        self._logged |= {(key, step) for key in new}
        self._pending += [(key, value, _now(), step) for key, value in new.items()]
        if self._client is None or time.monotonic() < self._next_send:
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
        tags = {f"training.{key}": text for key, text in texts.items()}
        for row in history.to_dict("records"):  # steps that an interruption, or a store that was away, has lost
            self._buffer(int(row["step"]), {str(key): value for key, value in row.items() if key != "step"})
        known = self._record.data.metrics if self._record else {}
        results = {f"training/{key}": numbers[key] for key in _TRAINING_METRICS if key in numbers}
        self._buffer(0, {key: value for key, value in results.items() if known.get(key) != value})
        with tempfile.TemporaryDirectory() as name:
            temporary = Path(name)
            history.to_csv(temporary / "history.csv", index=False)
            write_json(temporary / "summary.json", dict(summary))
            (temporary / "losses.png").write_bytes(loss_plot(history, "Losses by step"))
            files = [(path, "training") for path in sorted(temporary.iterdir())]
            if folder is not None and (folder / MANIFEST).is_file():
                files.append((folder / MANIFEST, ""))
                if contamination := read_json(folder / MANIFEST).get("contamination"):
                    tags["contamination"] = contamination
            self._write(RunParts(tags=tags, files=files))

    def log_datasets(self, windows: Sequence[WindowSet]) -> None:
        """Log the bars of a training as the datasets of the run, unless the run has them."""
        inputs = self._record.inputs if self._record else None
        if inputs is None or not inputs.dataset_inputs:
            self._write(RunParts(datasets=plain_datasets(dataset_inputs(windows))))

    def log_params(self, config: BaseModel) -> None:
        """Log each setting, and each value derived from a recipe, as a parameter; lists are joined with commas.

        A run of a resumed training keeps its parameters: those that differ shape no weights.
        """
        settings = config.model_dump(mode="json")
        if isinstance(config, Recipe):
            settings |= config.derived
        params = {
            key: ",".join(map(str, value)) if isinstance(value, list) else str(value)
            for key, value in settings.items()
            if self._record is None or key not in self._record.data.params
        }
        self._write(RunParts(params=params))

    def send(self) -> None:
        """Send the buffered metrics in as few requests as the store allows; unsent metrics stay in the buffer."""
        if self._client is None:
            return  # the run waits, and its end takes the metrics along
        with readable_errors(self._uri):
            send_parts(self._client, self.run_id, RunParts(metrics=self._pending))
        self._pending = []

    def end(self) -> None:
        """Mark the run FINISHED; a run that had ended before its training was run again keeps its time."""
        self._write(RunParts() if self.is_finished else RunParts(status="FINISHED", end_time=_now()))

    def terminate(self, status: str) -> None:
        """Set the final status of a failed run; log a tracking error, as the training's own error matters more."""
        try:
            self._write(RunParts(status=status, end_time=_now()))
        except KronosError as error:
            _log.warning("%s MLflow run %s is not marked %s.", error, self.run_id, status)

    def _buffer(self, step: int, values: Mapping[str, float]) -> None:
        self._next_send, before = math.inf, self._next_send
        self.on_log(step, values)
        self._next_send = before

    def _write(self, parts: RunParts) -> None:
        """Add the buffered metrics and some parts to the run, or keep them in the outbox if the store is away."""
        parts = replace(parts, metrics=[*self._pending, *parts.metrics])
        if self._client is not None and not (self._outbox and self._outbox.failure):
            try:
                with readable_errors(self._uri):
                    send_parts(self._client, self.run_id, parts)
                self._pending = []
                return
            except RefusedError:
                raise
            except TrackingError as error:
                if self._outbox is None:
                    raise
                self._outbox.note_failure(error)
        if self._outbox is not None:
            self._client = None  # what follows waits too
            self._outbox.add(self.run_id, parts)
            self._pending = []


def _now() -> int:
    """Return the time in milliseconds since 1970."""
    return int(time.time() * 1000)


def end_killed_runs(client: MlflowClient, experiment: str) -> None:
    """Mark the runs of killed processes as KILLED; a training that is resumed opens its run again.

    With leases, the processes of other hosts are judged too: a process that trains holds a lease. A run that has just
    begun, or is about to end, may hold none; its own end sets its status.
    """
    running = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    leases = held_leases() if running else None
    owners = None if leases is None else {lease.owner for lease in leases}
    for run in running:
        process = run.data.tags.get(PROCESS, "")
        if is_dead(process) or (owners is not None and holds_no_lease(process, owners)):
            client.set_terminated(run.info.run_id, "KILLED")
