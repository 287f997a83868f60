"""Register trained models, submit them to the gate, refit on all bars, and count the recipes that were tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kronos_pipeline.errors import KronosError, enumerate_some
from kronos_pipeline.pipeline.ingest import Tickers
from kronos_pipeline.training.progress import step

if TYPE_CHECKING:
    import pandas as pd

    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.pipeline.train import Trained
    from kronos_pipeline.promotion.submit import Submission
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.trainer import KronosTrainer


def promote_all(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    tickers: Tickers,
    trained: Sequence[Trained],
) -> list[Submission]:
    """Register each trained model, submit it to the gate, refit if the settings ask for it, and return the decisions.

    A failure of one model is reported and does not stop the others.

    Raises:
        TrackingError: the registry cannot be used.
    """
    from kronos_pipeline.tracking.store import TrackingError

    submissions: list[Submission] = []
    for number, model in enumerate(trained, 1):
        step(f"registering model {number} of {len(trained)}")
        try:
            submissions.append(_promote(config, trainer, tracker, len(tickers.windows), model))
        except TrackingError:
            raise
        except KronosError as error:
            name = model.adapter or "checkpoint"
            if name not in tickers.skipped:  # otherwise this error follows from an error already reported
                tickers.skip(name, error)
    return submissions


def count_recipes(config: KronosTrainingConfig, tracker: Tracker, predictions: pd.DataFrame) -> None:
    """Count the recipe of a backtest for each registered model that it is for, and print its place.

    Without a registry the backtest is as good, so a line says that the recipe was not counted.

    Args:
        config: the settings of the backtest.
        tracker: the tracker of the registry.
        predictions: the predictions of the backtest.
    """
    from kronos_pipeline.promotion.recipes import count_recipe
    from kronos_pipeline.tracking.registry import Registry, registered_name
    from kronos_pipeline.tracking.store import TrackingError

    registry, settings = Registry(tracker), config.recipe.model_dump(mode="json")
    if config.adapter == "none" or config.adapter_name:
        tables = {registered_name(None if config.adapter == "none" else config.adapter_name): predictions}
    else:
        tables = {registered_name(str(ticker)): rows for ticker, rows in predictions.groupby("unique_id")}
    names: dict[str, list[str]] = {}
    try:
        for name, rows in tables.items():
            names.setdefault(str(count_recipe(registry, name, settings, rows)), []).append(name)
    except TrackingError as error:
        print(f"the recipe was not counted: {error}")
    for place, counted in names.items():
        print(f"{enumerate_some(counted)}: {place}")


def _promote(
    config: KronosTrainingConfig, trainer: KronosTrainer, tracker: Tracker, tickers_tested: int, trained: Trained
) -> Submission:
    from kronos_pipeline.promotion.refit import refit
    from kronos_pipeline.promotion.submit import TrainedModel, submit
    from kronos_pipeline.tracking.registry import Registry

    submission = submit(
        Registry(tracker),
        trainer.layout,
        TrainedModel(trained.adapter, trained.tickers, trained.run_id),
        config.recipe,
        tickers_tested=tickers_tested,
    )
    if config.refit_all:
        bars = [windows.bars for windows in trained.windows]
        print(refit(tracker, trainer, submission, trained.adapter, bars).sentence())
    return submission
