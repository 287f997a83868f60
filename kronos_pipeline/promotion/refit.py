"""Refit of a measured model: train the same recipe on all bars, for today's forecasts. No score measures a refit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kronos_pipeline.data.windows import build_windows
from kronos_pipeline.evaluation.forecasting.candidates import Candidate, find_sampling
from kronos_pipeline.promotion.champion import NOT_MEASURED
from kronos_pipeline.promotion.submit import Submission
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.training_runs import TrainingRuns
from kronos_pipeline.training.plan import TrainingJob

if TYPE_CHECKING:
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.tracking.tracked_run import TrackedRun
    from kronos_pipeline.training.publish import TrainingResult
    from kronos_pipeline.training.trainer import KronosTrainer


@dataclass(frozen=True)
class Refit:
    """A registered refit: its version, and the version of the measured model."""

    name: str
    version: int
    refit_of: int

    def sentence(self) -> str:
        """Return one line for users."""
        return f"{self.name} version {self.version}: version {self.refit_of} on all bars, {NOT_MEASURED}"


def refit(
    tracker: Tracker,
    trainer: KronosTrainer,
    measured: Submission,
    adapter: str | None,
    bars: Sequence[Bars],
    tags: Mapping[str, str] | None = None,
) -> Refit:
    """Train a recipe again without a holdout, fit its sampling on the new selection block, and register it.

    Args:
        tracker: the tracker of the training and of the registry.
        trainer: a trainer with the recipe of the measured model.
        measured: the measured model.
        adapter: the adapter's name; None for the checkpoint.
        bars: bars of the tickers that the model serves.
        tags: tags of the MLflow run.

    Raises:
        DataError, SettingsError, ModelError, ArtifactError, TrackingError: see their messages.
    """
    from kronos_pipeline.model.lora import load_trained  # imports torch

    recipe = trainer.recipe
    windows = [build_windows(ticker_bars, recipe, hold_out=False) for ticker_bars in bars]
    ended: list[tuple[TrackedRun, TrainingResult]] = []
    with TrainingRuns(tracker, recipe) as runs:
        trainer.train(
            [TrainingJob(adapter, windows, refit=True)],
            on_start=lambda job: runs.start(job, {**(tags or {}), "measured": "no"}),
            on_end=lambda job, result: ended.append(runs.end(job, result)),
        )
    [(run, result)] = ended
    candidate = Candidate(load_trained(result.folder, trainer.base), result.folder)
    for ticker_windows in windows:
        find_sampling(candidate, ticker_windows, recipe)
    number = Registry(tracker).register_refit(result.folder, measured.name, run.run_id, refit_of=measured.version)
    return Refit(measured.name, number, measured.version)
