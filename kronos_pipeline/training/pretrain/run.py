"""Pretraining of the embedded base model: the tokenizer first, then the predictor, on simulated bars alone.

The result is a base model like a published one, in a folder that works wherever a base model's name does. It is there
so that everything runs offline in minutes; it is no forecaster of real markets.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kronos_pipeline.artifacts import check_writable, package_versions, write_manifest
from kronos_pipeline.code_version import code_version
from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.model.upstream import Kronos, KronosTokenizer
from kronos_pipeline.training.pretrain.data import PRETRAINING_STREAM, PretrainingBars
from kronos_pipeline.training.pretrain.settings import PretrainSettings
from kronos_pipeline.training.pretrain_loop import PredictorLoss, optimise, reconstruction_errors, tokenizer_loss

_TEST_WINDOWS = 512


def pretrain(output: Path, settings: PretrainSettings, *, report: Callable[[str], None] = print) -> None:
    """Pretrain a base model and write it to `output/tokenizer/` and `output/predictor/`.

    Each folder gets config.json and model.safetensors, exactly as upstream's `from_pretrained` reads them, and a
    manifest.json with the context, the settings, what it was trained on and the losses.

    Args:
        output: the folder; what is in its two folders is replaced.
        settings: sizes, steps and seed. The same settings give the same weights on one kind of machine.
        report: gets a line of progress every so often.

    Raises:
        SettingsError: a simulated ticker is shorter than a window, or a window longer than the context.
        ArtifactError: the folder cannot be written.
    """
    length = settings.lookback + settings.horizon + 1
    if settings.bars < length:
        raise SettingsError(f"A window takes {length} bars and a simulated ticker has {settings.bars}; raise --bars.")
    if settings.context < length - 1:
        raise SettingsError(
            f"A window takes {length - 1} bars of context, more than {settings.context}; raise --context."
        )
    check_writable(output)
    report(f"simulating {settings.tickers} tickers of {settings.bars} bars")
    train = PretrainingBars(settings.seed, settings.tickers, settings.bars)
    unseen = PretrainingBars(settings.seed + 1, max(8, settings.tickers // 20), settings.bars)
    test = unseen.batch(np.random.default_rng(settings.seed), _TEST_WINDOWS, settings.lookback, settings.horizon)

    torch.manual_seed(settings.seed)
    tokenizer = _new_tokenizer(settings)
    seconds = optimise(tokenizer, "tokenizer", tokenizer_loss, train, settings, settings.tokenizer_steps, report)
    tokenizer.requires_grad_(False).eval()
    errors = reconstruction_errors(tokenizer, test)
    _save(tokenizer, output / "tokenizer", settings, {"seconds": seconds, "reconstruction_error_in_stds": errors})

    predictor = _new_predictor(settings)
    loss = PredictorLoss(tokenizer, settings)
    seconds = optimise(predictor, "predictor", loss, train, settings, settings.predictor_steps, report)
    predictor.eval()
    with torch.no_grad():
        unseen_loss = float(loss(predictor, test, 1.0))
    report(f"predictor: loss {unseen_loss:.3f} on unseen simulated tickers")
    _save(predictor, output / "predictor", settings, {"seconds": seconds, "unseen_loss": unseen_loss})


def _new_tokenizer(settings: PretrainSettings) -> nn.Module:
    bits = settings.token_bits
    return KronosTokenizer(
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
        group_size=next(size for size in (5, 4, 3, 2) if 2 * bits % size == 0),  # its entropy costs 2**size per bar
    )


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
    # Upstream's start makes a time stamp a tenth as strong as a token; a date has to be heard to matter.
    for embedding in (predictor.time_emb.month_embed, predictor.time_emb.day_embed):
        nn.init.normal_(embedding.weight, std=0.5)
    return predictor


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
