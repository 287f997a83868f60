"""Checks and estimates before a training starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bar_schedule import mixed_intervals
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import ArtifactError, DataError, Problem, SettingsError
from kronos_pipeline.removal import free_bytes
from kronos_pipeline.training.dataset import TrainingData
from kronos_pipeline.training.loss_module import LossModule
from kronos_pipeline.training.progress import duration

_COPIES = 11
"""Copies of the trained tensors on the disk: weights, average, best and two moments in two states, and the result."""
_EVAL_COST = 1 / 3
"""Cost of a forward pass relative to a forward and a backward pass."""


def check_windows(windows: Sequence[WindowSet]) -> None:
    """Check that there are windows to train on and windows to select by.

    Raises:
        DataError: a split that training needs is empty, over all tickers together.
        SettingsError: there is no ticker.
    """
    if not windows:
        raise SettingsError("There is no ticker to train on.")
    for split in ("train", "selection"):
        if not any(ticker.counts()[split] for ticker in windows):
            names = ", ".join(ticker.ticker for ticker in windows[:5])
            excluded = "; ".join(
                f"{count} {reason}" for ticker in windows for reason, count in ticker.excluded.items() if count
            )
            why = f" ({excluded})" if excluded else ""
            raise DataError(
                Problem(
                    names,
                    f"no window is left for the {split} split{why}; give more bars, or lower --lookback or --horizon",
                ),
                ticker=windows[0].ticker if len(windows) == 1 else None,
            )


def check_intervals(windows: Sequence[WindowSet]) -> None:
    """Check that the tickers of a checkpoint have bars of one interval.

    Raises:
        SettingsError: they do not.
    """
    mixed = mixed_intervals({ticker.ticker: ticker.bars.frame["timestamps"].to_numpy() for ticker in windows})
    if mixed is not None:
        raise SettingsError(
            f"The tickers have bars of different intervals ({mixed}). Train a checkpoint on the tickers of one "
            "interval, or adapters with --adapter lora, or allow it with --mix-intervals."
        )


def expected_seconds(
    predictor: torch.nn.Module,
    data: TrainingData,
    recipe: Recipe,
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
) -> float:
    """Estimate the longest time of a training, in seconds, by timing a batch after a warm-up; nothing is changed.

    Args:
        predictor: on its device, ready to train.
        data: the windows to train on and to select by.
        recipe: the settings.
        batch_size: windows of the timed batch.
        device: the predictor's device.
        precision: the number format of its matrix products.
    """
    train, selection = data
    loss_module = LossModule(predictor, train.lookback)
    batch = train.batch(range(min(batch_size, len(train))))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seconds = [_timed(loss_module, batch, device, precision) for _ in range(2)][-1]
    loss_module.zero_grad(set_to_none=True)
    per_window = seconds / len(batch["s1"])
    evaluated = recipe.evaluations_per_epoch * len(selection)
    return per_window * recipe.epochs * (len(train) + evaluated * _EVAL_COST)


def needed_bytes(predictor: torch.nn.Module) -> int:
    """Return the bytes of a training's state and result on the disk, without tokens."""
    return _COPIES * sum(
        tensor.numel() * tensor.element_size() for tensor in predictor.parameters() if tensor.requires_grad
    )


def check_disk(folder: Path, needed: int) -> None:
    """Check that the disk has room for a training; another process of the training may not have made the folder yet.

    Raises:
        ArtifactError: it has not.
    """
    free = free_bytes(folder)
    if free < needed:
        raise ArtifactError(
            f"{folder} has {free / 2**20:,.0f} MB free, and this training needs {needed / 2**20:,.0f} MB; "
            "free some, or choose another --output-dir."
        )


@dataclass(frozen=True)
class Estimate:
    """Estimate of a training.

    Attributes:
        train: windows to train on.
        selection: windows of the selection block.
        steps: optimiser steps.
        seconds: the longest time.
        disk: bytes of its state and its result.
    """

    train: int
    selection: int
    steps: int
    seconds: float
    disk: int

    def describe(self, predictor: str, device: torch.device, *, compiled: bool = False) -> str:
        """Describe the training in a line; a slow training on a CPU gets advice."""
        where = f"{device.type} after the model is compiled" if compiled else device.type
        line = (
            f"{self.train:,} training and {self.selection:,} selection windows, {self.steps:,} steps, about "
            f"{duration(self.seconds)} at most on {where}, {max(1, round(self.disk / 2**20)):,} MB of disk"
        )
        if device.type == "cpu" and self.seconds > 600:
            line += (
                f". {predictor} on a CPU is slow: a CUDA GPU does this in minutes, kronos-nano tries the pipeline out"
            )
        return line


def _timed(loss_module: LossModule, batch: dict[str, torch.Tensor], device: torch.device, precision: str) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    low = torch.float16 if precision == "fp16" else torch.bfloat16
    with torch.autocast(device.type, low, enabled=precision != "fp32"):
        loss = loss_module(**batch)
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
