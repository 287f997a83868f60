"""The training assets: a LoRA adapter per ticker, and a checkpoint over all tickers."""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import KronosError
from kronos_pipeline.orchestration.assets.adapter_by_ticker import record_by_ticker
from kronos_pipeline.orchestration.failures import as_failure, make_failure
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import mlflow_metadata, training_metadata
from kronos_pipeline.orchestration.resources import PipelineSettings, Tracking, run_tags
from kronos_pipeline.orchestration.ticker_batch import Event, TickerBatch, failed_in_run
from kronos_pipeline.pipeline.train import Trained, run_trainings

_TICKERS_IN_MEMORY = 256
"""The largest number of tickers with windows in memory at the same time."""


def adapter(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """A ticker's LoRA adapter on the base model; stored as `adapters/<T>/`.

    Training keeps the weights with the lowest loss on the selection block, and never reads the holdout. The asset
    `adapter/<T>` publishes the same folder.
    """
    from kronos_pipeline.evaluation.forecasting.batching import unwrap
    from kronos_pipeline.training.trainer import KronosTrainer  # imports torch

    with as_failure("adapter"):
        recipe = pipeline.recipe("lora")
        tracker = tracking.tracker(pipeline.layout)
        trainer = KronosTrainer(recipe, pipeline.layout.root, say=context.log.info)
        batch = TickerBatch(context)

        def on_end(ticker: str, ended: Trained | KronosError) -> None:
            with batch.ticker(ticker):
                batch.add(ticker, *_folder_and_metadata(context, unwrap(ended), recipe))

        with trainer.one_run(_requested(context)):
            for first in range(0, len(batch.tickers), _TICKERS_IN_MEMORY):
                loaded = []
                for ticker in batch.tickers[first : first + _TICKERS_IN_MEMORY]:
                    with batch.ticker(ticker):
                        loaded.append(windows[ticker])
                run_trainings(recipe, trainer, tracker, loaded, on_end, partial(run_tags, context))
        record_by_ticker(context, batch.done)
        yield from batch.events()


def checkpoint(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> dg.MaterializeResult[None]:
    """The whole predictor, fine-tuned over all tickers' windows; stored as `checkpoints/best_model/`.

    The metadata names the tickers without windows, which are left out.
    """
    from kronos_pipeline.evaluation.forecasting.batching import unwrap
    from kronos_pipeline.training.trainer import KronosTrainer  # imports torch

    with as_failure("checkpoint"):
        recipe = pipeline.recipe("none")
        tracker = tracking.tracker(pipeline.layout)
        trainer = KronosTrainer(recipe, pipeline.layout.root, say=context.log.info)
        loaded, left_out = _load_windows(context, windows)
        ended: list[Trained | KronosError] = []
        with trainer.one_run(_requested(context)):
            run_trainings(
                recipe, trainer, tracker, loaded, lambda _, end: ended.append(end), lambda _: run_tags(context)
            )
        _, metadata = _folder_and_metadata(context, unwrap(ended[0]), recipe)
        return dg.MaterializeResult(metadata={**metadata, "left out": left_out})


def _requested(context: dg.AssetExecutionContext) -> float | None:
    """Return the time at which the run was asked for: a run that waited meanwhile does not train the same again."""
    record = context.instance.get_run_record_by_id(context.run.run_id)
    return record.create_timestamp.timestamp() if record else None


def _folder_and_metadata(
    context: dg.AssetExecutionContext, trained: Trained, recipe: Recipe
) -> tuple[Path, dict[str, Any]]:
    """Return the published folder of a model and the metadata of its materialisation; warn if it is no better."""
    summary = trained.result.summary
    if summary["note"]:
        name = trained.adapter or "checkpoint"
        context.log.warning(f"{name}: {summary['note']} ({summary['untouched_loss']:.4f} nats).")
    metadata = training_metadata(trained.result, recipe, trained.windows)
    return trained.result.folder, metadata | mlflow_metadata(trained.run_id, trained.run.link)


def _load_windows(
    context: dg.AssetExecutionContext, windows: TickerArtifacts
) -> tuple[list[WindowSet], dict[str, str]]:
    """Load the windows of every ticker, and return them with the reason for each ticker that is left out."""
    loaded: list[WindowSet] = []
    left_out = dict.fromkeys(sorted(failed_in_run(context, context.asset_key)), "failed earlier in this run")
    errors: dict[str, KronosError] = {}
    for ticker in windows:
        if ticker in left_out:
            continue
        try:
            loaded.append(windows[ticker])
        except KronosError as error:
            errors[ticker] = error
    if not loaded:
        raise make_failure("checkpoint", errors)
    return loaded, left_out | {ticker: str(error) for ticker, error in errors.items()}
