"""Sampled paths from some cutoffs of a ticker: what every evaluated forecast is made of.

A roll knows the real bars up to its origin, never another roll's forecasts, and is asked for the bars up to its end.
What is asked for is one thing and the sampling another: the rolls of many tickers and models are sampled in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kronos_pipeline.artifacts import text_hash
from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.errors import KronosError, ModelError

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.evaluation.forecasting.tuning import Sampling
    from kronos_pipeline.model.loading import KronosModel

Sampler = Callable[..., np.ndarray]
"""Called as `model.decoding.sample_paths` is, with a model, a temperature, a top-p and a seed per series; returns
(series, paths, horizon, features) in price units."""


@dataclass(frozen=True)
class Rolls:
    """Rolls of one ticker that one model is asked for.

    Every model draws a ticker's paths with the same random numbers, so that a difference between two is one between the
    models.

    Attributes:
        ticker: the symbol; the paths' random numbers depend on it.
        history: the bars that each roll knows, (rolls, bars, 6), in the file's units.
        past: their stamps' features, (rolls, bars, 5).
        ahead: those of the bars to come, (rolls, horizon, 5).
        model: the model that forecasts.
        sampling: temperature, top-p and the position of s2.
        recipe: paths per forecast, seed and number format.
    """

    ticker: str
    history: NDArray[np.float64]
    past: NDArray[np.uint8]
    ahead: NDArray[np.uint8]
    model: KronosModel
    sampling: Sampling
    recipe: Recipe

    @property
    def bars(self) -> int:
        """How many bars are to be sampled."""
        return len(self.history) * self.recipe.eval_samples * self.ahead.shape[1]

    @property
    def shared(self) -> dict[str, Any]:
        """The settings of a call that are one for all of its series."""
        return {
            "paths": self.recipe.eval_samples,
            "s2_position": self.sampling.s2_position,
            "precision": self.recipe.precision,
        }


@dataclass(frozen=True)
class SampledRolls:
    """The paths of some rolls.

    Attributes:
        values: valid candles in the file's units, (rolls, paths, horizon, 6). Where a roll ends before its horizon, the
            bars after its end mean nothing.
        mended: how many of the bars had to be mended, see `repair_candles`.
        bars: how many there are.
    """

    values: NDArray[np.float64]
    mended: int
    bars: int

    @property
    def closes(self) -> NDArray[np.float64]:
        """(rolls, paths, horizon)."""
        return self.values[..., FEATURES.index("close")]


def rolls_from(
    windows: WindowSet, origins: np.ndarray, ends: np.ndarray, model: KronosModel, recipe: Recipe, sampling: Sampling
) -> Rolls:
    """The rolls from some cutoffs of a ticker.

    The stamps ahead are the ticker's own, as the calendar is known in advance. Where a roll ends before its horizon
    they repeat the last one: a forecast never looks at later stamps.

    Args:
        windows: the ticker's windows.
        origins: index of the last bar that each roll knows, (rolls,).
        ends: index of the bar after the last that each roll is asked for, (rolls,).
        model, recipe, sampling: see `Rolls`; the recipe's horizon counts too.
    """
    values = windows.bars.frame[list(FEATURES)].to_numpy(np.float64)
    past = origins[:, None] + np.arange(1 - windows.lookback, 1)
    ahead = np.minimum(origins[:, None] + np.arange(1, recipe.horizon + 1), ends[:, None] - 1)
    stamps = windows.stamps
    return Rolls(windows.ticker, values[past], stamps[past], stamps[ahead], model, sampling, recipe)


def sample(asked: Sequence[Rolls], sampler: Sampler | None = None) -> list[SampledRolls | KronosError]:
    """Sample rolls of any tickers and models in as few calls as their lengths and settings allow.

    Args:
        asked: the rolls.
        sampler: what samples, `sample_paths` by default.

    Returns:
        For each of them in turn its paths, or why there are none: the model gives numbers that are not finite, or
        cannot be asked for so many bars.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for place, rolls in enumerate(asked):
        lengths = rolls.history.shape[1], rolls.ahead.shape[1]
        alike.setdefault((*lengths, *rolls.shared.values()), []).append(place)
    found: dict[int, SampledRolls | KronosError] = {}
    for places in alike.values():
        results = _in_one_call([asked[place] for place in places], sampler or _sample_paths)
        found |= zip(places, results, strict=True)
    return [found[place] for place in range(len(asked))]


def sampling_seed(seed: int, ticker: str) -> int:
    """The seed of a ticker's paths, below 2**32: the same for every model, and in every process (`hash` is not)."""
    return int(text_hash(str(seed), ticker)[:8], 16)


def _in_one_call(asked: Sequence[Rolls], sampler: Sampler) -> list[SampledRolls | KronosError]:
    """Sample rolls that share lengths and settings; where that fails, in halves, until the one that fails is alone."""
    each = [(rolls, sampling_seed(rolls.recipe.seed, rolls.ticker)) for rolls in asked for _ in rolls.history]
    try:
        values = sampler(
            [rolls.model for rolls, _ in each],
            *(np.concatenate([getattr(rolls, part) for rolls in asked]) for part in ("history", "past", "ahead")),
            temperature=np.array([rolls.sampling.temperature for rolls, _ in each]),
            top_p=np.array([rolls.sampling.top_p for rolls, _ in each]),
            seed=[seed for _, seed in each],
            **asked[0].shared,
        )
    except KronosError as error:
        if len(asked) == 1:
            return [error]
        half = len(asked) // 2
        return _in_one_call(asked[:half], sampler) + _in_one_call(asked[half:], sampler)
    parts = np.split(values, np.cumsum([len(rolls.history) for rolls in asked])[:-1])
    return [_candles(rolls.ticker, part) for rolls, part in zip(asked, parts, strict=True)]


def _candles(ticker: str, values: NDArray[Any]) -> SampledRolls | ModelError:
    finite = np.isfinite(values).all(axis=-1)
    if bad := int((~finite).sum()):
        return ModelError(
            f"The model's forecasts of {ticker} are not finite numbers in {bad} of {finite.size} sampled bars; train "
            "it again with a lower --learning-rate, or with --precision fp32."
        )
    mended, changed = repair_candles(values)
    return SampledRolls(mended, changed, mended[..., 0].size)


def _sample_paths(models: Sequence[KronosModel], *series: np.ndarray, precision: str, **settings: Any) -> np.ndarray:
    from kronos_pipeline.evaluation.provenance import sampling_precision
    from kronos_pipeline.model.decode.sample import sample_paths  # imports torch

    return sample_paths(models, *series, precision=sampling_precision(precision, models[0].device), **settings)


_OPEN, _HIGH, _LOW, _CLOSE = (FEATURES.index(price) for price in ("open", "high", "low", "close"))
_AMOUNTS = slice(FEATURES.index("volume"), None)


def repair_candles(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Widen each bar's range to hold its open and close, and raise a negative volume or amount to 0.

    Open and close stay as they are, so no forecast of a close changes.

    Args:
        values: bars, (..., 6), finite; they are not changed.

    Returns:
        The mended bars, with low <= min(open, close), high >= max(open, close), volume >= 0 and amount >= 0; and the
        number of bars in which something had to be mended.
    """
    mended = np.array(values, np.float64)
    body = mended[..., [_OPEN, _CLOSE]]
    mended[..., _HIGH] = np.maximum(mended[..., _HIGH], body.max(axis=-1))
    mended[..., _LOW] = np.minimum(mended[..., _LOW], body.min(axis=-1))
    mended[..., _AMOUNTS] = np.maximum(mended[..., _AMOUNTS], 0.0)
    return mended, int((mended != values).any(axis=-1).sum())
