"""Evaluate on the holdout and by a backtest, print the tables and log the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.errors import ArtifactError, KronosError, group_messages
from kronos_pipeline.evaluation.reports.text_table import print_tables
from kronos_pipeline.pipeline.ingest import Tickers
from kronos_pipeline.training.progress import step

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.evaluation.backtest.backtest import Backtest
    from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels
    from kronos_pipeline.evaluation.holdout import HoldoutResult
    from kronos_pipeline.pipeline.train import Trained
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.trainer import KronosTrainer


def evaluate_all(
    config: KronosTrainingConfig,
    models: TrainedModels,
    tracker: Tracker,
    tickers: Tickers,
    trained: Sequence[Trained],
    verbose: bool = False,
) -> dict[str, Any]:
    """Evaluate all tickers on the holdout, log the scores to the trainings' MLflow runs, and print notes.

    A ticker that cannot be evaluated is reported and does not stop the others. With `verbose`, the table of all tickers
    is printed.

    Returns:
        The evaluation over all tickers; `metrics/evaluation.json` is its summary.

    Raises:
        ArtifactError: no ticker could be evaluated, or the artifacts cannot be written.
    """
    from kronos_pipeline.evaluation.reports.tables import evaluation_frame, evaluation_table, run_metrics

    runs: dict[str, str | None] = {ticker: model.run_id for model in trained for ticker in model.tickers}
    results, evaluation = evaluate_holdout(config, models, tickers, runs)
    notes = [(ticker, note.removeprefix(f"{ticker}: ")) for ticker, result in results.items() for note in result.notes]
    for line in [": ".join(note) for note in notes] if verbose else group_messages(notes):
        print(line)
    step("logging the scores to MLflow")
    shared = len(trained) < len(runs)  # a training over several tickers: its run gets the scores over all tickers
    for ticker, result in results.items():
        scores = {} if shared else run_metrics(result.evaluation)
        run = str(runs[ticker])
        tracker.log_evaluation(run, scores, list(result.plots.values()), evaluation_frame(result.evaluation))
    if shared:
        tracker.log_evaluation(trained[0].run_id, run_metrics(evaluation))
    if verbose:
        print_tables(evaluation_table(evaluation))
    return evaluation


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of the models of a folder on the holdouts of their tickers.

    Attributes:
        report: aggregates, verdicts and warnings, over all tickers and per ticker; `metrics/evaluation.json` is its
            summary.
        scores: a row per `symbol` and `model`, with every metric; a metric that is not defined is NaN.
        predictions: a row per holdout bar and model, with what was forecast and what came.
        plots: the files of a ticker's plots by kind, by ticker.
    """

    report: Mapping[str, Any]
    scores: pd.DataFrame
    predictions: pd.DataFrame
    plots: Mapping[str, Mapping[str, Path]]

    def __repr__(self) -> str:
        """Return the table that the command prints."""
        from rich.console import Console

        from kronos_pipeline.evaluation.reports.tables import evaluation_table

        console = Console(width=100, color_system=None)
        with console.capture() as text:
            print_tables(evaluation_table(self.report), console=console)
        return text.get().rstrip()

    def _repr_markdown_(self) -> str:
        """Return the table for a notebook."""
        from kronos_pipeline.evaluation.reports.tables import evaluation_table

        return evaluation_table(self.report).markdown()


def evaluate(config: KronosTrainingConfig) -> Evaluation:
    """Score the trained models of a config on the holdout, the last days of each ticker, beside base and baselines.

    Writes `metrics/` and `plots/` below the output folder, as the command does, and no MLflow run.

    Examples:
        After the training in the example of `KronosTrainer`:

        >>> from kronos_pipeline import KronosTrainingConfig, evaluate
        >>> config = KronosTrainingConfig(
        ...     data_dir="trainingdata/AAPL",
        ...     model_name="kronos-nano",
        ...     adapter="lora",
        ...     epochs=1,
        ...     stride=32,
        ...     eval_samples=8,
        ... )
        >>> evaluation = evaluate(config)
        >>> evaluation.scores.pivot(index="symbol", columns="model", values="mae")[["adapter", "base", "naive"]].shape
        (1, 3)
        >>> print(evaluation)
        Holdout: adapter on base model kronos-nano (embedded demo model)...

    Args:
        config: the settings of the training. Tickers that cannot be read or have no trained model are in
            `report["skipped"]`, each with its reason.

    Raises:
        DataError: no ticker is fit.
        ArtifactError: there is no trained model, or a file cannot be written.
        ModelError: the base model is unknown, damaged or cannot be fetched.
    """
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.atomic_writes import check_writable
    from kronos_pipeline.data.folder import read_windows
    from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels
    from kronos_pipeline.evaluation.predictions import trained_model
    from kronos_pipeline.evaluation.reports.tables import evaluation_frame
    from kronos_pipeline.model.loading import load_recipe_base

    windows, errors = read_windows(config)
    layout = ArtifactLayout(Path(config.output_dir))
    check_writable(layout.root)
    tickers = Tickers(windows, dict(errors))
    kind = trained_model(config)
    for ticker in windows:
        adapter = config.adapter_name or ticker
        folder = layout.best_checkpoint if config.adapter == "none" else layout.adapter(adapter)
        if not folder.is_dir():
            tickers.skipped[ticker] = ArtifactError(
                f"{ticker}: there is no {kind} at {folder}; train it: KronosTrainer(config).train()."
            )
    if not (evaluated := [ticker for ticker in windows if ticker not in tickers.skipped]):
        raise ArtifactError("\n".join(map(str, tickers.skipped.values())))
    models = TrainedModels(layout, load_recipe_base(config))
    results, report = evaluate_holdout(config, models, tickers, dict.fromkeys(evaluated))
    return Evaluation(
        report,
        evaluation_frame(report),
        pd.concat([result.predictions for result in results.values()], ignore_index=True),
        {ticker: result.plots for ticker, result in results.items()},
    )


def evaluate_holdout(
    config: KronosTrainingConfig,
    models: TrainedModels,
    tickers: Tickers,
    mlflow_runs: Mapping[str, str | None],
) -> tuple[dict[str, HoldoutResult], dict[str, Any]]:
    """Evaluate tickers on the holdout, and write `metrics/evaluation.json`.

    Args:
        config: the settings.
        models: the models to compare.
        tickers: windows by ticker; a ticker that cannot be evaluated is reported there.
        mlflow_runs: the tickers to evaluate, with the id of the MLflow run of each training, or None.

    Returns:
        The result of each ticker, and the evaluation over all; `metrics/evaluation.json` is its summary.

    Raises:
        ArtifactError: no ticker could be evaluated, or the artifacts cannot be written.
    """
    from kronos_pipeline.evaluation.holdout import evaluate_tickers
    from kronos_pipeline.evaluation.predictions import trained_model
    from kronos_pipeline.evaluation.provenance import merge_manifests
    from kronos_pipeline.evaluation.scoring.report import save_evaluation

    outcomes = dict(
        evaluate_tickers(
            models,
            {ticker: tickers.windows[ticker] for ticker in mlflow_runs},
            mlflow_runs,
            config.recipe,
            trained=trained_model(config),
            tickers_tested=len(tickers.windows),
        )
    )
    results: dict[str, HoldoutResult] = {}
    for ticker in mlflow_runs:
        outcome = outcomes[ticker]
        if isinstance(outcome, KronosError):
            tickers.skip(ticker, outcome)
        else:
            results[ticker] = outcome
    evaluation = save_evaluation(
        models.layout,
        pd.concat([pd.DataFrame(), *(result.predictions for result in results.values())], ignore_index=True),
        trained_model(config),
        tickers.reasons(),
        merge_manifests([result.manifest for result in results.values()]),
    )
    return results, evaluation


def backtest_if_requested(
    config: KronosTrainingConfig, trainer: KronosTrainer, tickers: Tickers, verbose: bool = False
) -> Backtest | None:
    """Run a backtest if the settings ask for it; None without a backtest, or if no ticker has enough bars."""
    from kronos_pipeline.evaluation.backtest.folds import BacktestError

    if not config.backtest_origins:
        return None
    try:
        return backtest_all(config, trainer, tickers, verbose)
    except BacktestError as error:
        for ticker, ticker_error in error.skipped.items():
            tickers.skip(ticker, ticker_error)
        return None


def backtest_all(
    config: KronosTrainingConfig, trainer: KronosTrainer, tickers: Tickers, verbose: bool = False
) -> Backtest:
    """Backtest the recipe over all tickers; with `verbose`, print the table.

    Raises:
        BacktestError: no ticker has enough bars for a cutoff, or none could be trained and forecast.
    """
    from kronos_pipeline.evaluation.backtest.backtest import run_backtest
    from kronos_pipeline.evaluation.reports.tables import evaluation_table

    bars = {ticker: window_set.bars for ticker, window_set in tickers.windows.items()}
    backtest = run_backtest(trainer.layout, bars, config.recipe, trainer.base)
    for ticker, error in backtest.skipped.items():
        tickers.skip(ticker, error)
    if verbose:
        print_tables(evaluation_table(backtest.evaluation, "Backtest"))
    return backtest


def log_leaderboard(
    config: KronosTrainingConfig, tracker: Tracker, holdout: dict[str, Any], backtest: Backtest | None
) -> None:
    """Log the scores over all tickers, and the backtest's pictures, as an MLflow run of their own."""
    from kronos_pipeline.promotion.leaderboard import make_leaderboard

    plots = [path for pictures in (backtest.plots if backtest else {}).values() for path in pictures.values()]
    board, tags = make_leaderboard(holdout, backtest.evaluation if backtest else None, plots)
    tracker.log_leaderboard(board, config, tags)
