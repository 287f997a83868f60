"""The evaluation assets: each ticker's holdout metrics and backtest, and the leaderboard over all of them."""

# Annotations are not postponed here: Dagster takes that of `context` as it stands, and refuses a text.
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from kronos_pipeline.artifacts import ArtifactLayout, mlflow_run_of, read_json
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.errors import ArtifactError, KronosError
from kronos_pipeline.orchestration.batch import Event, TickerBatch
from kronos_pipeline.orchestration.failures import failures_of
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import evaluation_metadata, mlflow_metadata
from kronos_pipeline.orchestration.partitions import tickers_tested
from kronos_pipeline.orchestration.resources import (
    PipelineSettings,
    Tracking,
    load_base_model,
    run_tags,
    training_run,
)

if TYPE_CHECKING:
    from kronos_pipeline.model.loading import KronosModel
    from kronos_pipeline.training.progress import Say

_BACKTESTS_AT_ONCE = 32
"""Tickers whose folds are held in memory together."""


def holdout_metrics(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """How far each model is from a ticker's holdout, on days that none of them has seen, and the verdict.

    Stored as `metrics/<T>.json`, `metrics/<T>.parquet` and `plots/<T>*`, and added to the training's MLflow run.
    Compared are the last close, its drift, the week before, a random walk, base, checkpoint and adapter; a checkpoint
    or an adapter that does not exist or does not fit this base model and holdout is left out.
    """
    from kronos_pipeline.evaluation.forecasting.batching import unwrap
    from kronos_pipeline.evaluation.holdout import evaluate_tickers  # imports matplotlib
    from kronos_pipeline.evaluation.reports.tables import evaluation_frame, flat_metrics

    with failures_of("holdout_metrics"):
        recipe, layout = pipeline.recipe("lora"), pipeline.layout
        base = load_base_model(recipe)
        tracker = tracking.tracker(layout)
        batch = TickerBatch(context)
        runs: dict[str, str | None] = {}
        for ticker in batch.tickers:
            with batch.ticker(ticker):
                runs[ticker] = training_run(layout, ticker)
        tested = tickers_tested(context)
        for ticker, one in evaluate_tickers(layout, windows, runs, base, recipe, tickers_tested=tested):
            with batch.ticker(ticker):
                found, run = unwrap(one), runs[ticker]
                metadata = evaluation_metadata(found.evaluation, plots=found.plots, notes=found.notes)
                if run is not None:
                    plots, table = list(found.plots.values()), evaluation_frame(found.evaluation)
                    tracker.log_evaluation(run, flat_metrics(found.evaluation), plots, table)
                    metadata |= mlflow_metadata(run, tracker.link(run))
                batch.add(ticker, layout.ticker_metrics(ticker), metadata)
        yield from batch.events()


def backtest(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings
) -> Iterator[Event]:
    """What the recipe would have been worth at a ticker: trained anew before each of several cutoffs, and scored on the
    bars after each, with the verdict.

    Stored as `backtest/adapter/<T>.*`. It costs as many trainings as there are cutoffs, 12 unless `backtest_origins`
    says, or fewer with `backtest_refit_every`. A run that was killed goes on where it was.
    """
    from kronos_pipeline.evaluation.forecasting.batching import unwrap
    from kronos_pipeline.evaluation.predictions import ADAPTER

    with failures_of("backtest"):
        recipe, layout = pipeline.recipe("lora"), pipeline.layout
        base, tested = load_base_model(recipe), tickers_tested(context)
        batch = TickerBatch(context)
        for first in range(0, len(batch.tickers), _BACKTESTS_AT_ONCE):
            bars: dict[str, Bars] = {}
            for ticker in batch.tickers[first : first + _BACKTESTS_AT_ONCE]:
                with batch.ticker(ticker):
                    bars[ticker] = windows[ticker].bars
            found = _backtests(layout, bars, recipe, base, tested, context.log.info)
            for ticker in bars:
                with batch.ticker(ticker):
                    plots = unwrap(found[ticker])
                    evaluation = read_json(layout.backtest_report(ADAPTER, ticker))
                    metadata = evaluation_metadata(evaluation, "Backtest", plots=plots)
                    batch.add(ticker, layout.backtest(ADAPTER, ticker), metadata)
        yield from batch.events()


def leaderboard(
    context: dg.AssetExecutionContext, holdout_metrics: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> dg.MaterializeResult:
    """All models by all metrics over all tickers, on the holdout and, where there is one, in the backtest.

    Stored as `metrics/leaderboard.json`, `evaluation.json`, `predictions.parquet` and `forecasts.parquet`, and as a run
    of its own in MLflow. Tickers without metrics are left out and named.
    """
    from kronos_pipeline.evaluation.backtest.backtest import combine_backtests
    from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT, models_of
    from kronos_pipeline.evaluation.reports.tables import evaluation_frame, flat_metrics, save_leaderboard
    from kronos_pipeline.evaluation.scoring.report import load_predictions, save_evaluation

    with failures_of("leaderboard"):
        layout, tracker = pipeline.layout, tracking.tracker(pipeline.layout)
        evaluated, skipped = _evaluated_tickers(holdout_metrics)
        predictions, manifest = load_predictions([layout.ticker_forecasts(ticker) for ticker in evaluated])
        trained = ADAPTER if ADAPTER in models_of(predictions) else CHECKPOINT
        holdout = save_evaluation(layout, predictions, trained, skipped, manifest)
        backtest = combine_backtests(layout, trained, evaluated)
        save_leaderboard(layout, holdout, backtest)
        numbers = flat_metrics(holdout) | (flat_metrics(backtest, "backtest") if backtest else {})
        marks = {"contamination": "; ".join(holdout["warnings"])} if holdout["warnings"] else {}
        tags = {**run_tags(context), **marks}
        with tracker.training_run("leaderboard", pipeline.recipe("lora"), tags) as run:
            tracker.log_evaluation(run.run_id, numbers, table=evaluation_frame(holdout))
        metadata = evaluation_metadata(holdout) | mlflow_metadata(run.run_id, run.link)
        if backtest:
            shown = evaluation_metadata(backtest, "Backtest")
            metadata |= {f"backtest {name}": shown[name] for name in ("leaderboard", "scores", "verdicts", "evaluated")}
        if context.job_def.has_node_named("checkpoint") and (own := mlflow_run_of(layout.best_checkpoint)):
            # The checkpoint of this run is one training over all tickers, so its row holds the scores over all.
            tracker.log_evaluation(own, flat_metrics(holdout))
            metadata["MLflow run of the checkpoint"] = own
        return dg.MaterializeResult(metadata=metadata)


def _backtests(
    layout: ArtifactLayout, bars: Mapping[str, Bars], recipe: Recipe, base: "KronosModel", tested: int, say: "Say"
) -> Mapping[str, dict[str, Path] | KronosError]:
    """Backtest tickers' adapters; of each the pictures by kind, or why it has no backtest."""
    from kronos_pipeline.evaluation.backtest.backtest import run_backtest
    from kronos_pipeline.evaluation.backtest.folds import BacktestError
    from kronos_pipeline.evaluation.predictions import ADAPTER

    try:
        found = run_backtest(layout, bars, recipe, base, trained=ADAPTER, tickers_tested=tested, say=say)
    except BacktestError as error:
        return error.skipped
    return {**found.skipped, **found.plots}


def _evaluated_tickers(holdout_metrics: TickerArtifacts) -> tuple[list[str], list[dict[str, str]]]:
    """Return the tickers that have metrics, and for each other ticker the reason that it has none."""
    evaluated: list[str] = []
    skipped: list[dict[str, str]] = []
    for ticker in holdout_metrics:
        try:
            holdout_metrics[ticker]
        except ArtifactError as error:
            skipped.append({"symbol": ticker, "reason": str(error)})
        else:
            evaluated.append(ticker)
    return evaluated, skipped
