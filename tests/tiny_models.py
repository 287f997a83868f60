"""Base models of a few thousand random parameters, in upstream's classes and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kronos_pipeline.model.upstream import Kronos, KronosTokenizer

LAYERS = {"d_model": 16, "n_heads": 2, "ff_dim": 24}
NO_DROPOUT = {"ffn_dropout_p": 0.0, "attn_dropout_p": 0.0, "resid_dropout_p": 0.0}
DROPOUT = {"ffn_dropout_p": 0.2, "attn_dropout_p": 0.1, "resid_dropout_p": 0.2}


def tiny_predictor(seed: int = 0, *, bits: int = 4, dropout: bool = True, **changes: Any) -> Any:
    """Return a predictor with two layers and, by default, the dropout of the published predictors."""
    torch.manual_seed(seed)
    rates = {**DROPOUT, "token_dropout_p": 0.1} if dropout else {**NO_DROPOUT, "token_dropout_p": 0.0}
    settings = {"s1_bits": bits, "s2_bits": bits, "n_layers": 2, "learn_te": True, **LAYERS, **rates, **changes}
    return Kronos(**settings).eval()


def tiny_tokenizer(seed: int = 0, *, bits: int = 4, **changes: Any) -> Any:
    """Return a tokenizer with one encoder and one decoder layer (upstream builds one fewer than its settings say)."""
    torch.manual_seed(seed)
    quantiser = {"s1_bits": bits, "s2_bits": bits, "beta": 0.05, "gamma0": 1.0, "gamma": 1.1, "zeta": 0.05}
    settings = {"d_in": 6, "n_enc_layers": 2, "n_dec_layers": 2, "group_size": bits, **LAYERS, **NO_DROPOUT}
    return KronosTokenizer(**{**settings, **quantiser, **changes}).eval()


def save_tiny_base(folder: Path, seed: int = 0, *, dropout: bool = True) -> Path:
    """Write a tiny base model with upstream's `save_pretrained`, in the folders of a local base model."""
    tiny_predictor(seed, dropout=dropout).save_pretrained(folder / "predictor")
    tiny_tokenizer(seed).save_pretrained(folder / "tokenizer")
    return folder
