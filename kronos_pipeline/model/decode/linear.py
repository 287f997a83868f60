"""Linear layers and embeddings for decoding: packed weights, and the LoRA matrices of several predictors beside them.

Decoding calls no module: it multiplies by matrices that `read_linear` extracts from upstream's modules. The LoRA
matrices of a single predictor are added to its weight. Those of several predictors stay beside the weight that the
predictors share, and each row of a batch takes the LoRA delta of its own predictor, by one pair of batched products:

    rows of predictor 0   x --+------------- W -------------+--> W x + B0 A0 x
                              +--- A0 --- B0 ---------------+
    rows of predictor 1   x --+------------- W -------------+--> W x + B1 A1 x
                              +--- A1 --- B1 ---------------+

On a CPU, torch's `linear` calls MKL, which reads a weight in its plain layout and, on processors of other makers,
leaves the widest vector instructions unused. oneDNN, which torch includes, has its own layout for weights. A product
with a weight in that layout is 2 to 4 times as fast in float32, and exactly as precise. `torch.compile` calls the same
two operators; as they are not public, `can_pack` tries them before use, and `linear` replaces them if they fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.modules import eval_mode

_PACKED_ROWS = 32
"""Number of rows that a weight is packed for; the packed weight works for any other number as well."""


@dataclass(frozen=True)
class LoraDelta:
    """Low-rank matrices of several predictors: `down` (predictors, rank, in) and `up` (predictors, out, rank)."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class LinearWeights:
    """A linear map, x -> W x + b, with the LoRA matrices of the predictors that share W."""

    weight: Tensor  # (out, in)
    bias: Tensor | None
    lora: LoraDelta | None = None


def read_linear(modules: Sequence[Any]) -> LinearWeights:
    """Read the weights of one module of a predictor, or of the same module of several predictors.

    Args:
        modules: linear modules or embeddings, plain or with LoRA, one per predictor. An embedding counts as the linear
            map of a one-hot token, so its weight is (width, tokens).

    Raises:
        ModelError: the modules of several predictors do not share their weight, or change it by more than plain LoRA.
    """
    if len(modules) == 1:
        return _merge(modules[0])
    bases = [_base(module) for module in modules]
    weight = bases[0].weight
    if not all(_equal(base.weight, weight) and _equal(_bias(base), _bias(bases[0])) for base in bases[1:]):
        raise ModelError("Predictors of different weights cannot be decoded in one batch; give each a decoder.")
    parts = [_low_rank(module) for module in modules]
    if any(part is None for part in parts):
        raise ModelError("An adapter that is not plain LoRA cannot share a batch with others; give it a decoder.")
    upright = weight.mT if isinstance(bases[0], nn.Embedding) else weight
    return LinearWeights(
        upright.detach(), _bias(bases[0]), _stack([part for part in parts if part is not None], upright)
    )


def concatenate(matrices: Sequence[LinearWeights]) -> LinearWeights:
    """Concatenate the outputs of several maps of the same input into one map."""
    weight = torch.cat([matrix.weight for matrix in matrices])
    bias = None
    if any(matrix.bias is not None for matrix in matrices):
        bias = torch.cat([weight.new_zeros(len(m.weight)) if m.bias is None else m.bias for m in matrices])
    if all(matrix.lora is None for matrix in matrices):
        return LinearWeights(weight, bias)
    return LinearWeights(weight, bias, _concatenate_deltas(matrices))


def reorder_outputs(matrix: LinearWeights, order: Tensor) -> LinearWeights:
    """Permute the outputs of a map."""
    bias = None if matrix.bias is None else matrix.bias[order]
    lora = matrix.lora and LoraDelta(matrix.lora.down, matrix.lora.up[:, order])
    return LinearWeights(matrix.weight[order], bias, lora)


def pad_outputs(matrix: LinearWeights, heads: int, width: int) -> LinearWeights:
    """Pad the outputs of each head with zeros, up to a width."""
    lora = matrix.lora and LoraDelta(matrix.lora.down, _pad(matrix.lora.up, 1, heads, width))
    bias = None if matrix.bias is None else _pad(matrix.bias, 0, heads, width)
    return LinearWeights(_pad(matrix.weight, 0, heads, width), bias, lora)


def pad_inputs(matrix: LinearWeights, heads: int, width: int) -> LinearWeights:
    """Adapt a map to inputs that are padded with zeros after each head, up to a width."""
    lora = matrix.lora and LoraDelta(_pad(matrix.lora.down, 2, heads, width), matrix.lora.up)
    return LinearWeights(_pad(matrix.weight, 1, heads, width), matrix.bias, lora)


def scale(matrix: LinearWeights, factor: float) -> LinearWeights:
    """Scale the input of a map by a factor."""
    lora = matrix.lora and LoraDelta(matrix.lora.down * factor, matrix.lora.up)
    return LinearWeights(matrix.weight * factor, matrix.bias, lora)


def _pad(tensor: Tensor, dim: int, heads: int, width: int) -> Tensor:
    """Pad a dimension of (heads * narrower) entries to (heads * width), with zeros after the entries of each head."""
    by_head = torch.unflatten(tensor, dim, (heads, -1))
    zeros = by_head.new_zeros(*by_head.shape[: dim + 1], width - by_head.shape[dim + 1], *by_head.shape[dim + 2 :])
    return torch.cat([by_head, zeros], dim=dim + 1).flatten(dim, dim + 1)


def _base(module: Any) -> Any:
    unwrap = getattr(module, "get_base_layer", None)
    return module if unwrap is None else unwrap()


def _bias(base: Any) -> Tensor | None:
    bias = getattr(base, "bias", None)
    return None if bias is None else bias.detach()


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    same_memory = first.data_ptr() == second.data_ptr() and first.stride() == second.stride()
    return first.shape == second.shape and first.dtype == second.dtype and (same_memory or torch.equal(first, second))


def _merge(module: Any) -> LinearWeights:
    """Read the weights of one module, with the LoRA matrices that PEFT put around it added."""
    base = _base(module)
    embedding = isinstance(base, nn.Embedding)
    if base.weight.ndim != 2 or not base.weight.is_floating_point():
        raise ModelError(f"A {type(base).__name__} keeps its weights packed, and cannot be decoded; load them in full.")
    weight, bias = base.weight.detach(), _bias(base)
    if module is not base:
        part = _low_rank(module)
        if part is None:
            return _measure(module, base)
        down, up = part
        change = (up @ down).to(weight.dtype)
        weight = weight + (change.mT if embedding else change)
    return LinearWeights(weight.mT if embedding else weight, bias)


def _measure(module: Any, base: Any) -> LinearWeights:
    """Measure the weights of any module that computes a linear map, by calling it on every unit vector."""
    with torch.no_grad(), eval_mode(module):
        if isinstance(base, nn.Embedding):
            tokens = torch.arange(base.num_embeddings, device=base.weight.device)
            return LinearWeights(module(tokens).mT, None)
        units = torch.eye(base.in_features, dtype=base.weight.dtype, device=base.weight.device)
        bias = module(units[:1] * 0)[0]
        return LinearWeights((module(units) - bias).mT, bias)


def _low_rank(module: Any) -> tuple[Tensor, Tensor] | None:
    """Read the LoRA matrices of one module, (rank, in) and (out, rank); rank 0 without LoRA, None if not plain LoRA."""
    base = _base(module)
    wide, tall = base.weight.shape[::-1]
    if isinstance(base, nn.Embedding):
        wide, tall = tall, wide
    empty = base.weight.new_zeros(0, wide), base.weight.new_zeros(tall, 0)
    if module is base or getattr(module, "merged", False) or getattr(module, "disable_adapters", False):
        return empty
    names = getattr(module, "active_adapters", None)
    if names is None or not hasattr(module, "lora_A"):
        return None
    downs, ups = [empty[0]], [empty[1]]
    for name in names:
        if name in module.lora_A:
            pair = module.lora_A[name], module.lora_B[name]
            if any(type(part) is not nn.Linear or part.bias is not None for part in pair):
                return None
            down, up = (part.weight for part in pair)
        elif name in module.lora_embedding_A:
            down, up = module.lora_embedding_A[name], module.lora_embedding_B[name]
        else:
            continue
        if getattr(module, "use_dora", {}).get(name) or getattr(module, "lora_variant", {}).get(name):
            return None
        downs.append(down.detach())
        ups.append(up.detach() * module.scaling[name])
    return torch.cat(downs), torch.cat(ups, dim=1)


def _stack(parts: Sequence[tuple[Tensor, Tensor]], weight: Tensor) -> LoraDelta | None:
    """Stack LoRA matrices of unequal rank; lower ranks are padded with zeros."""
    rank = max(len(down) for down, _ in parts)
    if rank == 0:
        return None
    down = weight.new_zeros(len(parts), rank, weight.shape[1])
    up = weight.new_zeros(len(parts), len(weight), rank)
    for index, (lora_a, lora_b) in enumerate(parts):
        down[index, : len(lora_a)] = lora_a
        up[index, :, : lora_b.shape[1]] = lora_b
    return LoraDelta(down, up)


def _concatenate_deltas(matrices: Sequence[LinearWeights]) -> LoraDelta:
    """Combine the LoRA matrices of maps whose outputs are concatenated; `up` is a block-diagonal matrix."""
    sample = next(matrix.lora for matrix in matrices if matrix.lora is not None)
    downs = [matrix.lora.down for matrix in matrices if matrix.lora is not None]
    up = sample.up.new_zeros(len(sample.up), sum(len(m.weight) for m in matrices), sum(down.shape[1] for down in downs))
    row = column = 0
    for matrix in matrices:
        if matrix.lora is not None:
            block = matrix.lora.up
            up[:, row : row + block.shape[1], column : column + block.shape[2]] = block
            column += block.shape[2]
        row += len(matrix.weight)
    return LoraDelta(torch.cat(downs, dim=1), up)


class PackedLinear:
    """A linear map in a given precision, packed if the CPU supports it."""

    def __init__(self, matrix: LinearWeights, dtype: torch.dtype) -> None:
        weight = matrix.weight.to(dtype)
        self._bias = None if matrix.bias is None else matrix.bias.to(dtype).contiguous()
        self._dtype, self._lora = dtype, matrix.lora
        self._packed = weight.device.type == "cpu" and can_pack(dtype)
        self._weight = _pack(weight) if self._packed else weight.contiguous()

    def for_batch(self, predictor_index: Tensor | None) -> MultiLoraLinear:
        """Bind the map to a batch: series i uses the LoRA matrices of predictor `predictor_index[i]`, (series,)."""
        return MultiLoraLinear(self, _SelectedLora(self._lora, predictor_index, self._dtype))

    def __call__(self, rows: Tensor, add: Tensor | None = None) -> Tensor:
        """Map (..., in) to (..., out), and add `add`, (..., out)."""
        if not self._packed:
            result = F.linear(rows, self._weight, self._bias)
            return result if add is None else result + add
        return _multiply(rows, self._weight, self._bias, add)


class MultiLoraLinear:
    """A linear map in which every series of the batch uses the LoRA matrices of its own predictor."""

    def __init__(self, linear: PackedLinear, selected: _SelectedLora) -> None:
        self._linear, self._selected, self.select = linear, selected, selected.select

    def __call__(self, rows: Tensor, add: Tensor | None = None) -> Tensor:
        """Map (series or series * groups, tokens, in) to (the same, out), and add `add`."""
        result, lora = self._linear(rows, add), self._selected.lora
        return result if lora is None else _add_lora(result, rows, lora)


class PackedEmbedding:
    """An embedding in a given precision."""

    def __init__(self, matrix: LinearWeights, dtype: torch.dtype) -> None:
        self._rows, self._lora = matrix.weight.mT.to(dtype).contiguous(), matrix.lora

    def for_batch(self, predictor_index: Tensor | None) -> MultiLoraEmbedding:
        """Bind the embedding to a batch: series i uses the matrices of predictor `predictor_index[i]`, (series,)."""
        return MultiLoraEmbedding(self._rows, _SelectedLora(self._lora, predictor_index, self._rows.dtype))


class MultiLoraEmbedding:
    """An embedding in which every series of the batch uses the LoRA matrices of its own predictor."""

    def __init__(self, rows: Tensor, selected: _SelectedLora) -> None:
        self._rows, self._selected, self.select = rows, selected, selected.select

    def __call__(self, tokens: Tensor) -> Tensor:
        """Map (series or series * groups, tokens) to (the same, width)."""
        result = F.embedding(tokens, self._rows)
        if self._selected.lora is None:
            return result
        down, up = self._selected.lora.down, self._selected.lora.up
        by_series = tokens.reshape(len(down), -1, 1).expand(-1, -1, down.shape[-1])
        return torch.baddbmm(result.view(len(down), -1, up.shape[-1]), down.gather(1, by_series), up).view_as(result)


class _SelectedLora:
    """The LoRA matrices of each series of a batch, both transposed: (series, in, rank) and (series, rank, out)."""

    def __init__(self, lora: LoraDelta | None, predictor_index: Tensor | None, dtype: torch.dtype) -> None:
        self._all, self._dtype = lora, dtype
        self.lora = None if predictor_index is None else self._gather(predictor_index)

    def select(self, predictor_index: Tensor) -> None:
        """Switch to other predictors, for the same number of series, in the same memory."""
        if self.lora is not None and (other := self._gather(predictor_index)) is not None:
            self.lora.down.copy_(other.down)
            self.lora.up.copy_(other.up)

    def _gather(self, predictor_index: Tensor) -> LoraDelta | None:
        if self._all is None:
            return None
        return LoraDelta(
            self._all.down[predictor_index].mT.to(self._dtype), self._all.up[predictor_index].mT.to(self._dtype)
        )


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Return whether oneDNN's packed products are available on this CPU, and correct."""
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.randn(size, generator=generator).to(dtype) for size in ((3, 32), (48, 32), (48,), (3, 48)))
    rows, weight, bias, add = inputs
    try:
        with torch.inference_mode():
            result = _multiply(rows, _pack(weight), bias, add)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    expected = F.linear(rows.double(), weight.double(), bias.double()) + add.double()
    return torch.allclose(result.double(), expected, atol=64 * torch.finfo(dtype).eps)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_ROWS)
    return packed


def _multiply(rows: Tensor, packed: Tensor, bias: Tensor | None, add: Tensor | None) -> Tensor:
    result: Tensor
    if add is None:
        result = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    else:
        result = torch.ops.mkldnn._linear_pointwise.binary(rows, add, packed, bias, "add")
    return result


def _add_lora(result: Tensor, rows: Tensor, lora: LoraDelta) -> Tensor:
    """Add the LoRA delta of each series to a result; the groups of a series are consecutive."""
    series, width = len(lora.down), result.shape[-1]
    low_rank = torch.bmm(rows.reshape(series, -1, rows.shape[-1]), lora.down)
    return torch.baddbmm(result.reshape(series, -1, width), low_rank, lora.up).view_as(result)
