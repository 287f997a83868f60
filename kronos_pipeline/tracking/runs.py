"""MLflow runs, one per training, and later its holdout metrics; the leaderboard as a run.

Every call passes the run's id to a client. MLflow's global "active run" would leak between the trainings and threads of
a process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import BaseModel

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.tracking.run_page import KIND, process_tags, run_name
from kronos_pipeline.tracking.run_record import (
    FORMER_RUN,
    PROCESS,
    TRAINING_ID,
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
    readable_errors,
    without_password,
)
from kronos_pipeline.tracking.tracked_run import TrackedRun, end_killed_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient


_BOARD_KEY = "leaderboard_key"
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
        run = (record and self._find_run(record, state)) or self._start_run(record, state, name, tags)
        with self._recorded(run, config):
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
        own_tags = {**process_tags(), **(tags or {}), KIND: "leaderboard", _BOARD_KEY: board.key}
        run = self._create_run(experiment, run_name("leaderboard", board.subject), own_tags)
        with self._recorded(run, config):
            self.log_evaluation(run.run_id, board.metrics, board.plots, board.table)
        return run

    def _find_run(self, record: RunRecord, state: Path | None) -> TrackedRun | None:
        """Return the run of a training that is resumed, open again; None if the run is gone."""
        experiment, client = self._experiment(EXPERIMENT), self._client
        if record.store != without_password(self.uri):
            return None
        with readable_errors(self.uri):
            runs = client.search_runs([experiment], f"tags.{TRAINING_ID} = '{record.training_id}'", max_results=1)
        if not runs:
            return None
        if state is not None:
            write_record(state, replace(record, run_id=runs[0].info.run_id, process=process_name()))
        info = runs[0].info
        run = TrackedRun(client, self.uri, info.run_id, self._link(experiment, info.run_id), runs[0])
        run.reopen()
        return run

    def _start_run(
        self, former: RunRecord | None, state: Path | None, name: str, tags: Mapping[str, str] | None
    ) -> TrackedRun:
        """Start the run of a training, and keep its id with the state; a tag names the former run, which is gone."""
        former_run = {FORMER_RUN: former.run_id} if former and former.run_id else {}
        record = new_record(without_password(self.uri))
        if state is not None:
            write_record(state, record)  # before the run is made, so that a kill between the two leaves no second run
        own_tags = {**process_tags(), **(tags or {}), **former_run, TRAINING_ID: record.training_id}
        run = self._create_run(self._experiment(EXPERIMENT), name, own_tags)
        if state is not None:
            write_record(state, replace(record, run_id=run.run_id))
        return run

    def _create_run(self, experiment: str, name: str, tags: Mapping[str, str]) -> TrackedRun:
        with readable_errors(self.uri):
            all_tags = {**tags, PROCESS: process_name()}
            run_id = self._client.create_run(experiment, run_name=name, tags=all_tags).info.run_id
            if not run_id:
                raise ValueError("it made a run without an id")
        return TrackedRun(self._client, self.uri, run_id, self._link(experiment, run_id))

    @contextmanager
    def _recorded(self, run: TrackedRun, config: BaseModel) -> Iterator[None]:
        """Log the settings, and the end of the block as the run's status."""
        try:
            run.log_params(config)
            yield
            run.send()
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
        with readable_errors(self.uri):
            known = self._client.get_run(run_id).data.metrics
        run = TrackedRun(self._client, self.uri, run_id, None)
        run.on_log(0, {key: value for key, value in metrics.items() if known.get(key) != value})
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
                end_killed_runs(client, self._experiments[purpose])
        return self._experiments[purpose]

    def _link(self, experiment: str, run_id: str) -> str | None:
        if not self._ui_address:
            return None
        return f"{self._ui_address.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}{_MODE}"
