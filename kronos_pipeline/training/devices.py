"""Where a training runs: its device, its number format, and its place among several processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.model.modules import is_small


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


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a device trains in the number format that is asked for.

    Raises:
        SettingsError: it does not.
    """
    if precision == "fp16" and device.type == "cpu":
        raise SettingsError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")


def pick_precision(precision: str, device: torch.device, predictor: torch.nn.Module) -> str:
    """The number format of a training's matrix products: "fp32", "bf16" or "fp16".

    "auto" is bf16 where the device multiplies it natively: on a CPU that takes a third of the time of Kronos-small. A
    small model is done in minutes on any CPU, and there stays fp32, so that its numbers are the same on all of them.

    Args:
        precision: "auto", or one of the others, which is what it says.
        device: where it trains.
        predictor: what is trained.

    Raises:
        SettingsError: the device does not train in that format.
    """
    check_precision(precision, device)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() and not is_small(predictor) else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 natively, as far as PyTorch knows."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # younger than the oldest torch allowed
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
