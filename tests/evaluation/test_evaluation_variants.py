from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_trainings import simulated_bars

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.data.windows import build_windows
from kronos_pipeline.evaluation.forecasting.holdout_table import predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.forecasting.tuning import fit_sampling
from kronos_pipeline.evaluation.forecasting.variants import recentre, rescale, variants_of

RECIPE = Recipe(lookback=20, horizon=5, validation_bars=40, selection_bars=80, eval_samples=24, seed=3)


def sampled(seed: int, paths: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return closes (3, paths, 5) that drift upwards, the closes at the cutoffs, and a variance for each cutoff."""
    rng = np.random.default_rng(seed)
    last = rng.uniform(1, 500, 3)
    returns = 0.01 + rng.uniform(0.001, 0.1) * rng.standard_normal((3, paths, 5))
    return last[:, None, None] * np.exp(returns.cumsum(axis=2)), last, rng.uniform(1e-6, 1e-2, 3)


@given(st.integers(0, 2**32 - 1))
def test_recentred_paths_have_the_centre_as_their_mean_and_keep_their_shape(seed: int) -> None:
    closes, last, variance = sampled(seed)
    recentred = variants_of(closes, last, variance)["recentred"]
    np.testing.assert_allclose(recentred.mean(axis=1), np.repeat(last[:, None], 5, axis=1))
    ratio = recentred / closes
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape))
    np.testing.assert_allclose(recentre(closes, closes.mean(axis=1)), closes)


@given(st.integers(0, 2**32 - 1))
def test_rescaled_returns_have_the_given_variance_at_every_step(seed: int) -> None:
    closes, last, variance = sampled(seed)
    rescaled = rescale(closes, last, variance)
    levels = np.log(np.concatenate([np.broadcast_to(last[:, None, None], (3, 16, 1)), rescaled], axis=2))
    returns = np.diff(levels, axis=2)
    np.testing.assert_allclose((returns**2).mean(axis=1), np.repeat(variance[:, None], 5, axis=1), rtol=1e-8)
    np.testing.assert_allclose(returns.mean(axis=1), 0, atol=1e-12)
    # The order of the paths at each step stays.
    start = np.broadcast_to(last[:, None, None], (3, 16, 1))
    before = np.diff(np.log(np.concatenate([start, closes], axis=2)), axis=2)
    np.testing.assert_array_equal(np.argsort(before, axis=1), np.argsort(returns, axis=1))


def test_paths_that_agree_have_nothing_to_rescale() -> None:
    closes = np.full((2, 8, 3), 50.0)
    np.testing.assert_array_equal(rescale(closes, np.array([50.0, 50.0]), np.array([1e-4, 0.0])), closes)


class KnownVolatility:
    """Sampler of a random walk that starts at the last close, times a factor, with a deviation per bar."""

    def __init__(self, deviation: float, drift: float = 0.0) -> None:
        self.deviation, self.drift = deviation, drift

    def __call__(
        self, models: Any, history: np.ndarray, past: np.ndarray, ahead: np.ndarray, **settings: Any
    ) -> np.ndarray:
        del models, past
        shape = len(history), settings["paths"], ahead.shape[1]
        steps = np.random.default_rng(0).standard_normal(shape) * self.deviation + self.drift
        closes = history[:, -1, FEATURES.index("close"), None, None] * np.exp(steps.cumsum(axis=-1))
        return np.repeat(closes[..., None], len(FEATURES), axis=-1)


class Model:
    weights_hash = "hash"


@pytest.mark.parametrize(
    ("deviation", "drift", "distribution", "volatility"),
    [(0.2, 0.0, "rescaled", "rescaled"), (0.0005, 0.0, "rescaled", "rescaled"), (None, 0.03, "recentred", None)],
)
def test_the_selection_block_chooses_the_variant_that_mends_the_model(
    deviation: float | None, drift: float, distribution: str, volatility: str | None
) -> None:
    bars = simulated_bars("AAPL", 400)
    windows = build_windows(bars, RECIPE)
    true_deviation = np.diff(np.log(bars.frame["close"].to_numpy()[windows.selection_start : windows.holdout_start]))
    sampler = KnownVolatility(deviation or float(true_deviation.std()), drift)
    fitted = fit_sampling(windows, Model(), RECIPE, sampler=sampler)  # type: ignore[arg-type]
    assert fitted.variants["distribution"] in {distribution, "rescaled"}
    assert fitted.variants["distribution"] != "sampled"
    if volatility is not None:
        assert fitted.variants["volatility"] == volatility


def test_without_recalibration_the_paths_stay_as_sampled() -> None:
    windows = build_windows(simulated_bars("AAPL", 400), RECIPE)
    recipe = RECIPE.model_copy(update={"recalibrate": False})
    fitted = fit_sampling(windows, Model(), recipe, sampler=KnownVolatility(0.2))  # type: ignore[arg-type]
    assert dict(fitted.variants) == {}
    assert fitted.variant("distribution") == "sampled"


def test_the_table_has_every_variant_of_a_model_with_the_mean_and_variance_that_it_promises() -> None:
    windows = build_windows(simulated_bars("AAPL", 400), RECIPE)
    sampler = KnownVolatility(0.05, drift=0.02)
    table = predict(windows, {"adapter": Model()}, {"adapter": plain_sampling(RECIPE)}, RECIPE, sampler=sampler)
    rows = dict(iter(table.predictions.groupby("model")))
    recentred, rescaled, ewma = rows["adapter_recentred"], rows["adapter_rescaled"], rows["ewma"]
    np.testing.assert_allclose(recentred["mean"], recentred["last"])
    np.testing.assert_allclose(rescaled["mean"], rescaled["last"])
    assert (rows["adapter"]["mean"] > rows["adapter"]["last"]).mean() > 0.9
    # 500 paths of EWMA's own have its variance to a few percent.
    np.testing.assert_allclose(rescaled["variance"].to_numpy(), ewma["variance"].to_numpy(), rtol=0.25)
    assert rows["adapter"]["variance"].median() == pytest.approx(0.05**2 + 0.02**2, rel=0.2)
