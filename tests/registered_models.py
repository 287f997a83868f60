"""Adapters, checkpoints and their evidence, made without training, for the registry."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from mlflow import MlflowClient
from small_trainings import simulated_windows

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json, write_json, write_manifest, write_parquet
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.predictions import COLUMNS, QUANTILES
from kronos_pipeline.evaluation.scoring.gate import Decision, decide
from kronos_pipeline.evaluation.scoring.report import build_evaluation
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target
from kronos_pipeline.model.loading import KronosModel, load_base, save_checkpoint
from kronos_pipeline.model.lora import adapter_hash, add_lora, save_adapter
from kronos_pipeline.tracking.registry import Registry, Version
from kronos_pipeline.training.checkpoint import ResumeState
from kronos_pipeline.training.publish import training_manifest

CPU = torch.device("cpu")
GOOD = {"naive": 1.0, "base": 1.0, "adapter": 0.5}
BAD = {"naive": 1.0, "base": 1.0, "adapter": 1.5}
_SQUARED_RETURN = 1e-4
CHAMPION = ("champion", "champion-distribution", "champion-mean", "champion-volatility")
"""Aliases of a version that is the champion of every target."""


def base_of(recipe: Recipe) -> KronosModel:
    return load_base(find_base_model(recipe.model_name), CPU)


def made_adapter(folder: Path, recipe: Recipe, tickers: Sequence[str] = ("AAPL",), seed: int = 1) -> Path:
    """Publish an adapter with random weights as a training does."""
    base = base_of(recipe)
    adapted = add_lora(copy.deepcopy(base.predictor), r=2, alpha=4, dropout=0.0, targets=["q_proj", "w1"])
    _shake(adapted, seed)
    save_adapter(folder, adapted, base, with_base=False)
    return _described(folder, "adapters/made", recipe, base, tickers)


def made_checkpoint(folder: Path, recipe: Recipe, tickers: Sequence[str] = ("AAPL",), seed: int = 1) -> Path:
    base = base_of(recipe)
    predictor = copy.deepcopy(base.predictor)
    for parameter in predictor.parameters():
        parameter.requires_grad_(True)
    _shake(predictor, seed)
    save_checkpoint(folder, predictor)
    return _described(folder, "checkpoints/best_model", recipe, base, tickers)


def for_tickers(folder: Path, target: Path, tickers: Sequence[str]) -> Path:
    """Copy an adapter, with a manifest of a training on other tickers."""
    shutil.copytree(folder, target)
    manifest = read_json(target / MANIFEST)
    write_manifest(target, {**manifest, "data": dict.fromkeys(tickers, "hash")})
    return target


def evidence(
    losses: Mapping[str, float], *, symbol: str = "AAPL", cutoffs: int = 12, seed: int = 0, first: str = "2024-01-01"
) -> pd.DataFrame:
    """Return predictions of two bars per cutoff with about the given mean scaled loss, by model."""
    rng = np.random.default_rng(seed)
    starts = pd.Timestamp(first) + pd.to_timedelta(2 * np.repeat(np.arange(cutoffs), 2), unit="D")
    step = np.tile([1, 2], cutoffs)
    shared = {
        "unique_id": symbol,
        "cutoff": starts,
        "ds": starts + pd.to_timedelta(step, unit="D"),
        "step": step,
        "y": 100.0,
        "last": 100.0,
        "scale": 1.0,
        "squared_return": _SQUARED_RETURN,
    }
    tables = []
    for model, loss in losses.items():
        error = loss * rng.uniform(0.8, 1.2, 2 * cutoffs)
        forecast = {"mean": 100 + error, "crps": error, **dict.fromkeys(QUANTILES, 100 + error)}
        # The loss of a variance grows with the ratio of forecast and realised variance.
        tables.append(pd.DataFrame({**shared, "model": model, **forecast, "variance": (1 + error) * _SQUARED_RETURN}))
    return pd.concat(tables, ignore_index=True).reindex(columns=list(COLUMNS))


@cache
def promotion() -> Decision:
    return decide(evidence(GOOD), "adapter", champion=None, gate="strict")


def promotions(*targets: Target) -> dict[Target, Decision]:
    """Return the gate's decisions that promote a version for some targets, or for all."""
    return dict.fromkeys(targets or TARGETS, promotion())


def aliases(registry: Registry, name: str) -> dict[int, tuple[str, ...]]:
    return {version.number: version.aliases for version in registry.versions(name) if version.aliases}


def make_old(registry: Registry, name: str, by: list[str]) -> None:
    """Turn the versions of a model into champions of an earlier version of the project, the last one still champion."""
    client = MlflowClient(registry.uri)
    for version, author in enumerate(by, start=1):
        for key, value in {"decided_by": author, "promoted": "yes", "reason": f"old reason {version}"}.items():
            client.set_model_version_tag(name, str(version), key, value)
    client.set_registered_model_alias(name, "champion", str(len(by)))
    client.delete_registered_model_alias(name, "challenger")
    client.set_registered_model_tag(name, "former_champions", ",".join(map(str, range(1, len(by)))))


def number(version: Version | None) -> int | None:
    return None if version is None else version.number


def _shake(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def _described(folder: Path, artifact: str, recipe: Recipe, base: KronosModel, tickers: Sequence[str]) -> Path:
    windows = simulated_windows(recipe, tickers)
    state = ResumeState(ArtifactLayout(folder), artifact, {})
    write_manifest(folder, training_manifest(state, windows, recipe, base, None))
    return folder


def manifest_of(
    layout: ArtifactLayout, recipe: Recipe, data: str = "hash", base: str | None = None, **changes: object
) -> dict[str, object]:
    """Return the manifest of an evaluation of the adapter of AAPL."""
    folder = layout.adapter("AAPL")
    own_base = read_json(folder / MANIFEST)["base_model"]["weights_hash"]
    weights = {"base": base or own_base, "adapter": adapter_hash(folder, own_base)}
    return {
        "config": recipe.model_dump(mode="json"),
        "data": {"AAPL": data},
        "base_model": {"label": "tiny", "demo": False},
        "weights": {"AAPL": weights},
        "group": {"AAPL": ["AAPL"]},
        **changes,
    }


def save_holdout(layout: ArtifactLayout, table: pd.DataFrame, recipe: Recipe, **changes: object) -> None:
    manifest = manifest_of(layout, recipe, **changes)  # type: ignore[arg-type]
    write_parquet(layout.ticker_forecasts("AAPL"), table, manifest)
    write_json(layout.ticker_metrics("AAPL"), build_evaluation(table, "adapter", [], manifest))
