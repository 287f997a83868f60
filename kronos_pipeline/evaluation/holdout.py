"""Tickers' holdouts, from windows to scores, tables and pictures: what the command and the assets share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.errors import KronosError
from kronos_pipeline.evaluation.forecasting.batching import MAX_JOBS, ForecastJob, gather_jobs, run_jobs
from kronos_pipeline.evaluation.forecasting.candidates import (
    doubts,
    find_sampling_job,
    how_sampled,
    load_candidates,
    loader,
    weights_of,
)
from kronos_pipeline.evaluation.forecasting.holdout_table import predict_job
from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT
from kronos_pipeline.evaluation.provenance import evaluation_manifest
from kronos_pipeline.evaluation.reports.plots import save_plots
from kronos_pipeline.evaluation.scoring.report import save_ticker_evaluation

if TYPE_CHECKING:
    from pathlib import Path

    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.model.loading import KronosModel


@dataclass(frozen=True)
class HoldoutResult:
    """What one ticker's evaluation made.

    Attributes:
        predictions: a row per holdout bar and model, see `evaluation.predictions`.
        evaluation: as `build_evaluation` makes it, of this ticker alone; what `metrics/<T>.json` holds.
        manifest: what made the forecasts.
        plots: the pictures by kind: "holdout", "fan", "steps", "reliability".
        notes: models that exist and were left out, and why.
    """

    predictions: pd.DataFrame
    evaluation: dict[str, Any]
    manifest: dict[str, Any]
    plots: dict[str, Path]
    notes: list[str]


def evaluate_tickers(
    layout: ArtifactLayout,
    windows: Mapping[str, WindowSet],
    mlflow_runs: Mapping[str, str | None],
    base: KronosModel,
    recipe: Recipe,
    *,
    trained: str | None = None,
    adapter_name: str | None = None,
    tickers_tested: int = 1,
) -> Iterator[tuple[str, HoldoutResult | KronosError]]:
    """Forecast tickers' holdouts with every model that fits each, and score them: `metrics/<T>.*` and `plots/<T>*`.

    What a ticker's numbers are does not depend on the others. How each model is sampled is fitted on the selection
    block the first time, and kept beside its weights.

    Args:
        layout: where artifacts lie.
        windows: by ticker; those of `mlflow_runs` are read, each when its turn comes.
        mlflow_runs: the tickers to evaluate, with the id of the MLflow run that trained each one's model, or None.
        base: the untouched base model.
        recipe: horizon, paths per forecast, temperature, top_p, seed and number format.
        trained: the model that the scores are about, "adapter" or "checkpoint"; by default the adapter where there is
            one.
        adapter_name: the adapter that serves all tickers; by default each has the one of its name.
        tickers_tested: tickers that are evaluated together, for which the verdicts are corrected.

    Yields:
        Each ticker with what was made of it, or with the error that kept it from being evaluated: a model that belongs
        there is damaged or forecasts no number, or nothing can be written. First comes whichever ends first.
    """
    from kronos_pipeline.model.lora import BASE as OWN_BASE  # imports torch

    load = loader(base)

    def evaluating(ticker: str, run: str | None) -> ForecastJob[HoldoutResult]:
        own = windows[ticker]
        candidates, notes = load_candidates(layout, base, own, adapter_name or ticker, load)
        about = trained or (ADAPTER if ADAPTER in candidates else CHECKPOINT)
        samplings = yield from gather_jobs(
            {name: find_sampling_job(one, own, recipe) for name, one in candidates.items()}
        )
        models = {name: one.model for name, one in candidates.items()}
        forecasts = yield from predict_job(own, models, samplings, recipe)
        runs = {ticker: run} if run else {}
        manifest = (
            evaluation_manifest([own], recipe, base.source, str(base.device), runs)
            | how_sampled(ticker, samplings, forecasts)
            | doubts(ticker, candidates)
            | weights_of(ticker, candidates)
        )
        evaluation = save_ticker_evaluation(layout, forecasts.predictions, about, manifest, tickers_tested)
        said = [f"base model {base.source.label}", *evaluation["warnings"]]
        plots = save_plots(layout, own.bars.frame, forecasts.predictions, about, said)
        return HoldoutResult(forecasts.predictions, evaluation, manifest, plots, [*notes, *forecasts.notes])

    whole_models = not adapter_name and any((layout.adapter(ticker) / OWN_BASE).is_dir() for ticker in mlflow_runs)
    jobs = {ticker: evaluating(ticker, run) for ticker, run in mlflow_runs.items()}
    return run_jobs(jobs, max_jobs=1 if whole_models else MAX_JOBS)
