"""Train many LoRA adapters jointly on one frozen model: each row of a batch uses the matrices of its own adapter.

The LoRA products of a single adapter are too small to occupy a GPU. The products of N adapters are one pair of
batched products, beside the frozen layer's single product over all rows:

    rows of adapter 1 --+                                  +--> W x + (alpha / r) B_1 A_1 x
          ...           +--- W (frozen, all rows at once) -+            ...
    rows of adapter N --+    A (N, r, in), B (N, out, r)   +--> W x + (alpha / r) B_N A_N x

The weights of an adapter are one row of a matrix (N, width), its tensors concatenated, so that clipping, optimiser
steps, averaging and saving the best weights of each adapter are operations on rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from kronos_pipeline.model.dropout import FastDropout, replace_dropout
from kronos_pipeline.model.modules import copy_sharing_weights

_PREFIX = "base_model.model."
"""PEFT's prefix of the names of wrapped modules."""


class MultiLora:
    """Upstream's predictor with the LoRA matrices of several adapters beside each target module.

    Attributes:
        predictor: upstream's predictor; it shares the weights of the given one. Call it inside `serving`.
        width: number of weights of one adapter.
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
        """Put LoRA layers in place of the target modules.

        Args:
            predictor: upstream's predictor; it does not change.
            adapted: PEFT's model of such a predictor, from `add_lora`; it gives the names of an adapter's tensors.
            scaling: alpha / r, the factor of the LoRA products.
            dropout: dropout on the input of linear LoRA layers, in training; PEFT has none on embeddings.
            products: number format of matrix products. Below float32 the predictor must be called under autocast,
                which would round frozen weights at every call; they are rounded here, once.
        """
        tensors = {name: tensor for name, tensor in adapted.named_parameters() if tensor.requires_grad}
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.width = sum(shape.numel() for shape in self._shapes.values())
        self.predictor: Any = copy_sharing_weights(predictor)
        replace_dropout(self.predictor)
        self._rows = _Rows()
        layers = dict.fromkeys(name.partition(".lora_")[0] for name in tensors)
        for layer in layers:
            names = [name for name in tensors if name.startswith(f"{layer}.lora_")]
            a, b = (next(name for name in names if f"{half}.default" in name) for half in ("A", "B"))
            owner, _, attribute = layer.removeprefix(_PREFIX).rpartition(".")
            parent = self.predictor.get_submodule(owner)
            base = getattr(parent, attribute)
            lora = (
                _LoraEmbedding(base, self._rows, (a, b), scaling)
                if isinstance(base, nn.Embedding)
                else _LoraLinear(base, self._rows, (a, b), scaling, dropout)
            )
            setattr(parent, attribute, lora)
        self._products = products
        if products != torch.float32:
            for part in self.predictor.modules():
                if isinstance(part, nn.Linear):
                    part.to(products)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate an adapter's tensors, by PEFT's names, to one row, (width,)."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self._shapes])

    def unpack(self, row: Tensor) -> dict[str, Tensor]:
        """Split a row into an adapter's tensors, by PEFT's names."""
        parts = torch.split(row, [shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    @contextmanager
    def serving(self, adapters: Tensor, adapter_index: Tensor, *, even: bool) -> Iterator[None]:
        """Use these adapters for the rows of a batch inside the block.

        Args:
            adapters: (adapters, width).
            adapter_index: index of each row's adapter, (rows,) int64, ascending.
            even: whether each adapter has the same number of rows. Then the rows of an adapter are one product; else
                each row is a product.
        """
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = torch.split(adapters.to(self._products), sizes, dim=1)
        stacks = {name: part.view(-1, *shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        self._rows.fill(stacks, adapter_index, even)
        try:
            yield
        finally:
            self._rows.fill({}, adapter_index, even)


class _Rows:
    """The current adapters, and the index of each row's adapter; shared by all LoRA layers."""

    def fill(self, stacks: dict[str, Tensor], adapter_index: Tensor, even: bool) -> None:
        self.stacks, self.adapter_index, self._even = stacks, adapter_index, even

    def blocks(self, name: str) -> Tensor:
        """Return a tensor per adapter, or per row if adapters have unequal numbers of rows."""
        stack = self.stacks[name]
        return stack if self._even else stack.index_select(0, self.adapter_index)


class _LoraLinear(nn.Module):
    def __init__(self, base: nn.Module, rows: _Rows, names: tuple[str, str], scaling: float, dropout: float) -> None:
        super().__init__()
        self.base, self._rows, self._names, self._scaling = base, rows, names, scaling
        self.dropout = FastDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self._rows.blocks(name) for name in self._names)  # (blocks, r, in), (blocks, out, r)
        base_output = self.base(x)
        low_rank = torch.bmm(self.dropout(x).reshape(len(a), -1, x.shape[-1]), a.transpose(1, 2))
        blocks = base_output.reshape(len(b), -1, base_output.shape[-1])
        return torch.baddbmm(blocks, low_rank, b.transpose(1, 2), alpha=self._scaling).view_as(base_output)


class _LoraEmbedding(nn.Module):
    def __init__(self, base: nn.Module, rows: _Rows, names: tuple[str, str], scaling: float) -> None:
        super().__init__()
        self.base, self._rows, self._names, self._scaling = base, rows, names, scaling

    def forward(self, tokens: Tensor) -> Tensor:
        a, b = self._rows.stacks[self._names[0]], self._rows.blocks(self._names[1])  # (N, r, tokens), (blocks, out, r)
        base_output: Tensor = self.base(tokens)
        table = a.transpose(1, 2).reshape(-1, a.shape[1])
        low_rank = F.embedding(tokens + a.shape[2] * self._rows.adapter_index[:, None], table)
        delta = torch.bmm(low_rank.view(len(b), -1, low_rank.shape[-1]), b.transpose(1, 2))
        return base_output + self._scaling * delta.view(base_output.shape)
