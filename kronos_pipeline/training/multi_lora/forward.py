"""Batches of several adapters through the one predictor, as many at a time as the device's memory holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kronos_pipeline.config import Recipe
from kronos_pipeline.model.devices import is_out_of_memory
from kronos_pipeline.model.losses import token_losses
from kronos_pipeline.model.multi_lora import MultiLora
from kronos_pipeline.training import preflight as plan
from kronos_pipeline.training.dataset import Batch, KronosMultiTickerDataset, to_device
from kronos_pipeline.training.microbatch import Microbatch
from kronos_pipeline.training.progress import Say


@dataclass(frozen=True)
class AdapterIndices:
    """Which adapter each window of a batch belongs to.

    Attributes:
        which: the adapter's place in the pass, (windows,) int64, ascending.
        even: whether every adapter has as many windows.
    """

    which: Tensor
    even: bool


class BatchedForward:
    """Passes through a predictor with detours.

    Attributes:
        stacked: the predictor, on its device.
        device: where it is.
    """

    def __init__(self, stacked: MultiLora, device: torch.device, precision: str, adapters: int, say: Say) -> None:
        """Prepare.

        Args:
            stacked: the predictor with detours, made for that precision.
            device: where it is.
            precision: "fp32" or "bf16".
            adapters: adapters of one pass, at most; fewer, where the device turns out to lack the memory.
            say: takes plain lines for people.
        """
        self.stacked, self.device = stacked, device
        self._precision, self._say = precision, say
        self._adapters = Microbatch(adapters, "adapters", device, say)
        self._windows: Microbatch | None = None

    def owners(self, counts: Sequence[int]) -> AdapterIndices:
        """Return the owners of a batch that holds so many windows of each adapter, one adapter after the other."""
        which = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return AdapterIndices(to_device(which, self.device), even=len(set(counts)) == 1)

    def losses(self, adapters: Tensor, owners: AdapterIndices, batch: Batch, lookback: int) -> Tensor:
        """The losses of a batch, in nats per token, (windows,).

        Args:
            adapters: the adapters, (adapters, width).
            owners: from `owners`.
            batch: the windows of all.
            lookback: bars of a window before its targets.
        """
        products = torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16")
        with products, self.stacked.serving(adapters, owners.which, even=owners.even):
            return token_losses(self.stacked.predictor, **batch, first_target=lookback)

    def each(
        self,
        batches: Mapping[int, Tensor],
        work: Callable[[Mapping[int, Tensor]], None],
        release: Callable[[], bool],
    ) -> None:
        """Do some work for a batch of each of some adapters, for as many of them at a time as the device takes.

        A batch that does not fit by itself is divided. `work` leaves nothing behind where it fails for want of memory.
        Where it is done anew, dropout is drawn anew too: that run does not repeat a run with more memory.

        Args:
            batches: the windows of each adapter, by the adapter's number.
            work: takes batches, or parts of them, likewise.
            release: as `Microbatch.fit` takes it.

        Raises:
            MemoryError, RuntimeError: the device lacks the memory for one window.
        """
        waiting = list(batches.items())
        while waiting:
            some = waiting[: self._adapters.size]
            number, windows = some[0]
            if self._windows is not None and len(windows) > self._windows.size:
                some = [(number, windows[: self._windows.size])]
            try:
                work(dict(some))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = error.with_traceback(None)  # which holds tensors of the failed call
            else:
                waiting = waiting[len(some) :]
                if len(some[0][1]) < len(windows):
                    waiting.insert(0, (number, windows[len(some[0][1]) :]))
                continue
            if not release():
                if len(some) == len(some[0][1]) == 1:
                    raise failed
                self._halve(len(some), len(some[0][1]))

    def expected_seconds(
        self, start: Tensor, train: KronosMultiTickerDataset, selection: KronosMultiTickerDataset, recipe: Recipe
    ) -> float:
        """Seconds that a training takes at most, by a pass of adapters like `start`, (width,), that is timed.

        Raises:
            MemoryError, RuntimeError: the device lacks the memory for one window.
        """
        while True:
            size = self._windows.size if self._windows is not None else recipe.batch_size
            adapters = self._adapters.size
            try:
                return self._timed(start, train, selection, recipe, adapters, size)
            except (MemoryError, RuntimeError) as error:
                if adapters == size == 1 or not is_out_of_memory(error):
                    raise
            self._halve(adapters, size)  # outside the except block, whose traceback holds tensors

    def _halve(self, adapters: int, windows: int) -> None:
        if adapters > 1:
            self._adapters.halve(adapters)
            return
        if self._windows is None:
            self._windows = Microbatch(windows, "windows", self.device, self._say)
        self._windows.halve(windows)

    def _timed(
        self,
        start: Tensor,
        train: KronosMultiTickerDataset,
        selection: KronosMultiTickerDataset,
        recipe: Recipe,
        adapters: int,
        windows: int,
    ) -> float:
        rows = min(adapters * windows, len(train))
        which = torch.arange(rows, device=self.device) * adapters // rows
        weights = start.to(self.device).repeat(adapters, 1).requires_grad_()
        with self.stacked.serving(weights, which, even=False):
            return plan.expected_seconds(
                self.stacked.predictor,
                train,
                selection,
                batch_size=rows,
                epochs=recipe.epochs,
                evals_per_epoch=recipe.evaluations_per_epoch,
                device=self.device,
                precision=self._precision,
            )
