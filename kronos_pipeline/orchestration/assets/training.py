"""The training assets: a LoRA adapter per ticker, and a checkpoint over all tickers."""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import ArtifactError, KronosError
from kronos_pipeline.orchestration.assets.adapter_by_ticker import record_by_ticker
from kronos_pipeline.orchestration.failures import as_failure, make_failure
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import mlflow_metadata, training_metadata
from kronos_pipeline.orchestration.resources import PipelineSettings, Tracking, run_tags
from kronos_pipeline.orchestration.sharing import deliver_artifacts
from kronos_pipeline.orchestration.ticker_batch import Event, TickerBatch, failed_in_run
from kronos_pipeline.orchestration.torchrun import count_processes, run_by_torchrun
from kronos_pipeline.orchestration.training_process import Job
from kronos_pipeline.pipeline.train import Trained, run_trainings

if TYPE_CHECKING:
    from kronos_pipeline.training.publish import TrainingResult

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

    The metadata names the tickers without windows, which are left out. With `nproc_per_node` above 1, torchrun starts
    as many processes, one per GPU, and each takes `batch_size` windows of each step.
    """
    with as_failure("checkpoint"):
        recipe = pipeline.recipe("none")
        processes = count_processes(pipeline.nproc_per_node, recipe)
        loaded, left_out = _load_windows(context, windows)
        if processes == 1:
            metadata = _train_here(context, loaded, pipeline, tracking)
        else:
            metadata = _train_by_torchrun(context, loaded, pipeline, tracking, processes)
        deliver_artifacts("checkpoint", pipeline.layout, [])
        return dg.MaterializeResult(metadata={**metadata, "left out": left_out})


def _train_here(
    context: dg.AssetExecutionContext, windows: list[WindowSet], pipeline: PipelineSettings, tracking: Tracking
) -> dict[str, Any]:
    """Train the checkpoint in this process, and return the metadata of its materialisation."""
    from kronos_pipeline.evaluation.forecasting.batching import unwrap
    from kronos_pipeline.training.trainer import KronosTrainer  # imports torch

    recipe, tracker = pipeline.recipe("none"), tracking.tracker(pipeline.layout)
    trainer = KronosTrainer(recipe, pipeline.layout.root, say=context.log.info)
    ended: list[Trained | KronosError] = []
    with trainer.one_run(_requested(context)):
        run_trainings(recipe, trainer, tracker, windows, lambda _, end: ended.append(end), lambda _: run_tags(context))
    _, metadata = _folder_and_metadata(context, unwrap(ended[0]), recipe)
    return metadata


def _train_by_torchrun(
    context: dg.AssetExecutionContext,
    windows: list[WindowSet],
    pipeline: PipelineSettings,
    tracking: Tracking,
    processes: int,
) -> dict[str, Any]:
    """Train the checkpoint in several processes, and return the metadata of its materialisation."""
    from kronos_pipeline.training.publish import load_result  # imports torch

    recipe, folder = pipeline.recipe("none"), pipeline.layout.best_checkpoint
    job = Job(
        recipe=recipe.model_dump(mode="json"),
        output_dir=str(pipeline.layout.root),
        tickers=[ticker_windows.ticker for ticker_windows in windows],
        requested=_requested(context),
        tracking_uri=tracking.tracking_uri,
        ui_address=tracking.ui_address,
        tags=run_tags(context),
    )
    trained = run_by_torchrun(context, job, processes)
    result = load_result(folder, trained["key"])
    if result is None:
        raise ArtifactError(f"{folder} was replaced or damaged meanwhile; materialise checkpoint again.")
    metadata = _metadata(context, result, recipe, windows)
    return metadata | mlflow_metadata(trained["mlflow_run"], trained["link"]) | {"processes": processes}


def _requested(context: dg.AssetExecutionContext) -> float | None:
    """Return the time at which the run was asked for: a run that waited meanwhile does not train the same again.

    On PostgreSQL it is by the clock of the server, and not of the machine that asked.
    """
    record = context.instance.get_run_record_by_id(context.run.run_id)
    return record.create_timestamp.timestamp() if record else None


def _folder_and_metadata(
    context: dg.AssetExecutionContext, trained: Trained, recipe: Recipe
) -> tuple[Path, dict[str, Any]]:
    """Return the published folder of a model and the metadata of its materialisation."""
    metadata = _metadata(context, trained.result, recipe, trained.windows)
    return trained.result.folder, metadata | mlflow_metadata(trained.run_id, trained.run.link)


def _metadata(
    context: dg.AssetExecutionContext, result: "TrainingResult", recipe: Recipe, windows: Sequence[WindowSet]
) -> dict[str, Any]:
    """Return losses, speed, device and settings of a training; warn if the model is no better than its base."""
    if result.summary["note"]:
        name = result.folder.name if recipe.adapter == "lora" else "checkpoint"
        context.log.warning(f"{name}: {result.summary['note']} ({result.summary['untouched_loss']:.4f} nats).")
    return training_metadata(result, recipe, windows)


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
