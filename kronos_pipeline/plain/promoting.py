"""What comes after the verdict: versions in the registry, the gate, and the refit on all bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kronos_pipeline.plain.reading import Tickers

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.plain.training import Trained
    from kronos_pipeline.tracking.promotion import Submission
    from kronos_pipeline.tracking.registry import Registry
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.trainer import KronosTrainer


def promote_all(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    tickers: Tickers,
    trained: Sequence[Trained],
) -> None:
    """Register what was trained, let the gate decide, say what it decided, and refit where that is asked for."""
    from kronos_pipeline.tracking.promotion import submit
    from kronos_pipeline.tracking.registry import Registry

    registry = Registry(tracker)
    for one in trained:
        found = submit(
            registry,
            trainer.layout,
            one.adapter,
            one.tickers,
            one.run_id,
            config.recipe,
            tickers_tested=len(tickers.windows),
        )
        print(found.sentence())
        if config.refit_all:
            _refit(config, trainer, tracker, registry, one, found)


def _refit(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    registry: Registry,
    measured: Trained,
    submission: Submission,
) -> None:
    """Train what was measured once more, on all bars, and register it as its refit."""
    from kronos_pipeline.data.windows import build_windows
    from kronos_pipeline.evaluation.candidates import Candidate, sampling_of
    from kronos_pipeline.plain.training import train_one
    from kronos_pipeline.tracking.choice import load_trained

    windows = [build_windows(one.bars, config.recipe, hold_out=False) for one in measured.windows]
    again = train_one(config, trainer, tracker, measured.adapter, windows, refit=True)
    folder = again.result.folder
    candidate = Candidate(load_trained(folder, trainer.base), folder)
    for one in windows:
        sampling_of(candidate, one, config.recipe)
    number = registry.register_refit(folder, submission.name, again.run_id, refit_of=submission.version)
    print(f"{submission.name} version {number}: version {submission.version} on all bars, not itself measured")
