"""Work in parts that fit into the memory: halved beforehand by an estimate, and again where the device runs out."""

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
"""Some series, and of each some paths."""

_ON_CPU = 2**30
_LEAST = 2**26
"""Bytes that are tried whatever seems to be free: with little more than nothing, all would be sampled path by path."""
_SHARE = 0.5

T = TypeVar("T")


def memory_budget(device: torch.device) -> int:
    """Bytes that a part may take, about: half of what a GPU has free; 1 GB on a CPU, where more is no faster."""
    if device.type != "cuda":
        return _ON_CPU
    return max(_LEAST, int(_SHARE * free_memory(device)))


def retry_after_release(function: Callable[[], T], device: torch.device) -> T:
    """What a function gives, called once more without what is kept of earlier calls where memory runs out."""
    try:
        return function()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # The error is gone here, and with it what its traceback held of the device's memory.
    release_graphs(device)
    release_weights(device)
    return function()


class DeviceMover:
    """Moves modules to a device, and keeps shared what they share.

    Adapters that were made on one base share its memory; each moved by itself would have a copy of it, and could not be
    decoded together with the others.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # With the tensors that were moved, as memory that is freed could become another's.
        self._moved: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, module: nn.Module, what: str) -> nn.Module:
        """The module, moved; where the device has no memory left, it stays where it was.

        Args:
            module: what to move.
            what: its name, as the subject of a sentence.

        Raises:
            ModelError: the device has no memory left.
        """
        before = {parameter.device for parameter in module.parameters()}
        try:
            with explain_out_of_memory(what, self._device, FREE_MEMORY):
                retry_after_release(lambda: module._apply(self._tensor), self._device)
        except ModelError:
            self._moved.clear()
            if len(before) == 1:
                move(module, before.pop())
            raise
        return move(module, self._device)  # nothing is left to be moved but the caches of positions

    def _tensor(self, tensor: Tensor) -> Tensor:
        key = tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if key not in self._moved:
            self._moved[key] = tensor.detach(), tensor.to(self._device)
        return self._moved[key][1]


def release_graphs(device: torch.device) -> bool:
    """Drop the graphs of decoding that are kept for the next batch of the same shape; whether there were some."""
    return _emptied(device, generate.release())


def release_weights(device: torch.device) -> bool:
    """Drop the packed weights that are kept for the next call; whether there were some."""
    return _emptied(device, weight_cache.release())


def _emptied(device: torch.device, released: bool) -> bool:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return released


_turns: dict[int, threading.RLock] = {}


@contextmanager
def one_thread_per_gpu(device: torch.device) -> Iterator[None]:
    """Let one thread at a time sample on a GPU: each sizes its parts by the memory that is free."""
    if device.type != "cuda":
        yield
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    with _turns.setdefault(index, threading.RLock()):
        yield


def run_in_oom_safe_parts(
    whole: Part, run: Callable[[Part], None], size: Callable[[Part], int], limit: int, device: torch.device
) -> None:
    """Run work as a whole, or in parts in order: halves of the series, then halves of the paths.

    Args:
        whole: what is to be done.
        run: does a part; where the device runs out of memory it is called again: without the graphs that are kept, if
            there are some, else for each half.
        size: what a part takes of the memory, about.
        limit: the size of the largest part to try.
        device: where it is done.

    Raises:
        ModelError: there is not enough memory for one path of one series.
    """
    waiting, without_graphs, without_weights = [whole], False, False
    while waiting:
        part = waiting.pop()
        smaller = _halves(part)
        if smaller and size(part) > limit:
            waiting += reversed(smaller)
            continue
        try:
            run(part)
            continue
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # The error is gone here, and with it what its traceback held of the device's memory.
        if release_graphs(device) and not without_graphs:
            without_graphs = True  # once: each try may keep some again
            waiting.append(part)
        elif smaller:
            limit = max(map(size, smaller))
            waiting += reversed(smaller)
        elif not without_weights:
            without_weights = True
            release_weights(device)
            waiting.append(part)
        else:
            raise shortage("Sampling one path of one series", device, FREE_MEMORY)


def _halves(part: Part) -> list[Part]:
    """None where a part cannot be divided."""
    rows, paths = part
    if (half := len(rows) // 2) > 0:
        return [(rows[:half], paths), (rows[half:], paths)]
    half = paths.start + len(paths) // 2
    return [(rows, range(paths.start, half)), (rows, range(half, paths.stop))] if len(paths) > 1 else []
