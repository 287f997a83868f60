"""The step from one bar to the next as CUDA graphs: two calls start its hundreds of small kernels.

With few series and paths, a GPU computes a step in less time than Python needs to launch it. Graphs are recorded of the
first step and replayed for the others. They read and write the same memory each time, so tensors say which step it is,
and the step looks at all keys there will ever be, of which a mask hides the later ones.

What a batch needs for that is kept, for the next batch of the same shape: the caches of keys and values, the chosen
adapters, the masks and the graphs. A batch takes it out while it samples, so two threads never share one.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kronos_pipeline.model.cached import HIDDEN, Steps
from kronos_pipeline.model.cuda_graphs import Recording, record
from kronos_pipeline.model.network import CachedNetwork, Network

_KEPT = 4
"""Batches kept at most, of all networks."""
_SHARE = 1 / 32
"""The largest share of a GPU's memory that the keys and values of all kept batches take."""

_kept: OrderedDict[tuple[Any, ...], tuple[Replayed, weakref.ref[Network]]] = OrderedDict()
_lock = threading.RLock()


class Moving:
    """A step of a network, whose inputs are tensors that stay where they are in memory."""

    def __init__(self, network: CachedNetwork, ahead: Tensor) -> None:
        """`ahead`: embedded stamps of the bars to come, (series, horizon, width)."""
        span, self._network = network.span, network
        self._horizon_stamps, device = ahead.clone(), ahead.device
        self._number = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.zeros(2, len(ahead) * span.groups, span.paths, dtype=torch.long, device=device)
        self._paths = torch.arange(span.paths, device=device)
        self._keys = torch.arange(span.context + span.steps * span.paths, device=device)
        self._mask = span.paths_mask(1, ahead.dtype, device)
        self._seen = span.paths_mask(1, ahead.dtype, device)

    def begin(self, ahead: Tensor) -> None:
        """Make ready for other series, in the same memory."""
        self._horizon_stamps.copy_(ahead)
        self._mask.copy_(self._network.span.paths_mask(1, ahead.dtype, ahead.device))

    def to(self, step: int) -> None:
        """Move on to a step."""
        self._number.fill_(step)

    def give(self, level: int, tokens: Tensor) -> None:
        """Tokens of one level, (series, paths)."""
        self._tokens[level].copy_(self._network.span.group(tokens))

    def over_paths(self) -> tuple[Tensor, Tensor]:
        """What `CachedNetwork.over_paths` gives for the tokens at this step."""
        span = self._network.span
        start = span.context + self._number * span.paths
        self._seen.copy_(self._mask).masked_fill_(self._keys >= start + span.paths, HIDDEN)
        ahead = self._horizon_stamps.index_select(1, self._number).repeat_interleave(span.groups, dim=0)
        steps = Steps(span.context + self._number, self._paths + start, self._seen)
        return self._network.over_paths(self._tokens[0], self._tokens[1], ahead, steps)

    def fine_logits(self, last: Tensor) -> Tensor:
        """What `CachedNetwork.fine_logits` gives for the coarse tokens after this step."""
        span = self._network.span
        return self._network.fine_logits(
            self._tokens[0], last, Steps(span.context + self._number, slice(0), self._seen)
        )


class Replayed:
    """A batch whose steps are replayed on a GPU; elsewhere, and where CUDA refuses graphs, they are called."""

    def __init__(self, network: CachedNetwork, ahead: Tensor) -> None:
        """`ahead`: embedded stamps of the bars to come, (series, horizon, width)."""
        self.network, self._moving, self._device = network, Moving(network, ahead), ahead.device
        self._recorded: dict[str, Recording[Any] | None] = {}

    def begin(self, ahead: Tensor) -> None:
        """Make ready for other series, in the same memory; the network has begun."""
        self._moving.begin(ahead)

    def next_coarse(self, s1: Tensor, s2: Tensor, step: int) -> Tensor:
        """Read a step's tokens, (series, paths) each.

        Returns:
            Logits of the next coarse tokens, (series * groups, paths of a group, vocabulary), until the next call.
        """
        moving = self._moving
        moving.to(step)
        moving.give(0, s1)
        moving.give(1, s2)
        self._last, coarse = self._call("coarse", moving.over_paths)
        return coarse

    def next_fine(self, s1: Tensor) -> Tensor:
        """Logits of the fine tokens that go with the coarse ones just drawn, until the next call."""
        moving, last = self._moving, self._last
        moving.give(0, s1)
        logits: Tensor = self._call("fine", lambda: moving.fine_logits(last))
        return logits

    def _call(self, name: str, function: Callable[[], Any]) -> Any:
        if self._device.type != "cuda":
            return function()
        if name not in self._recorded:
            # One pool for both: the logits of one are used up before the other is replayed, and `last`, which the
            # second reads, was there when the second was recorded.
            self._recorded[name] = record(function, self._device, share=self._recorded.get("coarse"))
        recording = self._recorded[name]
        if recording is None:
            return function()
        recording.replay()
        return recording.outputs

    @property
    def is_complete(self) -> bool:
        """Whether CUDA recorded what it was asked to."""
        return None not in self._recorded.values()


def take(network: Network, shape: tuple[Any, ...]) -> Replayed | None:
    """Take out the batch of that shape that was kept for a network."""
    with _lock:
        batch, _ = _kept.pop((id(network), *shape), (None, None))
    return batch


def keep(network: Network, shape: tuple[Any, ...], batch: Replayed) -> None:
    """Keep a batch while the network lives, as one of the latest few."""
    if not batch.is_complete:
        return
    key, device = (id(network), *shape), network.device
    with _lock:
        _kept[key] = batch, weakref.ref(network, lambda _: _kept.pop(key, None))
        while len(_kept) > _KEPT or _bytes(device) > _limit(device):
            _kept.popitem(last=False)


def release() -> bool:
    """Drop all batches that are kept; whether there were some."""
    with _lock:
        some = bool(_kept)
        _kept.clear()
    return some


def _bytes(device: torch.device) -> int:
    return sum(batch.network.bytes for batch, _ in _kept.values() if batch.network.rows.device == device)


def _limit(device: torch.device) -> float:
    if device.type != "cuda":
        return float("inf")
    return _SHARE * torch.cuda.get_device_properties(device).total_memory
