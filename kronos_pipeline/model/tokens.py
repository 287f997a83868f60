"""Normalised bars to tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kronos_pipeline.model.modules import prepare_rotary


def encode(
    tokenizer: nn.Module, normalised: NDArray[np.float32], device: torch.device, batch: int = 256
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Encode windows of bars.

    Args:
        tokenizer: in eval mode, on `device`.
        normalised: (windows, bars, 6), normalised and clipped.
        device: where the tokenizer is.
        batch: windows per call of the tokenizer, 256 by default.

    Returns:
        The coarse tokens s1 and the fine tokens s2, (windows, bars) each, two bytes a token.
    """
    windows, bars, _ = normalised.shape
    s1, s2 = np.empty((windows, bars), np.uint16), np.empty((windows, bars), np.uint16)
    encoder: Any = tokenizer
    prepare_rotary(tokenizer, bars)
    for start in range(0, windows, batch):
        values = torch.from_numpy(np.ascontiguousarray(normalised[start : start + batch], dtype=np.float32))
        with torch.no_grad():
            coarse, fine = encoder.encode(values.to(device), half=True)
        s1[start : start + batch] = coarse.cpu().numpy()
        s2[start : start + batch] = fine.cpu().numpy()
    return s1, s2
