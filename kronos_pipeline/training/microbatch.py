"""Microbatches: the part of a batch that a device takes at once.

A batch that does not fit into memory is processed in parts. The gradients of the parts add up to the gradients of the
batch, so an optimiser step stays the same up to rounding and the random numbers of dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from kronos_pipeline.model.devices import is_out_of_memory
from kronos_pipeline.training.progress import Say

T = TypeVar("T")


class Microbatch:
    """Number of windows, or adapters, that a device takes at once.

    Attributes:
        size: the number; it is halved if the device runs out of memory.
    """

    def __init__(self, size: int, unit: str, device: torch.device, say: Say) -> None:
        """Start with everything at once.

        Args:
            size: the number to try first.
            unit: the counted noun in the plural, for messages.
            device: the device of the work.
            say: takes lines for the person who runs the pipeline.
        """
        self.size, self._unit, self._device, self._say = size, unit, device, say

    def fit(self, work: Callable[[int], T], release: Callable[[], bool] = lambda: False) -> T:
        """Call `work` with the size, and again with half of it each time the device runs out of memory.

        Args:
            work: takes the size; it must leave nothing behind if it runs out of memory.
            release: frees memory that the training can do without, and returns whether there was any; the size is then
                tried again.

        Raises:
            MemoryError, RuntimeError: the device lacks the memory for a size of 1.
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

    def halve(self, failed_size: int) -> None:
        """Set the size to half of a number, 2 or more, that did not fit."""
        self.size = (failed_size + 1) // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        unit = self._unit if self.size > 1 else self._unit.removesuffix("s")
        self._say(f"{self._device} is out of memory; {self.size} {unit} at a time from here on")
