"""Many LoRA adapters beside one frozen model, trained at once: each row of a batch takes its own adapter's detour.

The detour of a lone adapter is two thin products that leave a GPU idle. Those of N adapters are one pair of batched
products, beside the frozen layer's single product over all rows:

    rows of adapter 1 --+                                  +--> W x + (alpha / r) B_1 A_1 x
          ...           +--- W (frozen, all rows at once) -+            ...
    rows of adapter N --+    A (N, r, in), B (N, out, r)   +--> W x + (alpha / r) B_N A_N x

The numbers of an adapter are one row of a matrix (N, width), its tensors one after another, so that clipping,
optimising, averaging and keeping the best of each adapter are operations on rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from kronos_pipeline.model.dropout import FastDropout, replace_dropout
from kronos_pipeline.model.modules import copy_sharing_weights

_PREFIX = "base_model.model."
"""What PEFT puts before the names of the modules that it wraps."""


class MultiLora:
    """Upstream's predictor with a detour beside each target that serves the rows of several adapters.

    Attributes:
        predictor: upstream's, in the memory of the one that it was made from, whose weights it leaves as they are; to
            be called inside `serving`.
        width: numbers of one adapter.
    """

    def __init__(
        self,
        predictor: nn.Module,
        adapted: nn.Module,
        scaling: float,
        dropout: float,
        *,
        products: torch.dtype = torch.float32,
    ) -> None:
        """Put the detours in.

        Args:
            predictor: upstream's predictor; it stays as it is.
            adapted: PEFT's model of such a predictor, as `add_lora` makes it: names the tensors of an adapter.
            scaling: alpha / r, by which a detour is multiplied.
            dropout: dropout on the input of linear detours, while training; PEFT has none on embeddings.
            products: number format of matrix products. Below float32 the predictor is to be called under autocast,
                which rounds frozen weights at every call: they are rounded here, once.
        """
        tensors = {name: tensor for name, tensor in adapted.named_parameters() if tensor.requires_grad}
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.width = sum(shape.numel() for shape in self._shapes.values())
        self.predictor: Any = copy_sharing_weights(predictor)
        replace_dropout(self.predictor)
        self._rows = _Rows()
        places = dict.fromkeys(name.partition(".lora_")[0] for name in tensors)
        for place in places:
            names = [name for name in tensors if name.startswith(f"{place}.lora_")]
            a, b = (next(name for name in names if f"{half}.default" in name) for half in ("A", "B"))
            owner, _, own = place.removeprefix(_PREFIX).rpartition(".")
            parent = self.predictor.get_submodule(owner)
            base = getattr(parent, own)
            detour = (
                _LoraEmbedding(base, self._rows, (a, b), scaling)
                if isinstance(base, nn.Embedding)
                else _LoraLinear(base, self._rows, (a, b), scaling, dropout)
            )
            setattr(parent, own, detour)
        self._products = products
        if products != torch.float32:
            for part in self.predictor.modules():
                if isinstance(part, nn.Linear):
                    part.to(products)

    def pack(self, tensors: dict[str, Tensor]) -> Tensor:
        """An adapter's tensors, by PEFT's names, as one row: (width,)."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self._shapes])

    def unpack(self, row: Tensor) -> dict[str, Tensor]:
        """The tensors of a row, by PEFT's names."""
        parts = row.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    @contextmanager
    def serving(self, adapters: Tensor, which: Tensor, *, even: bool) -> Iterator[None]:
        """Inside the block, a batch's rows take the detours of these adapters.

        Args:
            adapters: (adapters, width).
            which: the adapter of each row of the batches, (rows,) int64, ascending.
            even: whether each adapter has the same number of rows. Then its rows are one product, else each is its own.
        """
        parts = adapters.to(self._products).split([shape.numel() for shape in self._shapes.values()], dim=1)
        stacks = {name: part.view(-1, *shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        self._rows.fill(stacks, which, even)
        try:
            yield
        finally:
            self._rows.fill({}, which, even)


class _Rows:
    """The adapters that are served, and which row of the batch is whose; shared by all detours."""

    def fill(self, stacks: dict[str, Tensor], which: Tensor, even: bool) -> None:
        self.stacks, self.which, self._even = stacks, which, even

    def blocks(self, name: str) -> Tensor:
        """A tensor of each adapter, or of each row where adapters have unequal numbers of them."""
        stack = self.stacks[name]
        return stack if self._even else stack.index_select(0, self.which)


class _LoraLinear(nn.Module):
    def __init__(self, base: nn.Module, rows: _Rows, names: tuple[str, str], scaling: float, dropout: float) -> None:
        super().__init__()
        self.base, self._rows, self._names, self._scaling = base, rows, names, scaling
        self.dropout = FastDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self._rows.blocks(name) for name in self._names)  # (blocks, r, in), (blocks, out, r)
        straight = self.base(x)
        thin = torch.bmm(self.dropout(x).reshape(len(a), -1, x.shape[-1]), a.transpose(1, 2))
        blocks = straight.reshape(len(b), -1, straight.shape[-1])
        return torch.baddbmm(blocks, thin, b.transpose(1, 2), alpha=self._scaling).view_as(straight)


class _LoraEmbedding(nn.Module):
    def __init__(self, base: nn.Module, rows: _Rows, names: tuple[str, str], scaling: float) -> None:
        super().__init__()
        self.base, self._rows, self._names, self._scaling = base, rows, names, scaling

    def forward(self, tokens: Tensor) -> Tensor:
        a, b = self._rows.stacks[self._names[0]], self._rows.blocks(self._names[1])  # (N, r, tokens), (blocks, out, r)
        straight = self.base(tokens)
        table = a.transpose(1, 2).reshape(-1, a.shape[1])
        thin = F.embedding(tokens + a.shape[2] * self._rows.which[:, None], table)
        detour = torch.bmm(thin.view(len(b), -1, thin.shape[-1]), b.transpose(1, 2))
        return straight + self._scaling * detour.view(straight.shape)
