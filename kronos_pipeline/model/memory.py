"""Work in parts that fit into the memory: halved beforehand by an estimate, and again where the device runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Part = tuple[list[int], range]
"""Some series, and of each some paths."""

_ON_CPU = 2**30
_SHARE = 0.5


def room(device: torch.device) -> int:
    """Bytes that a part may take, about: half of what a GPU has free; 1 GB on a CPU, where more is no faster."""
    if device.type != "cuda":
        return _ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    kept_back = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_SHARE * (free + kept_back))


_turns: dict[int, threading.RLock] = {}


@contextmanager
def in_turn(device: torch.device) -> Iterator[None]:
    """Let one thread at a time sample on a GPU: each sizes its parts by the memory that is free."""
    if device.type != "cuda":
        yield
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    with _turns.setdefault(index, threading.RLock()):
        yield


def work_in_parts(whole: Part, run: Callable[[Part], None], size: Callable[[Part], int], limit: int) -> None:
    """Run some work, as a whole or in parts, one after the other and in order: halves of the series, then of the paths.

    Args:
        whole: what is to be done.
        run: does a part; where the device runs out of memory it is called again for each half.
        size: what a part takes of the memory, about.
        limit: the size of the largest part to try.
    """
    waiting = [whole]
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
            if not smaller or not out_of_memory(error):
                raise
        # The error is gone here, and with it what its traceback held of the device's memory.
        limit = max(map(size, smaller))
        waiting += reversed(smaller)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _halves(part: Part) -> list[Part]:
    """None where a part cannot be divided."""
    rows, paths = part
    if (half := len(rows) // 2) > 0:
        return [(rows[:half], paths), (rows[half:], paths)]
    half = paths.start + len(paths) // 2
    return [(rows, range(paths.start, half)), (rows, range(half, paths.stop))] if len(paths) > 1 else []


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    told = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError) or "out of memory" in told or "allocate memory" in told
    )
