"""The evaluation assets: holdout metrics and backtest of each ticker, and the leaderboard over all tickers."""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from kronos_pipeline.artifacts import ArtifactLayout, mlflow_run_of, read_json, read_parquet
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.errors import ArtifactError, KronosError
from kronos_pipeline.orchestration.failures import as_failure
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import SUMMARY, evaluation_metadata, mlflow_metadata
from kronos_pipeline.orchestration.partitions import tickers_tested
from kronos_pipeline.orchestration.resources import (
    PipelineSettings,
    Tracking,
    load_base_model,
    run_tags,
    training_run_id,
)
from kronos_pipeline.orchestration.run_tickers import waiting_run
from kronos_pipeline.orchestration.ticker_batch import Event, TickerBatch

if TYPE_CHECKING:
    from kronos_pipeline.model.loading import KronosModel
    from kronos_pipeline.training.progress import Say

_BACKTESTS_AT_ONCE = 32
"""The largest number of tickers with folds in memory at the same time."""


def holdout_metrics(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """Errors of each model on a ticker's holdout, which no model was trained on, and the verdicts.

    Stored as `metrics/<T>.json`, `metrics/<T>.parquet` and `plots/<T>*`, and added to the training's MLflow run and,
    for an adapter, to its version in MLflow's registry. The models are the last close, its drift, the week before,
    models of volatility, base, checkpoint and adapter. A checkpoint or an adapter is left out if it does not exist or
    does not fit this base model and holdout.
    """
    batch = TickerBatch(context)
    measure(context, batch, windows, pipeline, tracking, tickers_tested(context))
    yield from batch.events()


def measure(
    context: dg.AssetExecutionContext,
    batch: TickerBatch,
    windows: TickerArtifacts,
    pipeline: PipelineSettings,
    tracking: Tracking,
    tested: int,
) -> None:
    """Evaluate the tickers of a batch on their holdouts, and add the metrics' paths and metadata to the batch.

    `tested` is the number of tickers that the verdicts are corrected for.
    """
    from kronos_pipeline.evaluation.forecasting.batching import unwrap
    from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels
    from kronos_pipeline.evaluation.holdout import evaluate_tickers  # imports matplotlib
    from kronos_pipeline.evaluation.reports.tables import evaluation_frame, run_metrics
    from kronos_pipeline.promotion.submit import TrainedModel, record_evaluation
    from kronos_pipeline.tracking.registry import Registry
    from kronos_pipeline.tracking.store import TrackingError

    with as_failure("holdout_metrics"):
        recipe, layout = pipeline.recipe("lora"), pipeline.layout
        models = TrainedModels(layout, load_base_model(recipe))
        tracker = tracking.tracker(layout)
        registry = Registry(tracker)
        runs: dict[str, str | None] = {}
        for ticker in batch.tickers:
            with batch.ticker(ticker):
                runs[ticker] = training_run_id(layout, ticker)
        for ticker, outcome in evaluate_tickers(
            models, windows, runs, recipe, tickers_tested=tested, say=context.log.info
        ):
            with batch.ticker(ticker):
                result, run = unwrap(outcome), runs[ticker]
                metadata = evaluation_metadata(
                    result.evaluation, predictions=result.predictions, plots=result.plots, notes=result.notes
                )
                if run is not None:
                    own = run == mlflow_run_of(layout.adapter(ticker))  # the run of a checkpoint is of all tickers
                    plots, table = list(result.plots.values()), evaluation_frame(result.evaluation)
                    tracker.log_evaluation(run, run_metrics(result.evaluation) if own else {}, plots, table)
                    metadata |= mlflow_metadata(run, tracker.link(run))
                if run is not None and own:
                    try:
                        record_evaluation(registry, layout, TrainedModel(ticker, [ticker], run), tickers_tested=tested)
                    except TrackingError as error:  # the evaluation is as good; `champion` submits it
                        context.log.warning(f"{error} The version of {ticker} gets its evidence when the gate decides.")
                batch.add(ticker, layout.ticker_metrics(ticker), metadata)


def backtest(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """The backtest of the recipe on a ticker, and its verdicts.

    The recipe is trained before each of several cutoffs, and scored on the bars after the cutoff. Stored as
    `backtest/adapter/<T>.*`. It costs a training per cutoff, 12 by default (`backtest_origins`), or fewer with
    `backtest_refit_every`. A killed run resumes from its saved state.
    """
    from kronos_pipeline.evaluation.forecasting.batching import unwrap
    from kronos_pipeline.evaluation.predictions import ADAPTER
    from kronos_pipeline.promotion.recipes import count_recipe
    from kronos_pipeline.tracking.registry import Registry, registered_name
    from kronos_pipeline.tracking.store import TrackingError

    with as_failure("backtest"):
        recipe, layout = pipeline.recipe("lora"), pipeline.layout
        registry, settings = Registry(tracking.tracker(layout)), recipe.model_dump(mode="json")
        base, tested = load_base_model(recipe), tickers_tested(context)
        batch = TickerBatch(context)
        for first in range(0, len(batch.tickers), _BACKTESTS_AT_ONCE):
            bars: dict[str, Bars] = {}
            for ticker in batch.tickers[first : first + _BACKTESTS_AT_ONCE]:
                with batch.ticker(ticker):
                    bars[ticker] = windows[ticker].bars
            outcomes = _backtests(layout, bars, recipe, base, tested, context.log.info)
            for ticker in bars:
                with batch.ticker(ticker):
                    plots = unwrap(outcomes[ticker])
                    evaluation = read_json(layout.backtest_report(ADAPTER, ticker))
                    predictions, _ = read_parquet(layout.backtest(ADAPTER, ticker))
                    try:
                        tried = str(count_recipe(registry, registered_name(ticker), settings, predictions))
                    except TrackingError as error:  # the backtest is as good
                        tried = f"not counted: {error}"
                        context.log.warning(f"The recipe of {ticker} was {tried}")
                    metadata = evaluation_metadata(evaluation, "Backtest", predictions=predictions, plots=plots)
                    batch.add(ticker, layout.backtest(ADAPTER, ticker), metadata | {"recipe": tried})
        yield from batch.events()


def leaderboard(
    context: dg.AssetExecutionContext, holdout_metrics: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[dg.MaterializeResult[None]]:
    """All models ranked by all metrics over all tickers, on the holdout and, if there is one, in the backtest.

    It judges all tickers anew, so a night's runs, each for a part of the tickers, leave it to the last of them: a run
    makes no leaderboard while a run of the same job waits in the queue. Stored as `metrics/leaderboard.json`,
    `evaluation.json`, `predictions.parquet` and `forecasts.parquet`, and as an MLflow run. The metadata names the
    tickers without metrics, which are left out.
    """
    from kronos_pipeline.evaluation.backtest.backtest import combine_backtests
    from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT, models_of
    from kronos_pipeline.evaluation.reports.tables import run_metrics, save_leaderboard
    from kronos_pipeline.evaluation.scoring.report import load_predictions, save_evaluation
    from kronos_pipeline.promotion.leaderboard import make_leaderboard

    if waiting := waiting_run(context):
        context.log.info(f"Run {waiting.run_id}, which waits in the queue, makes the leaderboard over all tickers.")
        return
    with as_failure("leaderboard"):
        layout, tracker = pipeline.layout, tracking.tracker(pipeline.layout)
        evaluated, skipped = _evaluated_tickers(holdout_metrics)
        predictions, manifest = load_predictions([layout.ticker_forecasts(ticker) for ticker in evaluated])
        trained = ADAPTER if ADAPTER in models_of(predictions) else CHECKPOINT
        holdout = save_evaluation(layout, predictions, trained, skipped, manifest)
        backtest = combine_backtests(layout, trained, evaluated)
        save_leaderboard(layout, holdout, backtest)
        board, tags = make_leaderboard(holdout, backtest)
        run = tracker.log_leaderboard(board, pipeline.recipe("lora"), {**run_tags(context), **tags})
        metadata = evaluation_metadata(holdout) | mlflow_metadata(run.run_id, run.link)
        if backtest:
            backtested = evaluation_metadata(backtest, "Backtest")
            first = (SUMMARY, "evaluated", "leaderboard", "verdicts", "scores")
            metadata = {
                **{name: metadata[name] for name in first},
                **{f"backtest {name}": backtested[name] for name in first},
                **metadata,
            }
        if context.job_def.has_node_named("checkpoint") and (checkpoint_run := mlflow_run_of(layout.best_checkpoint)):
            # The checkpoint of this run is one training over all tickers, so its MLflow run gets the scores over all.
            tracker.log_evaluation(checkpoint_run, run_metrics(holdout, model=CHECKPOINT))
            metadata["MLflow run of the checkpoint"] = checkpoint_run
    yield dg.MaterializeResult(metadata=metadata)


def _backtests(
    layout: ArtifactLayout, bars: Mapping[str, Bars], recipe: Recipe, base: "KronosModel", tested: int, say: "Say"
) -> Mapping[str, dict[str, Path] | KronosError]:
    """Backtest tickers' adapters, and return the pictures of each by kind, or its error."""
    from kronos_pipeline.evaluation.backtest.backtest import run_backtest
    from kronos_pipeline.evaluation.backtest.folds import BacktestError

    try:
        result = run_backtest(layout, bars, recipe, base, tickers_tested=tested, say=say)
    except BacktestError as error:
        return error.skipped
    return {**result.skipped, **result.plots}


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
