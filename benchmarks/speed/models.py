"""Models of the published sizes with random weights, and simulated series as their input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from kronos_pipeline.base_models import BaseModelSource, WeightsSource, find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import FEATURES, make_bars
from kronos_pipeline.data.simulate import simulate_ticker
from kronos_pipeline.data.windows import WindowSet, build_windows, stamp_features
from kronos_pipeline.model.loading import KronosModel
from kronos_pipeline.model.lora import add_lora
from kronos_pipeline.model.modules import copy_sharing_weights
from kronos_pipeline.model.upstream import Kronos, KronosTokenizer


@dataclass(frozen=True)
class Size:
    """The entries of a `config.json` that determine speed, for a predictor or a tokenizer."""

    layers: int
    width: int
    heads: int
    feed_forward: int
    bits: int = 10


@dataclass(frozen=True)
class Pair:
    """Sizes of a predictor and its tokenizer, the context length in bars, and the project's name of the model."""

    predictor: Size
    tokenizer: Size
    context: int
    name: str


_TOKENIZER = Size(4, 256, 4, 512)
PAIRS = {
    "nano": Pair(Size(3, 96, 4, 192, 8), Size(2, 64, 4, 128, 8), 512, "kronos-nano"),
    "mini": Pair(Size(4, 256, 4, 512), _TOKENIZER, 2048, "NeoQuasar/Kronos-mini"),
    "small": Pair(Size(8, 512, 8, 1024), _TOKENIZER, 512, "NeoQuasar/Kronos-small"),
    "base": Pair(Size(12, 832, 16, 2048), _TOKENIZER, 512, "NeoQuasar/Kronos-base"),
}
"""Sizes of the published `config.json`; nano's context is 512 bars here, so that sizes compare."""


def random_model(size: str, device: torch.device, *, seed: int = 0) -> KronosModel:
    """Build a base model of a size with random weights and the published dropout, in eval mode."""
    pair = PAIRS[size]
    torch.manual_seed(seed)
    predictor = Kronos(
        n_layers=pair.predictor.layers,
        ffn_dropout_p=0.2,
        attn_dropout_p=0.0,
        resid_dropout_p=0.2,
        token_dropout_p=0.0,
        learn_te=True,
        **_shared(pair.predictor),
    )
    tokenizer = KronosTokenizer(
        d_in=len(FEATURES),
        n_enc_layers=pair.tokenizer.layers,
        n_dec_layers=pair.tokenizer.layers,
        ffn_dropout_p=0.0,
        attn_dropout_p=0.0,
        resid_dropout_p=0.0,
        beta=0.05,
        gamma0=1.0,
        gamma=1.1,
        zeta=0.05,
        group_size=4,
        **_shared(pair.tokenizer),
    )
    source = BaseModelSource(
        name=f"Kronos-{size} with random weights",
        predictor=WeightsSource(pair.name),
        tokenizer=find_base_model(pair.name).tokenizer,
        context=pair.context,
    )
    return KronosModel(
        predictor.eval().to(device),
        tokenizer.requires_grad_(False).eval().to(device),
        source=source,
        device=device,
        weights_hash=f"random-{size}-{seed}",
    )


def adapted(base: KronosModel, adapters: int) -> list[KronosModel]:
    """Return copies of the base model with a LoRA adapter each, with random matrices."""
    defaults = Recipe()
    models = []
    for number in range(adapters):
        predictor = add_lora(
            copy_sharing_weights(base.predictor),
            defaults.adapter_r,
            defaults.adapter_alpha,
            0.0,
            defaults.adapter_targets,
        )
        for name, tensor in predictor.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(tensor, std=0.01)
        predictor.eval().requires_grad_(False)
        models.append(replace(base, predictor=predictor, weights_hash=f"{base.weights_hash}-adapter-{number}"))
    return models


def _shared(size: Size) -> dict[str, Any]:
    return {
        "d_model": size.width,
        "n_heads": size.heads,
        "ff_dim": size.feed_forward,
        "s1_bits": size.bits,
        "s2_bits": size.bits,
    }


@dataclass(frozen=True)
class Series:
    """Input of a forecast: history (series, bars, 6) in the units of a CSV, and the times of past and future bars."""

    history: np.ndarray
    times: pd.DatetimeIndex
    horizon: int

    @property
    def stamps(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the time features of past and future bars, (series, bars, 5) and (series, horizon, 5)."""
        features = np.repeat(stamp_features(self.times)[None], len(self.history), axis=0)
        return features[:, : -self.horizon], features[:, -self.horizon :]

    @property
    def frames(self) -> tuple[list[pd.DataFrame], list[pd.Series], list[pd.Series]]:
        """Return the arguments of upstream's `predict_batch`: frames, past times and future times."""
        frames = [pd.DataFrame(bars, columns=list(FEATURES)) for bars in self.history]
        past, ahead = pd.Series(self.times[: -self.horizon]), pd.Series(self.times[-self.horizon :])
        return frames, [past] * len(frames), [ahead] * len(frames)


def random_series(series: int, bars: int, horizon: int, *, seed: int = 0) -> Series:
    """Simulate series of daily bars."""
    tickers = [simulate_ticker([seed, number], bars + horizon) for number in range(series)]
    return Series(np.stack([ticker.values[:bars] for ticker in tickers]), tickers[0].timestamps, horizon)


def random_windows(recipe: Recipe, tickers: Sequence[str], windows: int) -> list[WindowSet]:
    """Build windows of simulated tickers: a given number for training and few in the selection block.

    Args:
        recipe: sets lookback, horizon, validation_bars and selection_bars.
        tickers: names of the tickers.
        windows: training windows per ticker.
    """
    assert recipe.selection_bars is not None
    assert recipe.validation_bars is not None
    bars = recipe.lookback + recipe.horizon + windows + recipe.selection_bars + recipe.validation_bars
    return [
        build_windows(make_bars(name, simulate_ticker([1, *name.encode()], bars).frame(), source=name), recipe)
        for name in tickers
    ]
