"""The part of a batch that a device takes at once; a batch that does not fit is worked off in parts.

The gradients of the parts add up to those of the batch, so an optimiser step stays what it was, but for rounding and
for what dropout draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from kronos_pipeline.model.devices import is_out_of_memory
from kronos_pipeline.training.progress import Say

T = TypeVar("T")


class Microbatch:
    """How many windows, or adapters, a device takes at once.

    Attributes:
        size: the number; it is halved where the device runs out of memory.
    """

    def __init__(self, size: int, unit: str, device: torch.device, say: Say) -> None:
        """Begin with all at once.

        Args:
            size: the number that is tried first.
            unit: what is counted, in the plural, for messages.
            device: where the work is done.
            say: takes lines for the person who runs the pipeline.
        """
        self.size, self._unit, self._device, self._say = size, unit, device, say

    def fit(self, work: Callable[[int], T], release: Callable[[], bool] = lambda: False) -> T:
        """Call `work` with the size, and again with half of it each time the device runs out of memory.

        Args:
            work: takes the size; leaves nothing behind where it fails for want of memory.
            release: gives memory back that can be done without, and tells whether there was any; the size is then tried
                again.

        Raises:
            MemoryError, RuntimeError: the device lacks the memory for one.
        """
        while True:
            size = self.size
            try:
                return work(size)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = error.with_traceback(None)  # which holds tensors of the failed call
            if not release():
                if size == 1:
                    raise failed
                self.halve(size)

    def halve(self, tried: int) -> None:
        """Take half of a number, 2 or more, that was too many."""
        self.size = (tried + 1) // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        unit = self._unit if self.size > 1 else self._unit.removesuffix("s")
        self._say(f"{self._device} is out of memory; {self.size} {unit} at a time from here on")
