"""Forecast the next bars of a DataFrame, in one call."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kronos_pipeline.artifacts import MANIFEST, read_json
from kronos_pipeline.config import KronosTrainingConfig, Recipe, environment_settings
from kronos_pipeline.data.frames import read_frame
from kronos_pipeline.errors import ArtifactError, DataError, ModelError, SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from kronos_pipeline.evaluation.forecasting.sampling import Sampling

_ARGUMENTS = {"eval_samples": "samples", "model_name": "model", "calendars": "calendar"}
"""Arguments of `forecast` by the setting that they give, if their names differ."""
_UNNAMED = "df"
"""The ticker of a frame that names none."""


def forecast(  # noqa: PLR0913  each argument is a question that a user has
    df: pd.DataFrame,
    horizon: int | None = None,
    *,
    model: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    samples: int | None = None,
    seed: int | None = None,
    calendar: str | None = None,
) -> pd.DataFrame:
    """Forecast the next bars of a DataFrame: mean path, quantiles and the probability of a rise.

    Examples:
        >>> import pandas as pd
        >>> from kronos_pipeline import forecast
        >>> bars = pd.read_csv("trainingdata/AAPL/AAPL.csv")
        >>> ahead = forecast(bars, horizon=5, model="kronos-nano", samples=8)
        >>> list(ahead.columns[:8])
        ['unique_id', 'cutoff', 'ds', 'step', 'last', 'model', 'mean', 'median']
        >>> ahead[["ds", "mean", "lo_80", "hi_80", "p_up"]].shape
        (5, 5)

        By an adapter, the folder that `KronosTrainer(config).train()` returns:

        >>> forecast(bars, adapter="artifacts/adapters/AAPL")["model"].iloc[0]
        'AAPL on kronos-nano'

    Args:
        df: bars of one ticker with a DatetimeIndex or a column of times, open, high, low and close, and, if known,
            volume and amount, in any case; the names of columns are those of CSVs. The newest `lookback` bars are used:
            64, or the adapter's own number.
        horizon: bars to forecast, 30 by default, or the number that the adapter was trained with.
        model: base model: `kronos-nano`, a published name such as `NeoQuasar/Kronos-small`, owner/name@commit, or a
            folder; by default that of the adapter, KRONOS_BASE_MODEL, or `NeoQuasar/Kronos-small`.
        adapter: folder of an adapter or a checkpoint, such as `artifacts/adapters/AAPL`; by default the base model
            forecasts. Its intervals are recalibrated if it was evaluated on the ticker.
        samples: sampled paths, 32 by default.
        seed: seed of the paths, 0 by default.
        calendar: exchange calendar of the times to forecast, such as "XNYS"; by default the bars' own weekdays
            and times.

    Returns:
        A row per bar: `unique_id`, the ticker; `cutoff`, the time of the last known bar; `ds`, the time of the bar;
        `step`, from 1; `last`, the last known close; `model`; of the close, in the unit of the prices, `mean`, `median`
        and the bounds `lo_50` to `hi_90` of the central intervals; `p_up`, the share of paths above `last`; and `open`,
        `high`, `low` and `volume` of the mean candle. `attrs["notes"]` says how the frame was read.

    Raises:
        DataError: the frame cannot be read; the error names row, column and value.
        SettingsError: an argument is invalid.
        ModelError: the model is unknown or damaged, cannot be fetched, or the adapter was trained on another.
    """
    arguments = {
        "horizon": horizon,
        "model_name": None if model is None else os.fspath(model),
        "eval_samples": samples,
        "seed": seed,
        "calendars": None if calendar is None else [calendar],
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    folder = None if adapter is None else Path(adapter)
    recipe = _recipe(folder, given)
    recipe.used_lookback  # noqa: B018  raises for a horizon that leaves no room in the context
    ticker = folder.name if folder and folder.parent.name == "adapters" else _UNNAMED
    try:
        bars = read_frame(df, ticker)
    except DataError as error:
        raise _with_rows(error) from None

    # Imported here, after the checks, as torch takes seconds.
    from kronos_pipeline.evaluation.forecasting.future import forecast_ahead
    from kronos_pipeline.evaluation.forecasting.sampling import load_sampling, plain_sampling
    from kronos_pipeline.model.loading import load_recipe_base
    from kronos_pipeline.model.lora import load_trained

    forecaster = load_recipe_base(recipe)
    sampling: Sampling | None = None
    if folder:
        forecaster = load_trained(folder, forecaster)
        sampling = load_sampling(folder, bars.ticker, forecaster, recipe)
    label = f"{folder.name} on {forecaster.source.name}" if folder else None
    table = forecast_ahead(bars, forecaster, sampling or plain_sampling(recipe), recipe, label=label)
    table.attrs["notes"] = list(bars.notes)
    return table


def _recipe(folder: Path | None, given: dict[str, Any]) -> Recipe:
    """Return the settings of the trained model's manifest, or the defaults, changed by the given settings."""
    try:
        if folder is None:
            return KronosTrainingConfig(**given).recipe
        device = environment_settings().get("device", "auto")  # the device of the training may be on another machine
        return Recipe.model_validate({**_trained_settings(folder), "device": device, **given})
    except ValidationError as error:
        sentences = [
            f"{_ARGUMENTS.get(str(part['loc'][0]), part['loc'][0])}={part['input']!r}: {part['msg']}"
            for part in error.errors()
            if part["loc"]
        ]
        raise SettingsError("; ".join(sentences) or str(error)) from error


def _trained_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a trained model.

    Raises:
        ModelError: the folder has no manifest of a training.
    """
    try:
        settings = dict(read_json(folder / MANIFEST)["config"])
    except (ArtifactError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} is no adapter or checkpoint of this project: it has no {MANIFEST} of a training. Adapters are "
            "in <output_dir>/adapters/<TICKER>."
        ) from error
    return settings


def _with_rows(error: DataError) -> DataError:
    """Return the error of a frame with rows in place of lines."""
    text = re.sub(r"^df:(\d+):", r"df, row \1:", str(error), flags=re.MULTILINE)
    text = re.sub(r"; --drop-bad-rows .*$", "; mend the frame, or drop them", text, flags=re.MULTILINE)
    changed = DataError(error.problems, error.ticker)
    changed.args = (re.sub(r"\bline(s?)\b", r"row\1", text),)
    return changed
