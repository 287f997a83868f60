"""Tuning of a model's sampling for a ticker, on the selection block alone.

    bars    ...------------|----- older half -----|----- newer half -----|---- holdout ----|
                                 temperature,            variants,        bars and times
                                    top-p                 widths             unread

A forecast may start before its half, and is cut at the end of the half; only the bars of that half are scored. So
temperature and top-p are fitted on other bars than the rest. The variant of the paths (`variants.py`) that stands for
the model on a target has the lowest loss on the newer half, and widths are fitted for each variant. Early stopping has
seen both halves, so the widths of a trained model may come out a little small.

Widths are split-conformal factors. Each real close lies at some multiple of its interval's side: below 1 inside, above
1 outside. An interval that is stretched by the right quantile of past multiples covers one more bar with at least the
chance of its level, if that bar is exchangeable with the past bars (Papadopoulos et al., 2002; Lei et al., 2018).

Bars of one forecast err together, and forecasts from neighbouring cutoffs share bars, so hundreds of residuals may
carry as much information as two forecasts. Then the guarantee means little, and a factor may describe one quiet month
and not the model. So each factor is shrunk towards 1 by the number of forecasts that share no bar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kronos_pipeline.data.windows import find_breaks
from kronos_pipeline.evaluation.forecasting.batching import (
    ForecastJob,
    ForecastRequest,
    SamplePaths,
    Sampler,
    forecast_request,
    run_job,
)
from kronos_pipeline.evaluation.forecasting.distributions import crps, path_statistics, raw_intervals
from kronos_pipeline.evaluation.forecasting.sampling import Sampling, Score, plain_sampling
from kronos_pipeline.evaluation.forecasting.variants import variants_of
from kronos_pipeline.evaluation.predictions import LEVELS, SAMPLED, Variant
from kronos_pipeline.evaluation.rivals.measures import squared_returns
from kronos_pipeline.evaluation.rivals.volatility_rivals import ewma_variance_at
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, VOLATILITY, Target, qlike_of_ratio

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.evaluation.forecasting.ensemble import Forecaster

TEMPERATURES = (0.8, 1.0, 1.2)
TOP_PS = (0.9, 1.0)
"""The grid of temperatures and top-ps. It is small, as the selection block has few bars: on 24 simulated tickers
temperatures from 0.6 to 1.5 gave no better scores than no choice."""
MAX_ORIGINS = 16
"""Maximum number of cutoffs per half of the selection block."""
MIN_RESIDUALS = 500
"""Number of residuals that a factor is fitted on, if there are as many: those of its own step and of the nearest steps.
On 40 simulated tickers pools of 30, 60 and 100 gave worse interval scores than one pool of all, and no better coverage.
"""


_LEAST_FACTOR = 0.01
"""Minimum of a factor, so that levels stay apart where nearly all past closes were the median."""


class CalibrationBlock:
    """The bars [first, end) before the holdout, and the cutoffs of the forecasts that are scored on them.

    The cutoffs are spread evenly, so that each step of the horizon is scored at equally many bars. As in
    `build_windows`, no cutoff has a flat lookback, or a hole or jump between its first bar and its last.
    """

    def __init__(self, windows: WindowSet, first: int, end: int, recipe: Recipe) -> None:
        self.first, self.end = first, end
        self._windows, self._recipe = windows, recipe
        close = windows.bars.frame["close"].to_numpy(np.float64)
        self._close = close
        holes, jumps = find_breaks(windows.bars, windows.holdout_start, recipe)
        origins = np.arange(max(first - recipe.horizon, windows.lookback - 1), end - 1)
        starts, lasts = origins + 1 - windows.lookback, np.minimum(origins + recipe.horizon, end - 1)
        moves = [np.ptp(close[start : origin + 1]) > 0 for start, origin in zip(starts, origins, strict=True)]
        usable = origins[np.array(moves, np.bool_) & (holes[starts] == holes[lasts]) & (jumps[starts] == jumps[lasts])]
        spread = np.linspace(0, len(usable) - 1, min(MAX_ORIGINS, len(usable)))
        self.origins = usable[np.rint(spread).astype(np.int64)]

    @property
    def disjoint_forecasts(self) -> int:
        """Number of forecasts without a common bar that fit between the first cutoff and the last."""
        return min(1 + int(self.origins[-1] - self.origins[0]) // self._recipe.horizon, len(self.origins))

    def request(self, model: Forecaster, sampling: Sampling) -> ForecastRequest:
        """Build the request for a model's forecasts from the cutoffs."""
        ends = np.minimum(self.origins + 1 + self._recipe.horizon, self.end)
        return forecast_request(self._windows, self.origins, ends, model, self._recipe, sampling)

    def scored_closes(
        self, closes: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Return the sampled closes (n, paths), real closes (n,) and steps (n,) of the forecast bars in this block.

        Args:
            closes: sampled closes, (cutoffs, paths, horizon).
        """
        targets, scored = self._targets()
        return closes.swapaxes(1, 2)[scored], self._close[targets[scored]], (targets - self.origins[:, None])[scored]

    def variants(self, paths: SamplePaths) -> dict[Variant, NDArray[np.float64]]:
        """Return the closes of every variant of sampled paths, (cutoffs, paths, horizon) each."""
        windows = self._windows
        bounds = windows.selection_start, windows.holdout_start
        variance = ewma_variance_at(windows.bars, self.origins, self._recipe, bounds)
        return variants_of(paths.closes, self._close[self.origins], variance)

    def losses(self, closes: NDArray[np.float64]) -> dict[Target, float]:
        """Return the loss of sampled closes on the targets that have variants; infinite if it is undefined.

        Args:
            closes: sampled closes, (cutoffs, paths, horizon).
        """
        targets, scored = self._targets()
        sampled, y, _ = self.scored_closes(closes)
        variance = path_statistics(closes, self._close[self.origins])["variance"]
        realised = squared_returns(self._close[: self.end])[np.minimum(targets, self.end - 1)]
        forecast, real = (np.where(scored, values, 0.0).sum(axis=1) for values in (variance, realised))
        moving = (forecast > 0) & (real > 0)
        qlike = float(np.mean(qlike_of_ratio(real[moving] / forecast[moving]))) if moving.any() else np.inf
        return {DISTRIBUTION: float(crps(sampled, y).mean()), VOLATILITY: qlike}

    def _targets(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the index of each forecast bar, (cutoffs, horizon), and whether it lies in this block."""
        targets = self.origins[:, None] + np.arange(1, self._recipe.horizon + 1)
        return targets, (targets >= self.first) & (targets < self.end)


def fit_sampling(windows: WindowSet, model: Forecaster, recipe: Recipe, *, sampler: Sampler | None = None) -> Sampling:
    """Choose temperature and top-p, choose variants and fit the widths of intervals, as the recipe asks.

    The work is bounded: from at most 16 cutoffs each, one forecast per pair of the grid over the older half, and one
    forecast over the newer half. If a half has no usable cutoff, as all lie beyond holes or flat bars, its settings
    stay those of the recipe.

    Args:
        windows: the ticker's windows.
        model: the model to sample.
        recipe: `tune_sampling` and `recalibrate`; horizon, paths per forecast and seed; temperature and top-p, which
            are a pair of the grid too.
        sampler: the sampler, `sample_paths` by default.

    Raises:
        ModelError: a sampled number is not finite.
    """
    return run_job(fit_sampling_job(windows, model, recipe), sampler)


def fit_sampling_job(windows: WindowSet, model: Forecaster, recipe: Recipe) -> ForecastJob[Sampling]:
    """Run `fit_sampling` as a job."""
    start, end = windows.selection_start, windows.holdout_start
    middle = (start + end) // 2
    sampling = replace(plain_sampling(recipe), weights_hash=model.weights_hash)
    blocks = []
    older = CalibrationBlock(windows, start, middle, recipe)
    if recipe.tune_sampling and len(older.origins):
        grid = [replace(sampling, temperature=temperature, top_p=top_p) for temperature, top_p in _grid(recipe)]
        sampled = yield [older.request(model, point) for point in grid]
        scores = []
        for point, paths in zip(grid, sampled, strict=True):
            closes, y, _ = older.scored_closes(paths.closes)
            scores.append(Score(point.temperature, point.top_p, float(crps(closes, y).mean())))
        best = min(scores, key=lambda score: score.crps)  # of equal scores the first: the recipe's own pair
        sampling = replace(sampling, temperature=best.temperature, top_p=best.top_p, tuned=tuple(scores))
        blocks.append(older)
    newer = CalibrationBlock(windows, middle, end, recipe)
    if recipe.recalibrate and len(newer.origins):
        (paths,) = yield [newer.request(model, sampling)]
        variants = newer.variants(paths)
        widths = {}
        for variant, variant_closes in variants.items():
            closes, y, steps = newer.scored_closes(variant_closes)
            widths[variant] = shrink_widths(fit_widths(closes, y, steps, recipe.horizon), newer.disjoint_forecasts)
        losses = {variant: newer.losses(variant_closes) for variant, variant_closes in variants.items()}
        chosen = {target: min(losses, key=lambda variant: losses[variant][target]) for target in losses[SAMPLED]}
        sampling = replace(sampling, widths=widths, variants=chosen, residuals=len(y))
        blocks.append(newer)
    if blocks:
        stamps = windows.bars.frame["timestamps"]
        span = stamps[blocks[0].first].isoformat(), stamps[blocks[-1].end - 1].isoformat()
        sampling = replace(sampling, span=span)
    return sampling


def count_fit_forecasts(windows: WindowSet, recipe: Recipe) -> int:
    """Return the largest number of forecasts that `fit_sampling` makes with one model."""
    half = (windows.holdout_start - windows.selection_start + 1) // 2
    cutoffs = max(min(MAX_ORIGINS, half + recipe.horizon - 1), 0)
    return cutoffs * (len(_grid(recipe)) * recipe.tune_sampling + recipe.recalibrate)


def fit_widths(
    closes: NDArray[np.float64], y: NDArray[np.float64], steps: NDArray[np.integer], horizon: int
) -> dict[int, tuple[float, ...]]:
    """Fit the factors that stretch the intervals of past forecasts to the coverage of their level.

    Args:
        closes: the sampled closes of some bars, (n, paths), n at least 1.
        y: the real closes, (n,).
        steps: distance of each bar from its cutoff in bars, (n,), from 1.
        horizon: number of steps to fit a factor for.

    Returns:
        By level, the factor at each step 1 to horizon; finite.
    """
    median = np.median(closes, axis=1)[:, None]
    lows, highs = raw_intervals(closes)
    real = y[:, None]
    sides = np.where(real < median, median - lows, highs - median)
    with np.errstate(divide="ignore", invalid="ignore"):  # a side without width reaches no other close
        multiples = np.where(real == median, 0.0, np.abs(real - median) / sides)
    distances = np.abs(steps - np.arange(1, horizon + 1)[:, None])  # (horizon, n)
    reaches = np.sort(distances, axis=1)[:, min(MIN_RESIDUALS, len(y)) - 1, None]
    pools = distances <= reaches
    return {
        level: tuple(_width_factor(multiples[pool, column], level) for pool in pools)
        for column, level in enumerate(LEVELS)
    }


def shrink_widths(widths: Mapping[int, tuple[float, ...]], forecasts: int) -> dict[int, tuple[float, ...]]:
    """Raise each factor to the power n / (n + 1), n being the number of its forecasts that share no bar.

    On 40 simulated tickers, with forecasts of 5 and of 30 bars and selection blocks of 60 and of 240, this brought
    coverage nearer to its level, ticker by ticker, than the unshrunk factors, and gave better interval scores.
    """
    weight = forecasts / (forecasts + 1)
    return {level: tuple(factor**weight for factor in factors) for level, factors in widths.items()}


def _width_factor(multiples: NDArray[np.float64], level: int) -> float:
    """Return the ceil(level (n + 1))-th smallest of n multiples, or the largest finite one; 1 if none is finite."""
    ordered = np.sort(multiples)
    finite = int(np.isfinite(ordered).sum())
    rank = -(-level * (len(ordered) + 1) // 100)
    return max(float(ordered[min(rank, finite) - 1]), _LEAST_FACTOR) if finite else 1.0


def _grid(recipe: Recipe) -> list[tuple[float, float]]:
    """Return the pairs of temperature and top-p, the recipe's own pair first."""
    pairs = [(temperature, top_p) for temperature in TEMPERATURES for top_p in TOP_PS]
    return list(dict.fromkeys([(recipe.temperature, recipe.top_p), *pairs]))
