"""Gradient-boosted trees of the next bar's return, by Nixtla's mlforecast and LightGBM, one model for all tickers.

The return is divided by its EWMA volatility, known a bar before, so that all tickers have one scale. For each of
`LEVELS` the trees minimise the pinball loss on the bars of the training windows, and stop when the loss on the bars of
the selection windows no longer falls. They read the last standardised returns, their rolling mean and deviation, and
the time of the bar.

A path is sampled bar by bar: mlforecast's recursion feeds each sampled return back into the features, and the EWMA
variance follows the sampled returns. So a path has the dependence that the trees find.

    bars     |--------- train: trees ---------|- selection: stop -|x ~ ~ paths ~ ~ |
                                                                   last known bar
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_pipeline.errors import DataError, Problem, SettingsError
from kronos_pipeline.evaluation.rivals.ewma import RISKMETRICS_DECAY, ewma_variance
from kronos_pipeline.evaluation.rivals.history import draws_of, read_history
from kronos_pipeline.evaluation.rivals.volatility_rivals import MIN_PATHS

if TYPE_CHECKING:
    from mlforecast import MLForecast

    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet

Floats = NDArray[np.float64]

LEVELS = (0.01, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 0.99)
"""Probabilities of the quantiles that are fitted."""
WARM_UP = 20
"""Number of first returns that only the variance reads."""
LARGEST = 10.0
"""Standardised returns are cut at this size, so that a bar after a flat stretch is one large return, and not all."""
LAGS = (1, 2, 3, 4, 5)
SPANS = (5, 20)
"""Bars of the rolling means and deviations."""
HISTORY = max(SPANS)
"""Number of newest standardised returns that the features need."""
FEWEST_BARS = WARM_UP + 1 + HISTORY
"""Number of bars that a forecast must know."""
MIN_ROWS = 50
MAX_ROWS = 200_000
"""Fewest bars to train on, and the largest number of bars, of all tickers; the newest are kept."""
ROUNDS, PATIENCE = 200, 20
"""Largest number of trees per quantile, and the trees without a lower selection loss before training stops."""
SERIES_AT_ONCE = 4096
"""Number of paths that are sampled together, to bound the memory."""
STAMPS = ("minute", "hour", "weekday", "day", "month")
SCORE = "score"
"""Column of a bar's random normal score, at which a path takes the quantile; no tree reads it."""


@dataclass(frozen=True)
class LightgbmModel:
    """Trees that are fitted for some tickers.

    Attributes:
        forecaster: mlforecast's features and the trees.
        rows: number of bars that the trees were trained on.
    """

    forecaster: MLForecast
    rows: int


def fit_lightgbm(windows: Sequence[WindowSet], recipe: Recipe) -> LightgbmModel:
    """Fit the trees on the targets of the training and the selection windows of all tickers.

    Args:
        windows: the tickers' windows; with more than one ticker, purged by `purge_overlapping_targets`, as for a
            checkpoint.
        recipe: seed, and whether jumps are returns.

    Raises:
        SettingsError: mlforecast or LightGBM is not installed.
        DataError: there are fewer than `MIN_ROWS` training bars.
    """
    check_installed()
    from mlforecast import MLForecast
    from mlforecast.lag_transforms import RollingMean, RollingStd

    from kronos_pipeline.evaluation.rivals.quantile_trees import QuantileTrees

    newest = MAX_ROWS // len(windows)
    frames = [
        _training_frame(number, window_set, newest, recipe.keep_jumps) for number, window_set in enumerate(windows)
    ]
    frames = [frame for frame in frames if len(frame) > HISTORY]
    if (trained := sum(int((frame["split"][HISTORY:] == "train").sum()) for frame in frames)) < MIN_ROWS:
        rule = f"it needs {MIN_ROWS} training bars after the first {FEWEST_BARS}, and there are {trained}"
        raise DataError(Problem(windows[0].bars.source, rule))
    table = pd.concat(frames, ignore_index=True)
    forecaster = MLForecast(
        models={"trees": QuantileTrees(LEVELS, SCORE, ROUNDS, PATIENCE, recipe.seed)},
        freq=1,
        lags=list(LAGS),
        lag_transforms={1: [rolling(span) for span in SPANS for rolling in (RollingMean, RollingStd)]},
        num_threads=1,
    )
    rows: Any = forecaster.preprocess(table.drop(columns="split"), static_features=[], validate_data=False)
    split = table["split"].to_numpy()[rows.index.to_numpy()]
    features = rows.drop(columns=["unique_id", "ds", "y"])
    forecaster.fit_models(features, rows["y"].to_numpy(), models_fit_kwargs={"trees": {"split": split}})
    return LightgbmModel(forecaster, trained)


def sample_lightgbm(
    model: LightgbmModel, windows: WindowSet, origins: NDArray[np.int64], ends: NDArray[np.int64], recipe: Recipe
) -> Floats:
    """Sample closes of a ticker, `(cutoffs, paths, horizon)`, in the file's unit.

    Args:
        model: the fitted trees.
        windows: the ticker's windows.
        origins: index of the last known bar of each forecast, `(cutoffs,)`.
        ends: index of the bar after the last requested bar of each forecast, `(cutoffs,)`. The stamps of later bars are
            not read: the last stamp is repeated.
        recipe: horizon, minimum number of paths, seed, and whether jumps are returns.

    Raises:
        DataError: a forecast knows fewer than `FEWEST_BARS` bars.
    """
    if (known_bars := int(origins.min()) + 1) < FEWEST_BARS:
        rule = f"it needs {FEWEST_BARS} bars before a forecast, and the first cutoff has {known_bars}"
        raise DataError(Problem(windows.bars.source, rule), windows.ticker)
    paths, horizon = max(recipe.eval_samples, MIN_PATHS), recipe.horizon
    history = read_history(windows.bars, windows.holdout_start, keep_jumps=recipe.keep_jumps)
    draws = draws_of(history, origins, recipe.seed, paths, horizon).normal()
    standardised, variance = standardise(history.returns)
    known = standardised[origins[:, None] + np.arange(-HISTORY, 0)]
    ahead = windows.stamps[np.minimum(origins[:, None] + np.arange(1, horizon + 1), ends[:, None] - 1)]
    at_once = max(SERIES_AT_ONCE // paths, 1)
    parts = [
        _sample(model.forecaster, known[part], ahead[part], draws[part])
        for part in np.array_split(np.arange(len(origins)), -(-len(origins) // at_once))
    ]
    sampled = np.clip(np.concatenate(parts), -LARGEST, LARGEST)  # (cutoffs, paths, horizon)
    growth = np.cumprod(RISKMETRICS_DECAY + (1 - RISKMETRICS_DECAY) * sampled**2, axis=-1)
    before = np.concatenate([np.ones_like(growth[..., :1]), growth[..., :-1]], axis=-1)
    returns = sampled * np.sqrt(variance[origins - 1, None, None] * before)
    closes: Floats = history.close[origins, None, None] * np.exp(np.cumsum(returns, axis=-1))
    return closes


def standardise(returns: Floats) -> tuple[Floats, Floats]:
    """Divide log returns by their EWMA volatility a bar before.

    Args:
        returns: log returns, oldest first, `(n,)`.

    Returns:
        Standardised returns, NaN for the first `WARM_UP`, and the EWMA variance after each return, both `(n,)`.
    """
    variance = np.maximum(ewma_variance(returns, RISKMETRICS_DECAY), np.finfo(np.float64).eps ** 2)
    standardised = np.full(len(returns), np.nan)
    moves = returns[WARM_UP:] / np.sqrt(variance[WARM_UP - 1 : -1])
    standardised[WARM_UP:] = np.clip(moves, -LARGEST, LARGEST)
    return standardised, variance


def check_installed() -> None:
    """Check that the packages of the extra `gbm` are installed.

    Raises:
        SettingsError: a package is missing.
    """
    try:
        import lightgbm  # noqa: F401
        import mlforecast  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"--rivals lightgbm needs the package {error.name}: install the extra with `pip install -e '.[gbm]'`."
        ) from error


def _training_frame(number: int, windows: WindowSet, newest: int, keep_jumps: bool) -> pd.DataFrame:
    """Return a ticker's known bars for mlforecast, a row per bar, with the split whose windows predict the bar."""
    split = np.full(len(windows.bars), "", dtype=object)
    last = 0
    for name in ("train", "selection"):
        rows = windows.of_split(name)
        for first, end in zip(rows["origin"].to_numpy() + 1, rows["end"].to_numpy(), strict=True):
            split[first:end] = name
            last = max(last, int(end))
    # Bars after the last target are unknown to a training.
    bars = np.arange(max(WARM_UP + 1, last - newest), last)
    history = read_history(windows.bars, windows.holdout_start, keep_jumps=keep_jumps)
    standardised, _ = standardise(history.returns)
    columns = {"unique_id": number, "ds": bars, "y": standardised[bars - 1], "split": split[bars], SCORE: 0.0}
    return pd.DataFrame(columns | dict(zip(STAMPS, windows.stamps[bars].T.astype(np.float64), strict=True)))


def _sample(forecaster: MLForecast, history: Floats, ahead: NDArray[Any], draws: Floats) -> Floats:
    """Sample standardised returns, `(cutoffs, paths, horizon)`; each path is a series of mlforecast."""
    cutoffs, paths, horizon = draws.shape
    series = np.arange(cutoffs * paths)
    known = pd.DataFrame(
        {
            "unique_id": np.repeat(series, HISTORY),
            "ds": np.tile(np.arange(HISTORY), len(series)),
            "y": np.repeat(history, paths, axis=0).ravel(),
            **dict.fromkeys((SCORE, *STAMPS), 0.0),
        }
    )
    stamps = np.repeat(ahead.astype(np.float64), paths, axis=0).reshape(-1, len(STAMPS))
    future = pd.DataFrame(
        {
            "unique_id": np.repeat(series, horizon),
            "ds": np.tile(np.arange(HISTORY, HISTORY + horizon), len(series)),
            SCORE: draws.ravel(),
            **dict(zip(STAMPS, stamps.T, strict=True)),
        }
    )
    sampled = forecaster.predict(horizon, new_df=known, X_df=future)
    return np.asarray(sampled["trees"], np.float64).reshape(draws.shape)
