"""Products with weights that are read many times: packed once for the machine, in the precision asked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from kronos_pipeline.model.adapter_rows import Detours, Matrix


class Product:
    """A matrix made ready to multiply rows, (..., in) -> (..., out), in its own precision."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype) -> None:
        self._weight, self._detours = matrix.weight.to(dtype), matrix.detours
        self._bias = None if matrix.bias is None else matrix.bias.to(dtype)

    def chosen(self, which: Tensor | None) -> RowProduct:
        """For a batch whose series take the detours of the predictors `which`, (series,)."""
        if self._detours is None or which is None:
            return RowProduct(self, None)
        down, up = (part[which].mT.to(self._weight.dtype) for part in (self._detours.down, self._detours.up))
        return RowProduct(self, Detours(down, up))

    def __call__(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self._weight, self._bias)


class RowProduct:
    """A product in which every series of the batch takes its own detour."""

    def __init__(self, product: Product, detours: Detours | None) -> None:
        self._product, self._detours = product, detours

    def __call__(self, rows: Tensor) -> Tensor:
        """(series, ..., in) -> (series, ..., out)."""
        result = self._product(rows)
        if self._detours is None:
            return result
        flat = rows.flatten(1, -2)
        return result + torch.bmm(torch.bmm(flat, self._detours.down), self._detours.up).view_as(result)


class Table:
    """An embedding, (...) -> (..., width), in its own precision."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype) -> None:
        self._rows, self._detours = matrix.weight.mT.to(dtype).contiguous(), matrix.detours

    def chosen(self, which: Tensor | None) -> RowTable:
        """For a batch whose series take the detours of the predictors `which`, (series,)."""
        if self._detours is None or which is None:
            return RowTable(self._rows, None)
        down, up = (part[which].mT.to(self._rows.dtype) for part in (self._detours.down, self._detours.up))
        return RowTable(self._rows, Detours(down, up))


class RowTable:
    """An embedding in which every series of the batch takes its own detour."""

    def __init__(self, rows: Tensor, detours: Detours | None) -> None:
        self._rows, self._detours = rows, detours

    def __call__(self, tokens: Tensor) -> Tensor:
        """(series, n) -> (series, n, width)."""
        result = F.embedding(tokens, self._rows)
        if self._detours is None:
            return result
        down = self._detours.down  # (series, tokens, rank)
        low = down.gather(1, tokens[..., None].expand(-1, -1, down.shape[-1]))
        return result + torch.bmm(low, self._detours.up)
