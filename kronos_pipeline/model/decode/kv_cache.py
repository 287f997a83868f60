"""Attention over one context that many paths continue, with cached keys and values.

A forecast reads its lookback once. Each sampled path then adds one bar at a time, and attends to the keys and values of
the lookback, which all paths share, and to its own bars so far. Some paths, a group, lie side by side within each step,
so that one call serves them all, and a mask lets a path see its own bars:

    context          step 0      step 1
    k k k k k k k k  k0 k1 k2    k0 k1 k2          (series * groups, heads, context + steps * paths, width)
    x x x x x x x x  x  .  .     x  .  .           what path 0 of the group sees
    x x x x x x x x  .  x  .     .  x  .           what path 1 of the group sees

The larger a group, the more products with what a path does not see; the smaller, the more copies of the context.
Contexts of unequal length end together; the places before a short one's first bar are seen by nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from kronos_pipeline.model.decode.linear import LinearWeights, pad_inputs, pad_outputs

HIDDEN = float("-inf")
_ALIGNED = 8
MAX_GROUP_PATHS = 16
"""Paths of one group, at most."""


@dataclass(frozen=True)
class SeriesLengths:
    """How many bars of each series are there.

    Attributes:
        there: (series,), on the device.
        shortest: the smallest of them, known without a look at the device.
    """

    there: Tensor
    shortest: int

    @classmethod
    def of(cls, lengths: Tensor | None, device: torch.device) -> SeriesLengths | None:
        """From lengths on the host, (series,); None, for series of equal length, stays None."""
        return None if lengths is None else cls(lengths.to(device), int(lengths.min()))


@dataclass(frozen=True)
class Steps:
    """Some steps of the paths.

    Attributes:
        positions: of the steps, the context's first bar being 0.
        keys: places of their keys among all.
        mask: what they see, to add to scores; (series * groups or 1, 1, steps * paths, keys seen).
    """

    positions: slice | Tensor
    keys: slice | Tensor
    mask: Tensor


@dataclass(frozen=True)
class CacheLayout:
    """What one run attends to, the same for all layers.

    Attributes:
        context: bars of the context.
        groups: of paths that continue it.
        paths: of each group.
        steps: how many bars each path adds, at most.
        lengths: bars of each series that are there, (series,), the last ones of the context; None: all.
    """

    context: int
    groups: int
    paths: int
    steps: int
    lengths: Tensor | None = None

    @classmethod
    def of(cls, context: int, paths: int, steps: int, lengths: SeriesLengths | None) -> CacheLayout:
        """With so many paths, or a few more, in groups of equal size."""
        groups = -(-paths // MAX_GROUP_PATHS)
        unequal = lengths is not None and lengths.shortest < context
        there = lengths.there.clamp(max=context) if lengths is not None and unequal else None
        return cls(context, groups, -(-paths // groups), steps, there)

    def group(self, by_path: Tensor) -> Tensor:
        """(series, paths, ...) -> (series * groups, paths of a group, ...); the last path fills what is left over."""
        spare = self.groups * self.paths - by_path.shape[1]
        if spare:
            by_path = torch.cat([by_path, by_path[:, -1:].expand(-1, spare, *by_path.shape[2:])], dim=1)
        return by_path.reshape(-1, self.paths, *by_path.shape[2:])

    def ungroup(self, grouped: Tensor, paths: int) -> Tensor:
        """(series * groups, paths of a group, ...) -> (series, paths, ...)."""
        return grouped.reshape(-1, self.groups * self.paths, *grouped.shape[2:])[:, :paths]

    def at(self, first: int, count: int, mask: Tensor) -> Steps:
        """So many steps from `first` on; -1 is the context's last bar. `mask` is from `paths_mask`."""
        start, seen = (self.context + step * self.paths for step in (first, first + count))
        positions = slice(self.context + first, self.context + first + count)
        return Steps(positions, slice(start, seen), mask[..., :seen])

    def context_mask(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """(series, 1, context, context) to add to scores; None where plain causality says it all."""
        if self.lengths is None:
            return None
        place = torch.arange(self.context, device=device)
        there = place >= self.context - self.lengths[:, None]
        seen = (place[:, None] >= place) & there[:, None] | (place[:, None] == place)
        return _to_add(seen[:, None], dtype)

    def paths_mask(self, asked: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(series * groups or 1, 1, asked * paths, context + steps * paths) to add to scores of the last `asked` steps.

        What one step sees is the beginning of what a later one sees, so the last step's mask serves all.
        """
        number = torch.arange(self.steps * self.paths, device=device)
        step, path = number // self.paths, number % self.paths
        last = slice((self.steps - asked) * self.paths, None)
        own = (path[last, None] == path) & (step[last, None] >= step)
        context = own.new_ones(1, self.context)
        if self.lengths is not None:
            lengths = self.lengths.repeat_interleave(self.groups)
            context = torch.arange(self.context, device=device) >= self.context - lengths[:, None]
        parts = [context[:, None].expand(-1, len(own), -1), own.expand(len(context), -1, -1)]
        return _to_add(torch.cat(parts, dim=-1)[:, None], dtype)


def _to_add(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """On a GPU its rows begin at multiples of `_ALIGNED` numbers, or the attention would copy it at each call."""
    keys = seen.shape[-1]
    row = keys + (-keys % _ALIGNED if seen.is_cuda else 0)
    mask = torch.zeros(*seen.shape[:-1], row, dtype=dtype, device=seen.device)
    return mask[..., :keys].masked_fill_(~seen, HIDDEN)


class KVCache:
    """The keys and values of one attention: (series * groups, heads, context + steps * paths, width)."""

    def __init__(self, span: CacheLayout) -> None:
        self._span = span
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def bytes(self) -> int:
        """What the keys and values take of the memory."""
        return 0 if self._kept is None else sum(part.nbytes for part in self._kept)

    def read_context(self, keys: Tensor, values: Tensor) -> None:
        """Keep the context's, (series, context, heads, width), for each group; in the same memory if called again."""
        span = self._span
        if self._kept is None:
            series, _, heads, width = keys.shape
            size = (series * span.groups, heads, span.context + span.steps * span.paths, width)
            self._kept = keys.new_empty(size), values.new_empty(size)
        for kept, part in zip(self._kept, (keys, values), strict=True):
            kept[:, :, span.context :].zero_()  # what is not yet there is hidden, but takes part in products
            of_series = kept.unflatten(0, (-1, span.groups))[:, :, :, : span.context]
            of_series.copy_(part.transpose(1, 2)[:, None])

    def read_paths(self, keys: Tensor, values: Tensor, steps: Steps) -> None:
        """Keep those of some steps, (series * groups, steps * paths, heads, width)."""
        assert self._kept is not None
        for kept, part in zip(self._kept, (keys, values), strict=True):
            if isinstance(steps.keys, Tensor):
                kept.index_copy_(2, steps.keys, part.transpose(1, 2))
            else:
                kept[:, :, steps.keys] = part.transpose(1, 2)

    def over_paths(self, queries: Tensor, mask: Tensor, scale: float | None) -> Tensor:
        """Attention of some steps, (series * groups, steps * paths, heads, width), to what each sees."""
        assert self._kept is not None
        keys, values = (kept[:, :, : mask.shape[-1]] for kept in self._kept)
        mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, attn_mask=mask, scale=scale)
        return mixed.transpose(1, 2).flatten(2)


def over_context(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Causal attention of a context to itself, (series, context, heads, width) -> (series, context, model width)."""
    queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
    causal = mask is None
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Heads:
    """The heads of one of upstream's attentions.

    On a GPU each is padded with zeros to a multiple of 16 bytes. Kronos-base has heads of 52 numbers, and to these,
    in 16 bits, torch's memory-efficient attention does not apply: its plain one would write all scores to memory.

    Attributes:
        count: how many.
        width: numbers of each, as padded.
        frequencies: of the rotary embedding, (width / 2,).
        scale: what scores are multiplied by; None, torch's default, where nothing is padded.
    """

    count: int
    width: int
    frequencies: Tensor
    scale: float | None = None

    @classmethod
    def of(cls, attention: Any, dtype: torch.dtype) -> Heads:
        """Those of an attention that works in a precision."""
        count, width, frequencies = attention.n_heads, attention.head_dim, attention.rotary.inv_freq
        spare = -width % (16 // dtype.itemsize) if frequencies.is_cuda else 0
        if not spare:
            return cls(count, width, frequencies)
        return cls(count, width + spare, F.pad(frequencies, (0, spare // 2)), width**-0.5)

    def outputs(self, matrix: LinearWeights) -> LinearWeights:
        """A projection to the heads, made as wide as they are."""
        return matrix if self.scale is None else pad_outputs(matrix, self.count, self.width)

    def inputs(self, matrix: LinearWeights) -> LinearWeights:
        """A projection from the heads, made as wide as they are."""
        return matrix if self.scale is None else pad_inputs(matrix, self.count, self.width)


class RotaryEmbedding:
    """Rotary position embeddings (Su et al., 2021, arXiv 2104.09864) as products of complex numbers.

    Upstream turns entry i of a head together with entry i + width / 2. Here such a pair lies side by side, which
    `paired` brings the rows of a projection to; scores are the same, as queries and keys are reordered alike.
    """

    def __init__(self, frequencies: Tensor, positions: int) -> None:
        places = torch.arange(positions, device=frequencies.device).float()
        angles = torch.outer(places, frequencies.float())
        self._turns = torch.view_as_complex(torch.stack([angles.cos(), angles.sin()], dim=-1))  # (positions, width / 2)
        self.device = frequencies.device

    def at(self, positions: slice | Tensor, paths: int) -> Tensor:
        """The turns of some positions, each for all paths, (positions * paths or 1, 1, width / 2)."""
        turns = self._turns[positions, None]
        return turns.repeat_interleave(paths, dim=0) if len(turns) > 1 and paths > 1 else turns

    @staticmethod
    def turn(heads: Tensor, turns: Tensor) -> Tensor:
        """Turn (series, tokens, heads, width)."""
        pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2).type_as(heads)


def paired(module: Any) -> Tensor:
    """The order of a projection's rows in which entries that turn together are neighbours."""
    rows = torch.arange(module.n_heads * module.head_dim, device=module.rotary.inv_freq.device)
    return rows.view(module.n_heads, 2, -1).transpose(1, 2).flatten()
