"""The training assets: an adapter per ticker, and one checkpoint over all tickers."""

# Annotations are not postponed here: Dagster takes that of `context` as it stands, and refuses a text.
from collections.abc import Iterator

import dagster as dg

from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import KronosError
from kronos_pipeline.orchestration.batch import Event, TickerBatch, failed_in_run
from kronos_pipeline.orchestration.failures import failures_of, make_failure
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import mlflow_metadata, training_metadata
from kronos_pipeline.orchestration.resources import PipelineSettings, Tracking, run_tags

_AT_ONCE = 256
"""Tickers whose windows are in memory at the same time."""


def adapter(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """A ticker's LoRA adapter on the base model; stored as `adapters/<T>/`.

    The best weights by the selection block are kept; the holdout is never read. `adapter/<T>` is the same folder.
    """
    from kronos_pipeline.tracking.runs import TrainingRuns
    from kronos_pipeline.training.publish import TrainingResult
    from kronos_pipeline.training.single import AdapterJob  # imports torch
    from kronos_pipeline.training.trainer import KronosTrainer

    with failures_of("adapter"):
        recipe = pipeline.recipe("lora")
        tracker = tracking.tracker(pipeline.layout)
        trainer = KronosTrainer(recipe, pipeline.layout.root, say=context.log.info)
        batch = TickerBatch(context)
        with trainer.one_run(), TrainingRuns(tracker, recipe) as runs:

            def begin(job: AdapterJob) -> AdapterJob:
                return runs.start(job, run_tags(context, job.name))

            def done(job: AdapterJob, ended: TrainingResult | KronosError) -> None:
                with batch.ticker(job.name):
                    run, result = runs.end(job, ended)
                    metadata = training_metadata(result, recipe, job.windows)
                    batch.add(job.name, result.folder, metadata | mlflow_metadata(run.run_id, run.link))

            for first in range(0, len(batch.tickers), _AT_ONCE):
                jobs = []
                for ticker in batch.tickers[first : first + _AT_ONCE]:
                    with batch.ticker(ticker):
                        jobs.append(AdapterJob(ticker, [windows[ticker]]))
                trainer.train_adapters(jobs, begin=begin, done=done)
        yield from batch.events()


def checkpoint(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> dg.MaterializeResult:
    """The whole predictor, fine-tuned over all tickers' windows; stored as `checkpoints/best_model/`.

    Tickers without windows are left out and named.
    """
    from kronos_pipeline.training.trainer import KronosTrainer  # imports torch

    with failures_of("checkpoint"):
        recipe = pipeline.recipe("none")
        tracker = tracking.tracker(pipeline.layout)
        trainer = KronosTrainer(recipe, pipeline.layout.root, say=context.log.info)
        good, left_out = _load_all(context, windows)
        with tracker.training_run("checkpoint", recipe, run_tags(context)) as run:
            result = trainer.train_checkpoint(good, listener=run, mlflow_run=run.run_id)
            run.finish(result.summary, result.history, result.folder)
        metadata = training_metadata(result, recipe, good) | mlflow_metadata(run.run_id, run.link)
        return dg.MaterializeResult(metadata=metadata | {"left out": left_out})


def _load_all(context: dg.AssetExecutionContext, windows: TickerArtifacts) -> tuple[list[WindowSet], dict[str, str]]:
    """The windows of every ticker that has them, and why each other one is left out."""
    good: list[WindowSet] = []
    left_out = dict.fromkeys(sorted(failed_in_run(context, context.asset_key)), "failed earlier in this run")
    errors: dict[str, KronosError] = {}
    for ticker in windows:
        if ticker in left_out:
            continue
        try:
            good.append(windows[ticker])
        except KronosError as error:
            errors[ticker] = error
    if not good:
        raise make_failure("checkpoint", errors)
    return good, left_out | {ticker: str(error) for ticker, error in errors.items()}
