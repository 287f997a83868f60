"""Helpers for upstream's modules: eval mode, rotary caches, moves between devices, CPU threads, copies of models.

Upstream's rotary module caches the cosines and sines of the last sequence length. The cache becomes invalid if the
module moves to another device, or if it was filled in inference mode and training follows; upstream checks neither.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_SMALL = 4_000_000
"""Number of parameters, about that of the smallest published predictor."""


_SHARED = threading.RLock()
"""Held while the mode of a module is changed for a block."""
_LIMITED = threading.Lock()


def unwrap_peft(predictor: nn.Module) -> Any:
    """Return the module with upstream's submodules: the predictor itself, or the module that a PEFT model wraps."""
    unwrap = getattr(predictor, "get_base_model", None)
    return predictor if unwrap is None else unwrap()


def is_small(module: nn.Module) -> bool:
    """Return whether a module has fewer parameters than the smallest published predictor."""
    return sum(parameter.numel() for parameter in module.parameters()) < _SMALL


def copy_sharing_weights(module: Any) -> Any:
    """Return a frozen copy of a module that shares its tensors. New submodules of the copy do not change the module.

    So a thousand adapters on one base take the memory of one base.
    """
    shared: dict[int, Any] = {
        id(value): nn.Parameter(value.detach(), requires_grad=False) for value in module.parameters()
    }
    return copy.deepcopy(module, shared | {id(value): value for value in module.buffers()})


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to a device and clear its rotary caches."""
    module.to(device)
    for rotary in _rotaries(module):
        rotary.seq_len_cached = rotary.cos_cached = rotary.sin_cached = None
    return module


def prepare_rotary(module: nn.Module, length: int) -> None:
    """Fill a module's rotary caches for `length` positions, on its device and usable in training."""
    for rotary in _rotaries(module):
        cached, frequencies = rotary.cos_cached, rotary.inv_freq
        if (
            cached is None
            or rotary.seq_len_cached != length
            or cached.device != frequencies.device
            or cached.is_inference()
        ):
            rotary.seq_len_cached = None
            with torch.inference_mode(False), torch.no_grad():
                positions = frequencies.new_zeros(1, 1, length, 2 * len(frequencies))
                rotary(positions, positions)


def rotary_tables(rotary: Any, length: int) -> tuple[Tensor, Tensor]:
    """Compute the tables that rotate queries and keys at the positions from 0 on, exact under autocast too.

    The two halves of a vector x are the two coordinates of its pairs, so x * cos + (its halves exchanged) * sin is x
    rotated.

    Args:
        rotary: upstream's rotary module.
        length: number of positions.

    Returns:
        cos and sin, (length, width) float32, the first half of sin with its sign turned.
    """
    frequencies = rotary.inv_freq.float()
    angles = torch.arange(length, device=frequencies.device)[:, None] * frequencies
    return torch.cat([angles, angles], dim=-1).cos(), torch.cat([-angles, angles], dim=-1).sin()


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Set eval mode inside the block and restore the mode of each submodule after it. One thread at a time runs it."""
    with _SHARED:
        modes = {part: part.training for part in module.modules()}
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode


class _Threads(threading.local):
    """Whether this thread is inside a limiting block; number of such blocks, and torch's threads before the first."""

    inside = False
    limited = 0
    before = 1


_threads = _Threads()


@contextmanager
def limit_threads(module: nn.Module) -> Iterator[None]:
    """Limit torch to one thread inside the block for a small model on a CPU; other models keep all threads.

    The operations of a small model are so short that threads mostly wait for each other. If the machine has other work,
    each wait takes a whole time slice of the system, and seconds become minutes.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
    if _threads.inside or not (is_small(module) and on_cpu):
        yield
        return
    with _LIMITED:
        if not _Threads.limited:
            _Threads.before = torch.get_num_threads()
        _Threads.limited += 1
        torch.set_num_threads(1)
    _threads.inside = True
    try:
        yield
    finally:
        _threads.inside = False
        with _LIMITED:
            _Threads.limited -= 1
            torch.set_num_threads(_Threads.before)


def _rotaries(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if hasattr(part, "inv_freq") and hasattr(part, "cos_cached")]
