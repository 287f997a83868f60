"""Evaluation on the holdout and by a backtest, with its tables printed and its numbers logged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kronos_pipeline.errors import KronosError
from kronos_pipeline.pipeline.ingest import Tickers

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.evaluation.backtest.backtest import Backtest
    from kronos_pipeline.evaluation.holdout import HoldoutResult
    from kronos_pipeline.evaluation.reports.text_table import Sheet
    from kronos_pipeline.pipeline.train import Trained
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.trainer import KronosTrainer


def trained_model(config: KronosTrainingConfig) -> str:
    """What a run with these settings trains: "checkpoint" or "adapter"."""
    return "checkpoint" if config.adapter == "none" else "adapter"


def evaluate_all(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    tickers: Tickers,
    trained: Sequence[Trained],
) -> dict[str, Any]:
    """Evaluate each ticker and all together, log it to the trainings' MLflow runs, and print the table.

    One that cannot be evaluated is named, and the others go on.

    Returns:
        What `metrics/evaluation.json` holds.

    Raises:
        ArtifactError: no ticker could be evaluated, or nothing can be written.
    """
    import pandas as pd

    from kronos_pipeline.evaluation.holdout import evaluate_tickers
    from kronos_pipeline.evaluation.provenance import merge_manifests
    from kronos_pipeline.evaluation.reports.tables import evaluation_frame, evaluation_sheet, flat_metrics
    from kronos_pipeline.evaluation.scoring.report import save_evaluation

    runs = {ticker: one.run_id for one in trained for ticker in one.tickers}
    found = dict(
        evaluate_tickers(
            trainer.layout,
            {ticker: tickers.windows[ticker] for ticker in runs},
            runs,
            trainer.base,
            config.recipe,
            trained=trained_model(config),
            adapter_name=config.adapter_name,
            tickers_tested=len(tickers.windows),
        )
    )
    results: dict[str, HoldoutResult] = {}
    for ticker in runs:
        one = found[ticker]
        if isinstance(one, KronosError):
            tickers.skip(ticker, one)
            continue
        results[ticker] = one
        for note in one.notes:
            print(note)
    evaluation = save_evaluation(
        trainer.layout,
        pd.concat([pd.DataFrame(), *(result.predictions for result in results.values())], ignore_index=True),
        trained_model(config),
        tickers.reasons(),
        merge_manifests([result.manifest for result in results.values()]),
    )
    shared = len(trained) < len(runs)  # one training over several tickers: its run gets the scores over all
    for ticker, result in results.items():
        own = {} if shared else flat_metrics(result.evaluation)
        tracker.log_evaluation(runs[ticker], own, list(result.plots.values()), evaluation_frame(result.evaluation))
    if shared:
        tracker.log_evaluation(trained[0].run_id, flat_metrics(evaluation))
    print_sheets(evaluation_sheet(evaluation))
    return evaluation


def backtest_if_requested(config: KronosTrainingConfig, trainer: KronosTrainer, tickers: Tickers) -> Backtest | None:
    """A backtest after a training, where one was asked for; none where no ticker can have one, which is told."""
    from kronos_pipeline.evaluation.backtest.folds import BacktestError

    if not config.backtest_origins:
        return None
    try:
        return backtest_all(config, trainer, tickers)
    except BacktestError as error:
        for ticker, why in error.skipped.items():
            tickers.skip(ticker, why)
        return None


def backtest_all(config: KronosTrainingConfig, trainer: KronosTrainer, tickers: Tickers) -> Backtest:
    """Backtest the recipe over all tickers, and print the table.

    Raises:
        BacktestError: no ticker has bars enough for one cutoff, or could be trained and forecast.
    """
    from kronos_pipeline.evaluation.backtest.backtest import run_backtest
    from kronos_pipeline.evaluation.reports.tables import evaluation_sheet

    bars = {ticker: one.bars for ticker, one in tickers.windows.items()}
    found = run_backtest(trainer.layout, bars, config.recipe, trainer.base, trained=trained_model(config))
    for ticker, why in found.skipped.items():
        tickers.skip(ticker, why)
    print_sheets(evaluation_sheet(found.evaluation, "Backtest"))
    return found


def log_leaderboard(
    config: KronosTrainingConfig, tracker: Tracker, holdout: dict[str, Any], backtest: Backtest | None
) -> None:
    """Record the scores over all tickers as an MLflow run of their own, with the backtest's pictures."""
    from kronos_pipeline.evaluation.reports.tables import evaluation_frame, flat_metrics

    numbers = flat_metrics(holdout) | (flat_metrics(backtest.evaluation, "backtest") if backtest else {})
    plots = [path for some in (backtest.plots if backtest else {}).values() for path in some.values()]
    tags = {"contamination": "; ".join(holdout["warnings"])} if holdout["warnings"] else None
    with tracker.training_run("leaderboard", config, tags) as run:
        tracker.log_evaluation(run.run_id, numbers, plots, evaluation_frame(holdout))


def print_sheets(*sheets: Sheet) -> None:
    """Print sheets to the terminal, or plainly where the output is piped."""
    from rich.console import Console

    console = Console()
    for sheet in sheets:
        console.print(sheet.terminal())
