"""Devices: selection by name, native precisions, free memory, out-of-memory errors, exact matrix products."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kronos_pipeline.errors import ModelError, SettingsError

_EXACT = threading.RLock()

FREE_MEMORY = (
    "Free memory there (nvidia-smi shows which programs hold some), or choose a smaller base model or another device."
)
"""Advice for a model that does not fit a device."""


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
        count = f"{gpus} CUDA device{'s' if gpus != 1 else ''}"
        raise SettingsError(f"--device {name}: torch finds {count} here; use --device auto or cpu.")
    if device.type == "mps" and not has_mps:
        raise SettingsError("--device mps: this machine has no Apple GPU that torch can use; use --device auto or cpu.")
    return with_index(device)


def with_index(device: torch.device) -> torch.device:
    """Return the device; a CUDA device without an index gets the index of the current one."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)


def has_native_bf16(device: torch.device) -> bool:
    """Return whether a CUDA device multiplies bfloat16 in hardware; others emulate it, at the cost of float32."""
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def free_memory(device: torch.device) -> int:
    """Return the bytes of a GPU's memory that this process could allocate, given other users."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return any(phrase in message for phrase in ("out of memory", "allocate memory", "alloc_failed"))


def shortage(work: str, device: torch.device, advice: str) -> ModelError:
    """Return the error for work that needs more memory than a device has free.

    Args:
        work: the work, as the subject of a sentence: "Packing the weights".
        device: the device of the work.
        advice: advice to the user, a sentence or two.
    """
    return ModelError(f"{work} needs more memory than {_free_memory_text(device)}. {advice}")


@contextmanager
def explain_out_of_memory(work: str, device: torch.device, advice: str) -> Iterator[None]:
    """Raise the error of `shortage`, with the same arguments, if the block runs out of memory.

    Raises:
        ModelError: the device, or the machine, has no memory left.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise shortage(work, device, advice) from None


def _free_memory_text(device: torch.device) -> str:
    if device.type != "cuda":
        return "this machine has free"
    try:
        free, total = free_memory(device) / 2**30, torch.cuda.mem_get_info(device)[1] / 2**30
    except RuntimeError:  # too little memory for the query
        return f"{device} has free"
    return f"{device} has free: {free:.2f} of {total:.1f} GB"


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply float32 matrices in float32 inside the block, also if the process has chosen TF32."""
    products = torch.backends.cuda.matmul
    with _EXACT:
        before = products.fp32_precision
        products.fp32_precision = "ieee"
        try:
            yield
        finally:
            products.fp32_precision = before
