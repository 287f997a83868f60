"""Forecast of a ticker's next bars: the distribution of each close, the mean candle, and the time of each bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout, package_versions, write_parquet
from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.code_version import code_version
from kronos_pipeline.data.bars import FEATURES, Bars, FloatArray
from kronos_pipeline.data.calendars import next_stamps
from kronos_pipeline.data.windows import stamp_features
from kronos_pipeline.errors import DataError, Problem, count
from kronos_pipeline.evaluation.composed_variants import composed_variant, keeps_its_centre
from kronos_pipeline.evaluation.forecasting.batching import (
    ForecastJob,
    ForecastRequest,
    Sampler,
    run_job,
)
from kronos_pipeline.evaluation.forecasting.composition import PathModel, compose
from kronos_pipeline.evaluation.forecasting.distributions import describe_closes, path_statistics
from kronos_pipeline.evaluation.forecasting.variants import rescale
from kronos_pipeline.evaluation.predictions import BOUNDS, EWMA, LEVELS, NAIVE, RECENTRED, RESCALED, SAMPLED
from kronos_pipeline.evaluation.provenance import sampling_precision
from kronos_pipeline.evaluation.reports.text_table import TextTable, price
from kronos_pipeline.evaluation.rivals.volatility_rivals import forecast_rivals_ahead
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.evaluation.forecasting.sampling import Sampling
    from kronos_pipeline.model.loading import KronosModel

CANDLE = ("open", "high", "low", "volume")
COLUMNS = ("unique_id", "cutoff", "ds", "step", "last", "model", "mean", "median", *BOUNDS, "p_up", *CANDLE)
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
        model: the model, in the variant that was chosen for the distribution; None means the naive forecast, which
            repeats the last bar's close and volume, with the intervals of a random walk with EWMA volatility.
        sampling: temperature, top-p, s2 position, variants and interval widths.
        recipe: lookback, horizon, paths per forecast, seed and calendars.
        label: name of the model in the table; by default "naive", or the base model's name.
        sampler: the sampler, `sample_paths` by default.

    Returns:
        A row per bar: `unique_id`; `cutoff`, the last known bar's time; `ds`, in the file's local time; `step`, from 1;
        `last`, the close at the cutoff; `model`; of the close, in the file's price unit, `mean`, `median` and the
        bounds `lo_50` to `hi_90` of its central intervals, recalibrated; `p_up`, the share of paths with a close above
        the close at the cutoff, an equal close counts half; and of the mean candle `open`, `high`, `low` and `volume`.

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
    if model is None:
        table, _ = yield from forecast_composed_job(bars, None, EWMA, recipe, label=label or NAIVE)
        return table
    part = PathModel(model, sampling, recipe)
    centre = part if keeps_its_centre(sampling.variant(DISTRIBUTION)) else None
    table, _ = yield from forecast_composed_job(bars, centre, part, recipe, label=label or model.source.name)
    return table


def forecast_composed_job(
    bars: Bars, centre: PathModel | None, shape: PathModel | str, recipe: Recipe, *, label: str
) -> ForecastJob[tuple[pd.DataFrame, tuple[str, ...]]]:
    """Forecast the bars after a ticker's last one by the centre of one model and the shape of another.

    The mean candle is that of the centre's paths. Around the last close it is that of the shape's paths, recentred, or
    without a model the last close and the last volume.

    Args:
        bars: at least two bars of the ticker.
        centre: the model of the mean path; None for the last close.
        shape: the model of the paths, in the variant that was chosen for the distribution, or a volatility rival.
        recipe: horizon, seed and calendars; the number of a rival's paths.
        label: name of the model in the table.

    Returns:
        The table of `forecast_ahead`, and notes on the rival.

    Raises: see `forecast_ahead`.
    """
    if len(bars) < 2:
        raise DataError(
            Problem(bars.source, f"a forecast needs two bars or more, and there are {len(bars)}"), bars.ticker
        )
    horizon, last = recipe.horizon, bars.values[-1:, _CLOSE]
    stamps = pd.DatetimeIndex(bars.frame["timestamps"])
    ahead = next_stamps(bars, horizon, recipe.calendars)
    steps = np.arange(1, horizon + 1)
    parts = [part for part in (shape, centre) if isinstance(part, PathModel)]
    own_centre = len(parts) == 2 and parts[0].model is parts[1].model
    requests = [_request(bars, stamps, ahead, part) for part in (parts[:1] if own_centre else parts)]
    sampled = (yield requests) if requests else []
    notes: tuple[str, ...] = ()
    if isinstance(shape, PathModel):
        variant = composed_variant(shape.sampling.variant(DISTRIBUTION), own_centre=own_centre)
        closes = sampled[0].closes
        if variant == RESCALED:
            closes = rescale(closes, last, forecast_rivals_ahead(bars, recipe, models=()).variance)
        widths = shape.sampling.widths_at(steps, variant)
    else:
        rivals = forecast_rivals_ahead(bars, recipe, models=[shape])
        variant, closes, notes = RECENTRED, rivals.closes[shape], rivals.notes
        widths = np.ones((horizon, len(LEVELS)))
    candles = _flat_candles(bars, horizon) if not sampled else sampled[-1].values[0].mean(axis=0)
    if centre is None:
        candles[:, :_VOLUME] *= (last / candles[:, _CLOSE])[:, None]
        candles[:, _CLOSE] = last
    mean = {}
    if variant != SAMPLED:
        closes = compose(candles[:, _CLOSE], closes[0])[None]
        mean = {"mean": candles[:, _CLOSE]}  # without the rounding of a mean over the paths
    unknown = np.full(horizon, np.nan)  # the real closes; without them there are no scores
    columns = {
        "unique_id": bars.ticker,
        "cutoff": stamps[-1],
        "ds": ahead,
        "step": steps.astype(np.int32),
        "last": last[0],
        "model": label,
        **describe_closes(closes[0].T, unknown, widths),
        **mean,
        "p_up": path_statistics(closes, last)["p_up"][0],
        **{name: candles[:, FEATURES.index(name)] for name in CANDLE},
    }
    return pd.DataFrame(columns)[list(COLUMNS)], notes


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
        sampled: the results of `describe_sampled_model` by part, "centre" and "shape"; None without a model.
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


def describe_sampled_model(part: PathModel) -> dict[str, Any]:
    """Return the provenance of a model and its sampling."""
    model, sampling, recipe = part.model, part.sampling, part.recipe
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
        "variant": sampling.variant(DISTRIBUTION),
        "residuals": sampling.residuals,
        "lookback": recipe.used_lookback,
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
    title = f"{forecast_title(forecast)}, by {manifest['model']}"
    png = fan_plot(bars.frame, forecast, title, manifest["notes"])
    write_file(picture, lambda handle: handle.write(png))
    return table, picture


def forecast_text_table(forecast: pd.DataFrame, notes: Sequence[str] = ()) -> TextTable:
    """Build a table of a forecast: a row per bar, with closes and the bounds of their central intervals.

    Args:
        forecast: the result of `forecast_ahead`.
        notes: notes below the table.
    """
    form = _time_form(forecast)
    bounds = [f"lo_{level}" for level in LEVELS[::-1]] + ["median"] + [f"hi_{level}" for level in LEVELS]
    names = {"median": "median"} | {name: f"{name[:2]}\n{name[3:]} %" for name in BOUNDS}
    return TextTable(
        title=forecast_title(forecast),
        headers=["Bar", "mean", *(names[name] for name in bounds), "P(up)"],
        rows=[
            [
                row["ds"].strftime(form),
                *(price(row[name], _DIGITS) for name in ("mean", *bounds)),
                f"{row['p_up']:.0%}",
            ]
            for _, row in forecast.iterrows()
        ],
        notes=list(notes),
    )


def forecast_title(forecast: pd.DataFrame) -> str:
    """Return the title of a forecast: ticker, number of bars, and the last known bar."""
    first = forecast.iloc[0]
    last_known = first["cutoff"].strftime(_time_form(forecast))
    return f"{first['unique_id']}: close (price) of the next {count(len(forecast), 'bar')} after {last_known}"


def _time_form(forecast: pd.DataFrame) -> str:
    stamps = pd.DatetimeIndex(forecast["ds"])
    return "%Y-%m-%d" if (stamps == stamps.normalize()).all() else "%Y-%m-%d %H:%M"


def _flat_candles(bars: Bars, horizon: int) -> FloatArray:
    """Return candles that repeat the last close and volume, (horizon, 6)."""
    candle = np.full(len(FEATURES), bars.values[-1, _CLOSE])
    candle[_VOLUME:] = bars.values[-1, _VOLUME:]
    return np.tile(candle, (horizon, 1))


def _request(bars: Bars, stamps: pd.DatetimeIndex, ahead: pd.DatetimeIndex, part: PathModel) -> ForecastRequest:
    """Build the request for the forecast from the last bar."""
    recipe, model = part.recipe, part.model
    lookback = min(recipe.lookback, model.context - recipe.horizon - 1, len(bars))
    history = bars.values[-lookback:]
    if np.ptp(history[:, _CLOSE]) == 0:
        rule = f"the last {lookback} closes are all {history[-1, _CLOSE]:g}, and a model cannot forecast them"
        raise DataError(Problem(bars.source, rule), bars.ticker)
    past, future = stamp_features(stamps[-lookback:]), stamp_features(ahead)
    return ForecastRequest(bars.ticker, history[None], past[None], future[None], model, part.sampling, recipe)
