"""Upstream's transformer blocks as packed products over cached attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from kronos_pipeline.model.decode.kv_cache import (
    CacheLayout,
    Heads,
    KVCache,
    RotaryEmbedding,
    Steps,
    over_context,
    paired,
)
from kronos_pipeline.model.decode.linear import MultiLoraLinear, PackedLinear, join, read, reorder


class Norm:
    """Upstream's RMSNorm: in float32, then in the precision of what is normed."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self._weight, self._epsilon = module.weight.detach().to(dtype), module.eps

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self._weight.shape, self._weight, self._epsilon)


@dataclass(frozen=True)
class _Layer:
    first_norm: Norm
    queries_keys_values: Any
    out: Any
    second_norm: Norm
    gate_and_up: Any
    down: Any


class TransformerBlocks:
    """A stack of upstream's blocks, of one predictor or of several that share its weights."""

    def __init__(self, stacks: Sequence[Any], dtype: torch.dtype) -> None:
        """`stacks`: the blocks of each predictor."""
        self._heads, self._dtype = Heads.of(next(iter(stacks[0])).self_attn, dtype), dtype
        self._layers = [_layer(blocks, self._heads, dtype) for blocks in zip(*stacks, strict=True)]
        self.width = self._heads.count * self._heads.width

    def __len__(self) -> int:
        return len(self._layers)

    def chosen(self, which: Tensor | None) -> MultiLoraBlocks:
        """For a batch whose series take the detours of the predictors `which`, (series,)."""
        layers = [
            _Layer(
                layer.first_norm,
                layer.queries_keys_values.chosen(which),
                layer.out.chosen(which),
                layer.second_norm,
                layer.gate_and_up.chosen(which),
                layer.down.chosen(which),
            )
            for layer in self._layers
        ]
        return MultiLoraBlocks(layers, self._heads, self._dtype)


@dataclass(frozen=True)
class MultiLoraBlocks:
    """TransformerBlocks in which every series of the batch takes its own detours."""

    layers: Sequence[_Layer]
    heads: Heads
    dtype: torch.dtype

    def choose(self, which: Tensor) -> None:
        """Take the detours of other predictors, for as many series, in the same memory."""
        for layer in self.layers:
            for product in (layer.queries_keys_values, layer.out, layer.gate_and_up, layer.down):
                product.choose(which)


class CachedBlocks:
    """The blocks over a context and its paths, with the keys and values of what they have read."""

    def __init__(self, blocks: MultiLoraBlocks, span: CacheLayout) -> None:
        self._heads, self._dtype = blocks.heads, blocks.dtype
        self._layers = [(layer, KVCache(span)) for layer in blocks.layers]
        self._turning = RotaryEmbedding(blocks.heads.frequencies, span.context + span.steps)
        self.begin(span)

    def begin(self, span: CacheLayout) -> None:
        """Make ready to read a context; also for another of the same shape, in the same memory."""
        self._span, self._context_mask = span, span.context_mask(self._dtype, self._turning.device)

    @property
    def bytes(self) -> int:
        """What the keys and values take of the memory."""
        return sum(cache.bytes for _, cache in self._layers)

    def over_context(self, hidden: Tensor) -> Tensor:
        """(series, context, model width) through all blocks."""
        turns = self._turning.at(slice(self._span.context), 1)
        for layer, cache in self._layers:
            queries, keys, values = self._project(layer, hidden, turns)
            cache.read_context(keys, values)
            mixed = over_context(queries, keys, values, self._context_mask, self._heads.scale)
            hidden = self._rest(layer, hidden, mixed)
        return hidden

    def over_paths(self, hidden: Tensor, steps: Steps) -> Tensor:
        """Some steps of the paths, (series * groups, steps * paths, model width), through all blocks."""
        turns = self._turning.at(steps.positions, self._span.paths)
        for layer, cache in self._layers:
            queries, keys, values = self._project(layer, hidden, turns)
            cache.read_paths(keys, values, steps)
            hidden = self._rest(layer, hidden, cache.over_paths(queries, steps.mask, self._heads.scale))
        return hidden

    def _project(self, layer: _Layer, hidden: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, turned, and values, (series, tokens, heads, width) each."""
        projected = layer.queries_keys_values(layer.first_norm(hidden)).unflatten(-1, (3 * self._heads.count, -1))
        turned = RotaryEmbedding.turn(projected[:, :, : 2 * self._heads.count], turns)
        return (*turned.split(self._heads.count, dim=2), projected[:, :, 2 * self._heads.count :])

    @staticmethod
    def _rest(layer: _Layer, hidden: Tensor, mixed: Tensor) -> Tensor:
        hidden = layer.out(mixed, hidden)
        gate, up = layer.gate_and_up(layer.second_norm(hidden)).chunk(2, dim=-1)
        return layer.down(F.silu(gate).mul_(up), hidden)


class CrossAttention:
    """Upstream's dependency-aware layer: a bar's fine token is asked for with its coarse one."""

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype) -> None:
        each = [layer.cross_attn for layer in layers]
        order, self._heads = paired(each[0]), Heads.of(each[0], dtype)
        queries, keys = (
            self._heads.outputs(reorder(read(projections), order))
            for projections in ([one.q_proj for one in each], [one.k_proj for one in each])
        )
        values = self._heads.outputs(read([one.v_proj for one in each]))
        self._query, self._keys_values = PackedLinear(queries, dtype), PackedLinear(join([keys, values]), dtype)
        self._out = PackedLinear(self._heads.inputs(read([one.out_proj for one in each])), dtype)
        self._norm = Norm(layers[0].norm, dtype)

    def chosen(self, which: Tensor | None) -> MultiLoraCrossAttention:
        """For a batch whose series take the detours of the predictors `which`, (series,)."""
        query, keys_values, out = (one.chosen(which) for one in (self._query, self._keys_values, self._out))
        return MultiLoraCrossAttention(query, keys_values, out, self._norm, self._heads)


@dataclass(frozen=True)
class MultiLoraCrossAttention:
    """That layer, in which every series of the batch takes its own detours."""

    query: MultiLoraLinear
    keys_values: MultiLoraLinear
    out: MultiLoraLinear
    norm: Norm
    heads: Heads

    def choose(self, which: Tensor) -> None:
        """Take the detours of other predictors, for as many series, in the same memory."""
        for product in (self.query, self.keys_values, self.out):
            product.choose(which)


class CachedCrossAttention:
    """That layer over a context and its paths. Where it is not `in_place`, all bars count as the first one."""

    def __init__(self, cross: MultiLoraCrossAttention, span: CacheLayout, *, in_place: bool) -> None:
        self._query, self._keys_values, self._out = cross.query, cross.keys_values, cross.out
        self._norm, self._heads, self._span = cross.norm, cross.heads, span
        self._cache = KVCache(span)
        self._turning = RotaryEmbedding(cross.heads.frequencies, span.context + span.steps) if in_place else None

    @property
    def bytes(self) -> int:
        """What the keys and values take of the memory."""
        return self._cache.bytes

    def read_context(self, hidden: Tensor) -> None:
        """Keep what the context's bars, (series, context, model width), say."""
        self._cache.read_context(*self._project(hidden, slice(self._span.context), 1))

    def read_paths(self, hidden: Tensor, steps: Steps) -> None:
        """Keep what some steps of the paths, (series * groups, steps * paths, model width), say."""
        self._cache.read_paths(*self._project(hidden, steps.positions, self._span.paths), steps)

    def over_paths(self, sibling: Tensor, hidden: Tensor, step: Steps) -> Tensor:
        """What the fine token is read from, (series * groups, paths, model width).

        Args:
            sibling: the embedded coarse token of each path's next bar, (series * groups, paths, model width).
            hidden: the hidden state of the bar before, the same shape.
            step: of the bar before.
        """
        queries = self._query(sibling).unflatten(-1, (self._heads.count, -1))
        queries = self._turn(queries, step.positions, self._span.paths)
        return self._norm(self._out(self._cache.over_paths(queries, step.mask, self._heads.scale), hidden))

    def _project(self, hidden: Tensor, positions: slice | Tensor, paths: int) -> tuple[Tensor, Tensor]:
        keys, values = self._keys_values(hidden).unflatten(-1, (2, self._heads.count, -1)).unbind(dim=2)
        return self._turn(keys, positions, paths), values

    def _turn(self, heads: Tensor, positions: slice | Tensor, paths: int) -> Tensor:
        return heads if self._turning is None else RotaryEmbedding.turn(heads, self._turning.at(positions, paths))


def _layer(blocks: Sequence[Any], heads: Heads, dtype: torch.dtype) -> _Layer:
    """The same block of each predictor."""
    attention, feed = [block.self_attn for block in blocks], [block.ffn for block in blocks]
    order = paired(attention[0])
    queries = reorder(read([one.q_proj for one in attention]), order)
    keys = reorder(read([one.k_proj for one in attention]), order)
    values = read([one.v_proj for one in attention])
    return _Layer(
        Norm(blocks[0].norm1, dtype),
        PackedLinear(join([heads.outputs(part) for part in (queries, keys, values)]), dtype),
        PackedLinear(heads.inputs(read([one.out_proj for one in attention])), dtype),
        Norm(blocks[0].norm2, dtype),
        PackedLinear(join([read([one.w1 for one in feed]), read([one.w3 for one in feed])]), dtype),
        PackedLinear(read([one.w2 for one in feed]), dtype),
    )
