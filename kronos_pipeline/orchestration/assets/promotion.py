"""The promotion assets: trained models become registered versions, and the gate decides which become champion."""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from kronos_pipeline.artifacts import MANIFEST, mlflow_run_of, read_json
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.orchestration.assets.evaluation import measure
from kronos_pipeline.orchestration.failures import as_failure, make_failure
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import OBSTACLES, SUMMARY, bullets, mlflow_metadata
from kronos_pipeline.orchestration.partitions import tickers_tested
from kronos_pipeline.orchestration.resources import PipelineSettings, Tracking, run_tags
from kronos_pipeline.orchestration.ticker_batch import Event, TickerBatch

if TYPE_CHECKING:
    from kronos_pipeline.evaluation.scoring.gate import Decision
    from kronos_pipeline.promotion.submit import Submission


def champion(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """The gate's decisions on a ticker's adapter, which becomes a version of the registered model `kronos-<T>`.

    The adapter becomes champion of mean, distribution or volatility if it is better than all rivals on it, and not
    worse than its present champion. The evidence is the backtest if it is of this recipe and these bars, else the
    holdout. With `refit_all` the same recipe is trained once more on all bars, for forecasts.
    """
    from kronos_pipeline.promotion.submit import TrainedModel, evaluated_run, submit
    from kronos_pipeline.tracking.registry import Registry

    with as_failure("champion"):
        recipe, layout = pipeline.recipe("lora"), pipeline.layout
        tracker = tracking.tracker(layout)
        registry, tested = Registry(tracker), tickers_tested(context)
        batch = TickerBatch(context)
        for ticker in batch.tickers:
            with batch.ticker(ticker):
                run = evaluated_run(layout, ticker)
                model = TrainedModel(ticker, [ticker], run)
                submission = submit(registry, layout, model, recipe, tickers_tested=tested)
                metadata = _decision_metadata(submission) | mlflow_metadata(run, tracker.link(run))
                if recipe.refit_all:
                    metadata |= _refit(context, submission, ticker, [windows[ticker]], pipeline, tracking)
                batch.add(ticker, submission.version, metadata)
        yield from batch.events()


def checkpoint_champion(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> dg.MaterializeResult[None]:
    """The gate's decisions on the checkpoint, which becomes a version of the registered model `kronos-all`.

    The rule is that of `champion`. Tickers whose holdout metrics are older than the checkpoint are measured first, and
    record their `holdout_metrics`; the metadata names the tickers that cannot be measured.
    """
    from kronos_pipeline.promotion.submit import TrainedModel, submit
    from kronos_pipeline.tracking.registry import Registry

    with as_failure("checkpoint_champion"):
        recipe, layout = pipeline.recipe("none"), pipeline.layout
        tracker = tracking.tracker(layout)
        run = mlflow_run_of(layout.best_checkpoint)
        if run is None:
            raise ArtifactError("There is no checkpoint with an MLflow run; materialise checkpoint first.")
        tickers = sorted(set(read_json(layout.best_checkpoint / MANIFEST)["data"]) & set(windows))
        measured = _measured_since_checkpoint(context, tickers)
        if older := [ticker for ticker in tickers if ticker not in measured]:
            batch = TickerBatch(context, older)
            measure(context, batch, windows, pipeline, tracking, len(windows))
            for event in batch.materialisations(dg.AssetKey("holdout_metrics")):
                context.log_event(event)
            measured = [ticker for ticker in tickers if ticker in measured or ticker in batch.done]
            if not measured:
                raise make_failure("checkpoint_champion", batch.errors)
        model = TrainedModel(None, measured, run)
        submission = submit(Registry(tracker), layout, model, recipe, tickers_tested=1)
        metadata = _decision_metadata(submission) | mlflow_metadata(run, tracker.link(run))
        if recipe.refit_all:
            metadata |= _refit(context, submission, None, [windows[ticker] for ticker in tickers], pipeline, tracking)
        left_out = [ticker for ticker in tickers if ticker not in measured]
        return dg.MaterializeResult(metadata=metadata | {"not measured since": ", ".join(left_out) or "none"})


def _measured_since_checkpoint(context: dg.AssetExecutionContext, tickers: list[str]) -> list[str]:
    """Return the tickers with holdout metrics newer than the checkpoint."""
    records = context.instance.fetch_materializations(dg.AssetKey("checkpoint"), limit=1).records
    newest = context.instance.get_latest_storage_id_by_partition(
        dg.AssetKey("holdout_metrics"), dg.DagsterEventType.ASSET_MATERIALIZATION, set(tickers)
    )
    return [ticker for ticker in tickers if records and newest.get(ticker, -1) > records[0].storage_id]


def _decision_metadata(submission: "Submission") -> dict[str, Any]:
    from kronos_pipeline.errors import join

    metadata: dict[str, Any] = {
        SUMMARY: submission.sentence(),
        "promoted": bool(submission.promoted),
        "champion of": join(submission.promoted) or "nothing",
        OBSTACLES: submission.obstacles or "nothing",
        **{
            target: dg.MetadataValue.md(bullets(_comparisons(decision)) or "nothing")
            for target, decision in submission.decisions.items()
        },
        "gate": next(iter(submission.decisions.values())).gate,
        "evidence": submission.source,
        "recipe": str(submission.tried),
        "registered model": submission.name,
        "version": submission.version,
    }
    return metadata | ({"as served": str(submission.served)} if submission.served else {})


def _comparisons(decision: "Decision") -> list[str]:
    return [
        f"{rival}: {comparison.verdict}" + (f", {comparison.reason}" if comparison.reason else "")
        for rival, comparison in decision.comparisons.items()
    ]


def _refit(
    context: dg.AssetExecutionContext,
    submission: "Submission",
    adapter: str | None,
    windows: list[WindowSet],
    pipeline: PipelineSettings,
    tracking: Tracking,
) -> dict[str, Any]:
    """Train the recipe of a submitted model once more, on all bars, and register the result as its refit."""
    from kronos_pipeline.promotion.refit import refit
    from kronos_pipeline.training.trainer import KronosTrainer  # imports torch

    recipe, tracker = pipeline.recipe("none" if adapter is None else "lora"), tracking.tracker(pipeline.layout)
    trainer = KronosTrainer(recipe, pipeline.layout.root, say=context.log.info)
    bars = [ticker_windows.bars for ticker_windows in windows]
    return {"refit": refit(tracker, trainer, submission, adapter, bars, run_tags(context, adapter)).sentence()}
