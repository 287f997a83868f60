"""Forward and backward passes as CUDA graphs: one call starts the hundreds of kernels of a pass.

A GPU computes a step of a small model in less time than Python needs to launch its kernels. A pass over batches of a
known shape is recorded once and replayed from then on:

    calls 1 and 2 of a shape   plain, on the capture stream: libraries initialise
    call 3                     recorded and replayed
    call 4 and later           the batches are copied to the inputs of the graph, and it is replayed
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from kronos_pipeline.model.cuda_graphs import CudaGraph, record, warm_up
from kronos_pipeline.model.decode.memory import release_graphs, release_weights

T = TypeVar("T")

_PLAIN_CALLS = 2
_MAX_GRAPHS = 2
"""Graphs at most: each keeps the memory of all tensors of its pass."""


@dataclass
class _Shape:
    """Calls with the same key: their inputs, their number and their graph."""

    inputs: list[Tensor]
    calls: int = 0
    recording: CudaGraph[Any] | None = None


class ReplayedCalls:
    """Calls functions of tensors on a device; on CUDA from graphs if CUDA can record them."""

    def __init__(self, device: torch.device, *, wanted: bool) -> None:
        """Start without a graph.

        Args:
            device: the device of the functions.
            wanted: whether to record; only CUDA devices do.
        """
        self._device, self._wanted = device, wanted and device.type == "cuda"
        self._shapes: OrderedDict[Hashable, _Shape] = OrderedDict()

    def __call__(self, key: Hashable, function: Callable[[Sequence[Tensor]], T], inputs: Sequence[Tensor]) -> T:
        """Return the outputs of a function; its tensors are valid until the next call.

        Args:
            key: functions with the same key do the same to inputs of the same shapes.
            function: changes only tensors that it made, and never waits for the device. It may read other tensors, at
                the same place in memory each time.
            inputs: tensors on the device.

        Raises:
            torch.OutOfMemoryError: the device has no memory left; `release` may free some.
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
            self._stop_recording()
            return function(inputs)
        shape.recording.replay()
        outputs: T = shape.recording.outputs
        return outputs

    def release(self) -> bool:
        """Free memory of the device: the caches of decoding first, then the graphs; return whether there were any."""
        caches = [release_graphs(self._device), release_weights(self._device)]
        return any(caches) or self._stop_recording()

    def _stop_recording(self) -> bool:
        """Drop all graphs with their memory, and record no more; return whether there were any."""
        had_recordings = any(shape.recording is not None for shape in self._shapes.values())
        self._shapes.clear()
        self._wanted = False
        if had_recordings:
            torch.cuda.empty_cache()  # only then can others use the memory of the graphs
        return had_recordings

    def _shape(self, key: Hashable, inputs: Sequence[Tensor]) -> _Shape:
        """Return the shape of a key, with its inputs filled."""
        if key in self._shapes:
            self._shapes.move_to_end(key)
            shape = self._shapes[key]
            for static, tensor in zip(shape.inputs, inputs, strict=True):
                static.copy_(tensor)
            return shape
        shape = self._shapes[key] = _Shape([tensor.clone() for tensor in inputs])
        while len(self._shapes) > _MAX_GRAPHS:
            self._shapes.popitem(last=False)
        return shape
