"""Forecast of a ticker's next bars: the distribution of each close, the mean candle, and the time of each bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout, package_versions, write_file, write_parquet
from kronos_pipeline.code_version import code_version
from kronos_pipeline.data.bars import FEATURES, Bars, FloatArray
from kronos_pipeline.data.calendars import next_stamps
from kronos_pipeline.data.windows import stamp_features
from kronos_pipeline.errors import DataError, Problem, count
from kronos_pipeline.evaluation.forecasting.baselines import random_walk_paths
from kronos_pipeline.evaluation.forecasting.batching import (
    ForecastJob,
    ForecastRequest,
    Sampler,
    run_job,
    sampling_seed,
)
from kronos_pipeline.evaluation.forecasting.distributions import describe_closes, path_statistics
from kronos_pipeline.evaluation.predictions import LEVELS, NAIVE
from kronos_pipeline.evaluation.provenance import sampling_precision
from kronos_pipeline.evaluation.reports.text_table import TextTable, price

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.evaluation.forecasting.sampling import Sampling
    from kronos_pipeline.model.loading import KronosModel

BOUNDS = tuple(f"{side}_{level}" for level in LEVELS for side in ("lo", "hi"))
CANDLE = ("open", "high", "low", "volume")
COLUMNS = ("unique_id", "cutoff", "ds", "step", "model", "mean", "median", *BOUNDS, "p_up", *CANDLE)
_NAIVE_PATHS = 1_000
"""Number of paths of the random walk; it costs little, so its intervals are finer than those of a model's few paths."""
_DIGITS = 5
"""Significant digits of a printed price; prices of currencies change in the fifth digit."""
_CLOSE, _VOLUME = FEATURES.index("close"), FEATURES.index("volume")


def forecast_ahead(
    bars: Bars,
    model: KronosModel | None,
    sampling: Sampling,
    recipe: Recipe,
    *,
    label: str | None = None,
    sampler: Sampler | None = None,
) -> pd.DataFrame:
    """Forecast the `horizon` bars after a ticker's last one.

    Args:
        bars: at least two bars of the ticker; the model reads the newest `lookback`.
        model: the model; None means the naive forecast, which repeats the last bar's close and volume, with the
            intervals of a random walk.
        sampling: temperature, top-p, s2 position and interval widths.
        recipe: lookback, horizon, paths per forecast, seed and calendars.
        label: name of the model in the table; by default "naive", or the base model's name.
        sampler: the sampler, `sample_paths` by default.

    Returns:
        A row per bar: `unique_id`; `cutoff`, the last known bar's time; `ds`, in the file's local time; `step`,
        from 1; `model`; of the close, in the file's price unit, `mean`, `median` and the bounds `lo_50` to `hi_90` of
        its central intervals, recalibrated; `p_up`, the share of paths with a close above the close at the cutoff, an
        equal close counts half; and of the mean candle `open`, `high`, `low` and `volume`.

    Raises:
        DataError: there are fewer than two bars, or all closes of the lookback are equal.
        SettingsError: a calendar does not fit, see `next_stamps`.
        ModelError: a sampled number is not finite.
    """
    return run_job(forecast_ahead_job(bars, model, sampling, recipe, label=label), sampler)


def forecast_ahead_job(
    bars: Bars, model: KronosModel | None, sampling: Sampling, recipe: Recipe, *, label: str | None = None
) -> ForecastJob[pd.DataFrame]:
    """Run `forecast_ahead` as a job."""
    horizon = recipe.horizon
    if len(bars) < 2:
        raise DataError(
            Problem(bars.source, f"a forecast needs two bars or more, and there are {len(bars)}"), bars.ticker
        )
    stamps = pd.DatetimeIndex(bars.frame["timestamps"])
    ahead = next_stamps(bars, horizon, recipe.calendars)
    if model is None:
        candles, closes = _naive(bars, recipe)
    else:
        (paths,) = yield [_request(bars, stamps, ahead, model, sampling, recipe)]
        candles, closes = paths.values[0].mean(axis=0), paths.closes[0]
    steps = np.arange(1, horizon + 1)
    unknown = np.full(horizon, np.nan)  # the real closes; without them there are no scores
    widths = np.ones((horizon, len(LEVELS))) if model is None else sampling.widths_at(steps)
    distribution = describe_closes(closes.T, unknown, widths)
    if model is None:
        distribution |= {"mean": candles[:, _CLOSE], "median": candles[:, _CLOSE]}
    columns = {
        "unique_id": bars.ticker,
        "cutoff": stamps[-1],
        "ds": ahead,
        "step": steps.astype(np.int32),
        "model": label or (NAIVE if model is None else model.source.name),
        **distribution,
        "p_up": path_statistics(closes[None], bars.values[-1:, _CLOSE])["p_up"][0],
        **{name: candles[:, FEATURES.index(name)] for name in CANDLE},
    }
    return pd.DataFrame(columns)[list(COLUMNS)]


def forecast_manifest(
    bars: Bars,
    forecast: pd.DataFrame,
    sampled: Mapping[str, Any] | None,
    recipe: Recipe,
    reason: str,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the provenance of a forecast: data, model with the reason, sampling, settings, code and packages.

    Args:
        bars: the ticker's bars.
        forecast: the result of `forecast_ahead` for these bars.
        sampled: the result of `describe_sampled_model`; None for the naive forecast.
        recipe: the settings of the forecast.
        reason: the reason for the model.
        notes: notes on the forecast.
    """
    return {
        "ticker": bars.ticker,
        "data": bars.content_hash,
        "cutoff": forecast["cutoff"].iloc[0].isoformat(),
        "model": str(forecast["model"].iloc[0]),
        "reason": reason,
        "notes": list(notes),
        "sampled": None if sampled is None else dict(sampled),
        "config": recipe.model_dump(mode="json"),
        **recipe.derived,
        "code_version": code_version(),
        "packages": package_versions(),
    }


def describe_sampled_model(model: KronosModel, sampling: Sampling, recipe: Recipe) -> dict[str, Any]:
    """Return the provenance of a model and its sampling."""
    return {
        "base_model": model.source.name,
        "base_revision": model.source.predictor.revision,
        "demo": model.source.demo,
        "weights_hash": model.weights_hash,
        "device": str(model.device),
        "precision": sampling_precision(recipe.precision, model.device),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "s2_position": sampling.s2_position,
        "residuals": sampling.residuals,
    }


def save_forecast(
    layout: ArtifactLayout, bars: Bars, forecast: pd.DataFrame, manifest: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write `forecasts/<T>.parquet`, and its fan chart `plots/<T>/forecast.png` with the manifest's notes on it.

    Args:
        layout: the layout of the artifacts.
        bars: the ticker's bars.
        forecast: the result of `forecast_ahead` for these bars.
        manifest: the result of `forecast_manifest`.

    Returns:
        The two files.
    """
    from kronos_pipeline.evaluation.reports.plots import fan_plot  # imports matplotlib

    table, picture = layout.forecast(bars.ticker), layout.picture(bars.ticker, "forecast")
    write_parquet(table, forecast, dict(manifest))
    title = f"{_title(forecast)}, by {manifest['model']}"
    png = fan_plot(bars.frame, forecast, title, manifest["notes"])
    write_file(picture, lambda handle: handle.write(png))
    return table, picture


def forecast_text_table(forecast: pd.DataFrame, reason: str, notes: Sequence[str] = ()) -> TextTable:
    """Build a table of a forecast: a row per bar, with closes and the bounds of their central intervals.

    Args:
        forecast: the result of `forecast_ahead`.
        reason: the reason for the model.
        notes: notes below the table.
    """
    form = _time_form(forecast)
    bounds = [f"lo_{level}" for level in LEVELS[::-1]] + ["median"] + [f"hi_{level}" for level in LEVELS]
    names = {"median": "median"} | {name: f"{name[:2]}\n{name[3:]} %" for name in BOUNDS}
    return TextTable(
        title=_title(forecast),
        headers=["Bar", "mean", *(names[name] for name in bounds)],
        rows=[
            [row["ds"].strftime(form), *(price(row[name], _DIGITS) for name in ("mean", *bounds))]
            for _, row in forecast.iterrows()
        ],
        notes=[f"By {forecast['model'].iloc[0]}: {reason}", *notes],
    )


def _title(forecast: pd.DataFrame) -> str:
    first = forecast.iloc[0]
    last_known = first["cutoff"].strftime(_time_form(forecast))
    return f"{first['unique_id']}: close (price) of the next {count(len(forecast), 'bar')} after {last_known}"


def _time_form(forecast: pd.DataFrame) -> str:
    stamps = pd.DatetimeIndex(forecast["ds"])
    return "%Y-%m-%d" if (stamps == stamps.normalize()).all() else "%Y-%m-%d %H:%M"


def _naive(bars: Bars, recipe: Recipe) -> tuple[FloatArray, FloatArray]:
    """Return the last close and volume, (horizon, 6), and the closes of a random walk from there, (paths, horizon)."""
    values = bars.values[-recipe.lookback :]
    candle = np.full(len(FEATURES), values[-1, _CLOSE])
    candle[_VOLUME:] = values[-1, _VOLUME:]
    seed = sampling_seed(recipe.seed, bars.ticker)
    paths = max(recipe.eval_samples, _NAIVE_PATHS)
    walks = random_walk_paths(values[None, :, _CLOSE], paths, recipe.horizon, seed)
    return np.tile(candle, (recipe.horizon, 1)), walks[0]


def _request(
    bars: Bars,
    stamps: pd.DatetimeIndex,
    ahead: pd.DatetimeIndex,
    model: KronosModel,
    sampling: Sampling,
    recipe: Recipe,
) -> ForecastRequest:
    """Build the request for the forecast from the last bar."""
    lookback = min(recipe.lookback, model.context - recipe.horizon - 1, len(bars))
    history = bars.values[-lookback:]
    if np.ptp(history[:, _CLOSE]) == 0:
        rule = f"the last {lookback} closes are all {history[-1, _CLOSE]:g}, and a model cannot forecast them"
        raise DataError(Problem(bars.source, rule), bars.ticker)
    past, future = stamp_features(stamps[-lookback:]), stamp_features(ahead)
    return ForecastRequest(bars.ticker, history[None], past[None], future[None], model, sampling, recipe)
