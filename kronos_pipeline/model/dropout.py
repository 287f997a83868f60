"""Fast dropout on a CPU: PyTorch's dropout draws number by number, in one thread, and takes a tenth of a training step.

Here 64 random bits decide about four numbers, 16 bits each. The bits come from PyTorch's generator, so a saved state of
the generator reproduces the masks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_STEPS = 2**16
"""Probabilities are multiples of 1 / `_STEPS`."""


def dropout(values: Tensor, p: float) -> Tensor:
    """Set a fraction `p` of the numbers to 0, and scale the others so that the mean does not change.

    Args:
        values: any shape, a floating type.
        p: the probability, from 0 to 1, both excluded; it is rounded to a multiple of 2**-16.
    """
    dropped = min(max(round(p * _STEPS), 1), _STEPS - 1)
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device).random_(-(2**63), None)
    drawn = words.view(torch.int16)[: values.numel()].view(values.shape)
    mask = drawn >= dropped - _STEPS // 2
    return values * mask.to(values.dtype).mul_(_STEPS / (_STEPS - dropped))


class FastDropout(nn.Dropout):
    """Replacement of PyTorch's dropout on a CPU.

    On other devices, without dropout, and in a compiled model it calls PyTorch's dropout, which the compiler knows.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Drop values out while training."""
        draws = self.training and 0 < self.p < 1
        if not draws or values.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(values)
        return dropout(values, self.p)


def replace_dropout(module: nn.Module) -> None:
    """Replace PyTorch's dropout by `FastDropout` in a module, in place, LoRA's dropout included."""
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is nn.Dropout:
                fast: Any = FastDropout(part.p)
                setattr(parent, name, fast.train(part.training))
