"""One ticker's holdout, from its windows to scores, a table and a picture: what the command and the assets share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.evaluation.candidates import load_candidates
from kronos_pipeline.evaluation.forecasts import forecast_holdout
from kronos_pipeline.evaluation.plots import save_forecast_plot
from kronos_pipeline.evaluation.report import evaluation_manifest, save_ticker_evaluation

if TYPE_CHECKING:
    from pathlib import Path

    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.model.loading import KronosModel


@dataclass(frozen=True)
class HoldoutResult:
    """What one ticker's evaluation made.

    Attributes:
        forecasts: a row per holdout bar, see `forecast_holdout`.
        evaluation: as `build_evaluation` makes it, of this ticker alone; what `metrics/<T>.json` holds.
        manifest: what made the forecasts.
        plot: the picture, `plots/<T>.png`.
        notes: models that exist and were left out, and why.
    """

    forecasts: pd.DataFrame
    evaluation: dict[str, Any]
    manifest: dict[str, Any]
    plot: Path
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
) -> HoldoutResult:
    """Forecast a ticker's holdout with every model that fits it, and score it: `metrics/<T>.*` and `plots/<T>.png`.

    Args:
        layout: where artifacts lie.
        windows: the ticker's windows.
        base: the untouched base model.
        recipe: horizon, paths per forecast, temperature, top_p and seed.
        trained: the model that the scores are about, "adapter" or "checkpoint"; by default the adapter where there is
            one.
        adapter_name: the adapter that serves the ticker; by default the one of the ticker's name.
        mlflow_run: id of the MLflow run that trained it.

    Raises:
        ModelError, ArtifactError: a model that belongs here is damaged, forecasts no number, or nothing can be written.
    """
    models, notes = load_candidates(layout, base, windows, adapter_name or windows.ticker)
    trained = trained or ("adapter" if "adapter" in models else "checkpoint")
    forecasts = forecast_holdout(windows, models, recipe)
    runs = {windows.ticker: mlflow_run} if mlflow_run else {}
    manifest = evaluation_manifest([windows], recipe, base.source, str(base.device), runs)
    evaluation = save_ticker_evaluation(layout, forecasts, trained, manifest)
    plot = save_forecast_plot(layout, windows, forecasts, base.source.label)
    return HoldoutResult(forecasts, evaluation, manifest, plot, notes)
