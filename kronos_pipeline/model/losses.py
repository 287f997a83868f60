"""Next-token logits and losses of a Kronos predictor: causal, teacher-forced, and deterministic in eval mode.

A bar is two tokens. s1, the coarse one, is predicted from the bars before; s2, the fine one, from these and from the
bar's true s1 by a cross-attention. Upstream makes that attention causal in training mode only, so a loss taken in eval
mode would see the bars that it predicts. Here it is causal in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from kronos_pipeline.model.modules import prepare_rotary

_CROSS_ATTENTION = "dep_layer.cross_attn"


def teacher_forced_logits(predictor: nn.Module, s1: Tensor, s2: Tensor, stamps: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of every bar of some windows but the first, each from the bars before it.

    Args:
        predictor: upstream's predictor or one with the same submodules; PEFT's, DDP's and torch.compile's wrappers are
            called, not unwrapped.
        s1: coarse tokens, (windows, bars), integers.
        s2: fine tokens, (windows, bars), integers.
        stamps: minute, hour, weekday, day, month, (windows, bars, 5).

    Returns:
        The logits of s1, (windows, bars - 1, s1 vocabulary), and of s2, (windows, bars - 1, s2 vocabulary); those at
        index t are of bar t + 1. The s2 logits know that bar's true s1.
    """
    s1, s2, stamps = s1.long(), s2.long(), stamps.long()
    prepare_rotary(predictor, s1.shape[1] - 1)
    with _causal_cross_attention(predictor):
        return predictor(
            s1[:, :-1], s2[:, :-1], stamps[:, :-1], use_teacher_forcing=True, s1_targets=s1[:, 1:].contiguous()
        )


def token_losses(predictor: nn.Module, s1: Tensor, s2: Tensor, stamps: Tensor, first_target: int) -> Tensor:
    """The mean cross-entropy of each window's target tokens, in nats per token, (windows,), float32.

    Args:
        predictor: see `teacher_forced_logits`, as for `s1`, `s2` and `stamps`.
        first_target: index in the window of the first bar that counts, 1 or more: the lookback, for a loss over the
            horizon alone.
    """
    if not 1 <= first_target < s1.shape[1]:
        raise ValueError(f"first_target must be from 1 to {s1.shape[1] - 1}, not {first_target}")
    s1_logits, s2_logits = teacher_forced_logits(predictor, s1, s2, stamps)
    s1_loss, s2_loss = (
        F.cross_entropy(
            logits[:, first_target - 1 :].float().transpose(1, 2), tokens[:, first_target:].long(), reduction="none"
        )
        for logits, tokens in ((s1_logits, s1), (s2_logits, s2))
    )
    return ((s1_loss + s2_loss) / 2).mean(dim=1)


def token_loss(predictor: nn.Module, s1: Tensor, s2: Tensor, stamps: Tensor, first_target: int) -> Tensor:
    """The mean of `token_losses` over the windows, a scalar."""
    return token_losses(predictor, s1, s2, stamps, first_target).mean()


@contextmanager
def _causal_cross_attention(predictor: nn.Module) -> Iterator[None]:
    """Training mode for the cross-attention module itself, whose `training` flag alone makes it causal.

    Its submodules keep their mode. Its attention dropout follows the flag too, so it is set to 0 in eval mode.
    """
    attention: Any = next(part for name, part in predictor.named_modules() if name.endswith(_CROSS_ATTENTION))
    training, dropout = attention.training, attention.attn_dropout_p
    attention.training = True
    attention.attn_dropout_p = dropout if training else 0.0
    try:
        yield
    finally:
        attention.training, attention.attn_dropout_p = training, dropout
