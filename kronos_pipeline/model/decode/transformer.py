"""Upstream's transformer blocks for decoding: packed linear layers, rotary embeddings and key-value caches.

The classes come in threes: the weights of one or several predictors (`TransformerBlocks`, `CrossAttention`), the same
bound to the predictors of a batch (`MultiLora...`), and the latter with key-value caches (`Cached...`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from kronos_pipeline.model.decode.kv_cache import CacheLayout, KVCache, Steps
from kronos_pipeline.model.decode.linear import (
    LinearWeights,
    MultiLoraLinear,
    PackedLinear,
    concatenate,
    pad_inputs,
    pad_outputs,
    read_linear,
    reorder_outputs,
)


class RMSNorm:
    """Upstream's RMSNorm: computed in float32, returned in the precision of its input."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self._weight, self._epsilon = module.weight.detach().to(dtype), module.eps

    def __call__(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(hidden, self._weight.shape, self._weight, self._epsilon)


@dataclass(frozen=True)
class HeadLayout:
    """Layout of the heads of one of upstream's attentions.

    On a GPU each head is padded with zeros to a multiple of 16 bytes. Kronos-base has heads of 52 numbers. For these,
    in 16 bits, torch has no memory-efficient attention: its plain attention would write all scores to memory.

    Attributes:
        count: number of heads.
        width: numbers per head, padding included.
        frequencies: of the rotary embedding, (width / 2,).
        scale: factor of the scores; None, torch's default, without padding.
    """

    count: int
    width: int
    frequencies: Tensor
    scale: float | None = None

    @classmethod
    def of(cls, attention: Any, dtype: torch.dtype) -> HeadLayout:
        """Return the layout for an attention that computes in a given precision."""
        count, width, frequencies = attention.n_heads, attention.head_dim, attention.rotary.inv_freq
        padding = -width % (16 // dtype.itemsize) if frequencies.is_cuda else 0
        if not padding:
            return cls(count, width, frequencies)
        return cls(count, width + padding, F.pad(frequencies, (0, padding // 2)), width**-0.5)

    def pad_outputs(self, matrix: LinearWeights) -> LinearWeights:
        """Pad a projection to the heads."""
        return matrix if self.scale is None else pad_outputs(matrix, self.count, self.width)

    def pad_inputs(self, matrix: LinearWeights) -> LinearWeights:
        """Pad a projection from the heads."""
        return matrix if self.scale is None else pad_inputs(matrix, self.count, self.width)


class RotaryEmbedding:
    """Rotary position embeddings (Su et al., 2021, arXiv 2104.09864) as products of complex numbers.

    Upstream rotates entry i of a head together with entry i + width / 2. Here the two entries of a pair are neighbours:
    `interleaved_order` gives the order of a projection's rows. Scores are the same, as queries and keys are reordered
    alike.
    """

    def __init__(self, frequencies: Tensor, positions: int) -> None:
        position_range = torch.arange(positions, device=frequencies.device).float()
        angles = torch.outer(position_range, frequencies.float())
        self._rotations = torch.view_as_complex(torch.stack([angles.cos(), angles.sin()], dim=-1))  # (positions, w / 2)
        self.device = frequencies.device

    def at(self, positions: slice | Tensor, paths: int) -> Tensor:
        """Return the rotations of some positions, repeated for all paths, (positions * paths or 1, 1, width / 2)."""
        rotations = self._rotations[positions, None]
        return rotations.repeat_interleave(paths, dim=0) if len(rotations) > 1 and paths > 1 else rotations

    @staticmethod
    def rotate(heads: Tensor, rotations: Tensor) -> Tensor:
        """Rotate (series, tokens, heads, width)."""
        pairs = torch.view_as_complex(torch.unflatten(heads.float(), -1, (-1, 2)))
        return torch.view_as_real(pairs * rotations).flatten(-2).type_as(heads)


def interleaved_order(attention: Any) -> Tensor:
    """Return the order of a projection's rows in which the two entries of a rotated pair are neighbours."""
    rows = torch.arange(attention.n_heads * attention.head_dim, device=attention.rotary.inv_freq.device)
    return rows.view(attention.n_heads, 2, -1).transpose(1, 2).flatten()


def context_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Causal self-attention of a context: (series, context, heads, width) each to (series, context, model width)."""
    queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
    causal = mask is None
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class _Layer:
    first_norm: RMSNorm
    queries_keys_values: Any
    out: Any
    second_norm: RMSNorm
    gate_and_up: Any
    down: Any


class TransformerBlocks:
    """The weights of a stack of upstream's blocks, of one predictor or of several that share a base."""

    def __init__(self, stacks: Sequence[Any], dtype: torch.dtype) -> None:
        """Read the weights of `stacks`, the blocks of each predictor."""
        self._heads, self._dtype = HeadLayout.of(next(iter(stacks[0])).self_attn, dtype), dtype
        self._layers = [_read_layer(blocks, self._heads, dtype) for blocks in zip(*stacks, strict=True)]
        self.width = self._heads.count * self._heads.width

    def __len__(self) -> int:
        return len(self._layers)

    def for_batch(self, predictor_index: Tensor | None) -> MultiLoraBlocks:
        """Bind the blocks to a batch: series i uses the LoRA matrices of predictor `predictor_index[i]`, (series,)."""
        layers = [
            _Layer(
                layer.first_norm,
                layer.queries_keys_values.for_batch(predictor_index),
                layer.out.for_batch(predictor_index),
                layer.second_norm,
                layer.gate_and_up.for_batch(predictor_index),
                layer.down.for_batch(predictor_index),
            )
            for layer in self._layers
        ]
        return MultiLoraBlocks(layers, self._heads, self._dtype)


@dataclass(frozen=True)
class MultiLoraBlocks:
    """Blocks in which every series of the batch uses the LoRA matrices of its own predictor."""

    layers: Sequence[_Layer]
    heads: HeadLayout
    dtype: torch.dtype

    def select(self, predictor_index: Tensor) -> None:
        """Switch to other predictors, for the same number of series, in the same memory."""
        for layer in self.layers:
            for linear in (layer.queries_keys_values, layer.out, layer.gate_and_up, layer.down):
                linear.select(predictor_index)


class CachedBlocks:
    """Blocks with key-value caches, over a context and the paths that continue it."""

    def __init__(self, blocks: MultiLoraBlocks, layout: CacheLayout) -> None:
        self._heads, self._dtype = blocks.heads, blocks.dtype
        self._layers = [(layer, KVCache(layout)) for layer in blocks.layers]
        self._rotary = RotaryEmbedding(blocks.heads.frequencies, layout.context + layout.steps)
        self.reset(layout)

    def reset(self, layout: CacheLayout) -> None:
        """Prepare for another context of the same shape, in the same memory."""
        self._layout, self._context_mask = layout, layout.context_mask(self._dtype, self._rotary.device)

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(cache.bytes for _, cache in self._layers)

    def prefill(self, hidden: Tensor) -> Tensor:
        """Run the context, (series, context, model width), through all blocks, and cache its keys and values."""
        rotations = self._rotary.at(slice(self._layout.context), 1)
        for layer, cache in self._layers:
            queries, keys, values = self._project(layer, hidden, rotations)
            cache.write_context(keys, values)
            mixed = context_attention(queries, keys, values, self._context_mask, self._heads.scale)
            hidden = self._feed_forward(layer, hidden, mixed)
        return hidden

    def decode(self, hidden: Tensor, steps: Steps) -> Tensor:
        """Run some steps of the paths, (series * groups, steps * paths, model width), through all blocks."""
        rotations = self._rotary.at(steps.positions, self._layout.paths)
        for layer, cache in self._layers:
            queries, keys, values = self._project(layer, hidden, rotations)
            cache.write_steps(keys, values, steps)
            hidden = self._feed_forward(layer, hidden, cache.attend(queries, steps.mask, self._heads.scale))
        return hidden

    def _project(self, layer: _Layer, hidden: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries and keys, and values, (series, tokens, heads, width) each."""
        projected = layer.queries_keys_values(layer.first_norm(hidden)).unflatten(-1, (3 * self._heads.count, -1))
        rotated = RotaryEmbedding.rotate(projected[:, :, : 2 * self._heads.count], rotations)
        return (*torch.split(rotated, self._heads.count, dim=2), projected[:, :, 2 * self._heads.count :])

    @staticmethod
    def _feed_forward(layer: _Layer, hidden: Tensor, mixed: Tensor) -> Tensor:
        hidden = layer.out(mixed, hidden)
        gate, up = layer.gate_and_up(layer.second_norm(hidden)).chunk(2, dim=-1)
        out: Tensor = layer.down(F.silu(gate).mul_(up), hidden)
        return out


class CrossAttention:
    """The weights of upstream's dependency-aware layer, which conditions a bar's fine token on its coarse token."""

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype) -> None:
        attentions = [layer.cross_attn for layer in layers]
        order, self._heads = interleaved_order(attentions[0]), HeadLayout.of(attentions[0], dtype)
        queries, keys = (
            self._heads.pad_outputs(reorder_outputs(_read_all(attentions, name), order))
            for name in ("q_proj", "k_proj")
        )
        values = self._heads.pad_outputs(_read_all(attentions, "v_proj"))
        self._query, self._keys_values = PackedLinear(queries, dtype), PackedLinear(concatenate([keys, values]), dtype)
        self._out = PackedLinear(self._heads.pad_inputs(_read_all(attentions, "out_proj")), dtype)
        self._norm = RMSNorm(layers[0].norm, dtype)

    def for_batch(self, predictor_index: Tensor | None) -> MultiLoraCrossAttention:
        """Bind the layer to a batch: series i uses the LoRA matrices of predictor `predictor_index[i]`, (series,)."""
        query, keys_values, out = (
            part.for_batch(predictor_index) for part in (self._query, self._keys_values, self._out)
        )
        return MultiLoraCrossAttention(query, keys_values, out, self._norm, self._heads)


@dataclass(frozen=True)
class MultiLoraCrossAttention:
    """The layer in which every series of the batch uses the LoRA matrices of its own predictor."""

    query: MultiLoraLinear
    keys_values: MultiLoraLinear
    out: MultiLoraLinear
    norm: RMSNorm
    heads: HeadLayout

    def select(self, predictor_index: Tensor) -> None:
        """Switch to other predictors, for the same number of series, in the same memory."""
        for linear in (self.query, self.keys_values, self.out):
            linear.select(predictor_index)


class CachedCrossAttention:
    """The layer with a key-value cache. Unless `true_positions` is set, all bars count as the first one."""

    def __init__(self, cross: MultiLoraCrossAttention, layout: CacheLayout, *, true_positions: bool) -> None:
        self._query, self._keys_values, self._out = cross.query, cross.keys_values, cross.out
        self._norm, self._heads, self._layout = cross.norm, cross.heads, layout
        self._cache = KVCache(layout)
        positions = layout.context + layout.steps
        self._rotary = RotaryEmbedding(cross.heads.frequencies, positions) if true_positions else None

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return self._cache.bytes

    def write_context(self, hidden: Tensor) -> None:
        """Cache the keys and values of the context, (series, context, model width)."""
        self._cache.write_context(*self._project(hidden, slice(self._layout.context), 1))

    def write_steps(self, hidden: Tensor, steps: Steps) -> None:
        """Cache the keys and values of some steps of the paths, (series * groups, steps * paths, model width)."""
        self._cache.write_steps(*self._project(hidden, steps.positions, self._layout.paths), steps)

    def attend(self, sibling: Tensor, hidden: Tensor, step: Steps) -> Tensor:
        """Return the input of the fine head, (series * groups, paths, model width).

        Args:
            sibling: the embedded coarse token of each path's next bar, (series * groups, paths, model width).
            hidden: the hidden state of the bar before, the same shape.
            step: the step of the bar before.
        """
        queries = torch.unflatten(self._query(sibling), -1, (self._heads.count, -1))
        queries = self._rotate(queries, step.positions, self._layout.paths)
        return self._norm(self._out(self._cache.attend(queries, step.mask, self._heads.scale), hidden))

    def _project(self, hidden: Tensor, positions: slice | Tensor, paths: int) -> tuple[Tensor, Tensor]:
        keys, values = torch.unflatten(self._keys_values(hidden), -1, (2, self._heads.count, -1)).unbind(dim=2)
        return self._rotate(keys, positions, paths), values

    def _rotate(self, heads: Tensor, positions: slice | Tensor, paths: int) -> Tensor:
        return heads if self._rotary is None else RotaryEmbedding.rotate(heads, self._rotary.at(positions, paths))


def _read_layer(blocks: Sequence[Any], heads: HeadLayout, dtype: torch.dtype) -> _Layer:
    """Read the weights of the same block of each predictor."""
    attentions, feed_forwards = [block.self_attn for block in blocks], [block.ffn for block in blocks]
    order = interleaved_order(attentions[0])
    queries, keys = (reorder_outputs(_read_all(attentions, name), order) for name in ("q_proj", "k_proj"))
    values = _read_all(attentions, "v_proj")
    return _Layer(
        RMSNorm(blocks[0].norm1, dtype),
        PackedLinear(concatenate([heads.pad_outputs(part) for part in (queries, keys, values)]), dtype),
        PackedLinear(heads.pad_inputs(_read_all(attentions, "out_proj")), dtype),
        RMSNorm(blocks[0].norm2, dtype),
        PackedLinear(concatenate([_read_all(feed_forwards, "w1"), _read_all(feed_forwards, "w3")]), dtype),
        PackedLinear(_read_all(feed_forwards, "w2"), dtype),
    )


def _read_all(modules: Sequence[Any], name: str) -> LinearWeights:
    """Read the submodule of that name of each predictor's module."""
    return read_linear([getattr(module, name) for module in modules])
