"""The training assets: a LoRA adapter per ticker, and a checkpoint over all tickers."""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from collections.abc import Iterator

import dagster as dg

from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import KronosError
from kronos_pipeline.orchestration.batch import Event, TickerBatch, failed_in_run
from kronos_pipeline.orchestration.failures import as_failure, make_failure
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import mlflow_metadata, training_metadata
from kronos_pipeline.orchestration.resources import PipelineSettings, Tracking, run_tags

_TICKERS_IN_MEMORY = 256
"""The largest number of tickers with windows in memory at the same time."""


def adapter(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """A ticker's LoRA adapter on the base model; stored as `adapters/<T>/`.

    Training keeps the weights with the lowest loss on the selection block, and never reads the holdout. The asset
    `adapter/<T>` publishes the same folder.
    """
    from kronos_pipeline.tracking.runs import TrainingRuns
    from kronos_pipeline.training.publish import TrainingResult
    from kronos_pipeline.training.single import AdapterJob  # imports torch
    from kronos_pipeline.training.trainer import KronosTrainer

    with as_failure("adapter"):
        recipe = pipeline.recipe("lora")
        tracker = tracking.tracker(pipeline.layout)
        trainer = KronosTrainer(recipe, pipeline.layout.root, say=context.log.info)
        batch = TickerBatch(context)
        with trainer.one_run(), TrainingRuns(tracker, recipe) as runs:

            def on_start(job: AdapterJob) -> AdapterJob:
                return runs.start(job, run_tags(context, job.name))

            def on_end(job: AdapterJob, ended: TrainingResult | KronosError) -> None:
                with batch.ticker(job.name):
                    run, result = runs.end(job, ended)
                    metadata = training_metadata(result, recipe, job.windows)
                    batch.add(job.name, result.folder, metadata | mlflow_metadata(run.run_id, run.link))

            for first in range(0, len(batch.tickers), _TICKERS_IN_MEMORY):
                jobs = []
                for ticker in batch.tickers[first : first + _TICKERS_IN_MEMORY]:
                    with batch.ticker(ticker):
                        jobs.append(AdapterJob(ticker, [windows[ticker]]))
                trainer.train_adapters(jobs, on_start=on_start, on_end=on_end)
        yield from batch.events()


def checkpoint(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> dg.MaterializeResult:
    """The whole predictor, fine-tuned over all tickers' windows; stored as `checkpoints/best_model/`.

    The metadata names the tickers without windows, which are left out.
    """
    from kronos_pipeline.training.trainer import KronosTrainer  # imports torch

    with as_failure("checkpoint"):
        recipe = pipeline.recipe("none")
        tracker = tracking.tracker(pipeline.layout)
        trainer = KronosTrainer(recipe, pipeline.layout.root, say=context.log.info)
        loaded, left_out = _load_windows(context, windows)
        with tracker.training_run("checkpoint", recipe, run_tags(context)) as run:
            result = trainer.train_checkpoint(loaded, listener=run, mlflow_run=run.run_id)
            run.finish(result.summary, result.history, result.folder)
        metadata = training_metadata(result, recipe, loaded) | mlflow_metadata(run.run_id, run.link)
        return dg.MaterializeResult(metadata=metadata | {"left out": left_out})


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
