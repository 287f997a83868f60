"""`KronosPredictor` on a GPU equals upstream's class there, and rejects arguments that it cannot forecast from."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from price_frames import candles, sharp_predictor, sharp_tokenizer, times, with_lora
from sktime.libs.kronos import KronosPredictor as Upstream

from kronos_pipeline import KronosPredictor
from kronos_pipeline.errors import KronosError, ModelError
from kronos_pipeline.model.modules import copy_sharing_weights

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
DEVICES = ["cuda:0", pytest.param("cuda:1", marks=TWO)]
HORIZON = 7
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "greedy": {"top_k": 1},
    "several paths": {"T": 0.8, "top_p": 0.95, "sample_count": 3},
    "top k": {"top_k": 9, "sample_count": 2},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("context", [512, 43, 20], ids=["within", "sliding later", "sliding"])
def test_a_forecast_is_upstreams(device: str, settings: dict[str, Any], context: int) -> None:
    model, tokenizer = sharp_predictor(), sharp_tokenizer()
    arguments = (candles(40), *times(40, HORIZON), HORIZON)
    forecasts = []
    for kind in (Upstream, KronosPredictor):
        predictor = kind(model, tokenizer, device, context)
        torch.manual_seed(3)
        forecasts.append(predictor.predict(*arguments, verbose=False, **settings))
    pd.testing.assert_frame_equal(forecasts[1], forecasts[0], rtol=1e-4)


def batch(predictor: KronosPredictor, **settings: Any) -> list[pd.DataFrame]:
    """Forecast series of unequal length."""
    lengths = (40, 25, 33)
    frames, (past, ahead) = (
        [candles(bars) for bars in lengths],
        zip(*(times(bars, HORIZON) for bars in lengths), strict=True),
    )
    return predictor.predict_batch(frames, past, ahead, HORIZON, verbose=False, **settings)


def test_unequal_series_through_adapters_are_those_of_the_cpu() -> None:
    forecasts = {}
    for device in ("cpu", "cuda"):
        model = sharp_predictor()
        adapters = {name: with_lora(copy_sharing_weights(model), seed) for seed, name in enumerate("ab")}
        predictor = KronosPredictor(model, sharp_tokenizer(), device, adapters=adapters)
        forecasts[device] = batch(predictor, adapters=["a", None, "b"], top_k=1)
    for forecast, expected in zip(forecasts["cuda"], forecasts["cpu"], strict=True):
        pd.testing.assert_frame_equal(forecast, expected, rtol=1e-3)


def test_seeds_and_generators_of_the_device_repeat_a_forecast() -> None:
    predictor = KronosPredictor(sharp_predictor(), sharp_tokenizer(), "cuda")
    state = torch.cuda.get_rng_state()
    first = batch(predictor, seed=5)
    generators = [torch.Generator(name).manual_seed(5) for name in ("cuda", "cuda:0")]
    ways: list[dict[str, Any]] = [{"seed": 5}, *({"generator": generator} for generator in generators)]
    for settings in ways:
        for forecast, expected in zip(batch(predictor, **settings), first, strict=True):
            pd.testing.assert_frame_equal(forecast, expected)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    with pytest.raises(KronosError, match="generator is of cpu"):
        batch(predictor, generator=torch.Generator())


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 1.0}], ids=["top p", "top k", "all"])
def test_numbers_that_are_not_finite_are_told_and_the_device_stays_usable(settings: dict[str, Any]) -> None:
    predictor = KronosPredictor(sharp_predictor(), sharp_tokenizer(), "cuda")
    arguments = candles(48), *times(48, HORIZON), HORIZON
    days = pd.DatetimeIndex(arguments[2]).day
    assert days[-1] not in {*pd.DatetimeIndex(arguments[1]).day, *days[:3]}, "read for the first time after some steps"
    model: Any = predictor.model
    weight = model.time_emb.day_embed.weight
    original = weight.data.clone()
    weight.data[days[-1]] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        predictor.predict(*arguments, verbose=False, **settings)
    weight.data.copy_(original)
    assert predictor.predict(*arguments, verbose=False, **settings).notna().all(axis=None)
