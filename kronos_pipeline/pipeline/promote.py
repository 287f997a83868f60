"""What comes after the verdict: versions in the registry, the gate, and the refit on all bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kronos_pipeline.errors import KronosError
from kronos_pipeline.pipeline.ingest import Tickers

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.pipeline.train import Trained
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.trainer import KronosTrainer


def promote_all(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    tickers: Tickers,
    trained: Sequence[Trained],
) -> None:
    """Register what was trained, let the gate decide, say what it decided, and refit where that is asked for.

    One that fails is named, and the others stand before the gate all the same.

    Raises:
        TrackingError: the registry cannot be used, for any of them.
    """
    from kronos_pipeline.tracking.store import TrackingError

    for one in trained:
        try:
            _promote(config, trainer, tracker, len(tickers.windows), one)
        except TrackingError:
            raise
        except KronosError as error:
            name = one.adapter or "checkpoint"
            if name not in tickers.skipped:  # else what failed before has been told, and this follows from it
                tickers.skip(name, error)


def _promote(
    config: KronosTrainingConfig, trainer: KronosTrainer, tracker: Tracker, tickers_tested: int, trained: Trained
) -> None:
    from kronos_pipeline.promotion.refit import refit
    from kronos_pipeline.promotion.submit import submit
    from kronos_pipeline.tracking.registry import Registry

    found = submit(
        Registry(tracker),
        trainer.layout,
        trained.adapter,
        trained.tickers,
        trained.run_id,
        config.recipe,
        tickers_tested=tickers_tested,
    )
    print(found.sentence())
    if config.refit_all:
        bars = [windows.bars for windows in trained.windows]
        print(refit(tracker, trainer, found, trained.adapter, bars).sentence())
