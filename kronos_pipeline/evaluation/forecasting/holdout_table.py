"""Table of predictions of a ticker's holdout: forecasts of the baselines, models and variants from every cutoff.

    holdout bars   |----------------- n bars ------------------|
    forecast 1  ...x = = = horizon = = =
    forecast 2  .......................x = = = horizon = = =
    forecast 3  ...........................................x = =      (cut at the last bar)

`x` is a cutoff: the last bar that a forecast may know. Each forecast knows the real bars up to its cutoff, and never an
earlier forecast. All models get the same lookback bars, the same number of paths, and the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.data.windows import HOLDOUT_REASONS
from kronos_pipeline.evaluation.forecasting import baselines
from kronos_pipeline.evaluation.forecasting.batching import (
    ForecastJob,
    Sampler,
    forecast_request,
    run_job,
)
from kronos_pipeline.evaluation.forecasting.distributions import describe_closes, path_statistics
from kronos_pipeline.evaluation.forecasting.variants import variants_of
from kronos_pipeline.evaluation.predictions import (
    COLUMNS,
    DRIFT,
    INTERVALS,
    LEVELS,
    NAIVE,
    SEASONAL,
    variant_name,
)
from kronos_pipeline.evaluation.rivals.measures import range_variance, squared_returns
from kronos_pipeline.evaluation.rivals.optional import NO_RIVALS, OptionalRivals
from kronos_pipeline.evaluation.rivals.volatility_rivals import forecast_rivals

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.evaluation.forecasting.sampling import Sampling


@dataclass(frozen=True)
class Forecasts:
    """Forecasts of one ticker.

    Attributes:
        predictions: see `evaluation.predictions`.
        mended: share of the sampled bars that were no valid candles and were repaired, by model.
        notes: baselines without a forecast, and the reason.
        seconds: wall time of each model's sampling and of each rival, fit included, by model.
    """

    predictions: pd.DataFrame
    mended: dict[str, float]
    notes: tuple[str, ...]
    seconds: dict[str, float]


def predict(
    windows: WindowSet,
    models: Mapping[str, Any],
    samplings: Mapping[str, Sampling],
    recipe: Recipe,
    *,
    sampler: Sampler | None = None,
    rivals: OptionalRivals = NO_RIVALS,
) -> Forecasts:
    """Forecast every bar of a ticker's holdout with the baselines and each model.

    Args:
        windows: the ticker's windows; its holdout rows are the cutoffs.
        models: a `KronosModel` by column name: "base", "checkpoint", "adapter".
        samplings: the sampling of each model, by column name.
        recipe: horizon (bars), paths per forecast and seed.
        sampler: the sampler; by default `kronos_pipeline.model.decode.sample.sample_paths`.
        rivals: the rivals of `--rivals`.

    Raises:
        ModelError: a model's forecast is not finite.
    """
    return run_job(predict_job(windows, models, samplings, recipe, rivals), sampler)


def predict_job(
    windows: WindowSet,
    models: Mapping[str, Any],
    samplings: Mapping[str, Sampling],
    recipe: Recipe,
    rivals: OptionalRivals = NO_RIVALS,
) -> ForecastJob[Forecasts]:
    """Run `predict` as a job."""
    rows = windows.of_split("holdout")
    origins, ends = rows["origin"].to_numpy(np.int64), rows["end"].to_numpy(np.int64)
    sampled = yield [
        forecast_request(windows, origins, ends, model, recipe, samplings[name]) for name, model in models.items()
    ]
    known = windows.bars.frame["close"].to_numpy(np.float64)[origins[:, None] + np.arange(1 - windows.lookback, 1)]
    horizon = windows.horizon
    truth = _truth(windows, origins, ends)
    steps = truth["step"].to_numpy()
    real = np.arange(horizon) < (ends - origins - 1)[:, None]  # (cutoffs, horizon): the last forecast may be cut

    def of_points(points: np.ndarray) -> dict[str, np.ndarray]:
        point = points[real]
        undefined = dict.fromkeys((*INTERVALS, "variance", "p_up", "pit"), np.full(len(point), np.nan))
        return {"mean": point, "median": point, **undefined, "crps": np.abs(point - truth["y"].to_numpy())}

    def of_paths(closes: np.ndarray, widths: np.ndarray) -> dict[str, np.ndarray]:
        """Describe paths (cutoffs, paths, horizon) with widths (bars, levels)."""
        return _describe_paths(closes, known[:, -1], real, truth, widths)

    columns_of = {
        NAIVE: of_points(baselines.naive(known, horizon)),
        DRIFT: of_points(baselines.random_walk_with_drift(known, horizon)),
    }
    notes = [
        f"{windows.ticker}: {windows.excluded[reason]} {reason} of the holdout are not scored."
        for reason in HOLDOUT_REASONS
        if windows.excluded.get(reason)
    ]
    week = baselines.week_length(windows.bars.frame["timestamps"].to_numpy()[: windows.holdout_start])
    seasonal = baselines.seasonal_naive(known, week, horizon)
    if seasonal is not None:
        columns_of[SEASONAL] = of_points(seasonal)
    else:
        notes.append(f"{windows.ticker}: no {SEASONAL} forecast: {baselines.no_season(week, windows.lookback)}.")
    volatility = forecast_rivals(windows, origins, recipe)
    optional, reasons, seconds = rivals.forecast(windows, origins, ends, recipe)
    seconds |= volatility.seconds
    notes += [*volatility.notes, *reasons]
    for name, closes in (volatility.closes | optional).items():
        columns_of[name] = of_paths(closes, np.ones((len(steps), len(LEVELS))))
    mended = {}
    for name, paths in zip(models, sampled, strict=True):
        for variant, closes in variants_of(paths.closes, known[:, -1], volatility.variance).items():
            columns_of[variant_name(name, variant)] = of_paths(closes, samplings[name].widths_at(steps, variant))
        mended[name] = paths.mended / paths.bars
        seconds[name] = paths.seconds
    tables = [truth.assign(model=name, **columns) for name, columns in columns_of.items()]
    return Forecasts(pd.concat(tables, ignore_index=True)[list(COLUMNS)], mended, tuple(notes), seconds)


def paths_table(windows: WindowSet, closes: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Describe paths of a ticker's holdout by model, with intervals as sampled.

    Args:
        windows: the ticker's windows; its holdout rows are the cutoffs.
        closes: sampled closes by model, each (cutoffs, paths, horizon).

    Returns:
        A table of predictions, see `evaluation.predictions`.
    """
    rows = windows.of_split("holdout")
    origins, ends = rows["origin"].to_numpy(np.int64), rows["end"].to_numpy(np.int64)
    truth = _truth(windows, origins, ends)
    real = np.arange(windows.horizon) < (ends - origins - 1)[:, None]
    last = windows.bars.frame["close"].to_numpy(np.float64)[origins]
    widths = np.ones((len(truth), len(LEVELS)))
    tables = [
        truth.assign(model=name, **_describe_paths(paths, last, real, truth, widths)) for name, paths in closes.items()
    ]
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def _describe_paths(
    closes: np.ndarray, last: np.ndarray, real: np.ndarray, truth: pd.DataFrame, widths: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the columns of a table that describe paths.

    Args:
        closes: sampled closes, (cutoffs, paths, horizon).
        last: closes at the cutoffs, (cutoffs,).
        real: whether a bar ahead is in the holdout, (cutoffs, horizon).
        truth: the columns that all models share.
        widths: factors of the intervals, (bars, levels).
    """
    distribution = describe_closes(closes.transpose(0, 2, 1)[real], truth["y"].to_numpy(), widths)
    return distribution | {name: values[real] for name, values in path_statistics(closes, last).items()}


def _truth(windows: WindowSet, origins: np.ndarray, ends: np.ndarray) -> pd.DataFrame:
    """Return the columns that all models share, a row per cutoff and bar ahead."""
    close, stamps = windows.bars.values[:, FEATURES.index("close")], windows.bars.frame["timestamps"].to_numpy()
    targets = np.concatenate([np.arange(origin + 1, end) for origin, end in zip(origins, ends, strict=True)])
    cutoffs = np.repeat(origins, ends - origins - 1)
    return pd.DataFrame(
        {
            "unique_id": windows.ticker,
            "cutoff": stamps[cutoffs],
            "ds": stamps[targets],
            "step": (targets - cutoffs).astype(np.int32),
            "y": close[targets],
            "last": close[cutoffs],
            "scale": float(np.abs(np.diff(close[: windows.holdout_start])).mean()),
            "squared_return": squared_returns(close)[targets],
            "range_variance": range_variance(windows.bars.values)[targets],
        }
    )
