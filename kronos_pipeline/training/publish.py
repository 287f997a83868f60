"""Published folder of a training: weights, losses by step, and a manifest of the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kronos_pipeline.artifacts import MANIFEST, check_folder, package_versions, read_json, write_manifest
from kronos_pipeline.atomic_writes import publish_folder
from kronos_pipeline.code_version import code_version
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.locks import shared_time
from kronos_pipeline.model.loading import KronosModel, base_identity, save_checkpoint
from kronos_pipeline.model.lora import save_adapter
from kronos_pipeline.training.checkpoint import ResumeState
from kronos_pipeline.training.devices import device_name
from kronos_pipeline.training.trainer_state import Tensors, TrainOutput

HISTORY_FILE = "history.csv"


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Attributes:
        folder: the published adapter or checkpoint.
        history: losses (nats per token), learning rate and speed by step; see `trainer_state.HISTORY`.
        summary: numbers of the whole: steps, best_step, selection_loss, untouched_loss, seconds, windows_per_second,
            device, precision, together, trained_parameters, total_parameters, windows_train, windows_selection,
            stopped_early, resumed_from_step; `note` says that no evaluation was better than untouched. For adapters
            that trained jointly, the time is the time of the group.
    """

    folder: Path
    history: pd.DataFrame
    summary: dict[str, Any]


def load_result(folder: Path, key: str) -> TrainingResult | None:
    """Load the result in a folder, or return None unless the training with that key published it, undamaged."""
    if not (folder / MANIFEST).is_file() or not (folder / HISTORY_FILE).is_file():
        return None
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest.get("key") != key:
            return None
        check_folder(folder)
    except ArtifactError:
        return None  # damaged since; the training makes it again
    return TrainingResult(folder, pd.read_csv(folder / HISTORY_FILE), manifest["training"])


def published_at(folder: Path) -> float:
    """Return when the model in a folder was published, in seconds since 1970, see `locks.shared_time`.

    Of a model of an earlier version of the project it is the time of its link; of no model, or a damaged one, 0.
    """
    try:
        recorded: float | None = read_json(folder / MANIFEST).get("published_at")
        return folder.lstat().st_mtime if recorded is None else recorded
    except (ArtifactError, OSError):
        return 0.0


def publish_adapter(
    result: TrainingResult,
    predictor: Any,
    tensors: Tensors,
    base: KronosModel,
    manifest: dict[str, Any],
    *,
    with_base: bool,
) -> None:
    """Publish an adapter as `result.folder`.

    Args:
        result: its folder, history and summary.
        predictor: the predictor with the adapter; it receives the tensors.
        tensors: the trained tensors by name.
        base: the base model.
        manifest: the manifest, from `training_manifest`.
        with_base: whether to write the base as well, for an adapter that was trained with it.

    Raises:
        ModelError: the written adapter gives other logits when it is loaded again.
        ArtifactError: it cannot be written.
    """
    _put(predictor, tensors)
    with publish_folder(result.folder) as folder:
        save_adapter(folder, predictor, base, with_base=with_base)
        _describe(folder, result, manifest)


def publish_checkpoint(result: TrainingResult, predictor: Any, tensors: Tensors, manifest: dict[str, Any]) -> None:
    """Publish a fully trained predictor as `result.folder`; `predictor` receives the tensors.

    Raises:
        ModelError: the written weights differ when they are loaded again.
        ArtifactError: they cannot be written.
    """
    _put(predictor, tensors)
    with publish_folder(result.folder) as folder:
        save_checkpoint(folder, predictor)
        _describe(folder, result, manifest)


def training_manifest(
    state: ResumeState,
    windows: Sequence[WindowSet],
    recipe: Recipe,
    base: KronosModel,
    mlflow_run: str | None,
    *,
    together: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the manifest of an artifact, without the numbers of the training.

    `seen_until` is the time of the last bar of each ticker that training may have read; evaluations on earlier bars are
    not out of sample. `together` names the adapters that trained in the same batches, without shared weights.
    `contamination` says whether the base model may have seen the holdouts in pre-training.
    """
    return {
        "artifact": state.artifact,
        "key": state.key,
        "base_model": base_identity(base),
        "demo": base.source.demo,
        "context": base.source.context,
        "contamination": _contamination(windows, base),
        "data": {ticker.ticker: ticker.bars.content_hash for ticker in windows},
        "seen_until": {ticker.ticker: _last_seen(ticker) for ticker in windows},
        "config": recipe.model_dump(mode="json"),
        **recipe.derived,
        "seed": recipe.seed,
        "code_version": code_version(),
        "packages": package_versions(),
        "device": str(base.device),
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
    """Return the numbers for `TrainingResult.summary`; `together` is the number of jointly trained adapters."""
    return {
        **outcome.summary,
        "device": device_name(device),
        "precision": precision,
        "together": together,
        "trained_parameters": sum(p.numel() for p in predictor.parameters() if p.requires_grad),
        "total_parameters": sum(p.numel() for p in predictor.parameters()),
        "windows_train": sum(ticker.counts()["train"] for ticker in windows),
        "windows_selection": sum(ticker.counts()["selection"] for ticker in windows),
    }


def _describe(folder: Path, result: TrainingResult, manifest: dict[str, Any]) -> None:
    result.history.to_csv(folder / HISTORY_FILE, index=False)
    write_manifest(folder, {**manifest, "training": result.summary, "published_at": shared_time()})


def _contamination(windows: Sequence[WindowSet], base: KronosModel) -> str | None:
    """Return the contamination of the ticker whose holdout begins first; None without a holdout."""
    firsts = [
        ticker.bars.frame["timestamps"].iloc[ticker.holdout_start]
        for ticker in windows
        if ticker.holdout_start < len(ticker.bars)
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
