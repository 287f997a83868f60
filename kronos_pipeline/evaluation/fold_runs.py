"""One fold of a backtest: trained, forecast, and kept while its data, settings and code stay the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import code_version, package_versions, read_parquet, text_hash, write_parquet
from kronos_pipeline.evaluation.candidates import Candidate, how_sampled, sampling_of, weights_of
from kronos_pipeline.evaluation.folds import Fold
from kronos_pipeline.evaluation.forecasts import predict
from kronos_pipeline.evaluation.manifests import evaluation_manifest, merge_manifests
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE

if TYPE_CHECKING:
    from kronos_pipeline.model.loading import KronosModel
    from kronos_pipeline.training.trainer import KronosTrainer

_ASIDE = {"backtest_origins", "backtest_refit_every", "gate", "refit_all", "calendars", "save_steps", "num_workers"}
"""Settings that leave a fold's predictions as they are."""


def fold_key(fold: Fold, trained: str, base: KronosModel) -> str:
    """Names a fold's folder: what is trained together, and then all that shapes what comes of it."""
    settings = json.dumps(fold.recipe.model_dump(mode="json", exclude=_ASIDE), sort_keys=True)
    packages = json.dumps(package_versions(), sort_keys=True)
    data = [one.bars.content_hash for one in fold.windows]
    content = text_hash(settings, packages, base.weights_hash, str(base.device), code_version(), *data)
    return f"{text_hash(trained, *fold.group)[:12]}-{content[:32]}"


def kept_predictions(trainer: KronosTrainer) -> Path:
    """Where a fold's predictions are, once there are any."""
    return trainer.layout.root / "predictions.parquet"


def run_fold(fold: Fold, trainer: KronosTrainer, trained: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Train and forecast one fold, or find what was made of it before; its predictions and their manifest."""
    from kronos_pipeline.model.loading import load_checkpoint
    from kronos_pipeline.model.lora import load_adapter

    path = kept_predictions(trainer)
    if path.is_file():
        return read_parquet(path)
    recipe, base = fold.recipe, trainer.base
    if trained == ADAPTER:
        result = trainer.train_adapter(fold.known, recipe.adapter_name or fold.windows[0].ticker)
        model = load_adapter(result.folder, base)
    else:
        result = trainer.train_checkpoint(fold.known)
        model = load_checkpoint(result.folder, base)
    candidates = {BASE: Candidate(base, trainer.layout.base), trained: Candidate(model, result.folder)}
    seen = {name: result.summary[name] for name in ("steps", "best_step", "selection_loss", "seconds")}
    tables, manifests = [], []
    for one in fold.windows:
        samplings = {name: sampling_of(candidate, one, recipe) for name, candidate in candidates.items()}
        models = {name: candidate.model for name, candidate in candidates.items()}
        forecasts = predict(one, models, samplings, recipe)
        tables.append(forecasts.predictions)
        stamps = one.bars.frame["timestamps"]
        cutoffs = [stamps.iloc[origin].isoformat() for origin in one.of_split("holdout")["origin"]]
        manifests.append(
            evaluation_manifest([one], recipe, base.source, str(base.device))
            | how_sampled(one.ticker, samplings, forecasts)
            | weights_of(one.ticker, candidates)
            | {"folds": {one.ticker: [{"cutoffs": cutoffs, **seen}]}, "group": {one.ticker: list(fold.group)}}
        )
    predictions, manifest = pd.concat(tables, ignore_index=True), merge_manifests(manifests)
    write_parquet(path, predictions, manifest)
    for entry in trainer.layout.root.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    return predictions, manifest


def prune_folds(used: Collection[Path]) -> None:
    """Remove what earlier backtests of the same groups left for folds that there are no more."""
    for group in {(folder.parent, folder.name.split("-")[0]) for folder in used}:
        for folder in group[0].glob(f"{group[1]}-*"):
            if folder not in used:
                shutil.rmtree(folder, ignore_errors=True)
