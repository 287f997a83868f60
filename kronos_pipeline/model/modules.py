"""What all code around upstream's modules has to mind: train and eval mode, and caches of rotary position embeddings.

Upstream's rotary module keeps the cosines and sines of the last sequence length. It notices neither a move to another
device nor that the cache was made in inference mode and so cannot take part in training.
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
"""Parameters; the smallest published predictor has about this many."""


_SHARED = threading.RLock()
"""Held while upstream's modules run in a mode that is theirs for the moment, with caches of one length."""
_LIMITED = threading.Lock()


def unwrap_peft(predictor: nn.Module) -> Any:
    """The module with upstream's submodules: the predictor itself, or what a PEFT model wraps."""
    unwrap = getattr(predictor, "get_base_model", None)
    return predictor if unwrap is None else unwrap()


def is_small(module: nn.Module) -> bool:
    """Whether a module has fewer parameters than the smallest published predictor."""
    return sum(parameter.numel() for parameter in module.parameters()) < _SMALL


def copy_sharing_weights(module: Any) -> Any:
    """A frozen copy of a module, in the same memory: what is put into it, LoRA matrices say, leaves the module as is.

    A thousand adapters on one base so take the memory of one base.
    """
    shared: dict[int, Any] = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in module.parameters()}
    return copy.deepcopy(module, shared | {id(one): one for one in module.buffers()})


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to a device, without the rotary caches that it made elsewhere."""
    module.to(device)
    for rotary in _rotaries(module):
        rotary.seq_len_cached = rotary.cos_cached = rotary.sin_cached = None
    return module


def prepare_rotary(module: nn.Module, length: int) -> None:
    """Fill a module's rotary caches for `length` positions, on its device and fit for training."""
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
    """What rotates queries and keys at the positions from 0 on, exact whatever autocast does.

    The two halves of a vector x are the two coordinates of its pairs, so x * cos + (its halves exchanged) * sin is x
    rotated.

    Args:
        rotary: upstream's rotary module.
        length: how many positions.

    Returns:
        cos and sin, (length, width) float32, the first half of sin with its sign turned.
    """
    frequencies = rotary.inv_freq.float()
    angles = torch.arange(length, device=frequencies.device)[:, None] * frequencies
    return torch.cat([angles, angles], dim=-1).cos(), torch.cat([-angles, angles], dim=-1).sin()


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; each submodule's own mode comes back after it. One thread at a time is in it."""
    with _SHARED:
        modes = {part: part.training for part in module.modules()}
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode


class _Threads(threading.local):
    """Whether this thread is in a block that limits them; how many are, and what was there before the first."""

    inside = False
    limited = 0
    before = 1


_threads = _Threads()


@contextmanager
def limit_threads(module: nn.Module) -> Iterator[None]:
    """One thread inside the block for a small model on a CPU; as many as before for any other.

    The operations of a small model are so short that threads mostly wait for each other, for a whole time slice of the
    system each time where the machine has other work: seconds become minutes.
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
