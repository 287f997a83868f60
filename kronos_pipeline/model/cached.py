"""Upstream's attention and transformer blocks over one context that many paths continue, with cached keys and values.

A forecast reads its lookback once. Each sampled path then adds one bar at a time, and attends to the keys and values
of the lookback, which all paths share, and to its own bars so far:

    context    k v k v k v k v          (series, heads, lookback, width)
    path 1                     k v k v  (series, heads, paths, steps, width)
    path 2                     k v k v

Upstream's modules do all the arithmetic with weights, so LoRA matrices inside of them take part. Rotary position
embeddings are computed here, for the bars' true positions, which upstream's cache of one length cannot give.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name


@dataclass(frozen=True)
class Shape:
    """How much one run has to hold: bars of context, and paths and steps that continue it."""

    context: int
    paths: int
    steps: int


class CachedAttention:
    """One of upstream's attention modules, self or cross, with what it has seen.

    Where it is not `in_place`, all bars count as the first: the position embeddings turn nothing.
    """

    def __init__(self, module: Any, shape: Shape, *, in_place: bool = True) -> None:
        self._module, self._shape = module, shape
        positions = in_place * torch.arange(shape.context + shape.steps, device=module.rotary.inv_freq.device)
        angles = torch.outer(positions.float(), module.rotary.inv_freq.float()).repeat(1, 2)
        self._cos, self._sin = angles.cos(), angles.sin()  # (positions, width)

    def read_context(self, hidden: Tensor) -> None:
        """Keep the keys and values of the context, (series, context, model width)."""
        module = self._module
        self._context_keys = self._rotate(self._heads(module.k_proj(hidden)), 0)
        self._context_values = self._heads(module.v_proj(hidden))
        series, heads, _, width = self._context_keys.shape
        own = (2, series, heads, self._shape.paths, self._shape.steps, width)
        self._keys, self._values = self._context_keys.new_empty(own)

    def over_context(self, query: Tensor) -> Tensor:
        """Causal attention of the context to itself, (series, context, model width)."""
        query = self._rotate(self._heads(self._module.q_proj(query)), 0)
        mixed = F.scaled_dot_product_attention(query, self._context_keys, self._context_values, is_causal=True)
        return self._module.out_proj(mixed.transpose(1, 2).flatten(2))

    def read_paths(self, hidden: Tensor, first: int) -> None:
        """Keep the keys and values of the paths' steps from `first` on, (series, paths, steps, model width)."""
        steps = slice(first, first + hidden.shape[2])
        self._keys[..., steps, :] = self._rotate(self._heads(self._module.k_proj(hidden)), self._shape.context + first)
        self._values[..., steps, :] = self._heads(self._module.v_proj(hidden))

    def over_paths(self, query: Tensor, first: int) -> Tensor:
        """Causal attention of the paths' steps from `first` on to all before them and to themselves.

        Args:
            query: (series, paths, steps, model width).
            first: index of the first of these steps; -1 is the context's last bar.
        """
        asked = query.shape[2]
        seen = first + asked
        query = self._rotate(self._heads(self._module.q_proj(query)), self._shape.context + first)
        series, heads, paths, _, width = query.shape
        query = query * width**-0.5
        keys, values = self._keys[..., :seen, :], self._values[..., :seen, :]
        shared = query.reshape(series, heads, paths * asked, width) @ self._context_keys.transpose(-1, -2)
        own = query @ keys.transpose(-1, -2)  # (series, heads, paths, asked, seen)
        if asked > 1:
            later = torch.ones(asked, seen, dtype=torch.bool, device=own.device).triu(first + 1)
            own = own.masked_fill(later, float("-inf"))
        scores = torch.cat([shared.view(series, heads, paths, asked, -1), own], dim=-1)
        weights = scores.float().softmax(dim=-1).type_as(scores)
        to_context, to_own = weights.split([self._shape.context, seen], dim=-1)
        mixed = (to_context.reshape(series, heads, paths * asked, -1) @ self._context_values).view_as(query)
        mixed = mixed + to_own @ values
        return self._module.out_proj(mixed.permute(0, 2, 3, 1, 4).flatten(3))

    def _heads(self, hidden: Tensor) -> Tensor:
        """(series, ..., model width) -> (series, heads, ..., width)."""
        return hidden.unflatten(-1, (self._module.n_heads, -1)).movedim(-2, 1)

    def _rotate(self, vectors: Tensor, first: int) -> Tensor:
        """Rotate (..., steps, width) by the angles of the positions from `first` on."""
        cos, sin = (table[first : first + vectors.shape[-2]] for table in (self._cos, self._sin))
        front, back = vectors.chunk(2, dim=-1)
        return (vectors * cos + torch.cat([-back, front], dim=-1) * sin).type_as(vectors)


class CachedBlocks:
    """A stack of upstream's transformer blocks over a context and its paths."""

    def __init__(self, blocks: Iterable[Any], shape: Shape) -> None:
        self._blocks = [(block, CachedAttention(block.self_attn, shape)) for block in blocks]

    def over_context(self, hidden: Tensor) -> Tensor:
        """(series, context, model width) through all blocks; what they saw is kept."""
        for block, attention in self._blocks:
            normed = block.norm1(hidden)
            attention.read_context(normed)
            hidden = hidden + attention.over_context(normed)
            hidden = hidden + block.ffn(block.norm2(hidden))
        return hidden

    def over_paths(self, hidden: Tensor, first: int) -> Tensor:
        """The paths' steps from `first` on, (series, paths, steps, model width), through all blocks."""
        for block, attention in self._blocks:
            normed = block.norm1(hidden)
            attention.read_paths(normed, first)
            hidden = hidden + attention.over_paths(normed, first)
            hidden = hidden + block.ffn(block.norm2(hidden))
        return hidden
