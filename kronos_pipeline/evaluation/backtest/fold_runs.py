"""The folds of a backtest: trained, forecast, and kept while their data, settings and code stay the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout, package_versions, text_hash, write_parquet
from kronos_pipeline.code_version import PREDICTIONS, layers_version
from kronos_pipeline.config import Role, settings_of
from kronos_pipeline.errors import KronosError
from kronos_pipeline.evaluation.backtest.folds import Fold
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob, run_jobs, unwrap
from kronos_pipeline.evaluation.forecasting.candidates import Candidate, Loader, evaluate_models_job, loader
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE
from kronos_pipeline.evaluation.provenance import merge_manifests, sampling_precision

if TYPE_CHECKING:
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.model.loading import KronosModel
    from kronos_pipeline.training.publish import TrainingResult
    from kronos_pipeline.training.trainer import KronosTrainer

Forecast = tuple[pd.DataFrame, dict[str, Any]]
"""Predictions and their manifest."""

FOLDS_AT_ONCE = {"cuda": 32}
_FEW = 8
"""Adapters that are trained, and then forecast, before anything is said of them: by the device, and on any other."""
_ASIDE = Role.FORECAST | Role.DECISION | Role.RUN
"""Roles of the settings that leave a fold's predictions as they are; the kind of device counts by itself."""


def fold_key(fold: Fold, trained: str, base: KronosModel) -> str:
    """Names a fold's folder: what is trained together, and then all that shapes what comes of it."""
    from kronos_pipeline.training.devices import pick_precision  # imports torch

    settings = json.dumps(fold.recipe.model_dump(mode="json", exclude=set(settings_of(_ASIDE))), sort_keys=True)
    packages = json.dumps(package_versions(), sort_keys=True)
    asked = fold.recipe.precision
    formats = [pick_precision(asked, base.device, base.predictor), sampling_precision(asked, base.device)]
    data = [one.bars.content_hash for one in fold.windows]
    # The kind of device, not its number: a backtest that was killed may go on on another GPU.
    code = layers_version(*PREDICTIONS)
    content = text_hash(settings, packages, base.weights_hash, base.device.type, *formats, code, *data)
    return f"{text_hash(trained, *fold.group)[:12]}-{content[:32]}"


def kept_predictions(root: Path) -> Path:
    """Where a fold's predictions are, once there are any, with their manifest."""
    return root / "predictions.parquet"


def run_folds(
    folds: Mapping[Path, Fold], trained: str, base: KronosModel
) -> Iterator[tuple[Path, pd.DataFrame | KronosError]]:
    """Train and forecast folds, and keep the predictions of each; one that fails leaves the others as they are.

    Adapters are trained, and forecast, several at a time. A run that was killed keeps the folds and the trainings that
    had ended.

    Args:
        folds: by the folder that is each one's own.
        trained: "adapter" or "checkpoint".
        base: the untouched base model.

    Yields:
        Each folder with the predictions that are kept there now, or why there are none.
    """
    from kronos_pipeline.training.trainer import KronosTrainer  # imports torch

    left = list(folds)
    while left:
        first = folds[left[0]]
        whole_models = trained != ADAPTER or not first.recipe.freeze_backbone
        count = 1 if whole_models else FOLDS_AT_ONCE.get(base.device.type, _FEW)
        some, left = {root: folds[root] for root in left[:count]}, left[count:]
        trainer = KronosTrainer(first.recipe, next(iter(some)), base=base, say=lambda _: None)
        with trainer.one_run():
            results = _train(some, trained, trainer)
            failed = {root: result for root, result in results.items() if isinstance(result, KronosError)}
            yield from failed.items()
            yield from _forecast({root: some[root] for root in some if root not in failed}, results, trained, base)


def prune_folds(used: Collection[Path]) -> None:
    """Remove what earlier backtests of the same groups left for folds that there are no more."""
    for group in {(folder.parent, folder.name.split("-")[0]) for folder in used}:
        for folder in group[0].glob(f"{group[1]}-*"):
            if folder not in used:
                shutil.rmtree(folder, ignore_errors=True)


def _train(
    folds: Mapping[Path, Fold], trained: str, trainer: KronosTrainer
) -> dict[Path, TrainingResult | KronosError]:
    from kronos_pipeline.training.single import AdapterJob  # imports torch

    if trained == ADAPTER:
        jobs = [
            AdapterJob(fold.recipe.adapter_name or fold.windows[0].ticker, fold.known, root=root)
            for root, fold in folds.items()
        ]
        return dict(zip(folds, trainer.train_adapters(jobs), strict=True))
    ((root, fold),) = folds.items()  # the trainer's own
    try:
        return {root: trainer.train_checkpoint(fold.known)}
    except KronosError as error:
        return {root: error}


def _forecast(
    folds: Mapping[Path, Fold], results: Mapping[Path, Any], trained: str, base: KronosModel
) -> Iterator[tuple[Path, pd.DataFrame | KronosError]]:
    load = loader(base)
    jobs = {
        (root, one.ticker): _forecast_job(fold, one, results[root], trained, ArtifactLayout(root), base, load)
        for root, fold in folds.items()
        for one in fold.windows
    }
    made: dict[Path, dict[str, Forecast | KronosError]] = {root: {} for root in folds}
    for (root, ticker), found in run_jobs(jobs):
        made[root][ticker] = found
        if len(made[root]) == len(folds[root].windows):
            try:
                yield root, _keep(root, [unwrap(made[root][one.ticker]) for one in folds[root].windows])
            except KronosError as error:
                yield root, error


def _forecast_job(
    fold: Fold,
    windows: WindowSet,
    result: TrainingResult,
    trained: str,
    layout: ArtifactLayout,
    base: KronosModel,
    load: Loader,
) -> ForecastJob[Forecast]:
    """The predictions of one of a fold's tickers."""
    ticker = windows.ticker
    candidates = {
        BASE: Candidate(base, layout.base),
        trained: Candidate(load(trained, result.folder), result.folder),
    }
    training = {name: result.summary[name] for name in ("steps", "best_step", "selection_loss", "seconds")}
    forecasts = yield from evaluate_models_job(windows, candidates, fold.recipe)
    stamps = windows.bars.frame["timestamps"]
    cutoffs = [stamps.iloc[origin].isoformat() for origin in windows.of_split("holdout")["origin"]]
    group = {"folds": {ticker: [{"cutoffs": cutoffs, **training}]}, "group": {ticker: list(fold.group)}}
    return forecasts.predictions, forecasts.manifest | group


def _keep(root: Path, made: Collection[Forecast]) -> pd.DataFrame:
    """Write a fold's predictions, of all its tickers, and remove the weights that made them."""
    tables, manifests = zip(*made, strict=True)
    predictions: pd.DataFrame = pd.concat(tables, ignore_index=True)
    write_parquet(kept_predictions(root), predictions, merge_manifests(manifests))
    for entry in root.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    return predictions
