"""Key-value cache of a context that many sampled paths continue.

The lookback is read once. Each sampled path then adds one bar per step, and attends to the keys and values of the
lookback, which all paths share, and to its own bars so far. The paths of a group lie side by side within each step, so
that one call serves the whole group, and a mask hides the bars of the other paths:

    context          step 0      step 1
    k k k k k k k k  k0 k1 k2    k0 k1 k2          (series * groups, heads, context + steps * paths, width)
    x x x x x x x x  x  .  .     x  .  .           keys visible to path 0 of the group
    x x x x x x x x  .  x  .     .  x  .           keys visible to path 1 of the group

Larger groups compute more scores that the mask hides; smaller groups hold more copies of the context. Contexts of
unequal length are aligned at the end; the padding before the first bar of a short context is masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

MASKED = float("-inf")
MAX_GROUP_PATHS = 16
"""Largest number of paths in one group."""
_ALIGNMENT = 8


@dataclass(frozen=True)
class SeriesLengths:
    """Number of valid bars of each series; they are the last ones of the context.

    Attributes:
        bars: (series,), on the device.
        shortest: minimum of `bars`, known on the host.
    """

    bars: Tensor
    shortest: int

    @classmethod
    def of(cls, lengths: Tensor | None, device: torch.device) -> SeriesLengths | None:
        """Convert lengths on the host, (series,); None, for series of equal length, stays None."""
        return None if lengths is None else cls(lengths.to(device), int(lengths.min()))


@dataclass(frozen=True)
class Steps:
    """Consecutive steps of the paths.

    Attributes:
        positions: positions of the steps; the first bar of the context has position 0.
        keys: indices of their keys in the cache.
        mask: to add to scores; (series * groups or 1, 1, steps * paths, visible keys).
    """

    positions: slice | Tensor
    keys: slice | Tensor
    mask: Tensor


@dataclass(frozen=True)
class CacheLayout:
    """Layout of the keys of one generation, the same for all layers.

    Attributes:
        context: bars of the context.
        groups: groups of paths per series.
        paths: paths per group.
        steps: largest number of bars that a path adds.
        lengths: valid bars of each series, (series,), the last ones of the context; None: all.
    """

    context: int
    groups: int
    paths: int
    steps: int
    lengths: Tensor | None = None

    @classmethod
    def of(cls, context: int, paths: int, steps: int, lengths: SeriesLengths | None) -> CacheLayout:
        """Lay out `paths` paths, or a few more, in groups of equal size."""
        groups = -(-paths // MAX_GROUP_PATHS)
        unequal = lengths is not None and lengths.shortest < context
        bars = lengths.bars.clamp(max=context) if lengths is not None and unequal else None
        return cls(context, groups, -(-paths // groups), steps, bars)

    def group(self, by_path: Tensor) -> Tensor:
        """Reshape (series, paths, ...) to (series * groups, paths of a group, ...), padded by the last path."""
        padding = self.groups * self.paths - by_path.shape[1]
        if padding:
            by_path = torch.cat([by_path, by_path[:, -1:].expand(-1, padding, *by_path.shape[2:])], dim=1)
        return by_path.reshape(-1, self.paths, *by_path.shape[2:])

    def ungroup(self, grouped: Tensor, paths: int) -> Tensor:
        """Reshape (series * groups, paths of a group, ...) to (series, paths, ...)."""
        return grouped.reshape(-1, self.groups * self.paths, *grouped.shape[2:])[:, :paths]

    def slice_steps(self, first: int, count: int, mask: Tensor) -> Steps:
        """Return `count` steps from `first` on; step -1 is the last bar of the context. `mask` is from `paths_mask`."""
        start, end = (self.context + step * self.paths for step in (first, first + count))
        positions = slice(self.context + first, self.context + first + count)
        return Steps(positions, slice(start, end), mask[..., :end])

    def context_mask(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Return the mask of the context, (series, 1, context, context); None if plain causality suffices."""
        if self.lengths is None:
            return None
        positions = torch.arange(self.context, device=device)
        valid = positions >= self.context - self.lengths[:, None]
        visible = (positions[:, None] >= positions) & valid[:, None] | (positions[:, None] == positions)
        return _additive_mask(visible[:, None], dtype)

    def paths_mask(self, last_steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the mask of the last steps, (series * groups or 1, 1, last_steps * paths, context + steps * paths).

        The keys visible to one step are a prefix of those visible to a later step, so the mask of the last step serves
        all steps.
        """
        number = torch.arange(self.steps * self.paths, device=device)
        step, path = number // self.paths, number % self.paths
        last = slice((self.steps - last_steps) * self.paths, None)
        same_path = (path[last, None] == path) & (step[last, None] >= step)
        context = same_path.new_ones(1, self.context)
        if self.lengths is not None:
            lengths = self.lengths.repeat_interleave(self.groups)
            context = torch.arange(self.context, device=device) >= self.context - lengths[:, None]
        parts = [context[:, None].expand(-1, len(same_path), -1), same_path.expand(len(context), -1, -1)]
        return _additive_mask(torch.cat(parts, dim=-1)[:, None], dtype)


def _additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a boolean mask to numbers to add to scores.

    On a GPU rows begin at multiples of `_ALIGNMENT` numbers, or the attention would copy the mask at each call.
    """
    keys = visible.shape[-1]
    row = keys + (-keys % _ALIGNMENT if visible.is_cuda else 0)
    mask = torch.zeros(*visible.shape[:-1], row, dtype=dtype, device=visible.device)
    return mask[..., :keys].masked_fill_(~visible, MASKED)


class KVCache:
    """The keys and values of one attention: (series * groups, heads, context + steps * paths, width)."""

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        self._tensors: tuple[Tensor, Tensor] | None = None

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return 0 if self._tensors is None else sum(part.nbytes for part in self._tensors)

    @property
    def _written(self) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], self._tensors)  # steps follow a context

    def write_context(self, keys: Tensor, values: Tensor) -> None:
        """Write the context's keys and values, (series, context, heads, width), for each group.

        A second call reuses the memory of the first.
        """
        layout = self._layout
        if self._tensors is None:
            series, _, heads, width = keys.shape
            size = (series * layout.groups, heads, layout.context + layout.steps * layout.paths, width)
            self._tensors = keys.new_empty(size), values.new_empty(size)
        for cached, part in zip(self._tensors, (keys, values), strict=True):
            cached[:, :, layout.context :].zero_()  # later entries are masked, but take part in products
            context = torch.unflatten(cached, 0, (-1, layout.groups))[:, :, :, : layout.context]
            context.copy_(part.transpose(1, 2)[:, None])

    def write_steps(self, keys: Tensor, values: Tensor, steps: Steps) -> None:
        """Write the keys and values of some steps, (series * groups, steps * paths, heads, width)."""
        for cached, part in zip(self._written, (keys, values), strict=True):
            if isinstance(steps.keys, Tensor):
                cached.index_copy_(2, steps.keys, part.transpose(1, 2))
            else:
                cached[:, :, steps.keys] = part.transpose(1, 2)

    def attend(self, queries: Tensor, mask: Tensor, scale: float | None) -> Tensor:
        """Attend from some steps, (series * groups, steps * paths, heads, width), to the keys that the mask shows."""
        keys, values = (cached[:, :, : mask.shape[-1]] for cached in self._written)
        mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, attn_mask=mask, scale=scale)
        return mixed.transpose(1, 2).flatten(2)
