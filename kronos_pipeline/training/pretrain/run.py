"""Pretraining of the embedded base model on simulated bars: first the tokenizer, then the predictor.

The result is a base model in a folder, in the format of a published base model. It lets everything run offline in
minutes; it cannot forecast real markets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kronos_pipeline.artifacts import package_versions, write_manifest
from kronos_pipeline.atomic_writes import check_writable, publish_folder
from kronos_pipeline.code_version import code_version
from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.errors import ArtifactError, SettingsError
from kronos_pipeline.model.losses import token_loss
from kronos_pipeline.model.tokens import encode
from kronos_pipeline.model.upstream import Kronos, KronosTokenizer
from kronos_pipeline.training.pretrain.data import PRETRAINING_STREAM, Batch, PretrainingBars
from kronos_pipeline.training.pretrain.settings import PretrainSettings

Loss = Callable[[nn.Module, Batch, float], Tensor]
"""Called with the module, a batch and how much of the training is done, 0 to 1; returns a scalar."""

_REPORT_STEPS = 100
_FEATURE_WEIGHTS = (1.0, 0.8, 0.8, 3.0, 0.2, 0.2)
"""Of open, high, low, close, volume, amount: the few bits go to the features that score a forecast."""
_WARMUP = 0.05
_LAST_RATE = 0.02
_TEST_WINDOWS = 512


def pretrain(output: Path, settings: PretrainSettings, *, report: Callable[[str], None] = print) -> None:
    """Pretrain a base model and publish it, with the folders `tokenizer/` and `predictor/`, at once at the end.

    Each folder gets config.json and model.safetensors, in the format of upstream's `from_pretrained`, and a
    manifest.json with the context, the settings, the data and the losses.

    Args:
        output: the folder; the base model that an earlier pretraining published there is replaced.
        settings: sizes, steps and seed. The same settings give the same weights on one kind of machine.
        report: receives lines of progress.

    Raises:
        SettingsError: a simulated ticker is shorter than a window, or a window longer than the context.
        ArtifactError: the folder cannot be written, or is in the way: no pretraining has published it.
    """
    length = settings.lookback + settings.horizon + 1
    if settings.bars < length:
        raise SettingsError(f"A window takes {length} bars and a simulated ticker has {settings.bars}; raise --bars.")
    if settings.context < length - 1:
        raise SettingsError(
            f"A window takes {length - 1} bars of context, more than {settings.context}; raise --context."
        )
    _check_free(output)
    report(f"simulating {settings.tickers} tickers of {settings.bars} bars")
    train = PretrainingBars(settings.seed, settings.tickers, settings.bars)
    unseen = PretrainingBars(settings.seed + 1, max(8, settings.tickers // 20), settings.bars)
    test = unseen.batch(np.random.default_rng(settings.seed), _TEST_WINDOWS, settings.lookback, settings.horizon)

    torch.manual_seed(settings.seed)
    tokenizer = _new_tokenizer(settings)
    seconds = optimise(tokenizer, "tokenizer", tokenizer_loss, train, settings, report)
    tokenizer.requires_grad_(False).eval()
    errors = reconstruction_errors(tokenizer, test)
    of_tokenizer = {"seconds": seconds, "reconstruction_error_in_stds": errors}

    predictor = _new_predictor(settings)
    loss = PredictorLoss(tokenizer, settings)
    seconds = optimise(predictor, "predictor", loss, train, settings, report)
    predictor.eval()
    with torch.no_grad():
        unseen_loss = float(loss(predictor, test, 1.0))
    report(f"predictor: loss {unseen_loss:.3f} on unseen simulated tickers")
    with publish_folder(output) as folder:
        _save(tokenizer, folder / "tokenizer", settings, of_tokenizer)
        _save(predictor, folder / "predictor", settings, {"seconds": seconds, "unseen_loss": unseen_loss})


def _check_free(output: Path) -> None:
    """Check that the folder can be published, before long work; an empty folder in its place is removed."""
    check_writable(output.parent)
    if output.exists() and not output.is_symlink():
        try:
            output.rmdir()
        except OSError as error:
            raise ArtifactError(f"{output} is in the way; move it, or choose another --output.") from error


def _new_tokenizer(settings: PretrainSettings) -> nn.Module:
    bits = settings.token_bits
    tokenizer: nn.Module = KronosTokenizer(
        d_in=len(FEATURES),
        d_model=settings.tokenizer_size,
        n_heads=4,
        ff_dim=2 * settings.tokenizer_size,
        n_enc_layers=settings.tokenizer_layers + 1,  # upstream builds one block fewer than it is told
        n_dec_layers=settings.tokenizer_layers + 1,
        ffn_dropout_p=0.0,
        attn_dropout_p=0.0,
        resid_dropout_p=0.0,
        s1_bits=bits,
        s2_bits=bits,
        beta=0.05,
        gamma0=1.0,
        gamma=1.1,
        zeta=0.05,
        group_size=next(
            size for size in (5, 4, 3, 2) if 2 * bits % size == 0
        ),  # the cost of its entropy is 2**size per bar
    )
    return tokenizer


def _new_predictor(settings: PretrainSettings) -> nn.Module:
    predictor = Kronos(
        s1_bits=settings.token_bits,
        s2_bits=settings.token_bits,
        n_layers=settings.predictor_layers,
        d_model=settings.predictor_size,
        n_heads=4,
        ff_dim=2 * settings.predictor_size,
        ffn_dropout_p=0.0,
        attn_dropout_p=0.0,
        resid_dropout_p=0.0,
        token_dropout_p=0.0,
        learn_te=True,
    )
    # Upstream initialises a time stamp a tenth as strong as a token, too weak for the model to learn from dates.
    for embedding in (predictor.time_emb.month_embed, predictor.time_emb.day_embed):
        nn.init.normal_(embedding.weight, std=0.5)
    module: nn.Module = predictor
    return module


def _save(module: nn.Module, folder: Path, settings: PretrainSettings, results: dict[str, Any]) -> None:
    module.save_pretrained(folder)  # type: ignore[operator]
    (folder / "README.md").unlink(missing_ok=True)  # the Hub library's empty model card
    manifest = {
        "kind": f"embedded demo model, {folder.name}",
        "note": "Pretrained on simulated bars alone, so that everything runs offline; no forecaster of real markets.",
        "context": settings.context,
        "trained_window": settings.lookback + settings.horizon + 1,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "data": f"kronos_pipeline.data.simulate, seeds [{PRETRAINING_STREAM}, {settings.seed}, ticker, 0]",
        "settings": settings.model_dump(),
        "results": results,
        "code_version": code_version(),
        "packages": package_versions(),
    }
    write_manifest(folder, manifest)


def optimise(
    module: nn.Module,
    name: str,
    loss: Loss,
    bars: PretrainingBars,
    settings: PretrainSettings,
    report: Callable[[str], None],
) -> float:
    """Train the "tokenizer" or the "predictor" in place, and return the seconds.

    AdamW, linear warm-up, cosine decay, clipped gradients.
    """
    steps = settings.tokenizer_steps if name == "tokenizer" else settings.predictor_steps
    rng = np.random.default_rng([settings.seed, len(name)])
    optimizer = torch.optim.AdamW(module.parameters(), lr=settings.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    module.train()
    started, recent = time.monotonic(), 0.0
    for step in range(steps):
        batch = bars.batch(rng, settings.batch_size, settings.lookback, settings.horizon)
        value = loss(module, batch, step / steps)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        recent += value.item() / _REPORT_STEPS
        if (step + 1) % _REPORT_STEPS == 0:
            seconds = time.monotonic() - started
            remaining = seconds / (step + 1) * (steps - step - 1)
            report(f"{name}: step {step + 1} of {steps}, loss {recent:.4f}, {seconds:.0f} s, {remaining:.0f} s left")
            recent = 0.0
    return round(time.monotonic() - started, 1)


def _rate(done: float) -> float:
    """Return the factor on the peak learning rate after a share of the steps."""
    if done < _WARMUP:
        return (done + 1e-3) / (_WARMUP + 1e-3)
    cosine = 0.5 * (1 + math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP)))
    return _LAST_RATE + (1 - _LAST_RATE) * cosine


def tokenizer_loss(tokenizer: nn.Module, batch: Batch, _done: float) -> Tensor:
    """Return the squared error of the bars from the coarse token and from both, plus the quantizer's penalty."""
    bars, weights = torch.from_numpy(batch.bars), torch.tensor(_FEATURE_WEIGHTS)
    (coarse, fine), penalty, _, _ = tokenizer(bars)
    loss: Tensor = (((coarse - bars) ** 2 + (fine - bars) ** 2) * weights).mean() + penalty
    return loss


@torch.no_grad()
def reconstruction_errors(tokenizer: nn.Module, batch: Batch) -> dict[str, float]:
    """Return the root mean squared error of each feature after both tokens, in lookback standard deviations."""
    bars = torch.from_numpy(batch.bars)
    (_, fine), _, _, _ = tokenizer(bars)
    errors = ((fine - bars) ** 2).mean(dim=(0, 1)).sqrt()
    return {name: round(float(error), 4) for name, error in zip(FEATURES, errors, strict=True)}


class PredictorLoss:
    """Cross-entropy of the next bar's tokens: first over the whole window, in the second half over the horizon.

    Every bar of a window teaches how bars follow each other. But within the lookback the normalisation has seen later
    bars, and a forecast starts after it.
    """

    def __init__(self, tokenizer: nn.Module, settings: PretrainSettings) -> None:
        self._tokenizer = tokenizer
        self._lookback = settings.lookback

    def __call__(self, predictor: nn.Module, batch: Batch, done: float) -> Tensor:
        """Compute the loss of a batch; `done` is the finished share of the training."""
        s1, s2 = encode(self._tokenizer, torch.from_numpy(batch.bars), torch.device("cpu")).unbind(1)
        first_target = 1 if done < 0.5 else self._lookback
        return token_loss(predictor, s1, s2, torch.from_numpy(batch.stamps), first_target)
