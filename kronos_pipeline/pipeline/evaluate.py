"""Evaluate on the holdout and by a backtest, print the tables and log the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kronos_pipeline.errors import KronosError, enumerate_some
from kronos_pipeline.pipeline.ingest import Tickers

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.evaluation.backtest.backtest import Backtest
    from kronos_pipeline.evaluation.holdout import HoldoutResult
    from kronos_pipeline.evaluation.reports.text_table import TextTable
    from kronos_pipeline.pipeline.train import Trained
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.trainer import KronosTrainer


def evaluate_all(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    tickers: Tickers,
    trained: Sequence[Trained],
) -> dict[str, Any]:
    """Evaluate all tickers on the holdout, log the scores to the trainings' MLflow runs, and print the table.

    A ticker that cannot be evaluated is reported and does not stop the others.

    Returns:
        The content of `metrics/evaluation.json`.

    Raises:
        ArtifactError: no ticker could be evaluated, or the artifacts cannot be written.
    """
    import pandas as pd

    from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels
    from kronos_pipeline.evaluation.holdout import evaluate_tickers
    from kronos_pipeline.evaluation.predictions import trained_model
    from kronos_pipeline.evaluation.provenance import merge_manifests
    from kronos_pipeline.evaluation.reports.tables import evaluation_frame, evaluation_table, flat_metrics
    from kronos_pipeline.evaluation.scoring.report import save_evaluation

    runs = {ticker: model.run_id for model in trained for ticker in model.tickers}
    outcomes = dict(
        evaluate_tickers(
            TrainedModels(trainer.layout, trainer.base),
            {ticker: tickers.windows[ticker] for ticker in runs},
            runs,
            config.recipe,
            trained=trained_model(config),
            tickers_tested=len(tickers.windows),
        )
    )
    results: dict[str, HoldoutResult] = {}
    for ticker in runs:
        outcome = outcomes[ticker]
        if isinstance(outcome, KronosError):
            tickers.skip(ticker, outcome)
            continue
        results[ticker] = outcome
    for note in join_notes({ticker: result.notes for ticker, result in results.items()}):
        print(note)
    evaluation = save_evaluation(
        trainer.layout,
        pd.concat([pd.DataFrame(), *(result.predictions for result in results.values())], ignore_index=True),
        trained_model(config),
        tickers.reasons(),
        merge_manifests([result.manifest for result in results.values()]),
    )
    shared = len(trained) < len(runs)  # a training over several tickers: its run gets the scores over all tickers
    for ticker, result in results.items():
        scores = {} if shared else flat_metrics(result.evaluation)
        tracker.log_evaluation(runs[ticker], scores, list(result.plots.values()), evaluation_frame(result.evaluation))
    if shared:
        tracker.log_evaluation(trained[0].run_id, flat_metrics(evaluation))
    print_tables(evaluation_table(evaluation))
    return evaluation


def backtest_if_requested(config: KronosTrainingConfig, trainer: KronosTrainer, tickers: Tickers) -> Backtest | None:
    """Run a backtest if the settings ask for it; None without a backtest, or if no ticker has enough bars."""
    from kronos_pipeline.evaluation.backtest.folds import BacktestError

    if not config.backtest_origins:
        return None
    try:
        return backtest_all(config, trainer, tickers)
    except BacktestError as error:
        for ticker, ticker_error in error.skipped.items():
            tickers.skip(ticker, ticker_error)
        return None


def backtest_all(config: KronosTrainingConfig, trainer: KronosTrainer, tickers: Tickers) -> Backtest:
    """Backtest the recipe over all tickers, and print the table.

    Raises:
        BacktestError: no ticker has enough bars for a cutoff, or none could be trained and forecast.
    """
    from kronos_pipeline.evaluation.backtest.backtest import run_backtest
    from kronos_pipeline.evaluation.reports.tables import evaluation_table

    bars = {ticker: window_set.bars for ticker, window_set in tickers.windows.items()}
    backtest = run_backtest(trainer.layout, bars, config.recipe, trainer.base)
    for ticker, error in backtest.skipped.items():
        tickers.skip(ticker, error)
    print_tables(evaluation_table(backtest.evaluation, "Backtest"))
    return backtest


def log_leaderboard(
    config: KronosTrainingConfig, tracker: Tracker, holdout: dict[str, Any], backtest: Backtest | None
) -> None:
    """Log the scores over all tickers, and the backtest's pictures, as an MLflow run of their own."""
    from kronos_pipeline.evaluation.reports.tables import evaluation_frame, flat_metrics

    numbers = flat_metrics(holdout) | (flat_metrics(backtest.evaluation, "backtest") if backtest else {})
    plots = [path for pictures in (backtest.plots if backtest else {}).values() for path in pictures.values()]
    tags = {"contamination": "; ".join(holdout["warnings"])} if holdout["warnings"] else None
    with tracker.training_run("leaderboard", config, tags) as run:
        tracker.log_evaluation(run.run_id, numbers, plots, evaluation_frame(holdout))


def join_notes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Join equal notes on several tickers into one, which names the tickers.

    Args:
        notes: notes by ticker, each of which begins with "<ticker>: ".
    """
    tickers: dict[str, list[str]] = {}
    for ticker, of_ticker in notes.items():
        for note in of_ticker:
            tickers.setdefault(note.removeprefix(f"{ticker}: "), []).append(ticker)
    return [f"{enumerate_some(names)}: {sentence}" for sentence, names in tickers.items()]


def print_tables(*tables: TextTable) -> None:
    """Print tables to the terminal, or as plain text if the output is piped."""
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table.terminal())
