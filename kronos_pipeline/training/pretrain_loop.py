"""The loop that pretrains a tokenizer or a predictor, and their losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.model.losses import token_loss
from kronos_pipeline.model.tokens import encode
from kronos_pipeline.training.pretrain.data import Batch, PretrainingBars

if TYPE_CHECKING:
    from kronos_pipeline.training.pretrain.run import PretrainSettings

Loss = Callable[[nn.Module, Batch, float], Tensor]
"""Called with the module, a batch and how much of the training is done, 0 to 1; returns a scalar."""

_REPORT_STEPS = 100
_FEATURE_WEIGHTS = (1.0, 0.8, 0.8, 3.0, 0.2, 0.2)
"""Of open, high, low, close, volume, amount: so few bits have to be spent on what a forecast is judged by."""
_WARMUP = 0.05
_LAST_RATE = 0.02


def optimise(
    module: nn.Module,
    name: str,
    loss: Loss,
    bars: PretrainingBars,
    settings: PretrainSettings,
    steps: int,
    report: Callable[[str], None],
) -> float:
    """Train `module` in place (AdamW, a linear warm-up, a cosine decay, clipped gradients); return the seconds."""
    rng = np.random.default_rng([settings.seed, len(name)])
    optimizer = torch.optim.AdamW(module.parameters(), lr=settings.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    module.train()
    started, recent = time.monotonic(), 0.0
    for step in range(steps):
        batch = bars.batch(rng, settings.batch_size, settings.lookback, settings.horizon)
        value = loss(module, batch, step / steps)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        recent += value.item() / _REPORT_STEPS
        if (step + 1) % _REPORT_STEPS == 0:
            seconds = time.monotonic() - started
            left = seconds / (step + 1) * (steps - step - 1)
            report(f"{name}: step {step + 1} of {steps}, loss {recent:.4f}, {seconds:.0f} s, {left:.0f} s left")
            recent = 0.0
    return round(time.monotonic() - started, 1)


def _rate(done: float) -> float:
    """The factor on the peak learning rate when this share of the steps is done."""
    if done < _WARMUP:
        return (done + 1e-3) / (_WARMUP + 1e-3)
    cosine = 0.5 * (1 + math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP)))
    return _LAST_RATE + (1 - _LAST_RATE) * cosine


def tokenizer_loss(tokenizer: nn.Module, batch: Batch, _done: float) -> Tensor:
    """Squared error of the bars rebuilt from the coarse token and from both, and the quantizer's own penalty."""
    bars, weights = torch.from_numpy(batch.bars), torch.tensor(_FEATURE_WEIGHTS)
    (coarse, fine), penalty, _, _ = tokenizer(bars)
    return (((coarse - bars) ** 2 + (fine - bars) ** 2) * weights).mean() + penalty


@torch.no_grad()
def reconstruction_errors(tokenizer: nn.Module, batch: Batch) -> dict[str, float]:
    """Root mean squared error of each feature after both tokens, in standard deviations of its lookback."""
    bars = torch.from_numpy(batch.bars)
    (_, fine), _, _, _ = tokenizer(bars)
    errors = ((fine - bars) ** 2).mean(dim=(0, 1)).sqrt()
    return {name: round(float(error), 4) for name, error in zip(FEATURES, errors, strict=True)}


class PredictorLoss:
    """Cross-entropy of the next bar's tokens: over the whole window at first, in the second half over the horizon.

    Every bar of a window teaches how bars follow each other; but within its lookback the normalisation has seen the
    bars to come, and a forecast starts after it.
    """

    def __init__(self, tokenizer: nn.Module, settings: PretrainSettings) -> None:
        self._tokenizer = tokenizer
        self._lookback = settings.lookback

    def __call__(self, predictor: nn.Module, batch: Batch, done: float) -> Tensor:
        s1, s2 = encode(self._tokenizer, torch.from_numpy(batch.bars), torch.device("cpu")).unbind(1)
        first_target = 1 if done < 0.5 else self._lookback
        return token_loss(predictor, s1, s2, torch.from_numpy(batch.stamps), first_target)
