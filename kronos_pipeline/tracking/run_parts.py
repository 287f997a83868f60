"""Parts of an MLflow run as plain data, and their sending: at once, or later from the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

LOSSES = ("epoch", "train_loss", "selection_loss", "learning_rate", "windows_per_second")
"""Metrics that a training logs by step."""
_METRICS_PER_REQUEST = 1000
_PER_REQUEST = 100
"""Parameters or tags of a request."""


@dataclass(frozen=True)
class RunParts:
    """What is added to a run.

    Attributes:
        params: parameters by name.
        tags: tags by name.
        metrics: name, value, time (milliseconds since 1970) and step of each measurement.
        datasets: see `plain_datasets`.
        files: files, each with its folder among the artifacts; "" for the top.
        status: the final status of the run, or None.
        end_time: time of the end, in milliseconds since 1970.
    """

    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[tuple[str, float, int, int]] = ()
    datasets: Sequence[Mapping[str, Any]] = ()
    files: Sequence[tuple[Path, str]] = ()
    status: str | None = None
    end_time: int | None = None


def plain_datasets(inputs: Iterable[DatasetInput]) -> list[dict[str, Any]]:
    """Return the datasets of a run as plain data."""
    return [{**vars_of(one.dataset), "tags": {tag.key: tag.value for tag in one.tags}} for one in inputs]


def vars_of(dataset: Any) -> dict[str, Any]:
    """Return the fields of an MLflow dataset."""
    names = ("name", "digest", "source_type", "source", "schema", "profile")
    return {name: getattr(dataset, name) for name in names}


def send_parts(client: MlflowClient, run_id: str, parts: RunParts) -> None:
    """Add parts to a run, in as few requests as MLflow allows; a repetition changes nothing but adds measurements."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    params, tags, metrics = list(parts.params.items()), list(parts.tags.items()), list(parts.metrics)
    for first in range(0, max(len(params), len(tags)), _PER_REQUEST):
        chosen = slice(first, first + _PER_REQUEST)
        client.log_batch(
            run_id,
            params=[Param(key, value) for key, value in params[chosen]],
            tags=[RunTag(key, value) for key, value in tags[chosen]],
        )
    for first in range(0, len(metrics), _METRICS_PER_REQUEST):
        client.log_batch(run_id, [Metric(*metric) for metric in metrics[first : first + _METRICS_PER_REQUEST]])
    if parts.datasets:
        inputs = [
            DatasetInput(
                Dataset(**{key: value for key, value in one.items() if key != "tags"}),
                [InputTag(key, value) for key, value in one["tags"].items()],
            )
            for one in parts.datasets
        ]
        client.log_inputs(run_id, inputs)
    for path, folder in parts.files:
        client.log_artifact(run_id, str(path), folder or None)
    if parts.status is not None:
        client.set_terminated(run_id, parts.status, parts.end_time)


def logged_steps(client: MlflowClient, run_id: str, names: Iterable[str]) -> set[tuple[str, int]]:
    """Return the names and steps of the measurements that a run has, of some metrics."""
    return {(name, metric.step) for name in names for metric in client.get_metric_history(run_id, name)}
