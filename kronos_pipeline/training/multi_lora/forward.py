"""Forward passes over batches of several adapters at a time, in parts that fit into the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kronos_pipeline.config import Recipe
from kronos_pipeline.model.devices import is_out_of_memory
from kronos_pipeline.model.losses import token_losses
from kronos_pipeline.model.multi_lora import MultiLora
from kronos_pipeline.training import preflight
from kronos_pipeline.training.dataset import Batch, TrainingData, to_device
from kronos_pipeline.training.microbatch import Microbatch
from kronos_pipeline.training.progress import Say


@dataclass(frozen=True)
class AdapterIndices:
    """Adapter of each window of a batch.

    Attributes:
        indices: the adapter's place in the pass, (windows,) int64, ascending.
        even: whether all adapters have the same number of windows.
    """

    indices: Tensor
    even: bool


class BatchedForward:
    """Runs batches of several adapters through one frozen predictor.

    Attributes:
        multi_lora: the predictor with its LoRA branches, on its device.
        device: that device.
    """

    def __init__(self, multi_lora: MultiLora, device: torch.device, precision: str, adapters: int, say: Say) -> None:
        """Set the size of a pass.

        Args:
            multi_lora: the predictor, made for that precision.
            device: its device.
            precision: "fp32" or "bf16".
            adapters: the most adapters of a pass; halved if the device runs out of memory.
            say: takes lines for the person who runs the pipeline.
        """
        self.multi_lora, self.device = multi_lora, device
        self._precision, self._say = precision, say
        self._adapters = Microbatch(adapters, "adapters", device, say)
        self._windows: Microbatch | None = None

    def adapter_indices(self, counts: Sequence[int]) -> AdapterIndices:
        """Index a batch that holds `counts` windows of each adapter, adapter after adapter."""
        indices = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return AdapterIndices(to_device(indices, self.device), even=len(set(counts)) == 1)

    def losses(self, adapters: Tensor, indices: AdapterIndices, batch: Batch, lookback: int) -> Tensor:
        """Compute the losses of a batch, in nats per token, (windows,).

        Args:
            adapters: the adapters, (adapters, width).
            indices: the adapter of each window.
            batch: windows of all adapters.
            lookback: bars of a window before its targets.
        """
        products = torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16")
        with products, self.multi_lora.serving(adapters, indices.indices, even=indices.even):
            return token_losses(self.multi_lora.predictor, **batch, first_target=lookback)

    def run_in_parts(
        self,
        batches: Mapping[int, Tensor],
        work: Callable[[Mapping[int, Tensor]], None],
        release: Callable[[], bool],
    ) -> None:
        """Call `work` on the batches of several adapters, for as many adapters at a time as the device's memory holds.

        A batch that does not fit by itself is divided. `work` must leave nothing behind if it runs out of memory. A
        repeated call draws dropout anew, so such a run differs from a run with more memory.

        Args:
            batches: windows of each adapter, by the adapter's number.
            work: takes batches of some adapters, or parts of them, in the same form.
            release: as in `Microbatch.fit`.

        Raises:
            MemoryError, RuntimeError: the device lacks the memory for one window.
        """
        waiting = list(batches.items())
        while waiting:
            part = waiting[: self._adapters.size]
            number, windows = part[0]
            if self._windows is not None and len(windows) > self._windows.size:
                part = [(number, windows[: self._windows.size])]
            try:
                work(dict(part))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = error.with_traceback(None)  # which holds tensors of the failed call
            else:
                waiting = waiting[len(part) :]
                if len(part[0][1]) < len(windows):
                    waiting.insert(0, (number, windows[len(part[0][1]) :]))
                continue
            if not release():
                if len(part) == len(part[0][1]) == 1:
                    raise failed
                self._halve(len(part), len(part[0][1]))

    def expected_seconds(self, start: Tensor, data: TrainingData, recipe: Recipe) -> float:
        """Estimate the longest time of a training, in seconds, by timing a pass of adapters like `start`, (width,).

        Raises:
            MemoryError, RuntimeError: the device lacks the memory for one window.
        """
        while True:
            size = self._windows.size if self._windows is not None else recipe.batch_size
            adapters = self._adapters.size
            try:
                return self._timed(start, data, recipe, adapters, size)
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

    def _timed(self, start: Tensor, data: TrainingData, recipe: Recipe, adapters: int, windows: int) -> float:
        rows = min(adapters * windows, len(data.train))
        indices = torch.arange(rows, device=self.device) * adapters // rows
        weights = start.to(self.device).repeat(adapters, 1).requires_grad_()
        with self.multi_lora.serving(weights, indices, even=False):
            return preflight.expected_seconds(
                self.multi_lora.predictor,
                data,
                recipe,
                batch_size=rows,
                device=self.device,
                precision=self._precision,
            )
