"""Where a training runs: its device, its number format, and its place among several processes."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import SettingsError


def process() -> int:
    """The number of this process among those that train together, which torchrun sets."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: torch.device) -> torch.device:
    """Of several processes, each has a GPU of its own."""
    if processes() == 1 or device.type != "cuda":
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def new_accelerator(recipe: Recipe, device: torch.device, precision: str) -> Accelerator:
    # Accelerate keeps device and precision for the life of the process; each training has its own.
    AcceleratorState._reset_state(reset_partial_state=processes() == 1)
    if device.index is not None and processes() == 1:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=recipe.grad_accum_steps,
        cpu=device.type == "cpu",
    )


def pick_precision(precision: str, device: torch.device) -> str:
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise SettingsError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
    return precision


def device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
