"""One ticker's holdout, from its windows to scores, tables and pictures: what the command and the assets share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.evaluation.candidates import doubts, how_sampled, load_candidates, sampling_of, weights_of
from kronos_pipeline.evaluation.forecasts import predict
from kronos_pipeline.evaluation.manifests import evaluation_manifest
from kronos_pipeline.evaluation.plots import save_plots
from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT
from kronos_pipeline.evaluation.report import save_ticker_evaluation

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


def evaluate_ticker(
    layout: ArtifactLayout,
    windows: WindowSet,
    base: KronosModel,
    recipe: Recipe,
    *,
    trained: str | None = None,
    adapter_name: str | None = None,
    mlflow_run: str | None = None,
    tickers_tested: int = 1,
) -> HoldoutResult:
    """Forecast a ticker's holdout with every model that fits it, and score it: `metrics/<T>.*` and `plots/<T>*`.

    How each model is sampled is fitted on the selection block the first time, and kept beside its weights.

    Args:
        layout: where artifacts lie.
        windows: the ticker's windows.
        base: the untouched base model.
        recipe: horizon, paths per forecast, temperature, top_p and seed.
        trained: the model that the scores are about, "adapter" or "checkpoint"; by default the adapter where there is
            one.
        adapter_name: the adapter that serves the ticker; by default the one of the ticker's name.
        mlflow_run: id of the MLflow run that trained it.
        tickers_tested: tickers that are evaluated together, for which the verdicts are corrected.

    Raises:
        ModelError, ArtifactError: a model that belongs here is damaged, forecasts no number, or nothing can be written.
    """
    candidates, notes = load_candidates(layout, base, windows, adapter_name or windows.ticker)
    trained = trained or (ADAPTER if ADAPTER in candidates else CHECKPOINT)
    samplings = {name: sampling_of(one, windows, recipe) for name, one in candidates.items()}
    models = {name: one.model for name, one in candidates.items()}
    forecasts = predict(windows, models, samplings, recipe)
    runs = {windows.ticker: mlflow_run} if mlflow_run else {}
    manifest = (
        evaluation_manifest([windows], recipe, base.source, str(base.device), runs)
        | how_sampled(windows.ticker, samplings, forecasts)
        | doubts(windows.ticker, candidates)
        | weights_of(windows.ticker, candidates)
    )
    evaluation = save_ticker_evaluation(layout, forecasts.predictions, trained, manifest, tickers_tested)
    said = [f"base model {base.source.label}", *evaluation["warnings"]]
    plots = save_plots(layout, windows.bars.frame, forecasts.predictions, trained, said)
    return HoldoutResult(forecasts.predictions, evaluation, manifest, plots, [*notes, *forecasts.notes])
