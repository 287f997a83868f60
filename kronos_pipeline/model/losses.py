"""Next-token logits and losses of a Kronos predictor: causal, teacher-forced, and deterministic in eval mode.

A bar is two tokens. s1, the coarse one, is predicted from the bars before; s2, the fine one, from these and from the
bar's true s1 by a cross-attention. Upstream makes that attention causal in training mode only, so a loss taken in eval
mode would see the bars that it predicts. Here it is causal in both.

Upstream's modules do all the arithmetic with weights, so LoRA matrices inside of them take part. The forward pass is
written out here, because a loss over the horizon needs no logits of the lookback, and because attention and rotary
embeddings take most of the time of a step beside its matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from kronos_pipeline.model.modules import rotary_tables, unwrap_peft

_SCORES = 2**23
"""Largest number of attention scores that are saved for the backward pass; fused attention is slower but saves none."""


def teacher_forced_logits(
    predictor: nn.Module, s1: Tensor, s2: Tensor, stamps: Tensor, first_target: int = 1
) -> tuple[Tensor, Tensor]:
    """Compute the logits of the target bars of some windows, each from the bars before it.

    Args:
        predictor: upstream's predictor or one with the same submodules, or a PEFT model of one.
        s1: coarse tokens, (windows, bars), integers.
        s2: fine tokens, (windows, bars), integers.
        stamps: minute, hour, weekday, day, month, (windows, bars, 5).
        first_target: index in the window of the first target bar, 1 or more; by default all bars but the first.

    Returns:
        The logits of s1, (windows, targets, s1 vocabulary), and of s2, (windows, targets, s2 vocabulary). The s2 logits
        are conditioned on the bar's true s1.
    """
    core: Any = unwrap_peft(predictor)
    tokens = [s1[:, :-1].long(), s2[:, :-1].long()]
    hidden = core.token_drop(core.embedding(tokens) + core.time_emb(stamps[:, :-1].long()))
    attend = _CausalAttention()
    for block in core.transformer:
        normed = _in_working_type(_norm(block.norm1, hidden))
        hidden = hidden + attend(block.self_attn, normed, normed)
        hidden = hidden + block.ffn(_in_working_type(_norm(block.norm2, hidden)))
    hidden = _in_working_type(_norm(core.norm, hidden))
    scored = hidden[:, first_target - 1 :]
    siblings = core.embedding.emb_s1(s1[:, first_target:].long())
    fine = _norm(core.dep_layer.norm, scored + attend(core.dep_layer.cross_attn, siblings, hidden))
    return core.head(scored), core.head.cond_forward(fine)


def token_losses(predictor: nn.Module, s1: Tensor, s2: Tensor, stamps: Tensor, first_target: int) -> Tensor:
    """Compute the mean cross-entropy of each window's target tokens, in nats per token, (windows,), float32.

    Args:
        predictor: see `teacher_forced_logits`.
        s1: see `teacher_forced_logits`.
        s2: see `teacher_forced_logits`.
        stamps: see `teacher_forced_logits`.
        first_target: index in the window of the first bar that counts, 1 or more: the lookback, for a loss over the
            horizon alone.
    """
    if not 1 <= first_target < s1.shape[1]:
        raise ValueError(f"first_target must be from 1 to {s1.shape[1] - 1}, not {first_target}")
    s1_loss, s2_loss = (
        F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, first_target:].flatten().long(), reduction="none")
        for logits, tokens in zip(teacher_forced_logits(predictor, s1, s2, stamps, first_target), (s1, s2), strict=True)
    )
    return ((s1_loss + s2_loss) / 2).view(len(s1), s1.shape[1] - first_target).mean(dim=1)


def token_loss(predictor: nn.Module, s1: Tensor, s2: Tensor, stamps: Tensor, first_target: int) -> Tensor:
    """Compute the mean of `token_losses` over the windows, a scalar."""
    return token_losses(predictor, s1, s2, stamps, first_target).mean()


class _CausalAttention:
    """Causal attention with the weights of upstream's modules, self and cross, in train and eval mode.

    All attentions of a forward pass with heads of one width use the same rotary tables and masks, which are made
    once per pass.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._scaled: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, int], Tensor] = {}

    def __call__(self, module: Any, query: Tensor, hidden: Tensor) -> Tensor:
        """Attend from each of the last bars to the bars up to it.

        Args:
            module: upstream's attention module.
            query: (windows, queried, model width), for the last `queried` of the bars.
            hidden: (windows, bars, model width), the input of keys and values.

        Returns:
            (windows, queried, model width).
        """
        queried, bars = query.shape[1], hidden.shape[1]
        cos, sin = self._rotation(module.rotary, bars)
        queries = _rotate(_heads(module, module.q_proj(query)), *self._scaled_rotation(module.rotary, queried, bars))
        keys, values = _rotate(_heads(module, module.k_proj(hidden)), cos, sin), _heads(module, module.v_proj(hidden))
        mixed = self._attend(queries, keys, values, dropout=module.attn_dropout_p if module.training else 0.0)
        attended: Tensor = module.resid_dropout(module.out_proj(mixed.transpose(1, 2).flatten(2)))
        return attended

    def _rotation(self, rotary: Any, bars: int) -> tuple[Tensor, Tensor]:
        key = len(rotary.inv_freq), bars
        if key not in self._tables:
            self._tables[key] = rotary_tables(rotary, bars)
        return self._tables[key]

    def _scaled_rotation(self, rotary: Any, queried: int, bars: int) -> tuple[Tensor, Tensor]:
        """Return the rotation of the last bars, times the scale of the scores, 1 / sqrt(head width)."""
        key = len(rotary.inv_freq), queried, bars
        if key not in self._scaled:
            cos, sin = self._rotation(rotary, bars)
            scale = cos.shape[-1] ** -0.5
            self._scaled[key] = scale * cos[bars - queried :], scale * sin[bars - queried :]
        return self._scaled[key]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attend over (windows, heads, queried or bars, width); `query` is scaled."""
        queried, bars = query.shape[-2], key.shape[-2]
        # PyTorch's fused attention takes three times as long on a CPU in bfloat16, most of it in the backward pass.
        plain = query.device.type == "cpu" and query.dtype == torch.bfloat16
        if not plain or query[..., 0].numel() * bars > _SCORES:
            square = queried == bars
            mask = None if square else self._visible(queried, bars, query.device)
            return F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=square, scale=1.0)
        scores = query @ key.transpose(-1, -2)
        hidden = ~self._visible(queried, bars, query.device)
        weights = scores.float().masked_fill(hidden, float("-inf")).softmax(dim=-1).type_as(scores)
        return F.dropout(weights, dropout) @ value

    def _visible(self, queried: int, bars: int, device: torch.device) -> Tensor:
        """Return the mask of the bars that are visible to each of the last bars, (queried, bars)."""
        if (queried, bars) not in self._masks:
            ones = torch.ones(queried, bars, dtype=torch.bool, device=device)
            self._masks[queried, bars] = ones.tril(bars - queried)
        return self._masks[queried, bars]


def _norm(module: Any, hidden: Tensor) -> Tensor:
    """Apply upstream's RMSNorm; on a GPU by PyTorch's fused kernel, one launch in place of six for the same numbers."""
    if hidden.device.type != "cuda" or hidden.dtype != torch.float32:
        normed: Tensor = module(hidden)
        return normed
    return F.rms_norm(hidden, module.weight.shape, module.weight, module.eps)


def _heads(module: Any, hidden: Tensor) -> Tensor:
    """Split (windows, bars, model width) into heads, (windows, heads, bars, width)."""
    return torch.unflatten(hidden, -1, (module.n_heads, -1)).transpose(1, 2)


def _rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (windows, heads, bars, width) by each bar's angles, with the tables of `rotary_tables`."""
    other = vectors.roll(vectors.shape[-1] // 2, dims=-1)
    return (vectors * cos + other * sin).type_as(vectors)


def _in_working_type(values: Tensor) -> Tensor:
    """Convert values to the type of autocast's products, once for the three products that read them."""
    kind = values.device.type
    return values.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else values
