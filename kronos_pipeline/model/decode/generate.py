"""The loop over the bars to come.

For each next bar the predictor gives the coarse token s1 from the bars before, then the fine token s2 from these and
s1 by a cross-attention.

The step from one bar to the next as CUDA graphs: two calls start its hundreds of small kernels.

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
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kronos_pipeline.model.cuda_graphs import Recording, record
from kronos_pipeline.model.decode.kv_cache import HIDDEN, CacheLayout, SeriesLengths, Steps
from kronos_pipeline.model.decode.network import CachedPredictor, PredictorWeights

Tokens = tuple[Tensor, Tensor]
"""Coarse and fine tokens, s1 and s2, of equal shape."""

TokenPicker = Callable[[Tensor, int, int], Tensor]
"""Logits (series, paths, vocabulary) in float32, step, and level (0: s1, 1: s2) -> tokens (series, paths)."""

Fine = Callable[[Tensor], Tensor]
"""Coarse tokens, (series, paths) -> logits of their fine tokens, (series * groups, paths of a group, vocabulary)."""

REPLAYED = ("cuda",)
"""Kinds of devices on which the step from one bar to the next is recorded once and replayed."""
_KEPT = 4
"""Batches kept at most, of all networks."""
_SHARE = 1 / 32
"""The largest share of a GPU's memory that the keys and values of all kept batches take."""

_kept: OrderedDict[tuple[Any, ...], tuple[StepGraphs, weakref.ref[PredictorWeights]]] = OrderedDict()
_lock = threading.RLock()


class Generation:
    """One call of `Decoder.generate`, whose arguments it takes; `lengths` and `which` are on the host."""

    def __init__(
        self,
        network: PredictorWeights,
        known: Tokens,
        past: Tensor,
        ahead: Tensor,
        paths: int,
        context: int,
        lengths: Tensor | None,
        which: Tensor | None,
        in_place: bool,
    ) -> None:
        device, (series, bars), horizon = network.device, known[0].shape, ahead.shape[1]
        self._known, self._lengths = (known[0].to(device), known[1].to(device)), SeriesLengths.of(lengths, device)
        self._paths, self._context, self._in_place = paths, context, in_place
        self._steps = min(horizon - 1, context - bars)  # of each path that the context has room for
        self._packed, self._replayed = network, None
        self._replays = device.type in REPLAYED and self._steps > 1
        unequal = self._lengths is not None and self._lengths.shortest < bars
        self._shape = series, paths, bars, horizon, self._steps, in_place, unequal
        places = None if which is None else which.tolist()
        if self._replays and (replayed := take(network, self._shape)) is not None:
            self._replayed, self._rows = replayed, replayed.network.rows
            self._rows.choose(places, series)
        else:
            self._rows = network.rows(places, series)
        self._past, self._ahead = (self._rows.stamps(part.to(device)) for part in (past, ahead))

    def sample(self, choose: TokenPicker) -> Tokens:
        """s1 and s2, (series, paths, horizon)."""
        horizon, bars = self._ahead.shape[1], self._known[0].shape[1]
        drawn: list[Tokens] = []
        for step in range(horizon):
            start = max(0, bars + step - self._context)
            if start or not step:
                coarse, fine = self._begin(drawn, start)
            elif self._replayed is not None:
                coarse, fine = self._replayed.next_coarse(*drawn[-1], step - 1), self._replayed.next_fine
            else:
                at = self._network.span.at(step - 1, 1, self._mask)
                coarse, fine = self._go_on(drawn[-1:], step - 1, at, at)
            s1 = choose(self._network.span.ungroup(coarse, self._paths), step, 0)
            s2 = choose(self._network.span.ungroup(fine(s1), self._paths), step, 1)
            drawn.append((s1, s2))
        if self._replayed is not None:
            keep(self._packed, self._shape, self._replayed)
        s1, s2 = (torch.stack(level, dim=-1) for level in zip(*drawn, strict=True))
        return s1, s2

    def _begin(self, drawn: list[Tokens], start: int) -> tuple[Tensor, Fine]:
        """Read all bars from `start` on, those of the paths included; see `_go_on`."""
        known = self._known[0][:, start:], self._known[1][:, start:]
        first = max(0, start - self._known[0].shape[1])
        drawn, steps = drawn[first:], len(drawn) if start else self._steps
        span = CacheLayout.of(known[0].shape[1], self._paths, max(1, steps - first), self._lengths)
        if self._replayed is not None and not start:
            self._network = self._replayed.network
            self._network.begin(span)
            self._replayed.begin(self._ahead)
        else:
            self._network = CachedPredictor(self._rows, span, in_place=self._in_place)
            if self._replays and not start:
                self._replayed = StepGraphs(self._network, self._ahead)
        network, dtype, device = self._network, self._packed.dtype, self._packed.device
        hidden = network.over_context(known, self._past[:, start:])
        self._mask = span.paths_mask(1, dtype, device)
        at = span.at(len(drawn) - 1, 1, self._mask)
        if drawn:
            whole = span.at(0, len(drawn), span.paths_mask(len(drawn), dtype, device))
            return self._go_on(drawn, first, whole, at)
        last = span.group(hidden[:, -1:].expand(-1, self._paths, -1))
        return self._rows.coarse_head(last.float()), lambda s1: network.fine_logits(span.group(s1), last, at)

    def _go_on(self, drawn: Sequence[Tokens], first: int, whole: Steps, at: Steps) -> tuple[Tensor, Fine]:
        """Read some steps of the paths, `whole`, of which `at` is the last.

        Args:
            drawn: their tokens.
            first: the number of the first one among the bars to come.

        Returns:
            The logits of the next coarse tokens, and the function from these to the logits of their fine tokens.
        """
        network, span = self._network, self._network.span
        s1, s2 = (torch.cat([span.group(one) for one in level], dim=1) for level in zip(*drawn, strict=True))
        ahead = self._ahead[:, first : first + len(drawn)].repeat_interleave(span.groups, dim=0)
        last, coarse = network.over_paths(s1, s2, ahead.repeat_interleave(span.paths, dim=1), whole)
        return coarse, lambda s1: network.fine_logits(span.group(s1), last, at)


class StaticStep:
    """A step of a network, whose inputs are tensors that stay where they are in memory."""

    def __init__(self, network: CachedPredictor, ahead: Tensor) -> None:
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
        """What `CachedPredictor.over_paths` gives for the tokens at this step."""
        span = self._network.span
        start = span.context + self._number * span.paths
        self._seen.copy_(self._mask).masked_fill_(self._keys >= start + span.paths, HIDDEN)
        ahead = self._horizon_stamps.index_select(1, self._number).repeat_interleave(span.groups, dim=0)
        steps = Steps(span.context + self._number, self._paths + start, self._seen)
        return self._network.over_paths(self._tokens[0], self._tokens[1], ahead, steps)

    def fine_logits(self, last: Tensor) -> Tensor:
        """What `CachedPredictor.fine_logits` gives for the coarse tokens after this step."""
        span = self._network.span
        return self._network.fine_logits(
            self._tokens[0], last, Steps(span.context + self._number, slice(0), self._seen)
        )


class StepGraphs:
    """A batch whose steps are replayed on a GPU; elsewhere, and where CUDA refuses graphs, they are called."""

    def __init__(self, network: CachedPredictor, ahead: Tensor) -> None:
        """`ahead`: embedded stamps of the bars to come, (series, horizon, width)."""
        self.network, self._moving, self._device = network, StaticStep(network, ahead), ahead.device
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


def take(network: PredictorWeights, shape: tuple[Any, ...]) -> StepGraphs | None:
    """Take out the batch of that shape that was kept for a network."""
    with _lock:
        batch, _ = _kept.pop((id(network), *shape), (None, None))
    return batch


def keep(network: PredictorWeights, shape: tuple[Any, ...], batch: StepGraphs) -> None:
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
