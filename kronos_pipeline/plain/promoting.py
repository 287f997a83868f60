"""What comes after the verdict: versions in the registry, the gate, and the refit on all bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kronos_pipeline.plain.reading import Tickers

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.plain.training import Trained
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
    from kronos_pipeline.tracking.refits import refit
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
            bars = [windows.bars for windows in one.windows]
            print(refit(tracker, trainer, found, one.adapter, bars).sentence())
