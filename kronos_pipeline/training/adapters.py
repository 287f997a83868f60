"""Adapters that are asked for at once: what each is to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.training.course import Listener


@dataclass(frozen=True)
class AdapterJob:
    """One adapter that is to be trained.

    Attributes:
        name: the adapter's name; it is published as `adapters/<name>`.
        windows: those of one ticker, or of all that the adapter is to cover.
        root: folder for its artifacts and state; by default the trainer's.
        listener: told the losses as they are read.
        mlflow_run: id of the MLflow run that records this training, for the manifest.
    """

    name: str
    windows: Sequence[WindowSet]
    root: Path | None = None
    listener: Listener | None = None
    mlflow_run: str | None = None
