"""CUDA graphs: one call starts all kernels that a function launched while it was recorded.

A graph reads and writes the same memory at every replay. The caller changes what the inputs hold, in place, and reads
the outputs after the replay:

    recording = record(lambda: model(inputs), device)      # None where CUDA refuses
    inputs.copy_(batch)
    recording.replay()
    recording.outputs.clone()

What holds, and what a caller has to keep to:

- A capture needs a stream that is not the default stream. Each device has a stream of its own for captures and for the
  calls that warm up for them. `torch.cuda.graph` without a stream uses one stream of the first GPU for all: on another
  GPU its graph is empty. Warm-up calls belong on the same stream, as libraries keep a workspace for each stream.
- Captures and warm-up calls take turns, as they share the stream. Other threads may use the GPU meanwhile
  (`capture_error_mode="thread_local"`).
- Replays run on the current stream. Replay all graphs of a device on the same stream, by default the default stream:
  graphs that run at the same time would share the workspaces.
- Each graph has a memory pool of its own, unless it is given another recording's (`share`). What a graph frees while it
  is recorded is free for the next graph of the pool, so a replay of one may overwrite outputs of another. Share a pool
  only where the outputs of each replay are read, or copied, before any other graph of the pool is replayed, and where
  nothing else that was allocated during a capture (gradients, say) has to last longer. Pools of a device are not
  shared by default, as sampling and training can alternate.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

_TURN = threading.RLock()
"""Held during a capture and during warm-up calls; torch allows one capture at a time in a process."""

_streams: dict[int, torch.cuda.Stream] = {}


class CudaGraph(Generic[T]):
    """A CUDA graph of one call.

    Attributes:
        outputs: what the call returned. Its tensors hold values after a replay, until the next one.
    """

    def __init__(self, function: Callable[[], T], outputs: T, graph: torch.cuda.CUDAGraph) -> None:
        self.outputs, self._graph = outputs, graph
        self._function = function  # The graph reads the memory of the function's inputs, so they stay alive.

    def replay(self) -> None:
        """Launch the graph on the current stream; does not wait for it."""
        self._graph.replay()

    @property
    def pool(self) -> Any:
        """The id of the graph's memory pool."""
        return self._graph.pool()


def record(
    function: Callable[[], T], device: torch.device, *, warm_ups: int = 1, share: CudaGraph[Any] | None = None
) -> CudaGraph[T] | None:
    """Record what a function launches on a device.

    The function is called `warm_ups` times for real, and once more for the capture, in which nothing is computed. In
    the capture it may neither wait for the device (`item`, copies to and from the host) nor read a generator's state.

    Args:
        function: takes nothing; what it reads has to stay where it is in memory.
        device: a CUDA device.
        warm_ups: calls before the capture; 0 where the function ran in `warm_up` before.
        share: a recording whose memory pool this one uses too; see the module for when that is sound.

    Returns:
        The recording, not yet replayed; None where CUDA cannot record the function, and the device is as before.

    Raises:
        torch.OutOfMemoryError: the device has no memory left.
    """
    with _capture_stream(device):
        for _ in range(warm_ups):
            function()
        pool = _new_pool() if share is None else share.pool
        graph = torch.cuda.CUDAGraph()
        try:
            outputs = _capture(function, graph, pool)
        except BaseException as error:
            _recover(device, pool)
            if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
                return None
            raise
    return CudaGraph(function, outputs, graph)


def warm_up(function: Callable[[], T], device: torch.device) -> T:
    """Call a function on the device's stream for captures, in order with the current stream."""
    with _capture_stream(device):
        return function()


@contextmanager
def _capture_stream(device: torch.device) -> Iterator[None]:
    """Make the device and its stream for captures the current ones; work before the block and after it is in order."""
    with _TURN, torch.cuda.device(device):
        index = torch.cuda.current_device()
        if index not in _streams:
            _streams[index] = torch.cuda.Stream(index)
        stream, outside = _streams[index], torch.cuda.current_stream()
        stream.wait_stream(outside)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            outside.wait_stream(stream)


def _capture(function: Callable[[], T], graph: torch.cuda.CUDAGraph, pool: Any) -> T:
    """Capture one call on the current stream."""
    with _no_collection():
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            outputs = function()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # The capture is invalid; its end says so again.
                graph.capture_end()
            raise
        graph.capture_end()
    return outputs


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from collecting garbage: what it destroys (graphs, events) could break the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _new_pool() -> Any:
    """The id of a new memory pool; None, which lets torch choose one, where torch has no such function."""
    try:
        return torch.cuda.graph_pool_handle()
    except RuntimeError:
        return None


def _recover(device: torch.device, pool: Any) -> None:
    """Undo what torch leaves behind when a capture fails.

    Where CUDA ends a capture with an error, `capture_end` stops halfway. The allocator then takes the capture for one
    under way, and gives no cached memory back; some versions of torch also refuse to draw random numbers until another
    capture ends well. So the allocator is told, by functions that torch's own compiler uses, and a capture of one small
    kernel follows.
    """
    with contextlib.suppress(AttributeError, RuntimeError):  # an error here: `capture_end` has told the allocator
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
    with contextlib.suppress(RuntimeError):
        number = torch.zeros(1, device=device)
        _capture(lambda: number.add_(1), torch.cuda.CUDAGraph(), None)
