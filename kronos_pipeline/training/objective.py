"""The loss that a training lowers, as a module."""

from __future__ import annotations

import torch

from kronos_pipeline.model.dropout import quicken_dropout
from kronos_pipeline.model.losses import token_loss


class Objective(torch.nn.Module):
    """The loss as a module, so that what wraps modules (DistributedDataParallel, compilers) sees the forward pass.

    The predictor's dropouts are replaced by quick ones.
    """

    def __init__(self, predictor: torch.nn.Module, first_target: int) -> None:
        super().__init__()
        quicken_dropout(predictor)
        self.predictor = predictor
        self.first_target = first_target

    def forward(self, s1: torch.Tensor, s2: torch.Tensor, stamps: torch.Tensor) -> torch.Tensor:
        """The mean loss of a batch of token windows over the bars after the lookback, in nats per token."""
        return token_loss(self.predictor, s1, s2, stamps, self.first_target)
