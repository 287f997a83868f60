"""The number format that forecasts are sampled in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sampling_precision(precision: str, device: torch.device | str) -> str:
    """What a recipe's `precision` means for sampling on a device: "fp32" or "bf16".

    "auto" is bf16 on a GPU that has it. On a CPU it is fp32, whatever a training there uses: a forecast of a user's
    laptop is then the same number on any other. fp16 is for training, which scales its losses; sampling takes fp32.
    """
    if precision != "auto":
        return "bf16" if precision == "bf16" else "fp32"
    if not str(device).startswith("cuda"):
        return "fp32"
    import torch

    from kronos_pipeline.model.devices import has_native_bf16

    return "bf16" if has_native_bf16(torch.device(device)) else "fp32"
