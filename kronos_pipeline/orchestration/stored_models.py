"""The models that steps look up: the base model of a recipe, and the run that trained what a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from kronos_pipeline.model.loading import KronosModel


def load_base_model(recipe: Recipe) -> KronosModel:
    """The recipe's untouched base model, on its device.

    Raises:
        ModelError, SettingsError: it is not to be had, or the device is not.
    """
    from kronos_pipeline.model.devices import pick_device  # imports torch
    from kronos_pipeline.model.loading import load_base  # imports torch

    return load_base(find_base_model(recipe.model_name, recipe.tokenizer_name), pick_device(recipe.device))


def training_run(layout: ArtifactLayout, ticker: str) -> str | None:
    """The MLflow run that trained the ticker's adapter, or where there is none the checkpoint.

    Raises:
        ArtifactError: there is neither.
    """
    for folder in (layout.adapter(ticker), layout.best_checkpoint):
        if folder.is_dir():
            return mlflow_run_of(folder)
    raise ArtifactError(f"{ticker} has no adapter, and there is no checkpoint; materialise one of them first.")


def mlflow_run_of(folder: Path) -> str | None:
    """The MLflow run that trained an adapter or checkpoint; None where none is on record."""
    if not (folder / MANIFEST).is_file():
        return None
    run: str | None = read_json(folder / MANIFEST).get("mlflow_run")
    return run
