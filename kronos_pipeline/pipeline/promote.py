"""Register trained models, submit them to the gate, refit on all bars, and count the recipes that were tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kronos_pipeline.errors import KronosError, enumerate_some
from kronos_pipeline.pipeline.ingest import Tickers
from kronos_pipeline.training.progress import step

if TYPE_CHECKING:
    import pandas as pd

    from kronos_pipeline.artifacts import ArtifactLayout
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

    A failure of one model is reported and does not stop the others. While a server with the registry is away, the
    models wait, and `deliver_waiting` submits them later.

    Raises:
        TrackingError: the registry cannot be used.
    """
    from kronos_pipeline.tracking.store import TrackingError, is_sqlite
    from kronos_pipeline.tracking.store_errors import RefusedError

    submissions: list[Submission] = []
    for number, model in enumerate(trained, 1):
        step(f"registering model {number} of {len(trained)}")
        try:
            submissions.append(_promote(config, trainer, tracker, len(tickers.windows), model))
        except RefusedError as error:
            tickers.skip(model.adapter or "checkpoint", error)
        except TrackingError as error:
            if is_sqlite(tracker.uri):
                raise
            remaining = trained[number - 1 :]
            _keep_for_gate(config, tracker, len(tickers.windows), remaining)
            names = enumerate_some([model.adapter or "checkpoint" for model in remaining])
            print(f"{error}\nThe gate decides on {names} when the registry is back: the next command submits them.")
            break
        except KronosError as error:
            name = model.adapter or "checkpoint"
            if name not in tickers.skipped:  # otherwise this error follows from an error already reported
                tickers.skip(name, error)
    return submissions


def deliver_waiting(tracker: Tracker, layout: ArtifactLayout) -> list[str]:
    """Deliver the runs that waited for MLflow's store, let the gate decide on the models that waited for it.

    Returns:
        A line on what was delivered and decided, and a line on what waits still.
    """
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.promotion.submit import TrainedModel, decision_lines, submit
    from kronos_pipeline.tracking.registry import Registry
    from kronos_pipeline.tracking.store import TrackingError
    from kronos_pipeline.tracking.store_errors import RefusedError

    lines, submissions = tracker.deliver(), []
    waiting = tracker.outbox.sentence()
    for name, kept in ({} if waiting else tracker.outbox.submissions()).items():
        try:
            model = TrainedModel(kept["adapter"], kept["tickers"], tracker.resolve(kept["run_id"]))
            recipe, tested = Recipe.model_validate(kept["recipe"]), int(kept["tickers_tested"])
            submissions.append(submit(Registry(tracker), layout, model, recipe, tickers_tested=tested))
        except RefusedError as error:
            lines.append(f"{name} is not submitted: {error}")
        except TrackingError as error:
            return [*lines, *decision_lines(submissions), f"{error} The gate decides on {name} when it is back."]
        except (KronosError, KeyError, ValueError) as error:
            lines.append(f"{name} is not submitted: {error}")
        tracker.outbox.remove_submission(name)
    return [*lines, *decision_lines(submissions), *([waiting] if waiting else [])]


def _keep_for_gate(
    config: KronosTrainingConfig, tracker: Tracker, tickers_tested: int, trained: Sequence[Trained]
) -> None:
    from kronos_pipeline.tracking.registry import registered_name

    for model in trained:
        submission = {
            "adapter": model.adapter,
            "tickers": model.tickers,
            "run_id": model.run_id,
            "recipe": config.recipe.model_dump(mode="json"),
            "tickers_tested": tickers_tested,
        }
        tracker.outbox.add_submission(registered_name(model.adapter), submission)


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
