"""One step of decoding as a CUDA graph: its hundreds of small kernels are started by one call.

With few series and paths, a GPU works a step off in less time than Python needs to ask for it. A graph is recorded of
the first step and replayed for the others. It reads and writes the same memory each time, so where a step stands is
told by tensors, and it looks at all keys there will ever be, of which a mask hides those to come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kronos_pipeline.model.cached import HIDDEN, Span, Steps


class Moving:
    """A step whose tensors stay where they are and change what they say."""

    def __init__(self, span: Span, mask: Tensor) -> None:
        """`mask`: from `Span.paths_mask`, for one step."""
        self._span, self._mask = span, mask
        self._paths, self._keys = (torch.arange(count, device=mask.device) for count in (span.paths, mask.shape[-1]))
        self._position, self._place, self._seen = self._paths[:1].clone(), self._paths.clone(), mask.clone()

    def to(self, step: int) -> Steps:
        """The same tensors, moved to a step."""
        start = self._span.context + step * self._span.paths
        self._position.fill_(self._span.context + step)
        self._place.copy_(self._paths + start)
        self._seen.copy_(self._mask.masked_fill(self._keys >= start + self._span.paths, HIDDEN))
        return Steps(self._position, self._place, self._seen)


def plainly(function: Callable[..., Any], *given: Any) -> Any:
    """Just call it."""
    return function(*given)


class Replays:
    """Calls functions of tensors and of one moving step; on CUDA by a graph of the first call, where it can be had."""

    def __init__(self) -> None:
        self._recorded: dict[str, Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., Any], *given: Any) -> Any:
        """What `function(*given)` gives; it is valid until the next call of the same function."""
        *tensors, step = given
        name = function.__name__
        if step.mask.device.type != "cuda" or not isinstance(step.keys, Tensor):
            return function(*given)
        if name not in self._recorded:
            with torch.cuda.device(step.mask.device):
                self._recorded[name] = _record(function, tensors, step)
        return self._recorded[name](*tensors, step)


def _record(function: Callable[..., Any], tensors: list[Tensor], step: Steps) -> Callable[..., Any]:
    """A graph of one call; the function itself where CUDA refuses one."""
    inputs = [tensor.clone() for tensor in tensors]
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up in a first call, which cannot be recorded
            function(*inputs, step)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function(*inputs, step)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return function

    def replay(*given: Any) -> Any:
        for kept, new in zip(inputs, given[:-1], strict=True):
            kept.copy_(new)
        graph.replay()
        return outputs

    return replay
