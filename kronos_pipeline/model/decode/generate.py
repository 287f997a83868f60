"""Autoregressive generation of tokens, bar by bar, with CUDA graphs of the step from one bar to the next.

For each next bar the predictor gives the coarse token s1 from the bars before, then the fine token s2 from these bars
and s1 by a cross-attention.

For few series and paths, a GPU computes a step in less time than Python needs to launch its hundreds of small kernels.
So CUDA graphs of the first step are recorded, and two calls replay them for each later step. A graph reads and writes
the same memory each time: the step number is a tensor, and the step attends to the keys of all steps, of which a mask
hides the later ones.

A finished batch is cached for the next batch of the same shape: its key-value caches, selected adapters, masks and
graphs. A running batch is not in the cache, so two threads never share one.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from kronos_pipeline.model.cuda_graphs import CudaGraph, record
from kronos_pipeline.model.decode.kv_cache import MASKED, CacheLayout, SeriesLengths, Steps
from kronos_pipeline.model.decode.network import CachedPredictor, PredictorWeights

T = TypeVar("T")

Tokens = tuple[Tensor, Tensor]
"""Coarse and fine tokens, s1 and s2, of equal shape."""

TokenPicker = Callable[[Tensor, int, int], Tensor]
"""Logits (series, paths, vocabulary) in float32, step, and level (0: s1, 1: s2) -> tokens (series, paths)."""


@dataclass(frozen=True)
class Prompts:
    """Series to continue: their known bars as tokens, and the time stamps.

    Attributes:
        tokens: s1 and s2 of the known bars, (series, bars).
        past: minute, hour, weekday, day and month of the known bars, (series, bars, 5).
        ahead: the same of the horizon, (series, horizon, 5).
        lengths: number of valid bars of each series, (series,), the last ones, on the host; None: all.
        predictor_index: index of each series' predictor in the decoder's list, (series,), on the host; None: all use
            the first.
    """

    tokens: Tokens
    past: Tensor
    ahead: Tensor
    lengths: Tensor | None = None
    predictor_index: Tensor | None = None


FineLogits = Callable[[Tensor], Tensor]
"""Coarse tokens, (series, paths) -> logits of their fine tokens, (series * groups, paths of a group, vocabulary)."""

REPLAYED = ("cuda",)
"""Types of devices on which the step from one bar to the next is recorded once and replayed."""

_CACHED_BATCHES = 4
"""Largest number of cached batches, of all predictors."""
_MEMORY_FRACTION = 1 / 32
"""Largest fraction of a GPU's memory for the keys and values of all cached batches."""

_cache: OrderedDict[tuple[Any, ...], tuple[GraphedBatch, weakref.ref[PredictorWeights]]] = OrderedDict()
_lock = threading.RLock()


class Generation:
    """One call of `Decoder.generate`, with the same arguments."""

    def __init__(
        self, weights: PredictorWeights, prompts: Prompts, *, paths: int, context: int, true_positions: bool
    ) -> None:
        device, (s1, s2) = weights.device, prompts.tokens
        (series, bars), horizon = s1.shape, prompts.ahead.shape[1]
        self._known, self._lengths = (s1.to(device), s2.to(device)), SeriesLengths.of(prompts.lengths, device)
        self._paths, self._context, self._true_positions = paths, context, true_positions
        self._steps = min(horizon - 1, context - bars)  # steps per path that fit into the context
        self._weights, self._graphed = weights, None
        self._uses_graphs = device.type in REPLAYED and self._steps > 1
        unequal = self._lengths is not None and self._lengths.shortest < bars
        self._shape = series, paths, bars, horizon, self._steps, true_positions, unequal
        index = None if prompts.predictor_index is None else prompts.predictor_index.tolist()
        if self._uses_graphs and (graphed := _take(weights, self._shape)) is not None:
            self._graphed, self._batch = graphed, graphed.predictor.weights
            self._batch.select(index, series)
        else:
            self._batch = weights.for_batch(index, series)
        self._past, self._ahead = (self._batch.embed_stamps(part.to(device)) for part in (prompts.past, prompts.ahead))

    def sample(self, pick: TokenPicker) -> Tokens:
        """Generate s1 and s2, (series, paths, horizon)."""
        horizon, bars = self._ahead.shape[1], self._known[0].shape[1]
        drawn: list[Tokens] = []
        for step in range(horizon):
            start = max(0, bars + step - self._context)
            if start or not step:
                coarse, fine = self._prefill(drawn, start)
            elif self._graphed is not None:
                coarse, fine = self._graphed.coarse_logits(*drawn[-1], step - 1), self._graphed.fine_logits
            else:
                last = self._predictor.layout.slice_steps(step - 1, 1, self._mask)
                coarse, fine = self._decode(drawn[-1:], step - 1, last, last)
            s1 = pick(self._predictor.layout.ungroup(coarse, self._paths), step, 0)
            s2 = pick(self._predictor.layout.ungroup(fine(s1), self._paths), step, 1)
            drawn.append((s1, s2))
        if self._graphed is not None:
            _keep(self._weights, self._shape, self._graphed)
        s1, s2 = (torch.stack(level, dim=-1) for level in zip(*drawn, strict=True))
        return s1, s2

    def _prefill(self, drawn: list[Tokens], start: int) -> tuple[Tensor, FineLogits]:
        """Read all bars from `start` on, drawn bars included; see `_decode` for the result."""
        known = self._known[0][:, start:], self._known[1][:, start:]
        first = max(0, start - self._known[0].shape[1])
        drawn, steps = drawn[first:], len(drawn) if start else self._steps
        layout = CacheLayout.of(known[0].shape[1], self._paths, max(1, steps - first), self._lengths)
        if self._graphed is not None and not start:
            self._predictor = self._graphed.predictor
            self._predictor.reset(layout)
            self._graphed.reset(self._ahead)
        else:
            self._predictor = CachedPredictor(self._batch, layout, true_positions=self._true_positions)
            if self._uses_graphs and not start:
                self._graphed = GraphedBatch(self._predictor, self._ahead)
        predictor, dtype, device = self._predictor, self._weights.dtype, self._weights.device
        hidden = predictor.prefill(known, self._past[:, start:])
        self._mask = layout.paths_mask(1, dtype, device)
        last_step = layout.slice_steps(len(drawn) - 1, 1, self._mask)
        if drawn:
            steps_drawn = layout.slice_steps(0, len(drawn), layout.paths_mask(len(drawn), dtype, device))
            return self._decode(drawn, first, steps_drawn, last_step)
        last = layout.group(hidden[:, -1:].expand(-1, self._paths, -1))
        coarse = self._batch.coarse_head(last.float())
        return coarse, lambda s1: predictor.fine_logits(layout.group(s1), last, last_step)

    def _decode(self, drawn: Sequence[Tokens], first: int, steps: Steps, last_step: Steps) -> tuple[Tensor, FineLogits]:
        """Read some steps of the paths.

        Args:
            drawn: tokens of the steps.
            first: index of the first step in the horizon.
            steps: positions, keys and mask of the steps.
            last_step: the same of the last of them.

        Returns:
            The logits of the next coarse tokens, and the function from coarse tokens to logits of their fine tokens.
        """
        predictor, layout = self._predictor, self._predictor.layout
        s1, s2 = (torch.cat([layout.group(step) for step in level], dim=1) for level in zip(*drawn, strict=True))
        ahead = self._ahead[:, first : first + len(drawn)].repeat_interleave(layout.groups, dim=0)
        last, coarse = predictor.decode(s1, s2, ahead.repeat_interleave(layout.paths, dim=1), steps)
        return coarse, lambda s1: predictor.fine_logits(layout.group(s1), last, last_step)


class StaticStep:
    """A decoding step that reads its inputs from fixed memory, as a CUDA graph requires."""

    def __init__(self, predictor: CachedPredictor, ahead: Tensor) -> None:
        """Allocate the inputs; `ahead`: embedded stamps of the horizon, (series, horizon, width)."""
        layout, self._predictor = predictor.layout, predictor
        self._ahead, device = ahead.clone(), ahead.device
        self._number = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.zeros(2, len(ahead) * layout.groups, layout.paths, dtype=torch.long, device=device)
        self._paths = torch.arange(layout.paths, device=device)
        self._keys = torch.arange(layout.context + layout.steps * layout.paths, device=device)
        self._mask = layout.paths_mask(1, ahead.dtype, device)
        self._step_mask = layout.paths_mask(1, ahead.dtype, device)

    def reset(self, ahead: Tensor) -> None:
        """Prepare for other series, in the same memory."""
        self._ahead.copy_(ahead)
        self._mask.copy_(self._predictor.layout.paths_mask(1, ahead.dtype, ahead.device))

    def set_step(self, step: int) -> None:
        """Set the number of the step."""
        self._number.fill_(step)

    def set_tokens(self, level: int, tokens: Tensor) -> None:
        """Set the tokens of one level (0: s1, 1: s2), (series, paths)."""
        self._tokens[level].copy_(self._predictor.layout.group(tokens))

    def decode(self) -> tuple[Tensor, Tensor]:
        """Return the result of `CachedPredictor.decode` for the tokens of this step."""
        layout = self._predictor.layout
        start = layout.context + self._number * layout.paths
        self._step_mask.copy_(self._mask).masked_fill_(self._keys >= start + layout.paths, MASKED)
        ahead = self._ahead.index_select(1, self._number).repeat_interleave(layout.groups, dim=0)
        steps = Steps(layout.context + self._number, self._paths + start, self._step_mask)
        return self._predictor.decode(self._tokens[0], self._tokens[1], ahead, steps)

    def fine_logits(self, last: Tensor) -> Tensor:
        """Return the result of `CachedPredictor.fine_logits` for the coarse tokens after this step."""
        positions = self._predictor.layout.context + self._number
        return self._predictor.fine_logits(self._tokens[0], last, Steps(positions, slice(0), self._step_mask))


class GraphedBatch:
    """A batch that replays its steps as CUDA graphs; on other devices, or if CUDA refuses, it calls the functions."""

    def __init__(self, predictor: CachedPredictor, ahead: Tensor) -> None:
        """Record nothing yet; `ahead`: embedded stamps of the horizon, (series, horizon, width)."""
        self.predictor, self._step, self._device = predictor, StaticStep(predictor, ahead), ahead.device
        self._graphs: dict[str, CudaGraph[Any] | None] = {}

    def reset(self, ahead: Tensor) -> None:
        """Prepare for other series, in the same memory, after `CachedPredictor.reset`."""
        self._step.reset(ahead)

    def coarse_logits(self, s1: Tensor, s2: Tensor, step: int) -> Tensor:
        """Read the tokens of a step, (series, paths) each.

        Returns:
            Logits of the next coarse tokens, (series * groups, paths of a group, vocabulary), valid until the next
            call.
        """
        self._step.set_step(step)
        self._step.set_tokens(0, s1)
        self._step.set_tokens(1, s2)
        self._last, coarse = self._call("coarse", self._step.decode)
        return coarse

    def fine_logits(self, s1: Tensor) -> Tensor:
        """Return the logits of the fine tokens of the coarse tokens just drawn, valid until the next call."""
        step, last = self._step, self._last
        step.set_tokens(0, s1)
        return self._call("fine", lambda: step.fine_logits(last))

    def _call(self, name: str, function: Callable[[], T]) -> T:
        if self._device.type != "cuda":
            return function()
        if name not in self._graphs:
            # Both graphs share a pool: the logits of one are read before the other is replayed, and `last`, which the
            # second reads, existed when the second was recorded.
            self._graphs[name] = record(function, self._device, share=self._graphs.get("coarse"))
        graph = self._graphs[name]
        if graph is None:
            return function()
        graph.replay()
        outputs: T = graph.outputs
        return outputs

    @property
    def is_complete(self) -> bool:
        """Whether CUDA recorded every function."""
        return None not in self._graphs.values()


def _take(weights: PredictorWeights, shape: tuple[Any, ...]) -> GraphedBatch | None:
    """Remove the cached batch of that shape from the cache and return it."""
    with _lock:
        batch, _ = _cache.pop((id(weights), *shape), (None, None))
    return batch


def _keep(weights: PredictorWeights, shape: tuple[Any, ...], batch: GraphedBatch) -> None:
    """Cache a batch, at most as long as its weights live."""
    if not batch.is_complete:
        return
    key, device = (id(weights), *shape), weights.device
    with _lock:
        _cache[key] = batch, weakref.ref(weights, lambda _: _cache.pop(key, None))
        while len(_cache) > _CACHED_BATCHES or _bytes(device) > _limit(device):
            _cache.popitem(last=False)


def release_graphs() -> bool:
    """Empty the cache of batches; return whether it held any."""
    with _lock:
        had_entries = bool(_cache)
        _cache.clear()
    return had_entries


def _bytes(device: torch.device) -> int:
    return sum(batch.predictor.bytes for batch, _ in _cache.values() if batch.predictor.weights.device == device)


def _limit(device: torch.device) -> float:
    if device.type != "cuda":
        return float("inf")
    return _MEMORY_FRACTION * torch.cuda.get_device_properties(device).total_memory
