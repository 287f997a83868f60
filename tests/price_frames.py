"""Bars as DataFrames for upstream's `KronosPredictor`, and comparisons of its forecasts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_predictor, tiny_tokenizer

COLUMNS = ["open", "high", "low", "close", "volume", "amount"]
CLOCK = pd.Series(pd.date_range("2024-02-26 09:30", periods=400, freq="45min"), name="timestamps")


def candles(bars: int, seed: int = 0, price: float = 60.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = price * np.exp(rng.normal(0, 0.02, bars).cumsum())
    start, spread = np.roll(close, 1), np.abs(rng.normal(0, 0.01, (2, bars)))
    volume = rng.lognormal(10, 1, bars)
    return pd.DataFrame(
        {
            "open": start,
            "high": np.maximum(start, close) * (1 + spread[0]),
            "low": np.minimum(start, close) * (1 - spread[1]),
            "close": close,
            "volume": volume,
            "amount": volume * close,
        }
    )


def times(bars: int, horizon: int) -> tuple[pd.Series, pd.Series]:
    """Return the times of the bars and of the bars to come."""
    return CLOCK[:bars], CLOCK[bars : bars + horizon]


class Batch(NamedTuple):
    """The positional arguments of `predict_batch`."""

    dfs: list[pd.DataFrame]
    past: list[pd.Series]
    ahead: list[pd.Series]
    horizon: int

    def rows(self, numbers: Iterable[int]) -> Batch:
        """Choose series by their places; a place may come twice."""
        chosen = list(numbers)
        past, ahead = ([times[number] for number in chosen] for times in (self.past, self.ahead))
        return Batch([self.dfs[number] for number in chosen], past, ahead, self.horizon)

    def single(self, number: int) -> tuple[pd.DataFrame, pd.Series, pd.Series, int]:
        """Return the positional arguments of `predict` for one of the series."""
        return self.dfs[number], self.past[number], self.ahead[number], self.horizon


def batch_of(dfs: list[pd.DataFrame], horizon: int) -> Batch:
    """Give each series its times."""
    clocks = [times(len(df), horizon) for df in dfs]
    return Batch(dfs, [past for past, _ in clocks], [ahead for _, ahead in clocks], horizon)


def sharp_predictor(**changes: Any) -> Any:
    """Return a predictor of random weights with attention as sharp as after training, so that positions matter."""
    predictor = tiny_predictor(**{"bits": 6, **changes})
    with torch.no_grad():
        for projection in ("q_proj", "k_proj", "out_proj"):
            getattr(predictor.dep_layer.cross_attn, projection).weight.mul_(10)
    return predictor


def sharp_tokenizer() -> Any:
    return tiny_tokenizer(bits=6)


def with_lora(predictor: Any, seed: int = 1, **changes: Any) -> Any:
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "out_proj", "w2", "emb_s1", "proj_s2"]
    settings = {"r": 2, "lora_dropout": 0.2, "target_modules": targets, "init_lora_weights": False, **changes}
    return get_peft_model(predictor, LoraConfig(**settings)).eval()


def assert_forecast(forecast: pd.DataFrame, expected: pd.DataFrame, df: pd.DataFrame) -> None:
    """Assert that two forecasts agree to 1e-5 of the history's deviation, and are otherwise the same DataFrame."""
    scale = df.reindex(columns=COLUMNS, fill_value=0.0).astype(float)
    off = (forecast - expected).abs()
    assert (off <= 1e-5 * scale.std(ddof=0) + 3e-7 * scale.mean().abs() + 1e-9).all(axis=None), off
    pd.testing.assert_frame_equal(forecast, expected, rtol=np.inf, atol=np.inf, check_freq=True)
