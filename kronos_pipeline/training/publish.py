"""What a training leaves: a folder with weights, losses by step and a manifest that says what made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kronos_pipeline.artifacts import (
    MANIFEST,
    package_versions,
    publish_folder,
    read_json,
    write_manifest,
)
from kronos_pipeline.code_version import code_version
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.model.loading import KronosModel, base_identity, save_checkpoint
from kronos_pipeline.model.lora import save_adapter
from kronos_pipeline.training.devices import device_name
from kronos_pipeline.training.trainer_state import Tensors, TrainOutput

HISTORY_FILE = "history.csv"


@dataclass(frozen=True)
class TrainingResult:
    """What a training made.

    Attributes:
        folder: the published adapter or checkpoint.
        history: losses (nats per token), learning rate and speed by step; see `loop.HISTORY`.
        summary: numbers of the whole: steps, best_step, selection_loss, seconds, windows_per_second, device, precision,
            together, trained_parameters, total_parameters, windows_train, windows_selection, stopped_early,
            resumed_from_step. Where several adapters trained together, the time is that of all.
    """

    folder: Path
    history: pd.DataFrame
    summary: dict[str, Any]


def load_result(folder: Path, key: str) -> TrainingResult | None:
    """The result that a folder holds, or None where it holds none of the training with that key.

    Raises:
        ArtifactError: its manifest is damaged.
    """
    if not (folder / MANIFEST).is_file() or not (folder / HISTORY_FILE).is_file():
        return None
    manifest = read_json(folder / MANIFEST)
    if manifest.get("key") != key:
        return None
    return TrainingResult(folder, pd.read_csv(folder / HISTORY_FILE), manifest["training"])


def publish_adapter(
    result: TrainingResult,
    predictor: Any,
    tensors: Tensors,
    base: KronosModel,
    manifest: dict[str, Any],
    *,
    with_base: bool,
) -> None:
    """Publish an adapter as `result.folder`; `predictor` gets the tensors, and `with_base` writes the base as well.

    Raises:
        ModelError: what was written gives other logits when it is loaded again.
        ArtifactError: it cannot be written.
    """
    _put(predictor, tensors)
    with publish_folder(result.folder) as folder:
        save_adapter(folder, predictor, base, with_base=with_base)
        _describe(folder, result, manifest)


def publish_checkpoint(result: TrainingResult, predictor: Any, tensors: Tensors, manifest: dict[str, Any]) -> None:
    """Publish a fully trained predictor as `result.folder`; `predictor` gets the tensors.

    Raises:
        ModelError: what was written comes back changed.
        ArtifactError: it cannot be written.
    """
    _put(predictor, tensors)
    with publish_folder(result.folder) as folder:
        save_checkpoint(folder, predictor)
        _describe(folder, result, manifest)


def training_manifest(
    artifact: str,
    key: str,
    windows: Sequence[WindowSet],
    recipe: Recipe,
    base: KronosModel,
    device: torch.device,
    mlflow_run: str | None,
    *,
    together: Sequence[str] = (),
) -> dict[str, Any]:
    """What made an artifact, the training's own numbers aside.

    `seen_until` is the time of the last bar of each ticker that training may have read: an evaluation on bars before it
    would not be one on unseen days. `together` names the adapters that were trained in the same batches, which share no
    weight with this one. `contamination` says so where the base model may have met the holdouts before.
    """
    return {
        "artifact": artifact,
        "key": key,
        "base_model": base_identity(base),
        "demo": base.source.demo,
        "context": base.source.context,
        "contamination": _contamination(windows, base),
        "data": {one.ticker: one.bars.content_hash for one in windows},
        "seen_until": {one.ticker: _last_seen(one) for one in windows},
        "config": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "code_version": code_version(),
        "packages": package_versions(),
        "device": str(device),
        "mlflow_run": mlflow_run,
        "together": list(together),
    }


def training_summary(
    outcome: TrainOutput,
    predictor: Any,
    windows: Sequence[WindowSet],
    device: torch.device,
    precision: str,
    *,
    together: int = 1,
) -> dict[str, Any]:
    """The numbers of a training that `TrainingResult.summary` holds; `together`: of how many adapters it was."""
    return {
        **outcome.summary,
        "device": device_name(device),
        "precision": precision,
        "together": together,
        "trained_parameters": sum(p.numel() for p in predictor.parameters() if p.requires_grad),
        "total_parameters": sum(p.numel() for p in predictor.parameters()),
        "windows_train": sum(one.counts()["train"] for one in windows),
        "windows_selection": sum(one.counts()["selection"] for one in windows),
    }


def _describe(folder: Path, result: TrainingResult, manifest: dict[str, Any]) -> None:
    result.history.to_csv(folder / HISTORY_FILE, index=False)
    write_manifest(folder, {**manifest, "training": result.summary})


def _contamination(windows: Sequence[WindowSet], base: KronosModel) -> str | None:
    """Of the ticker whose holdout begins first; None where none has a holdout."""
    firsts = [
        one.bars.frame["timestamps"].iloc[one.holdout_start] for one in windows if one.holdout_start < len(one.bars)
    ]
    return base.source.contamination(min(firsts)) if firsts else None


def _last_seen(windows: WindowSet) -> str | None:
    read = pd.concat([windows.of_split("train"), windows.of_split("selection")])
    if read.empty:
        return None
    return str(windows.bars.frame["timestamps"].iloc[int(read["end"].max()) - 1].isoformat())


@torch.no_grad()
def _put(predictor: Any, tensors: Tensors) -> None:
    for name, parameter in predictor.named_parameters():
        if name in tensors:
            parameter.copy_(tensors[name])
