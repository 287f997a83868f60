"""Devices: which one computes, what it multiplies natively, and matrix products that are exact on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kronos_pipeline.errors import ModelError, SettingsError

_EXACT = threading.RLock()


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the first available of cuda, mps and cpu.

    A CUDA device always has an index, for `torch.device("cuda") != torch.device("cuda:0")`.

    Raises:
        SettingsError: this machine has no such device.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"--device {name} is no device; use auto, cpu, cuda, cuda:N or mps.") from error
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        found = f"{gpus} CUDA device{'s' if gpus != 1 else ''}"
        raise SettingsError(f"--device {name}: torch finds {found} here; use --device auto or cpu.")
    if device.type == "mps" and not has_mps:
        raise SettingsError("--device mps: this machine has no Apple GPU that torch can use; use --device auto or cpu.")
    return with_index(device)


def with_index(device: torch.device) -> torch.device:
    """Return the device with its index where it is a CUDA device: the current one unless it has an index."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)


def has_native_bf16(device: torch.device) -> bool:
    """Return whether a CUDA device multiplies bfloat16 in hardware; others emulate it, at the cost of float32."""
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


@contextmanager
def explain_out_of_memory(what: str, device: torch.device, advice: str) -> Iterator[None]:
    """Raise an error for people in place of torch's where the device runs out of memory inside the block.

    Args:
        what: what was done, as the beginning of a sentence: "Loading Kronos-small".
        device: where.
        advice: what a person can do, in the imperative and without a full stop.

    Raises:
        ModelError: the device has run out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(what, device, advice) from error


def out_of_memory(what: str, device: torch.device, advice: str) -> ModelError:
    """Make the error that `explain_out_of_memory` raises."""
    room = ""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        ours = torch.cuda.memory_reserved(device)
        others = max(0, total - free - ours)
        room = (
            f" It has {total / 2**30:.1f} GB; this process holds {ours / 2**30:.1f}, others hold {others / 2**30:.1f}."
        )
    return ModelError(f"{what} ran out of memory on {device}.{room} To go on, {advice}.")


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply float32 matrices in float32 inside the block, whatever the process has chosen for them (TF32, say)."""
    products = torch.backends.cuda.matmul
    with _EXACT:
        before = products.fp32_precision
        products.fp32_precision = "ieee"
        try:
            yield
        finally:
            products.fp32_precision = before
