"""Dropout that a CPU draws quickly: PyTorch's own draws number by number, in one thread, and takes a tenth of a step.

Here each 64 random bits decide about four numbers, by 16 bits each. They come from PyTorch's generator, so a saved
state of it still gives the same masks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_STEPS = 2**16
"""Probabilities are multiples of one in so many."""


def dropout(values: Tensor, p: float) -> Tensor:
    """Set a share `p` of the numbers to 0, and multiply the others so that the mean stays.

    Args:
        values: any shape, a floating type.
        p: the probability, from 0 to 1, both excluded; it is rounded to a multiple of 2**-16.
    """
    dropped = min(max(round(p * _STEPS), 1), _STEPS - 1)
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device).random_(-(2**63), None)
    drawn = words.view(torch.int16)[: values.numel()].view(values.shape)
    keep = drawn >= dropped - _STEPS // 2
    return values * keep.to(values.dtype).mul_(_STEPS / (_STEPS - dropped))


class FastDropout(nn.Dropout):
    """Takes the place of PyTorch's own dropout.

    It is that one away from a CPU, where there is nothing to draw, and in a compiled model, whose compiler knows it.
    """

    def forward(self, values: Tensor) -> Tensor:
        draws = self.training and 0 < self.p < 1
        if not draws or values.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(values)
        return dropout(values, self.p)


def replace_dropout(module: nn.Module) -> None:
    """Put `FastDropout` where a module has PyTorch's dropout, in place; LoRA's are among them."""
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is nn.Dropout:
                quick: Any = FastDropout(part.p)
                setattr(parent, name, quick.train(part.training))
