"""MLflow runs, one per training, and later its holdout metrics; the leaderboard as a run.

Every call passes the run's id to a client. MLflow's global "active run" would leak between the trainings and threads of
a process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import BaseModel

from kronos_pipeline.addresses import without_password
from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.errors import count
from kronos_pipeline.tracking.delivery import deliver, find_run
from kronos_pipeline.tracking.outbox import WAITING, Outbox
from kronos_pipeline.tracking.run_page import KIND, process_tags, run_name
from kronos_pipeline.tracking.run_parts import RunParts, send_parts
from kronos_pipeline.tracking.run_record import (
    FORMER_RUN,
    PROCESS,
    TRACKING_ID,
    RunRecord,
    is_other,
    new_record,
    process_name,
    read_record,
    write_record,
)
from kronos_pipeline.tracking.store import (
    EXPERIMENT,
    LEADERBOARDS,
    find_store_uri,
    is_local,
    open_experiment,
    open_store,
)
from kronos_pipeline.tracking.store_errors import RefusedError, TrackingError, readable_errors
from kronos_pipeline.tracking.tracked_run import TrackedRun, end_killed_runs
from kronos_pipeline.tracking.version_store import VersionStore

if TYPE_CHECKING:
    from mlflow import MlflowClient


_BOARD_KEY = "leaderboard_key"
_BOARD = "leaderboard-"
"""Prefix of the tracking id of a leaderboard's run."""
_MODE = "?workflowType=machine_learning"
"""Makes MLflow open a page in "Model training" and not in "GenAI", its default."""


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
    """Write trainings to an MLflow store, which is opened, and created if needed, at the first use.

    Attributes:
        uri: the store.
        layout: the layout of the artifacts.
        outbox: the runs that wait while the store is away.
    """

    def __init__(self, tracking_uri: str | None, output_dir: Path, ui_address: str | None = None) -> None:
        """Name the store.

        Args:
            tracking_uri: an MLflow tracking URI; by default MLFLOW_TRACKING_URI, else `<output_dir>/mlflow.db`.
            output_dir: folder for artifacts; may be relative to the current working directory.
            ui_address: address of an MLflow UI, for links; by default the tracking server, if the URI is of a server.
        """
        self.uri = find_store_uri(tracking_uri, output_dir)
        self.layout = ArtifactLayout(output_dir.absolute())
        self._artifacts, self.outbox = self.layout.mlflow_artifacts, Outbox(self.layout.mlflow_waiting, self.uri)
        self._opened: MlflowClient | None = None
        self._notes: list[str] = []
        self._ui_address = ui_address or (without_password(self.uri) if self.uri.startswith("http") else None)
        self._experiments: dict[str, str] = {}

    @contextmanager
    def training_run(
        self, name: str, config: BaseModel, tags: Mapping[str, str] | None = None, *, state: Path | None = None
    ) -> Iterator[TrackedRun]:
        """Record the training in the block as a run: FINISHED, FAILED on an error, or KILLED on an interrupt.

        Args:
            name: the run's name, see `run_page.run_name`.
            config: the settings; each field becomes a parameter.
            tags: tags for searches: kind, ticker, Dagster run, asset, partition, commit.
            state: folder of the training's resumable state; a training that is resumed goes on with its run. A run that
                was deleted, or is in another store, is named by a tag of the new run.

        Raises:
            TrackingError: the store cannot be used.
        """
        record = read_record(state) if state else None
        if record is not None and is_other(record.process):
            state = record = None  # that process trains now, and this one waits for it
        run = (record and self._find_run(record, state, name, tags)) or self._start_run(record, state, name, tags)
        with self._recorded(run, config):
            yield run

    def run_of(self, run_id: str) -> TrackedRun:
        """Return a run that has ended, by its id."""
        return TrackedRun(None, self.uri, run_id, self.link(run_id), outbox=self.outbox)

    def log_leaderboard(
        self, board: Leaderboard, config: BaseModel, tags: Mapping[str, str] | None = None
    ) -> TrackedRun:
        """Record the scores over all tickers as a run; the same models have one run, completed if it was cut off.

        Args:
            board: the scores.
            config: the settings; each field becomes a parameter.
            tags: tags for searches.

        Raises:
            TrackingError: the store cannot be used.
        """
        tracking_id = f"{_BOARD}{board.key[:32]}"
        try:
            known = self._find_leaderboard(board.key)
        except RefusedError:
            raise
        except TrackingError as error:
            self._note_failure(error)
            known = None
        if known is not None and known.is_finished:
            return known
        own_tags = {**(tags or {}), KIND: "leaderboard", _BOARD_KEY: board.key, TRACKING_ID: tracking_id}
        run = known or self._create_run(LEADERBOARDS, run_name("leaderboard", board.subject), own_tags)
        with self._recorded(run, config):
            self.log_evaluation(run.run_id, board.metrics, board.plots, board.table)
        return run

    def _find_leaderboard(self, key: str) -> TrackedRun | None:
        """Return the run of a leaderboard, open again if it was cut off; None if there is none."""
        experiment, client = self._experiment(LEADERBOARDS), self._client
        with readable_errors(self.uri):
            runs = client.search_runs([experiment], f"tags.{_BOARD_KEY} = '{key}'")
        ours = [run for run in runs if run.info.status == "FINISHED" or not is_other(run.data.tags.get(PROCESS, ""))]
        if not ours:
            return None
        run = min(ours, key=lambda run: run.info.status != "FINISHED")
        link = self._link(experiment, run.info.run_id)
        known = TrackedRun(client, self.uri, run.info.run_id, link, run, self.outbox)
        known.reopen()
        return known

    def register_trained(self, folder: Path, name: str, run_id: str) -> None:
        """Register an adapter or checkpoint as its training ends, or with its run if that waits for the store.

        Args:
            folder: the adapter or checkpoint, with its manifest.
            name: name of the registered model, see `registered_name`.
            run_id: the MLflow run of the training.

        Raises:
            ArtifactError: the folder has no manifest.
        """
        try:
            _ = self._client  # delivers what waits for a store that is back
            if not self.outbox.holds(run_id):
                VersionStore(self.uri).add_trained(folder, name, self.resolve(run_id))
                return
        except RefusedError:
            raise
        except TrackingError as error:
            self._note_failure(error)
        self.outbox.add_model(run_id, folder, name)

    def deliver(self) -> list[str]:
        """Deliver the runs that wait for the store, if it works, and return a line on what was delivered or refused."""
        if self.outbox.runs():
            self.outbox.ask_again()
            try:
                if self._opened is None or self.outbox.is_away:
                    _ = self._client  # delivers
                else:
                    self._deliver(self._opened)
            except TrackingError as error:
                self.outbox.note_failure(error)
        notes, self._notes = self._notes, []
        return notes

    def _find_run(
        self, record: RunRecord, state: Path | None, name: str, tags: Mapping[str, str] | None
    ) -> TrackedRun | None:
        """Return the run of a training that is resumed, open again; None if the run is gone."""
        if record.store != without_password(self.uri):
            return None
        waiting_id = record.run_id or f"{WAITING}{record.tracking_id}"
        try:
            experiment, client = self._experiment(EXPERIMENT), self._client
            with readable_errors(self.uri):
                found = find_run(client, experiment, record.tracking_id)
            if found is None:
                return None
            link = self._link(experiment, found.info.run_id)
            run = TrackedRun(client, self.uri, found.info.run_id, link, found, self.outbox)
            run.reopen()
        except RefusedError:
            raise
        except TrackingError as error:
            run = self._wait(error, waiting_id, name, {**(tags or {}), TRACKING_ID: record.tracking_id})
        if state is not None:
            write_record(state, replace(record, run_id=run.run_id, process=process_name()))
        return run

    def _start_run(
        self, former: RunRecord | None, state: Path | None, name: str, tags: Mapping[str, str] | None
    ) -> TrackedRun:
        """Start the run of a training, and keep its id with the state; a tag names the former run, which is gone."""
        former_run = {FORMER_RUN: former.run_id} if former and former.run_id else {}
        record = new_record(without_password(self.uri))
        if state is not None:
            write_record(state, record)  # before the run is made, so that a kill between the two leaves no second run
        own_tags = {**(tags or {}), **former_run, TRACKING_ID: record.tracking_id}
        run = self._create_run(EXPERIMENT, name, own_tags)
        if state is not None:
            write_record(state, replace(record, run_id=run.run_id))
        return run

    def _create_run(self, purpose: str, name: str, tags: Mapping[str, str]) -> TrackedRun:
        all_tags = {**process_tags(), **tags, PROCESS: process_name()}
        try:
            experiment = self._experiment(purpose)
            with readable_errors(self.uri):
                run_id = self._client.create_run(experiment, run_name=name, tags=all_tags).info.run_id
        except RefusedError:
            raise
        except TrackingError as error:
            return self._wait(error, f"{WAITING}{tags[TRACKING_ID]}", name, tags, purpose)
        return TrackedRun(self._client, self.uri, run_id, self._link(experiment, run_id), outbox=self.outbox)

    def _wait(
        self, error: TrackingError, waiting_id: str, name: str, tags: Mapping[str, str], purpose: str = EXPERIMENT
    ) -> TrackedRun:
        """Return a run that is kept on the disk until the store is back.

        Raises:
            TrackingError: the store has not been reached before, so that its address may be wrong.
        """
        self._note_failure(error)
        start = {"name": name, "purpose": purpose, "start_time": int(time.time() * 1000)}
        self.outbox.start(waiting_id, {**start, "tags": {**process_tags(), **tags, PROCESS: process_name()}})
        return TrackedRun(None, self.uri, waiting_id, None, outbox=self.outbox)

    def _note_failure(self, error: TrackingError) -> None:
        """Note that the store is away; raise the error if the store was never reached from this output folder."""
        if not self._experiments and not self.outbox.knows_store:
            raise error
        self.outbox.note_failure(error)

    @contextmanager
    def _recorded(self, run: TrackedRun, config: BaseModel) -> Iterator[None]:
        """Log the settings, and the end of the block as the run's status."""
        try:
            run.log_params(config)
            yield
        except BaseException as error:
            run.terminate("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        run.end()

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
        now = int(time.time() * 1000)
        scores = [(key, float(value), now, 0) for key, value in metrics.items() if not math.isnan(value)]
        with TemporaryDirectory() as temporary:
            files = [(plot, "plots" if plot.parent.name == "plots" else f"plots/{plot.parent.name}") for plot in plots]
            if table is not None:
                for symbol, rows in table.groupby("symbol", sort=True):
                    files.append((Path(temporary) / f"{symbol}.csv", "evaluation"))
                    rows.to_csv(files[-1][0], index=False, float_format="%.6g")
            self._write(run_id, RunParts(metrics=scores, files=files))

    def _write(self, run_id: str, parts: RunParts) -> None:
        """Add parts to a run, without scores that it has; keep them on the disk if the store is away."""
        try:
            client = self._client  # delivers what waits for a store that is back
            if not self.outbox.holds(run_id):
                run_id = self.resolve(run_id)
                with readable_errors(self.uri):
                    known = client.get_run(run_id).data.metrics
                    new = [metric for metric in parts.metrics if known.get(metric[0]) != metric[1]]
                    send_parts(client, run_id, replace(parts, metrics=new))
                return
        except RefusedError:
            raise
        except TrackingError as error:
            self._note_failure(error)
        self.outbox.add(run_id, parts)

    def resolve(self, run_id: str) -> str:
        """Return MLflow's id of a run, which may have waited on the disk under an id of its own.

        Raises:
            TrackingError: the store cannot be used, or the run is not there.
        """
        if not run_id.startswith(WAITING):
            return run_id
        tracking_id = run_id.removeprefix(WAITING)
        experiment, client = (
            self._experiment(LEADERBOARDS if tracking_id.startswith(_BOARD) else EXPERIMENT),
            self._client,
        )
        with readable_errors(self.uri):
            run = find_run(client, experiment, tracking_id)
        if run is None:
            raise RefusedError(f"The MLflow store {without_password(self.uri)} has no run {run_id}.")
        return str(run.info.run_id)

    def link(self, run_id: str) -> str | None:
        """Return the address of a run's page; None if the MLflow UI's address is unknown, or the run waits."""
        if not self._ui_address or self.outbox.holds(run_id):
            return None
        try:
            return self._link(self._experiment(EXPERIMENT), self.resolve(run_id))
        except TrackingError:
            return None

    @property
    def _client(self) -> MlflowClient:
        """The store's client; the first use, and the first after a failure, deliver the runs that wait.

        Raises:
            TrackingError: the store cannot be used, or has failed within the last minute.
        """
        if self.outbox.failure is not None:
            raise self.outbox.failure
        if self._opened is None or self.outbox.is_away:
            self._opened = open_store(self.uri)
            self.outbox.note_success()
            self._deliver(self._opened)
        return self._opened

    def _deliver(self, client: MlflowClient) -> None:
        if not self.outbox.runs():
            return
        delivered, refused = deliver(self.outbox, client, self.uri, self._experiment)
        if delivered:
            where = without_password(self.uri)
            self._notes.append(f"{count(delivered, 'run')} that waited delivered to the MLflow store {where}")
        self._notes += refused

    def _experiment(self, purpose: str) -> str:
        if purpose not in self._experiments:
            client = self._client
            with readable_errors(self.uri):
                artifacts = self._artifacts if is_local(self.uri) else None
                experiment = open_experiment(client, artifacts, purpose)
                if not experiment:
                    raise ValueError("it made an experiment without an id")
                end_killed_runs(client, experiment)
            self._experiments[purpose] = experiment
            self.outbox.remember_store()  # it has answered as an MLflow server does
        return self._experiments[purpose]

    def _link(self, experiment: str, run_id: str) -> str | None:
        if not self._ui_address:
            return None
        return f"{self._ui_address.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}{_MODE}"
