"""Products with weights that are read many times: packed once for the machine, in the precision asked for.

On a CPU, torch's `linear` goes to MKL, which takes a weight as it lies and, on processors of another make, leaves the
widest vector instructions unused. oneDNN, which torch brings too, has a layout of its own for weights. A product with a
weight in that layout is 2 to 4 times as fast in float32, and exactly as precise. `torch.compile` calls the same two
operators; as they are no public ones, they are tried before they are used, and `linear` is there where they fail.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from kronos_pipeline.model.decode.linear import Detours, Matrix

_ROWS = 32
"""Rows that a weight is packed for; it serves any other number as well."""


class Product:
    """A matrix made ready to multiply rows, in its own precision."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype) -> None:
        weight = matrix.weight.to(dtype)
        self._bias = None if matrix.bias is None else matrix.bias.to(dtype).contiguous()
        self._dtype, self._detours = dtype, matrix.detours
        self._packed = weight.device.type == "cpu" and can_pack(dtype)
        self._weight = _pack(weight) if self._packed else weight.contiguous()

    def chosen(self, which: Tensor | None) -> RowProduct:
        """For a batch whose series take the detours of the predictors `which`, (series,)."""
        return RowProduct(self, _Choice(self._detours, which, self._dtype))

    def __call__(self, rows: Tensor, add: Tensor | None = None) -> Tensor:
        """(..., in) -> (..., out), added to what is given, (..., out)."""
        if not self._packed:
            result = F.linear(rows, self._weight, self._bias)
            return result if add is None else result + add
        return _multiply(rows, self._weight, self._bias, add)


class RowProduct:
    """A product in which every series of the batch takes its own detour."""

    def __init__(self, product: Product, choice: _Choice) -> None:
        self._product, self._choice, self.choose = product, choice, choice.choose

    def __call__(self, rows: Tensor, add: Tensor | None = None) -> Tensor:
        """(series or series * groups, tokens, in) -> (the same, out), added to what is given."""
        result, detours = self._product(rows, add), self._choice.detours
        return result if detours is None else _detour(result, rows, detours)


class Table:
    """An embedding, in its own precision."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype) -> None:
        self._rows, self._detours = matrix.weight.mT.to(dtype).contiguous(), matrix.detours

    def chosen(self, which: Tensor | None) -> RowTable:
        """For a batch whose series take the detours of the predictors `which`, (series,)."""
        return RowTable(self._rows, _Choice(self._detours, which, self._rows.dtype))


class RowTable:
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


def _detour(result: Tensor, rows: Tensor, detours: Detours) -> Tensor:
    """A result with what each series' detour adds; the groups of a series lie one after the other."""
    series, out = len(detours.down), result.shape[-1]
    low = torch.bmm(rows.reshape(series, -1, rows.shape[-1]), detours.down)
    return torch.baddbmm(result.reshape(series, -1, out), low, detours.up).view_as(result)


class _Choice:
    """The detours of each series, both transposed: (series, in, rank) and (series, rank, out)."""

    def __init__(self, detours: Detours | None, which: Tensor | None, dtype: torch.dtype) -> None:
        self._all, self._dtype = detours, dtype
        self.detours = None if which is None else self._of(which)

    def choose(self, which: Tensor) -> None:
        """Take the detours of other predictors, for as many series, in the same memory."""
        if self.detours is not None and (other := self._of(which)) is not None:
            self.detours.down.copy_(other.down)
            self.detours.up.copy_(other.up)

    def _of(self, which: Tensor) -> Detours | None:
        if self._all is None:
            return None
        return Detours(self._all.down[which].mT.to(self._dtype), self._all.up[which].mT.to(self._dtype))
