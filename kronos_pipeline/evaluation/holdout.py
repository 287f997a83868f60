"""Evaluation of tickers' holdouts, from windows to scores, tables and plots, for the command and the assets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.errors import KronosError
from kronos_pipeline.evaluation.forecasting.batching import MAX_JOBS, ForecastJob, run_jobs
from kronos_pipeline.evaluation.forecasting.candidates import (
    TrainedModels,
    count_bars,
    doubts,
    evaluate_models_job,
    load_candidates,
)
from kronos_pipeline.evaluation.forecasting.forecast_progress import ForecastProgress
from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT
from kronos_pipeline.evaluation.reports.plots import save_plots
from kronos_pipeline.evaluation.rivals.costs import costly_rivals
from kronos_pipeline.evaluation.rivals.optional import prepare_rivals
from kronos_pipeline.evaluation.scoring.report import save_ticker_evaluation
from kronos_pipeline.training.progress import Say

if TYPE_CHECKING:
    from pathlib import Path

    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet


@dataclass(frozen=True)
class HoldoutResult:
    """The evaluation of one ticker.

    Attributes:
        predictions: a row per holdout bar and model, see `evaluation.predictions`.
        evaluation: the result of `build_evaluation` for this ticker, the content of `metrics/<T>.json`.
        manifest: provenance of the forecasts.
        plots: plot files by kind: "holdout", "fan", "steps", "reliability".
        notes: models and baselines that were left out, and the reason.
        seconds: wall time of each model's sampling and of each rival, by model.
    """

    predictions: pd.DataFrame
    evaluation: dict[str, Any]
    manifest: dict[str, Any]
    plots: dict[str, Path]
    notes: list[str]
    seconds: dict[str, float]


def evaluate_tickers(  # noqa: PLR0913  how to evaluate and what to show, keywords
    models: TrainedModels,
    windows: Mapping[str, WindowSet],
    mlflow_runs: Mapping[str, str | None],
    recipe: Recipe,
    *,
    trained: str | None = None,
    tickers_tested: int = 1,
    say: Say = print,
) -> Iterator[tuple[str, HoldoutResult | KronosError]]:
    """Forecast tickers' holdouts with every model that fits each, and score them: `metrics/<T>.*` and `plots/<T>*`.

    A ticker's numbers do not depend on the other tickers, but for those of the rival `lightgbm`. The sampling of each
    model is fitted on the selection block the first time, and stored beside the model's weights.

    Args:
        models: the models to compare.
        windows: windows by ticker; those of the tickers in `mlflow_runs` are read, each when its job starts.
        mlflow_runs: the tickers to evaluate, with the id of the MLflow run that trained each ticker's model, or None.
        recipe: horizon, paths per forecast, temperature, top_p, seed, number format and optional rivals; and the name
            of an adapter that serves all tickers, else each ticker has the adapter of its name.
        trained: the model that is scored, "adapter" or "checkpoint"; by default the adapter if there is one.
        tickers_tested: number of tickers evaluated in this run, for which the verdicts are corrected.
        say: takes lines with the progress if there is no terminal, and a line if rivals cost more than the model.

    Yields:
        Each ticker with its result or with the error that ended its evaluation: a model of the ticker is damaged or
        forecasts no number, or a file cannot be written. The order is that in which the evaluations end.
    """
    from kronos_pipeline.model.lora import BASE as OWN_BASE  # imports torch

    layout, base, adapter_name = models.layout, models.base, recipe.adapter_name
    rivals = prepare_rivals(recipe, _readable(windows, mlflow_runs), base.device)

    def evaluate_job(ticker: str, run: str | None) -> ForecastJob[HoldoutResult]:
        ticker_windows = windows[ticker]
        candidates, left_out = load_candidates(models, ticker_windows, adapter_name or ticker)
        progress.expect(count_bars(ticker_windows, candidates.values(), recipe))
        scored = trained or (ADAPTER if ADAPTER in candidates else CHECKPOINT)
        forecasts = yield from evaluate_models_job(
            ticker_windows, candidates, recipe, {ticker: run} if run else {}, rivals
        )
        manifest = forecasts.manifest | doubts(ticker, candidates)
        evaluation = save_ticker_evaluation(layout, forecasts.predictions, scored, manifest, tickers_tested)
        warnings = [f"base model {base.source.label}", *evaluation["warnings"]]
        plots = save_plots(layout, ticker_windows.bars.frame, forecasts.predictions, scored, warnings)
        notes = [*left_out, *forecasts.notes]
        return HoldoutResult(forecasts.predictions, evaluation, manifest, plots, notes, forecasts.seconds)

    whole_models = not adapter_name and any((layout.adapter(ticker) / OWN_BASE).is_dir() for ticker in mlflow_runs)
    progress = ForecastProgress("evaluation", len(mlflow_runs), say)
    jobs = {ticker: evaluate_job(ticker, run) for ticker, run in mlflow_runs.items()}
    outcomes = run_jobs(jobs, max_jobs=1 if whole_models else MAX_JOBS, progress=progress)
    return _with_costs(outcomes, rivals.fit_seconds, trained, say)


def _with_costs(
    outcomes: Iterator[tuple[str, HoldoutResult | KronosError]],
    fit_seconds: Mapping[str, float],
    trained: str | None,
    say: Say,
) -> Iterator[tuple[str, HoldoutResult | KronosError]]:
    """Pass the outcomes on, and end with a line about the rivals that cost more than the model, if there are any."""
    seconds = [fit_seconds]
    for ticker, outcome in outcomes:
        if isinstance(outcome, HoldoutResult):
            seconds.append(outcome.seconds)
        yield ticker, outcome
    if line := costly_rivals(seconds, trained):
        say(line)


def _readable(windows: Mapping[str, WindowSet], tickers: Iterable[str]) -> Iterator[WindowSet]:
    """Read the windows of tickers; leave out those that cannot be read, as the job of the ticker reports the error."""
    for ticker in tickers:
        with contextlib.suppress(KronosError):
            yield windows[ticker]
