"""CUDA graphs: one call starts all kernels that a function launched while it was recorded.

A graph reads and writes the same memory at every replay. The caller writes its inputs in place and reads the outputs
after the replay:

    graph = record(lambda: model(inputs), device)      # None if CUDA refuses
    inputs.copy_(batch)
    graph.replay()
    graph.outputs.clone()

Rules:

- A capture needs a stream that is not the default stream. Each device has a stream of its own for captures and for the
  calls that warm up for them. `torch.cuda.graph` without a stream uses one stream of the first GPU for all: on another
  GPU its graph is empty. Warm-up calls belong on the same stream, as libraries keep a workspace for each stream.
- Captures and warm-up calls take turns, as they share the stream. Other threads may use the GPU meanwhile
  (`capture_error_mode="thread_local"`).
- Replays run on the current stream. Replay all graphs of a device on the same stream, by default the default stream:
  graphs that run at the same time would share the workspaces.
- Each graph has a memory pool of its own, unless it is given the pool of another graph (`share`). The next graph of a
  pool reuses memory that a graph frees while it is recorded, so a replay of one may overwrite outputs of another.
  Share a pool only if the outputs of each replay are read, or copied, before any other graph of the pool is replayed,
  and if nothing else that was allocated during a capture (gradients, say) has to last longer. Pools of a device are
  not shared by default, as sampling and training can alternate.
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
"""Held during captures and warm-up calls; torch allows one capture at a time in a process."""

_streams: dict[int, torch.cuda.Stream] = {}


class CudaGraph(Generic[T]):
    """A CUDA graph of one call.

    Attributes:
        outputs: result of the call. Its tensors hold values after a replay, until the next replay.
    """

    def __init__(self, function: Callable[[], T], outputs: T, graph: torch.cuda.CUDAGraph) -> None:
        self.outputs, self._graph = outputs, graph
        self._function = function  # The graph reads the memory of the function's inputs, so they stay alive.

    def replay(self) -> None:
        """Launch the graph on the current stream without waiting for it."""
        self._graph.replay()

    @property
    def pool(self) -> Any:
        """Id of the graph's memory pool."""
        return self._graph.pool()


def record(
    function: Callable[[], T], device: torch.device, *, warm_ups: int = 1, share: CudaGraph[Any] | None = None
) -> CudaGraph[T] | None:
    """Record the kernels that a function launches on a device.

    The function is called `warm_ups` times for real, and once more for the capture, in which nothing is computed. In
    the capture it may neither wait for the device (`item`, copies to and from the host) nor read a generator's state.

    Args:
        function: takes no arguments; its inputs must keep their place in memory.
        device: a CUDA device.
        warm_ups: calls before the capture; 0 if the function ran in `warm_up` before.
        share: another graph; both use its memory pool. The docstring of the module says when that is sound.

    Returns:
        The graph, not yet replayed; None if CUDA cannot record the function, and the device is as before.

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
    """Make the device and its capture stream current inside the block, in order with the work before and after it."""
    with _TURN, torch.cuda.device(device):
        index = torch.cuda.current_device()
        if index not in _streams:
            stream_of: Any = torch.cuda.Stream  # torch does not type its constructor
            _streams[index] = stream_of(index)
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
    """Disable garbage collection: destroying graphs or events could break the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _new_pool() -> Any:
    """Return the id of a new memory pool; None, which lets torch choose one, if torch has no such function."""
    try:
        return torch.cuda.graph_pool_handle()
    except RuntimeError:
        return None


def _recover(device: torch.device, pool: Any) -> None:
    """Restore the state of torch after a failed capture.

    If CUDA ends a capture with an error, `capture_end` stops halfway. The allocator then treats the capture as running,
    and returns no cached memory; some versions of torch also refuse to draw random numbers until another capture ends
    well. So functions that torch's own compiler uses tell the allocator, and a capture of one small kernel follows.
    """
    with contextlib.suppress(AttributeError, RuntimeError):  # an error here: `capture_end` has told the allocator
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
    with contextlib.suppress(RuntimeError):
        number = torch.zeros(1, device=device)
        _capture(lambda: number.add_(1), torch.cuda.CUDAGraph(), None)
