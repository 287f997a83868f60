"""What comes after the verdict: versions in the registry, the gate, and the refit on all bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kronos_pipeline.plain.reading import Tickers

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.data.windows import WindowSet
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
    from kronos_pipeline.plain.training import train_one
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
            again = train_one(config, trainer, tracker, one.adapter, _on_all_bars(config, one), refit=True)
            number = registry.register_refit(again.result.folder, found.name, again.run_id, refit_of=found.version)
            print(f"{found.name} version {number}: version {found.version} on all bars, not itself measured")


def _on_all_bars(config: KronosTrainingConfig, trained: Trained) -> list[WindowSet]:
    from kronos_pipeline.data.windows import build_windows

    return [build_windows(one.bars, config.recipe, hold_out=False) for one in trained.windows]
