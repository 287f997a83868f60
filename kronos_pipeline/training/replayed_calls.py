"""Forward and backward passes as CUDA graphs: a pass's hundreds of kernels are started by one call.

A GPU works off a step of a small model in less time than Python needs to ask for it. A pass over batches of a shape
that came before is recorded once, and replayed from then on:

    calls 1 and 2 of a shape   plain, on the stream for captures: libraries set themselves up
    call 3                     recorded, and replayed
    call 4 and on              the batches are copied to where the graph reads them, and it is replayed
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from kronos_pipeline.model.cuda_graphs import CudaGraph, record, warm_up

T = TypeVar("T")

_PLAIN_CALLS = 2
_KEPT = 2
"""CudaGraphs at most: each keeps the memory of all that its pass computes."""


@dataclass
class _Shape:
    """What is known of the calls with one key."""

    inputs: list[Tensor]
    calls: int = 0
    recording: CudaGraph[Any] | None = None


class ReplayedCalls:
    """Calls functions of tensors on a device; on CUDA from graphs, where they can be had."""

    def __init__(self, device: torch.device, *, wanted: bool) -> None:
        """Begin without a recording.

        Args:
            device: where the functions compute.
            wanted: whether to record; CUDA devices alone do.
        """
        self._device, self._wanted = device, wanted and device.type == "cuda"
        self._shapes: OrderedDict[Hashable, _Shape] = OrderedDict()

    def __call__(self, key: Hashable, function: Callable[[Sequence[Tensor]], T], inputs: Sequence[Tensor]) -> T:
        """Return what a function gives; its tensors hold until the next call.

        Args:
            key: functions with the same key do the same to inputs of the same shapes.
            function: changes no tensor that it did not make, and never waits for the device. It may read others, at
                the same place in memory each time.
            inputs: tensors on the device.

        Raises:
            torch.OutOfMemoryError: the device has no memory left; `release` may give some back.
        """
        if not self._wanted:
            return function(inputs)
        shape = self._shape(key, inputs)
        if shape.recording is None:
            shape.calls += 1
            if shape.calls <= _PLAIN_CALLS:
                return warm_up(lambda: function(shape.inputs), self._device)
            shape.recording = record(lambda: function(shape.inputs), self._device, warm_ups=0)
        if shape.recording is None:  # CUDA refuses
            self.release()
            return function(inputs)
        shape.recording.replay()
        outputs: T = shape.recording.outputs
        return outputs

    def release(self) -> bool:
        """Drop all recordings, with the memory that they keep, and record no more; return whether there were any."""
        had = any(shape.recording is not None for shape in self._shapes.values())
        self._shapes.clear()
        self._wanted = False
        if had:
            torch.cuda.empty_cache()  # what a graph kept is free for others only then
        return had

    def _shape(self, key: Hashable, inputs: Sequence[Tensor]) -> _Shape:
        """Return the shape of that key, its inputs filled."""
        if key in self._shapes:
            self._shapes.move_to_end(key)
            shape = self._shapes[key]
            for kept, new in zip(shape.inputs, inputs, strict=True):
                kept.copy_(new)
            return shape
        shape = self._shapes[key] = _Shape([tensor.clone() for tensor in inputs])
        while len(self._shapes) > _KEPT:
            self._shapes.popitem(last=False)
        return shape
