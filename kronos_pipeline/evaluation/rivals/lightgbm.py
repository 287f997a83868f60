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
from scipy.signal import lfilter

from kronos_pipeline.errors import DataError, Problem, SettingsError
from kronos_pipeline.evaluation.rivals.quantile_paths import normal_draws

if TYPE_CHECKING:
    from mlforecast import MLForecast

    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet

Floats = NDArray[np.float64]

LEVELS = (0.01, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 0.99)
"""Probabilities of the quantiles that are fitted."""
DECAY = 0.94
"""Decay of the EWMA variance per bar (RiskMetrics, 1996)."""
WARM_UP = 20
"""Number of first returns that give the variance to start from; no forecast and no training reads them otherwise."""
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


def fit_lightgbm(windows: Sequence[WindowSet], seed: int) -> LightgbmModel:
    """Fit the trees on the targets of the training and the selection windows of all tickers.

    Args:
        windows: the tickers' windows; with more than one ticker, purged by `purge_overlapping_targets`, as for a
            checkpoint.
        seed: seed of LightGBM.

    Raises:
        SettingsError: mlforecast or LightGBM is not installed.
        DataError: there are fewer than `MIN_ROWS` training bars.
    """
    check_installed()
    from mlforecast import MLForecast
    from mlforecast.lag_transforms import RollingMean, RollingStd

    from kronos_pipeline.evaluation.rivals.quantile_trees import QuantileTrees

    newest = MAX_ROWS // len(windows)
    frames = [_training_frame(number, window_set, newest) for number, window_set in enumerate(windows)]
    frames = [frame for frame in frames if len(frame) > HISTORY]
    if (trained := sum(int((frame["split"][HISTORY:] == "train").sum()) for frame in frames)) < MIN_ROWS:
        rule = f"lightgbm needs {MIN_ROWS} training bars after the first {FEWEST_BARS}, and there are {trained}"
        raise DataError(Problem(windows[0].bars.source, f"{rule}; leave lightgbm out of --rivals or add bars"))
    table = pd.concat(frames, ignore_index=True)
    forecaster = MLForecast(
        models={"trees": QuantileTrees(LEVELS, SCORE, ROUNDS, PATIENCE, seed)},
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
        recipe: horizon, paths per forecast and seed.

    Raises:
        DataError: a forecast knows fewer than `FEWEST_BARS` bars.
    """
    from kronos_pipeline.evaluation.forecasting.batching import sampling_seed

    if (known_bars := int(origins.min()) + 1) < FEWEST_BARS:
        rule = f"lightgbm needs {FEWEST_BARS} bars before a forecast, and the first cutoff has {known_bars}"
        raise DataError(Problem(windows.bars.source, rule), windows.ticker)
    paths, horizon = recipe.eval_samples, recipe.horizon
    close = windows.bars.frame["close"].to_numpy(np.float64)
    known = close[origins[:, None] + np.arange(1 - windows.lookback, 1)]
    draws = normal_draws(known, paths, horizon, sampling_seed(recipe.seed, windows.ticker))
    standardised, variance = standardised_returns(close)
    history = standardised[origins[:, None] + np.arange(1 - HISTORY, 1)]
    ahead = windows.stamps[np.minimum(origins[:, None] + np.arange(1, horizon + 1), ends[:, None] - 1)]
    at_once = max(SERIES_AT_ONCE // paths, 1)
    parts = [
        _sample(model.forecaster, history[part], ahead[part], draws[part])
        for part in np.array_split(np.arange(len(origins)), -(-len(origins) // at_once))
    ]
    sampled = np.clip(np.concatenate(parts), -LARGEST, LARGEST)  # (cutoffs, paths, horizon)
    growth = np.cumprod(DECAY + (1 - DECAY) * sampled**2, axis=-1)
    before = np.concatenate([np.ones_like(growth[..., :1]), growth[..., :-1]], axis=-1)
    returns = sampled * np.sqrt(variance[origins][:, None, None] * before)
    closes: Floats = close[origins][:, None, None] * np.exp(np.cumsum(returns, axis=-1))
    return closes


def standardised_returns(closes: Floats) -> tuple[Floats, Floats]:
    """Divide log returns by their EWMA volatility a bar before.

    Args:
        closes: `(bars,)`, oldest first.

    Returns:
        Standardised returns, `(bars,)`, and the EWMA variance that is known at each bar, `(bars,)`. The first
        `WARM_UP` + 1 of both are NaN, or depend on later bars.
    """
    squares = np.diff(np.log(closes), prepend=np.log(closes[0])) ** 2
    start = squares[1 : WARM_UP + 1].mean()
    filtered, _ = lfilter([1 - DECAY], [1, -DECAY], squares[1:], zi=[DECAY * start])
    variance = np.maximum(np.concatenate([[start], filtered]), np.finfo(np.float64).eps ** 2)
    returns = np.diff(np.log(closes)) / np.sqrt(variance[:-1])
    standardised = np.concatenate([[np.nan], np.clip(returns, -LARGEST, LARGEST)])
    standardised[: WARM_UP + 1] = np.nan
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


def _training_frame(number: int, windows: WindowSet, newest: int) -> pd.DataFrame:
    """Return a ticker's known bars for mlforecast, a row per bar, with the split whose windows predict the bar."""
    close = windows.bars.frame["close"].to_numpy(np.float64)
    split = np.full(len(close), "", dtype=object)
    last = 0
    for name in ("train", "selection"):
        rows = windows.of_split(name)
        for first, end in zip(rows["origin"].to_numpy() + 1, rows["end"].to_numpy(), strict=True):
            split[first:end] = name
            last = max(last, int(end))
    # Bars after the last target are unknown to a training.
    bars = np.arange(max(WARM_UP + 1, last - newest), last)
    standardised, _ = standardised_returns(close)
    columns = {"unique_id": number, "ds": bars, "y": standardised[bars], "split": split[bars], SCORE: 0.0}
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
