"""Sampled paths from some cutoffs of a ticker: what every evaluated forecast is made of.

A roll knows the real bars up to its origin, never another roll's forecasts, and is asked for the bars up to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kronos_pipeline.artifacts import text_hash
from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.candles import mend

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.evaluation.sampling import Sampling
    from kronos_pipeline.model.loading import KronosModel

Sampler = Callable[..., np.ndarray]
"""Called as `model.decoding.sample_paths` is; returns (series, paths, horizon, features) in price units."""


@dataclass(frozen=True)
class SampledRolls:
    """The paths of some rolls.

    Attributes:
        values: valid candles in the file's units, (rolls, paths, horizon, 6). Where a roll ends before its horizon, the
            bars after its end mean nothing.
        mended: how many of the bars had to be mended, see `model.candles`.
        bars: how many there are.
    """

    values: NDArray[np.float64]
    mended: int
    bars: int

    @property
    def closes(self) -> NDArray[np.float64]:
        """(rolls, paths, horizon)."""
        return self.values[..., FEATURES.index("close")]


def sample_rolls(
    windows: WindowSet,
    origins: np.ndarray,
    ends: np.ndarray,
    model: KronosModel,
    recipe: Recipe,
    sampling: Sampling,
    *,
    sampler: Sampler | None = None,
) -> SampledRolls:
    """Sample the bars after some cutoffs, all in one batch.

    Every model draws a ticker's paths with the same random numbers, so that a difference between two is one between the
    models.

    Args:
        windows: the ticker's windows.
        origins: index of the last bar that each roll knows, (rolls,).
        ends: index of the bar after the last that each roll is asked for, (rolls,).
        model: the model that forecasts.
        recipe: horizon, paths per forecast and seed.
        sampling: temperature, top-p and the position of s2.
        sampler: what samples, `sample_paths` by default.

    Raises:
        ModelError: a sampled number is not finite.
    """
    inputs = _inputs(windows, np.asarray(origins), np.asarray(ends), recipe.horizon)
    return sample_bars(windows.ticker, *inputs, model, recipe, sampling, sampler=sampler)


def sample_bars(
    ticker: str,
    history: np.ndarray,
    past: np.ndarray,
    ahead: np.ndarray,
    model: KronosModel,
    recipe: Recipe,
    sampling: Sampling,
    *,
    sampler: Sampler | None = None,
) -> SampledRolls:
    """Sample the bars that follow some bars of a ticker, all rolls in one batch.

    Args:
        ticker: the symbol; the paths' random numbers depend on it.
        history: the bars that each roll knows, (rolls, bars, 6), in the file's units.
        past: their stamps' features, (rolls, bars, 5).
        ahead: those of the bars to come, (rolls, horizon, 5).
        model, recipe, sampling, sampler: see `sample_rolls`.

    Raises:
        ModelError: a sampled number is not finite.
    """
    values = (sampler or _default_sampler())(
        model,
        history,
        past,
        ahead,
        paths=recipe.eval_samples,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        s2_position=sampling.s2_position,
        seed=sampling_seed(recipe.seed, ticker),
    )
    _check_finite(values, ticker)
    mended, changed = mend(values)
    return SampledRolls(mended, changed, mended[..., 0].size)


def sampling_seed(seed: int, ticker: str) -> int:
    """The seed of a ticker's paths, below 2**32: the same for every model, and in every process (`hash` is not)."""
    return int(text_hash(str(seed), ticker)[:8], 16)


def _inputs(
    windows: WindowSet, origins: np.ndarray, ends: np.ndarray, horizon: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rolls' lookback bars (rolls, lookback, 6), their stamps (.., 5), and the stamps ahead (rolls, horizon, 5).

    The stamps ahead are the ticker's own, as the calendar is known in advance. Where a roll ends before its horizon
    they repeat the last one: a forecast never looks at later stamps.
    """
    values = windows.bars.frame[list(FEATURES)].to_numpy(np.float64)
    past = origins[:, None] + np.arange(1 - windows.lookback, 1)
    ahead = np.minimum(origins[:, None] + np.arange(1, horizon + 1), ends[:, None] - 1)
    return values[past], windows.stamps[past], windows.stamps[ahead]


def _check_finite(values: NDArray[Any], ticker: str) -> None:
    finite = np.isfinite(values).all(axis=-1)
    if bad := int((~finite).sum()):
        raise ModelError(
            f"The model's forecasts of {ticker} are not finite numbers in {bad} of {finite.size} sampled bars; train "
            "it again with a lower --learning-rate, or with --precision fp32."
        )


def _default_sampler() -> Sampler:
    from kronos_pipeline.model.decoding import sample_paths  # imports torch

    return sample_paths
