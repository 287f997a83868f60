"""The training loss as a module, for wrappers that need one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kronos_pipeline.model.dropout import replace_dropout
from kronos_pipeline.model.losses import token_loss


class LossModule(nn.Module):
    """Loss as a module, so that wrappers of modules (DistributedDataParallel, compilers) see the forward pass.

    The predictor's dropouts are replaced by faster dropouts.
    """

    def __init__(self, predictor: nn.Module, first_target: int) -> None:
        super().__init__()
        replace_dropout(predictor)
        self._loss = _TokenLoss(predictor, first_target)

    @property
    def predictor(self) -> Any:
        """The predictor to train."""
        return self._loss.predictor

    def forward(self, s1: Tensor, s2: Tensor, stamps: Tensor) -> Tensor:
        """Compute the mean loss of a batch of token windows over the bars after the lookback, in nats per token."""
        kind = s1.device.type
        if kind != "cuda" or not torch.is_autocast_enabled(kind) or torch.compiler.is_compiling():
            plain: Tensor = self._loss(s1, s2, stamps)
            return plain
        # Autocast would cast each weight and each gradient separately: a third of a step's launches on a GPU.
        weights = {
            f"{path}.{name}": tensor
            for path, part in self._loss.named_modules()
            if isinstance(part, nn.Linear)
            for name, tensor in part.named_parameters(recurse=False)
        }
        apply: Any = _Cast.apply  # torch does not type it
        cast = apply(torch.get_autocast_dtype(kind), *weights.values())
        with_casts: Tensor = functional_call(self._loss, dict(zip(weights, cast, strict=True)), (s1, s2, stamps))
        return with_casts


class _TokenLoss(nn.Module):
    def __init__(self, predictor: nn.Module, first_target: int) -> None:
        super().__init__()
        self.predictor, self._first_target = predictor, first_target

    def forward(self, s1: Tensor, s2: Tensor, stamps: Tensor) -> Tensor:
        return token_loss(self.predictor, s1, s2, stamps, self._first_target)


class _Cast(torch.autograd.Function):
    """Casts many tensors in one launch or a few, and their gradients back in the same way."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return _cast(tensors, [dtype] * len(tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_cast(gradients, ctx.dtypes))


def _cast(tensors: Any, dtypes: list[torch.dtype]) -> tuple[Tensor, ...]:
    casts = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    torch._foreach_copy_(casts, list(tensors))
    return tuple(casts)
