"""Adapters that are asked for at once, and what the trainer makes of each before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.training.checkpoint import TrainingState
from kronos_pipeline.training.trainer_state import Listener


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


@dataclass(frozen=True)
class Prepared:
    """One training whose windows are fit.

    Attributes:
        target: the folder that it publishes.
        state: what is resumed of it.
        windows: those that it may read.
        listener, mlflow_run: as in `AdapterJob`.
    """

    target: Path
    state: TrainingState
    windows: Sequence[WindowSet]
    listener: Listener | None = None
    mlflow_run: str | None = None

    def count(self, split: str) -> int:
        """Windows of a split."""
        return sum(one.counts()[split] for one in self.windows)
