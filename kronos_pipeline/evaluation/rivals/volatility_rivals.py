"""Forecasts of a ticker by models of volatility: `ewma`, `garch`, `gjr_garch` and `har`.

    bars    ...-------------------------|---- selection ----|---- holdout ----|
                garch, gjr_garch, har: fitted on the newest 2,000 bars        x = = =  paths
                                         ewma: lambda

Parameters depend on no bar from the holdout on, and the paths of a cutoff `x` on no bar after it. All models are random
walks in log prices without drift: they forecast how far the close may move, and not in which direction.

If a model cannot be fitted, its forecast is that of `ewma`, and a note gives the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from kronos_pipeline.data.bar_schedule import IntArray
from kronos_pipeline.data.bars import Bars, FloatArray
from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.predictions import EWMA, GARCH, GJR_GARCH, HAR, VOLATILITY_RIVALS
from kronos_pipeline.evaluation.rivals.ewma import choose_decay, ewma_variance, normal_returns
from kronos_pipeline.evaluation.rivals.fits import FitError
from kronos_pipeline.evaluation.rivals.garch import filter_variance, fit_garch, residuals, simulate_garch
from kronos_pipeline.evaluation.rivals.har import LAGS, fit_har, simulate_har
from kronos_pipeline.evaluation.rivals.history import Draws, History, draws_of, read_history

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet

MIN_PATHS = 500
"""Minimum number of paths per forecast; they cost little, and more paths lower the noise of a score."""
FIT_SECONDS = 20.0
"""Time limit of a ticker's fits: after it no further fit starts. Each fit is bounded by its number of iterations."""
ABSURD = 100.0
"""Multiple of the ticker's variance from which on the variance of a forecast is a failure of the model."""
_MAX_CHANGE = 100.0
"""Largest log change of a path, so that every close and its square are finite."""


@dataclass(frozen=True)
class RivalForecasts:
    """Forecasts of one ticker by models of volatility.

    Attributes:
        closes: closes of the paths by model, each `(cutoffs, paths, horizon)`, finite and positive, in the file's unit.
        decay: lambda of `ewma`.
        variance: variance per bar by `ewma` at each cutoff, `(cutoffs,)`.
        fallbacks: the reason for each model whose forecast is that of `ewma`, from all cutoffs or from some.
        notes: a sentence per fallback.
        seconds: time of each model, fit and paths; the first fit of a process also imports `arch`, in about a second.
    """

    closes: dict[str, FloatArray]
    decay: float
    variance: FloatArray
    fallbacks: dict[str, str]
    notes: tuple[str, ...]
    seconds: dict[str, float]


def forecast_rivals(
    windows: WindowSet, origins: IntArray, recipe: Recipe, *, models: Sequence[str] = VOLATILITY_RIVALS
) -> RivalForecasts:
    """Forecast from some cutoffs of a ticker; the parameters are fitted on the bars before its holdout.

    Args:
        windows: the ticker's windows.
        origins: index of the last known bar of each forecast, from 1, `(cutoffs,)`, at least one.
        recipe: horizon, minimum number of paths, seed, and whether jumps are returns.
        models: the models to run.
    """
    bounds = windows.selection_start, windows.holdout_start
    return forecast_rivals_between(windows.bars, origins, recipe, bounds, models=models)


def forecast_rivals_ahead(bars: Bars, recipe: Recipe, *, models: Sequence[str] = VOLATILITY_RIVALS) -> RivalForecasts:
    """Forecast the bars after a ticker's last bar; the parameters are fitted on all bars, lambda on the newest.

    Args:
        bars: the ticker's bars, two or more.
        recipe: see `forecast_rivals`; lambda is chosen on as many bars as a selection block has.
        models: the models to run.
    """
    if recipe.selection_bars is not None:
        selection_start = max(len(bars) - recipe.selection_bars, 0)
    else:
        dates = bars.frame["timestamps"].to_numpy().astype("datetime64[D]")
        selection_start = int(np.searchsorted(dates, np.unique(dates)[-recipe.selection_days :][0]))
    origins = np.array([len(bars) - 1])
    return forecast_rivals_between(bars, origins, recipe, (selection_start, len(bars)), models=models)


def forecast_rivals_between(
    bars: Bars,
    origins: IntArray,
    recipe: Recipe,
    bounds: tuple[int, int],
    *,
    models: Sequence[str] = VOLATILITY_RIVALS,
) -> RivalForecasts:
    """Forecast from some cutoffs, with parameters from given bars.

    Args:
        bars: the ticker's bars, two or more.
        origins: index of the last known bar of each forecast, from 1, `(cutoffs,)`, at least one.
        recipe: see `forecast_rivals`.
        bounds: index of the first bar that lambda is chosen on, and of the first bar that no parameter may depend on.
        models: the models to run; `ewma` need not be among them to be a fallback.
    """
    if not len(origins) or origins.min() < 1:
        raise ValueError("a forecast needs a cutoff with a bar before it")
    started = time.perf_counter()
    history = read_history(bars, bounds[1], keep_jumps=recipe.keep_jumps)
    paths = max(recipe.eval_samples, MIN_PATHS)
    draws = draws_of(history, origins, recipe.seed, paths, recipe.horizon)
    decay, variance = _ewma(history, origins, recipe.horizon, bounds)
    ewma = normal_returns(variance, draws.normal())
    usual = np.maximum(variance, np.mean(history.fitted_returns**2) if len(history.fitted_returns) else 0.0)
    closes, fallbacks, notes = {}, {}, []
    seconds = {EWMA: time.perf_counter() - started}
    for model in models:
        begun = time.perf_counter()
        returns = ewma
        if model != EWMA:
            try:
                if begun - started > FIT_SECONDS:
                    raise FitError(f"the ticker's other fits took more than {FIT_SECONDS:g} s")
                with np.errstate(all="ignore"):  # a variance that explodes is found below
                    returns = _SIMULATIONS[model](history, origins, draws)
            except FitError as error:
                fallbacks[model] = str(error)
                notes.append(f"{bars.ticker}: {model} is {EWMA}: {error}.")
            else:
                absurd = ~_plausible(returns, usual)
                if absurd.any():
                    returns = np.where(absurd[:, None, None], ewma, returns)
                    fallbacks[model] = "its paths are absurd"
                    cutoffs = f"{int(absurd.sum()):,} of {count(len(origins), 'cutoff')}"
                    notes.append(f"{bars.ticker}: {model} is {EWMA} at {cutoffs}: {fallbacks[model]}.")
        changes = np.clip(np.cumsum(returns, axis=-1), -_MAX_CHANGE, _MAX_CHANGE)
        closes[model] = history.close[origins, None, None] * np.exp(changes)
        seconds[model] = time.perf_counter() - begun + (seconds[EWMA] if model == EWMA else 0.0)
    return RivalForecasts(closes, decay, variance, fallbacks, tuple(notes), {model: seconds[model] for model in models})


def ewma_variance_at(bars: Bars, origins: IntArray, recipe: Recipe, bounds: tuple[int, int]) -> FloatArray:
    """Return the variance per bar by `ewma` at some cutoffs, `(cutoffs,)`; see `forecast_rivals_between`."""
    history = read_history(bars, bounds[1], keep_jumps=recipe.keep_jumps)
    return _ewma(history, origins, recipe.horizon, bounds)[1]


def _ewma(history: History, origins: IntArray, horizon: int, bounds: tuple[int, int]) -> tuple[float, FloatArray]:
    """Return lambda and the variance at some cutoffs."""
    selection_start, fitted_until = bounds
    decay = choose_decay(history.returns, selection_start - 1, fitted_until - 1, horizon)
    return decay, ewma_variance(history.returns, decay)[origins - 1]


def _plausible(returns: FloatArray, usual: FloatArray) -> np.ndarray:
    """Say of each cutoff whether its paths are finite and vary by less than `ABSURD` times the usual variance."""
    with np.errstate(all="ignore"):
        plausible: np.ndarray = np.mean(returns**2, axis=(1, 2)) <= ABSURD * usual  # False if NaN
    return plausible


def _garch(history: History, origins: IntArray, draws: Draws) -> FloatArray:
    garch = fit_garch(history.fitted_returns)
    variance = filter_variance(garch, history.returns)[origins]
    freedom = cast(float, garch.freedom)  # innovations of a t
    return simulate_garch(garch, variance, draws.student(freedom))


def _gjr_garch(history: History, origins: IntArray, draws: Draws) -> FloatArray:
    garch = fit_garch(history.fitted_returns, leverage=True)
    innovations = residuals(garch, history.returns, history.fitted)
    variance = filter_variance(garch, history.returns)[origins]
    return simulate_garch(garch, variance, innovations[draws.indices(len(innovations))])


def _har(history: History, origins: IntArray, draws: Draws) -> FloatArray:
    har = fit_har(history)
    known = np.maximum(origins[:, None] + np.arange(-LAGS[-1], 0), 0)
    return simulate_har(har, history.ranges[known], draws.indices(len(har.residuals)))


_SIMULATIONS: dict[str, Callable[[History, IntArray, Draws], FloatArray]] = {
    GARCH: _garch,
    GJR_GARCH: _gjr_garch,
    HAR: _har,
}
