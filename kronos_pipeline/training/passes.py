"""Batches of several adapters through the one predictor, as many at a time as the device's memory holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kronos_pipeline.config import Recipe
from kronos_pipeline.model.losses import token_losses
from kronos_pipeline.model.stacked_lora import StackedLora
from kronos_pipeline.training import plan
from kronos_pipeline.training.dataset import KronosMultiTickerDataset, sent
from kronos_pipeline.training.progress import Say


class Passes:
    """Passes through a predictor with detours.

    Attributes:
        stacked: the predictor, on its device.
        device: where it is.
    """

    def __init__(self, stacked: StackedLora, device: torch.device, precision: str, adapters: int, say: Say) -> None:
        """Prepare.

        Args:
            stacked: the predictor with detours, made for that precision.
            device: where it is.
            precision: "fp32" or "bf16".
            adapters: adapters of one pass, at most; fewer, where the device turns out to lack the memory.
            say: takes plain lines for people.
        """
        self.stacked, self.device = stacked, device
        self._precision, self._adapters, self._say = precision, adapters, say

    def losses(
        self, adapters: Tensor, windows: Sequence[Tensor], data: KronosMultiTickerDataset
    ) -> tuple[Tensor, Tensor]:
        """The losses of some windows of each adapter.

        Args:
            adapters: the adapters, (adapters, width).
            windows: the numbers of each one's windows in the data, (windows,).
            data: the data.

        Returns:
            Of all windows, the adapter's row and the loss in nats per token: both (all windows,).
        """
        counts = torch.tensor([len(some) for some in windows])
        which = sent(torch.arange(len(counts)).repeat_interleave(counts), self.device)
        batch = data.batch(torch.cat(list(windows)))
        even = bool((counts == counts[0]).all())
        products = torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16")
        with products, self.stacked.serving(adapters, which, even=even):
            return which, token_losses(self.stacked.predictor, **batch, first_target=data.lookback)

    def each(self, numbers: Sequence[int], work: Callable[[Sequence[int]], None]) -> None:
        """Do some work for all of some adapters, for as many of them at a time as a pass takes.

        Where the device ran out of memory and the work was done anew, dropout is drawn anew too: that run does not
        repeat one on a device that had the memory.

        Raises:
            torch.OutOfMemoryError: the device has not the memory for one.
        """
        done = 0
        while done < len(numbers):
            some = numbers[done : done + self._adapters]
            try:
                work(some)
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                self._halve(len(some))
                continue
            done += len(some)

    def expected_seconds(
        self, start: Tensor, train: KronosMultiTickerDataset, selection: KronosMultiTickerDataset, recipe: Recipe
    ) -> float:
        """Seconds that a training takes at most, by a pass of adapters like `start`, (width,), that is timed.

        Raises:
            torch.OutOfMemoryError: the device has not the memory for one.
        """
        while True:
            try:
                return self._timed(start, train, selection, recipe)
            except torch.OutOfMemoryError:
                if self._adapters == 1:
                    raise
            self._halve(self._adapters)  # outside the except block, whose traceback holds the failed pass's tensors

    def _halve(self, adapters: int) -> None:
        self._adapters = math.ceil(adapters / 2)
        self._say(f"{self.device} is out of memory; {self._adapters} adapters at a time from here on")

    def _timed(
        self, start: Tensor, train: KronosMultiTickerDataset, selection: KronosMultiTickerDataset, recipe: Recipe
    ) -> float:
        rows = min(self._adapters * recipe.batch_size, len(train))
        which = torch.arange(rows, device=self.device) * self._adapters // rows
        adapters = start.to(self.device).repeat(self._adapters, 1).requires_grad_()
        with self.stacked.serving(adapters, which, even=False):
            return plan.expected_seconds(
                self.stacked.predictor,
                train,
                selection,
                batch_size=rows,
                epochs=recipe.epochs,
                looks_per_epoch=recipe.evaluations_per_epoch,
                device=self.device,
                precision=self._precision,
            )
