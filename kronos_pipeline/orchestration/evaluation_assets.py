"""The evaluation assets: each ticker's holdout metrics, and the leaderboard over all of them."""

# Annotations are not postponed here: Dagster takes that of `context` as it stands, and refuses a text.
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.orchestration.batch import Event, TickerBatch
from kronos_pipeline.orchestration.failures import failures_of
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import evaluation_metadata, mlflow_metadata
from kronos_pipeline.orchestration.resources import PipelineSettings, Tracking


def holdout_metrics(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """How far naive, base, checkpoint and adapter are from a ticker's holdout, on days that none of them has seen.

    Stored as `metrics/<T>.json`, `metrics/<T>.parquet` and `plots/<T>.png`, and added to the training's MLflow run.
    There is no column for a checkpoint or an adapter that does not exist or does not fit this base model and holdout.
    """
    from kronos_pipeline.evaluation.holdout import evaluate_ticker  # imports matplotlib
    from kronos_pipeline.evaluation.tables import evaluation_frame
    from kronos_pipeline.evaluation.tables import holdout_metrics as flat
    from kronos_pipeline.model.loading import load_base, pick_device  # imports torch

    with failures_of("holdout_metrics"):
        recipe, layout = pipeline.recipe("lora"), pipeline.layout
        base = load_base(find_base_model(recipe.model_name, recipe.tokenizer_name), pick_device(recipe.device))
        tracker = tracking.tracker(layout)
        batch = TickerBatch(context)
        for ticker in batch.tickers:
            with batch.ticker(ticker):
                run = _training_run(layout, ticker)
                found = evaluate_ticker(layout, windows[ticker], base, recipe, mlflow_run=run)
                metadata = evaluation_metadata(found.evaluation, found.plot, found.notes)
                if run is not None:
                    table = evaluation_frame(found.evaluation)
                    tracker.log_evaluation(run, flat(found.evaluation), found.plot, table)
                    metadata |= mlflow_metadata(run, tracker.link(run))
                batch.add(ticker, layout.ticker_metrics(ticker), metadata)
        yield from batch.events()


def leaderboard(
    context: dg.AssetExecutionContext, holdout_metrics: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> dg.MaterializeResult:
    """All tickers' holdout metrics in one table; stored as `metrics/evaluation.json` and `metrics/forecasts.parquet`.

    Tickers without metrics are left out and named.
    """
    from kronos_pipeline.evaluation.report import load_ticker_forecasts, save_evaluation
    from kronos_pipeline.evaluation.tables import holdout_metrics as flat

    with failures_of("leaderboard"):
        layout = pipeline.layout
        good, skipped = _measured(holdout_metrics)
        forecasts, manifest = load_ticker_forecasts(layout, good)
        trained = "adapter" if "adapter" in forecasts else "checkpoint"
        evaluation = save_evaluation(layout, forecasts, trained, skipped, manifest)
        metadata = evaluation_metadata(evaluation, None, [])
        if context.job_def.has_node_named("checkpoint") and (run := _mlflow_run(layout.best_checkpoint)):
            # The checkpoint of this run is one training over all tickers, so its row holds the scores over all.
            tracker = tracking.tracker(layout)
            tracker.log_evaluation(run, flat(evaluation))
            metadata |= mlflow_metadata(run, tracker.link(run))
        return dg.MaterializeResult(metadata=metadata)


def _measured(holdout_metrics: TickerArtifacts) -> tuple[list[str], list[dict[str, str]]]:
    """The tickers that have metrics, and why each other one has none."""
    good: list[str] = []
    skipped: list[dict[str, str]] = []
    for ticker in holdout_metrics:
        try:
            holdout_metrics[ticker]
        except ArtifactError as error:
            skipped.append({"symbol": ticker, "reason": str(error)})
        else:
            good.append(ticker)
    return good, skipped


def _training_run(layout: ArtifactLayout, ticker: str) -> str | None:
    """The MLflow run that trained the ticker's adapter, or where there is none the checkpoint.

    Raises:
        ArtifactError: there is neither.
    """
    for folder in (layout.adapter(ticker), layout.best_checkpoint):
        if folder.is_dir():
            return _mlflow_run(folder)
    raise ArtifactError(f"{ticker} has no adapter, and there is no checkpoint; materialise one of them first.")


def _mlflow_run(folder: Path) -> str | None:
    if not (folder / MANIFEST).is_file():
        return None
    run: str | None = read_json(folder / MANIFEST).get("mlflow_run")
    return run
