"""Encode normalised bars as tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kronos_pipeline.model.modules import prepare_rotary

_BARS_ON_A_CPU, _BARS = 2**12, 2**16
"""Bars per call of the tokenizer; on a CPU larger calls are slower, as they exceed its caches."""


def windows_per_call(bars: int, device: torch.device) -> int:
    """Return the number of windows of `bars` bars to encode per call on a device."""
    return max(1, (_BARS_ON_A_CPU if device.type == "cpu" else _BARS) // max(bars, 1))


def encode(tokenizer: nn.Module, normalised: Tensor, device: torch.device) -> Tensor:
    """Encode windows of bars.

    Args:
        tokenizer: in eval mode, on `device`.
        normalised: (windows, bars, 6) float32, normalised and clipped, on any device.
        device: the device of the tokenizer.

    Returns:
        The tokens, (windows, 2, bars) int16 on `device`: the coarse s1 and the fine s2. On a GPU the
        computation may still run.

    Raises:
        torch.OutOfMemoryError: the device lacks the memory for one window.
    """
    encoder: Any = tokenizer
    tokens = torch.empty(len(normalised), 2, normalised.shape[1], dtype=torch.int16, device=device)
    prepare_rotary(tokenizer, normalised.shape[1])
    size, done = windows_per_call(normalised.shape[1], device), 0
    while done < len(normalised):
        chunk = slice(done, done + size)
        try:
            with torch.no_grad():
                s1, s2 = encoder.encode(normalised[chunk].to(device, non_blocking=True), half=True)
            tokens[chunk, 0], tokens[chunk, 1] = s1, s2
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        else:
            done += size
            continue
        size = (size + 1) // 2  # outside the except block, whose traceback holds tensors of the failed call
    return tokens
