"""Runs of a backtest's folds: training, forecasts, and their cache while data, settings and code stay the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout, package_versions, read_manifest, write_parquet
from kronos_pipeline.checksums import text_hash
from kronos_pipeline.code_version import PREDICTIONS, layers_version
from kronos_pipeline.config import Role, settings_of
from kronos_pipeline.errors import ArtifactError, KronosError
from kronos_pipeline.evaluation.backtest.folds import Fold
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob, run_jobs, unwrap
from kronos_pipeline.evaluation.forecasting.candidates import Candidate, TrainedModels, evaluate_models_job
from kronos_pipeline.evaluation.forecasting.forecast_progress import ForecastProgress
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, trained_model
from kronos_pipeline.evaluation.provenance import merge_manifests, sampling_precision
from kronos_pipeline.evaluation.rivals.optional import OptionalRivals, prepare_rivals, rivals_provenance
from kronos_pipeline.training.plan import plan_trainings
from kronos_pipeline.training.progress import Say, say_nothing, without_lines

if TYPE_CHECKING:
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.model.loading import KronosModel
    from kronos_pipeline.training.publish import TrainingResult
    from kronos_pipeline.training.trainer import KronosTrainer

FoldForecast = tuple[pd.DataFrame, dict[str, Any]]
"""Predictions and their manifest."""

FOLDS_AT_ONCE = {"cuda": 32}
_FEW = 8
"""Number of adapters that are trained and then forecast together, by device; on any other device `_FEW`."""
_ASIDE = Role.BARS | Role.FORECAST | Role.DECISION | Role.RUN
"""Roles of the settings without effect on a fold's predictions; the device type is a part of the key itself."""


def fold_key(fold: Fold, base: KronosModel) -> str:
    """Return the name of a fold's folder: a hash of its tickers, and a hash of all inputs of its predictions."""
    from kronos_pipeline.training.devices import pick_precision  # imports torch

    settings = json.dumps(fold.recipe.model_dump(mode="json", exclude=set(settings_of(_ASIDE))), sort_keys=True)
    packages = json.dumps(package_versions(), sort_keys=True)
    precision = fold.recipe.precision
    formats = [pick_precision(precision, base.device, base.predictor), sampling_precision(precision, base.device)]
    data = [windows.bars.content_hash for windows in fold.windows]
    # The device type, not its number: a killed backtest may resume on another GPU.
    code = layers_version(*PREDICTIONS)
    rivals = json.dumps(rivals_provenance(fold.recipe), sort_keys=True)
    content = text_hash(settings, packages, rivals, base.weights_hash, base.device.type, *formats, code, *data)
    return f"{text_hash(trained_model(fold.recipe), *fold.group)[:12]}-{content[:32]}"


def fold_predictions_file(root: Path) -> Path:
    """Return the file of a fold's predictions and their manifest."""
    return root / "predictions.parquet"


def is_stored(root: Path) -> bool:
    """Return whether a folder has the predictions of its fold, undamaged."""
    try:
        return bool(read_manifest(fold_predictions_file(root)))
    except ArtifactError:
        return False


def run_folds(
    folds: Mapping[Path, Fold], base: KronosModel, say: Say = say_nothing
) -> Iterator[tuple[Path, pd.DataFrame | KronosError]]:
    """Train and forecast folds, and store the predictions of each; a failing fold does not affect the others.

    Several adapters are trained, and forecast, at a time. A killed run keeps its finished folds and trainings.

    Args:
        folds: folds by their folders.
        base: the untouched base model.
        say: takes lines with the progress of the forecasts if there is no terminal.

    Yields:
        Each folder with its stored predictions, or the error that ended the fold.
    """
    from kronos_pipeline.training.trainer import KronosTrainer  # imports torch

    remaining = list(folds)
    while remaining:
        first = folds[remaining[0]]
        whole_models = trained_model(first.recipe) != ADAPTER or not first.recipe.freeze_backbone
        count = 1 if whole_models else FOLDS_AT_ONCE.get(base.device.type, _FEW)
        batch, remaining = {root: folds[root] for root in remaining[:count]}, remaining[count:]
        trainer = KronosTrainer(first.recipe, next(iter(batch)), base=base, say=without_lines(say))
        with trainer.one_run():
            results = _train(batch, trainer)
            failed = {root: result for root, result in results.items() if isinstance(result, KronosError)}
            yield from failed.items()
            trained_folds = {root: fold for root, fold in batch.items() if root not in failed}
            yield from _forecast(trained_folds, results, base, say)


def prune_folds(used: Collection[Path]) -> None:
    """Remove the stored folds of the same groups that are no longer used."""
    for group in {(folder.parent, folder.name.split("-")[0]) for folder in used}:
        for folder in group[0].glob(f"{group[1]}-*"):
            if folder not in used:
                shutil.rmtree(folder, ignore_errors=True)


def _train(folds: Mapping[Path, Fold], trainer: KronosTrainer) -> dict[Path, TrainingResult | KronosError]:
    jobs = [replace(job, root=root) for root, fold in folds.items() for job in plan_trainings(fold.recipe, fold.known)]
    return dict(zip(folds, trainer.train(jobs), strict=True))


def _forecast(
    folds: Mapping[Path, Fold], results: Mapping[Path, Any], base: KronosModel, say: Say
) -> Iterator[tuple[Path, pd.DataFrame | KronosError]]:
    jobs: dict[tuple[Path, str], ForecastJob[FoldForecast]] = {}
    for root, fold in folds.items():
        models = TrainedModels(ArtifactLayout(root), base)
        rivals = prepare_rivals(fold.recipe, fold.known, base.device)
        for windows in fold.windows:
            jobs[root, windows.ticker] = _forecast_job(fold, windows, results[root], models, rivals)
    forecasts: dict[Path, dict[str, FoldForecast | KronosError]] = {root: {} for root in folds}
    progress = ForecastProgress("backtest", len(jobs), say, unit="forecasts")
    for (root, ticker), result in run_jobs(jobs, progress=progress):
        forecasts[root][ticker] = result
        if len(forecasts[root]) == len(folds[root].windows):
            try:
                in_order = [unwrap(forecasts[root][windows.ticker]) for windows in folds[root].windows]
                yield root, _store(root, in_order)
            except KronosError as error:
                yield root, error


def _forecast_job(
    fold: Fold, windows: WindowSet, result: TrainingResult, models: TrainedModels, rivals: OptionalRivals
) -> ForecastJob[FoldForecast]:
    """Forecast one ticker of a fold."""
    ticker, trained = windows.ticker, trained_model(fold.recipe)
    candidates = {
        BASE: Candidate(models.base, models.layout.base),
        trained: Candidate(models.load(trained, result.folder), result.folder),
    }
    training = {name: result.summary[name] for name in ("steps", "best_step", "selection_loss", "seconds")}
    forecasts = yield from evaluate_models_job(windows, candidates, fold.recipe, rivals=rivals)
    stamps = windows.bars.frame["timestamps"]
    cutoffs = [stamps.iloc[origin].isoformat() for origin in windows.of_split("holdout")["origin"]]
    group = {"folds": {ticker: [{"cutoffs": cutoffs, **training}]}, "group": {ticker: list(fold.group)}}
    return forecasts.predictions, forecasts.manifest | group


def _store(root: Path, forecasts: Collection[FoldForecast]) -> pd.DataFrame:
    """Write the predictions of all tickers of a fold, and remove the weights of its models."""
    tables, manifests = zip(*forecasts, strict=True)
    predictions: pd.DataFrame = pd.concat(tables, ignore_index=True)
    write_parquet(fold_predictions_file(root), predictions, merge_manifests(manifests))
    for entry in root.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    return predictions
