"""Run work in parts that fit into the memory: halved by an estimate beforehand, and again if the device runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.decode import generate, weight_cache
from kronos_pipeline.model.devices import (
    FREE_MEMORY,
    explain_out_of_memory,
    free_memory,
    is_out_of_memory,
    shortage,
)
from kronos_pipeline.model.modules import move

Part = tuple[list[int], range]
"""Series, by index, and the paths of each."""

_CPU_BUDGET = 2**30
_LEAST = 2**26
"""Smallest budget in bytes: with a budget near 0, all work would be sampled path by path."""
_FREE_FRACTION = 0.5

T = TypeVar("T")


def memory_budget(device: torch.device) -> int:
    """Return the bytes that a part may take: half of a GPU's free memory; 1 GB on a CPU, as more is not faster."""
    if device.type != "cuda":
        return _CPU_BUDGET
    return max(_LEAST, int(_FREE_FRACTION * free_memory(device)))


def retry_after_release(function: Callable[[], T], device: torch.device) -> T:
    """Call a function; if memory runs out, release the cached graphs and weights of earlier calls and call it again."""
    try:
        return function()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside of the except block: the traceback holds tensors on the device.
    release_graphs(device)
    release_weights(device)
    return function()


class DeviceMover:
    """Moves modules to a device; tensors that modules share stay shared.

    Adapters on one base share its memory. If each were moved alone, each would have a copy of the base, and could not
    be decoded together with the others.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Holds the original tensors too, as freed memory could be reused at the same address.
        self._moved: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, module: nn.Module, name: str) -> nn.Module:
        """Move a module in place and return it; if the device has no memory left, the module stays on its device.

        Args:
            module: the module to move.
            name: name of the module, as the subject of a sentence.

        Raises:
            ModelError: the device has no memory left.
        """
        devices = {parameter.device for parameter in module.parameters()}
        try:
            with explain_out_of_memory(name, self._device, FREE_MEMORY):
                apply: Any = module._apply  # torch does not type it
                retry_after_release(lambda: apply(self._tensor), self._device)
        except ModelError:
            self._moved.clear()
            if len(devices) == 1:
                move(module, devices.pop())
            raise
        return move(module, self._device)  # only the caches of positions are left to move

    def _tensor(self, tensor: Tensor) -> Tensor:
        key = tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if key not in self._moved:
            self._moved[key] = tensor.detach(), tensor.to(self._device)
        return self._moved[key][1]


def release_graphs(device: torch.device) -> bool:
    """Drop the cached graphs of decoding; return whether there were any."""
    return _empty_cuda_cache(device, generate.release_graphs())


def release_weights(device: torch.device) -> bool:
    """Drop the cached packed weights; return whether there were any."""
    return _empty_cuda_cache(device, weight_cache.release_weights())


def _empty_cuda_cache(device: torch.device, released: bool) -> bool:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return released


_locks: dict[int, threading.RLock] = {}


@contextmanager
def one_thread_per_gpu(device: torch.device) -> Iterator[None]:
    """Let one thread at a time sample on a GPU: each sizes its parts by the free memory."""
    if device.type != "cuda":
        yield
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    with _locks.setdefault(index, threading.RLock()):
        yield


def run_in_oom_safe_parts(
    all_work: Part, run: Callable[[Part], None], size: Callable[[Part], int], limit: int, device: torch.device
) -> None:
    """Run work as a whole, or in parts in order: halves of the series, then halves of the paths.

    Args:
        all_work: all of the work.
        run: does one part. If the device runs out of memory, it is called again: after cached graphs are released, if
            there are any, else for each half.
        size: estimates the bytes of a part.
        limit: the size of the largest part to try.
        device: the device of the work.

    Raises:
        ModelError: one path of one series needs more memory than the device has free.
    """
    pending, without_graphs, without_weights = [all_work], False, False
    while pending:
        part = pending.pop()
        halves = _halves(part)
        if halves and size(part) > limit:
            pending += reversed(halves)
            continue
        try:
            run(part)
            continue
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the except block: the traceback holds tensors on the device.
        if release_graphs(device) and not without_graphs:
            without_graphs = True  # once only, as each try may cache graphs again
            pending.append(part)
        elif halves:
            limit = max(map(size, halves))
            pending += reversed(halves)
        elif not without_weights:
            without_weights = True
            release_weights(device)
            pending.append(part)
        else:
            raise shortage("Sampling one path of one series", device, FREE_MEMORY)


def _halves(part: Part) -> list[Part]:
    """Halve the series of a part, or the paths of a single series; an empty list if a part cannot be divided."""
    rows, paths = part
    if (half := len(rows) // 2) > 0:
        return [(rows[:half], paths), (rows[half:], paths)]
    half = paths.start + len(paths) // 2
    return [(rows, range(paths.start, half)), (rows, range(half, paths.stop))] if len(paths) > 1 else []
