"""Upstream's linear modules and embeddings as plain matrices, with the LoRA detours of predictors that share them.

Decoding runs no module: it multiplies by the matrices that are read here. One predictor's LoRA matrices are added to
the weight. Those of several predictors stay beside the one weight that they share, and each row of a batch takes the
detour of its own predictor, by one pair of batched products:

    rows of predictor 0   x --+------------- W -------------+--> W x + B0 A0 x
                              +--- A0 --- B0 ---------------+
    rows of predictor 1   x --+------------- W -------------+--> W x + B1 A1 x
                              +--- A1 --- B1 ---------------+

On a CPU, torch's `linear` goes to MKL, which takes a weight as it lies and, on processors of another make, leaves the
widest vector instructions unused. oneDNN, which torch brings too, has a layout of its own for weights. A product with a
weight in that layout is 2 to 4 times as fast in float32, and exactly as precise. `torch.compile` calls the same two
operators; as they are no public ones, they are tried before they are used, and `linear` is there where they fail.
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

_ROWS = 32
"""BatchWeights that a weight is packed for; it serves any other number as well."""


@dataclass(frozen=True)
class LoraDelta:
    """Low-rank matrices of several predictors: `down` (predictors, rank, in) and `up` (predictors, out, rank)."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class LinearWeights:
    """What a linear module does, x -> W x + b, with the detours of the predictors that share W."""

    weight: Tensor  # (out, in)
    bias: Tensor | None
    detours: LoraDelta | None = None


def read(modules: Sequence[Any]) -> LinearWeights:
    """The matrix of one module of a predictor, or of the same module of several predictors.

    Args:
        modules: linear modules or embeddings, plain or with LoRA, one of each predictor. An embedding counts as the
            linear map of a one-hot token, so its weight is (width, tokens).

    Raises:
        ModelError: the modules of several predictors do not share their weight, or change it by more than plain LoRA.
    """
    if len(modules) == 1:
        return _merged(modules[0])
    bases = [_base(module) for module in modules]
    weight = bases[0].weight
    if not all(_same(base.weight, weight) and _same(_bias(base), _bias(bases[0])) for base in bases[1:]):
        raise ModelError("Predictors of different weights cannot be decoded in one batch; give each a decoder.")
    parts = [_low_rank(module) for module in modules]
    if any(part is None for part in parts):
        raise ModelError("An adapter that is not plain LoRA cannot share a batch with others; give it a decoder.")
    upright = weight.mT if isinstance(bases[0], nn.Embedding) else weight
    return LinearWeights(
        upright.detach(), _bias(bases[0]), _stack([part for part in parts if part is not None], upright)
    )


def join(matrices: Sequence[LinearWeights]) -> LinearWeights:
    """Several maps of the same input as one, their outputs one after the other."""
    weight = torch.cat([matrix.weight for matrix in matrices])
    bias = None
    if any(matrix.bias is not None for matrix in matrices):
        bias = torch.cat([weight.new_zeros(len(m.weight)) if m.bias is None else m.bias for m in matrices])
    if all(matrix.detours is None for matrix in matrices):
        return LinearWeights(weight, bias)
    return LinearWeights(weight, bias, _concatenate_deltas(matrices))


def reorder(matrix: LinearWeights, order: Tensor) -> LinearWeights:
    """The same map with its outputs in another order."""
    bias = None if matrix.bias is None else matrix.bias[order]
    detours = matrix.detours and LoraDelta(matrix.detours.down, matrix.detours.up[:, order])
    return LinearWeights(matrix.weight[order], bias, detours)


def pad_outputs(matrix: LinearWeights, heads: int, width: int) -> LinearWeights:
    """The same map with zeros after the outputs of each head, up to a width."""
    detours = matrix.detours and LoraDelta(matrix.detours.down, _padded(matrix.detours.up, 1, heads, width))
    bias = None if matrix.bias is None else _padded(matrix.bias, 0, heads, width)
    return LinearWeights(_padded(matrix.weight, 0, heads, width), bias, detours)


def pad_inputs(matrix: LinearWeights, heads: int, width: int) -> LinearWeights:
    """The same map of inputs that have zeros after those of each head, up to a width."""
    detours = matrix.detours and LoraDelta(_padded(matrix.detours.down, 2, heads, width), matrix.detours.up)
    return LinearWeights(_padded(matrix.weight, 1, heads, width), matrix.bias, detours)


def scale(matrix: LinearWeights, factor: float) -> LinearWeights:
    """The same map of an input that is multiplied by a factor first."""
    detours = matrix.detours and LoraDelta(matrix.detours.down * factor, matrix.detours.up)
    return LinearWeights(matrix.weight * factor, matrix.bias, detours)


def _padded(tensor: Tensor, dim: int, heads: int, width: int) -> Tensor:
    """A dimension (heads * narrower) as (heads * width), with zeros after the entries of each head."""
    by_head = tensor.unflatten(dim, (heads, -1))
    zeros = by_head.new_zeros(*by_head.shape[: dim + 1], width - by_head.shape[dim + 1], *by_head.shape[dim + 2 :])
    return torch.cat([by_head, zeros], dim=dim + 1).flatten(dim, dim + 1)


def _base(module: Any) -> Any:
    unwrap = getattr(module, "get_base_layer", None)
    return module if unwrap is None else unwrap()


def _bias(base: Any) -> Tensor | None:
    bias = getattr(base, "bias", None)
    return None if bias is None else bias.detach()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    same_memory = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return one.shape == other.shape and one.dtype == other.dtype and (same_memory or torch.equal(one, other))


def _merged(module: Any) -> LinearWeights:
    """One module's own matrix; what PEFT put around it is added to its weight."""
    base = _base(module)
    embedding = isinstance(base, nn.Embedding)
    if base.weight.ndim != 2 or not base.weight.is_floating_point():
        raise ModelError(f"A {type(base).__name__} keeps its weights packed, and cannot be decoded; load them in full.")
    weight, bias = base.weight.detach(), _bias(base)
    if module is not base:
        part = _low_rank(module)
        if part is None:
            return _measured(module, base)
        down, up = part
        change = (up @ down).to(weight.dtype)
        weight = weight + (change.mT if embedding else change)
    return LinearWeights(weight.mT if embedding else weight, bias)


def _measured(module: Any, base: Any) -> LinearWeights:
    """The matrix of any module that is linear in what it does, by asking it for every unit vector."""
    with torch.no_grad(), eval_mode(module):
        if isinstance(base, nn.Embedding):
            tokens = torch.arange(base.num_embeddings, device=base.weight.device)
            return LinearWeights(module(tokens).mT, None)
        units = torch.eye(base.in_features, dtype=base.weight.dtype, device=base.weight.device)
        bias = module(units[:1] * 0)[0]
        return LinearWeights((module(units) - bias).mT, bias)


def _low_rank(module: Any) -> tuple[Tensor, Tensor] | None:
    """The detour of one module as (rank, in) and (out, rank), of rank 0 if it has none; None if it is no plain LoRA."""
    base = _base(module)
    wide, tall = base.weight.shape[::-1]
    if isinstance(base, nn.Embedding):
        wide, tall = tall, wide
    none = base.weight.new_zeros(0, wide), base.weight.new_zeros(tall, 0)
    if module is base or getattr(module, "merged", False) or getattr(module, "disable_adapters", False):
        return none
    names = getattr(module, "active_adapters", None)
    if names is None or not hasattr(module, "lora_A"):
        return None
    downs, ups = [none[0]], [none[1]]
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
    """LoraDelta of unequal rank as one tensor; what a lower rank lacks is zero."""
    rank = max(len(down) for down, _ in parts)
    if rank == 0:
        return None
    down = weight.new_zeros(len(parts), rank, weight.shape[1])
    up = weight.new_zeros(len(parts), len(weight), rank)
    for place, (one_down, one_up) in enumerate(parts):
        down[place, : len(one_down)] = one_down
        up[place, :, : one_up.shape[1]] = one_up
    return LoraDelta(down, up)


def _concatenate_deltas(matrices: Sequence[LinearWeights]) -> LoraDelta:
    """One detour into the joint output; each map's own fills its rows, so `up` is a block-diagonal matrix."""
    known = next(matrix.detours for matrix in matrices if matrix.detours is not None)
    downs = [matrix.detours.down for matrix in matrices if matrix.detours is not None]
    up = known.up.new_zeros(len(known.up), sum(len(m.weight) for m in matrices), sum(down.shape[1] for down in downs))
    row = column = 0
    for matrix in matrices:
        if matrix.detours is not None:
            own = matrix.detours.up
            up[:, row : row + own.shape[1], column : column + own.shape[2]] = own
            column += own.shape[2]
        row += len(matrix.weight)
    return LoraDelta(torch.cat(downs, dim=1), up)


class PackedLinear:
    """A matrix made ready to multiply rows, in its own precision."""

    def __init__(self, matrix: LinearWeights, dtype: torch.dtype) -> None:
        weight = matrix.weight.to(dtype)
        self._bias = None if matrix.bias is None else matrix.bias.to(dtype).contiguous()
        self._dtype, self._detours = dtype, matrix.detours
        self._packed = weight.device.type == "cpu" and can_pack(dtype)
        self._weight = _pack(weight) if self._packed else weight.contiguous()

    def chosen(self, which: Tensor | None) -> MultiLoraLinear:
        """For a batch whose series take the detours of the predictors `which`, (series,)."""
        return MultiLoraLinear(self, _Choice(self._detours, which, self._dtype))

    def __call__(self, rows: Tensor, add: Tensor | None = None) -> Tensor:
        """(..., in) -> (..., out), added to what is given, (..., out)."""
        if not self._packed:
            result = F.linear(rows, self._weight, self._bias)
            return result if add is None else result + add
        return _multiply(rows, self._weight, self._bias, add)


class MultiLoraLinear:
    """A product in which every series of the batch takes its own detour."""

    def __init__(self, product: PackedLinear, choice: _Choice) -> None:
        self._product, self._choice, self.choose = product, choice, choice.choose

    def __call__(self, rows: Tensor, add: Tensor | None = None) -> Tensor:
        """(series or series * groups, tokens, in) -> (the same, out), added to what is given."""
        result, detours = self._product(rows, add), self._choice.detours
        return result if detours is None else _detour(result, rows, detours)


class PackedEmbedding:
    """An embedding, in its own precision."""

    def __init__(self, matrix: LinearWeights, dtype: torch.dtype) -> None:
        self._rows, self._detours = matrix.weight.mT.to(dtype).contiguous(), matrix.detours

    def chosen(self, which: Tensor | None) -> MultiLoraEmbedding:
        """For a batch whose series take the detours of the predictors `which`, (series,)."""
        return MultiLoraEmbedding(self._rows, _Choice(self._detours, which, self._rows.dtype))


class MultiLoraEmbedding:
    """An embedding in which every series of the batch takes its own detour."""

    def __init__(self, rows: Tensor, choice: _Choice) -> None:
        self._rows, self._choice, self.choose = rows, choice, choice.choose

    def __call__(self, tokens: Tensor) -> Tensor:
        """(series or series * groups, tokens) -> (the same, width)."""
        result = F.embedding(tokens, self._rows)
        if self._choice.detours is None:
            return result
        down, up = self._choice.detours.down, self._choice.detours.up
        of_series = tokens.reshape(len(down), -1, 1).expand(-1, -1, down.shape[-1])
        return torch.baddbmm(result.view(len(down), -1, up.shape[-1]), down.gather(1, of_series), up).view_as(result)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed products are there on this CPU, and right."""
    drawn = torch.Generator().manual_seed(0)
    rows, weight, bias, add = (torch.randn(size, generator=drawn) for size in ((3, 32), (48, 32), (48,), (3, 48)))
    given = [part.to(dtype) for part in (rows, weight, bias, add)]
    try:
        with torch.inference_mode():
            result = _multiply(given[0], _pack(given[1]), given[2], given[3])
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    expected = F.linear(*(part.double() for part in given[:3])) + given[3].double()
    return torch.allclose(result.double(), expected, atol=64 * torch.finfo(dtype).eps)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    return packed


def _multiply(rows: Tensor, packed: Tensor, bias: Tensor | None, add: Tensor | None) -> Tensor:
    result: Tensor
    if add is None:
        result = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    else:
        result = torch.ops.mkldnn._linear_pointwise.binary(rows, add, packed, bias, "add")
    return result


def _detour(result: Tensor, rows: Tensor, detours: LoraDelta) -> Tensor:
    """A result with what each series' detour adds; the groups of a series lie one after the other."""
    series, out = len(detours.down), result.shape[-1]
    low = torch.bmm(rows.reshape(series, -1, rows.shape[-1]), detours.down)
    return torch.baddbmm(result.reshape(series, -1, out), low, detours.up).view_as(result)


class _Choice:
    """The detours of each series, both transposed: (series, in, rank) and (series, rank, out)."""

    def __init__(self, detours: LoraDelta | None, which: Tensor | None, dtype: torch.dtype) -> None:
        self._all, self._dtype = detours, dtype
        self.detours = None if which is None else self._of(which)

    def choose(self, which: Tensor) -> None:
        """Take the detours of other predictors, for as many series, in the same memory."""
        if self.detours is not None and (other := self._of(which)) is not None:
            self.detours.down.copy_(other.down)
            self.detours.up.copy_(other.up)

    def _of(self, which: Tensor) -> LoraDelta | None:
        if self._all is None:
            return None
        return LoraDelta(self._all.down[which].mT.to(self._dtype), self._all.up[which].mT.to(self._dtype))
