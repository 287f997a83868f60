"""Delivery of the runs that waited for an MLflow store that was away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from kronos_pipeline.artifacts import check_folder
from kronos_pipeline.errors import ArtifactError, KronosError
from kronos_pipeline.tracking.outbox import WAITING, Outbox
from kronos_pipeline.tracking.run_parts import LOSSES, logged_steps, send_parts
from kronos_pipeline.tracking.run_record import FORMER_RUN, TRACKING_ID
from kronos_pipeline.tracking.store import EXPERIMENT, LEADERBOARDS
from kronos_pipeline.tracking.store_errors import RefusedError, TrackingError, readable_errors
from kronos_pipeline.tracking.version_store import VersionStore

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def find_run(client: MlflowClient, experiment: str, tracking_id: str) -> Run | None:
    """Return the run with a tracking id, a tag of it; None without a run, or if it was deleted."""
    runs = client.search_runs([experiment], f"tags.{TRACKING_ID} = '{tracking_id}'", max_results=1)
    return runs[0] if runs else None


def deliver(
    outbox: Outbox, client: MlflowClient, uri: str, open_experiment: Callable[[str], str]
) -> tuple[int, list[str]]:
    """Send the runs that wait to a store that works; each is removed from the disk when the store has all of it.

    Args:
        outbox: the runs that wait.
        client: a client of the store.
        uri: the store.
        open_experiment: returns the id of the experiment of a purpose.

    Returns:
        The number of delivered runs, and a sentence for each run that the store refuses, which stays on the disk, and
        for each model that was damaged while it waited, whose run is delivered without it.

    Raises:
        TrackingError: the store is away again; the runs that are not delivered stay.
    """
    delivered, notes = 0, []
    with outbox.exclusive():
        for run_id in outbox.runs():
            try:
                damaged = _deliver_run(outbox, client, uri, open_experiment, run_id)
            except RefusedError as error:
                notes.append(f"{outbox.folder / run_id} cannot be delivered: {error}")
            except TrackingError:
                raise
            except KronosError as error:
                notes.append(f"{outbox.folder / run_id} cannot be delivered: {error}")
            else:
                outbox.remove(run_id)
                delivered += 1
                notes += [damaged] if damaged else []
    return delivered, notes


def _deliver_run(
    outbox: Outbox, client: MlflowClient, uri: str, open_experiment: Callable[[str], str], waiting_id: str
) -> str | None:
    """Deliver a run and its model; return a sentence on a model that was damaged, and is not registered."""
    description, parts, model = outbox.read(waiting_id)
    with readable_errors(uri):
        experiment = open_experiment(LEADERBOARDS if description.get("purpose") == LEADERBOARDS else EXPERIMENT)
        run = _existing(client, experiment, waiting_id)
        if run is None:
            former = {} if waiting_id.startswith(WAITING) else {FORMER_RUN: waiting_id}
            run = client.create_run(
                experiment,
                start_time=description.get("start_time"),
                run_name=description.get("name"),
                tags={**description.get("tags", {}), **former},
            )
        run_id, data = run.info.run_id, run.data
        steps = logged_steps(client, run_id, [name for name in LOSSES if name in data.metrics])
        new = [
            (name, value, time, step)
            for name, value, time, step in parts.metrics
            if (name, step) not in steps and (name in LOSSES or data.metrics.get(name) != value)
        ]
        params = {key: value for key, value in parts.params.items() if key not in data.params}
        send_parts(client, run_id, replace(parts, metrics=new, params=params))
    if model is None:
        return None
    folder, name = model
    try:
        check_folder(folder)
    except ArtifactError as error:
        return f"The model of run {run_id} was damaged while it waited, so {name} has no version of it: {error}"
    VersionStore(uri).add_trained(folder, name, run_id)
    return None


def _existing(client: MlflowClient, experiment: str, waiting_id: str) -> Run | None:
    """Return the run of a waiting run, or None if MLflow has not made it or it was deleted."""
    from mlflow.exceptions import MlflowException

    if waiting_id.startswith(WAITING):
        return find_run(client, experiment, waiting_id.removeprefix(WAITING))
    try:
        run = client.get_run(waiting_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None
