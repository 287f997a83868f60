"""The table of predictions, the source of every number of an evaluation: a row per ticker, cutoff, bar and model.

    unique_id  cutoff      ds          step  y      last   scale  model    mean   median  lo_80  hi_80 ...  crps  pit
    AAPL       2024-03-01  2024-03-04  1     181.2  179.9  2.31   naive    179.9  179.9   -      -          1.3   -
    AAPL       2024-03-01  2024-03-04  1     181.2  179.9  2.31   adapter  180.6  180.5   176.0  185.1      0.9   0.61

Prices are in the file's unit. `step` counts bars after the cutoff from 1. `y` is the real close, `last` the close at
the cutoff, `scale` the mean absolute change from one close to the next before the first evaluated bar, the divisor of
scaled errors. `squared_return` is the bar's squared log change of the close, and `range_variance` a less noisy measure
of the same from its open, high and low. `mean` and `median` are those of the sampled paths' closes. `lo_80` and `hi_80`
bound the central interval of 80 percent, after recalibration; `raw_lo_80` and `raw_hi_80` before it. `variance` is the
mean over the paths of the squared log change of the close from the bar before, `p_up` the share of the paths with a
close above `last` (an equal close counts half). `crps` (price units) and `pit` (from 0 to 1) are those of the sampled
paths. A point forecast has no interval, variance, p_up or pit, and its crps is its absolute error.

A Kronos model has a row for each variant of its paths, see `forecasting.variants`: `adapter` as sampled,
`adapter_recentred` and `adapter_rescaled`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pandas as pd

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ArtifactError

LEVELS = (50, 80, 90)
"""Central intervals, in percent."""
FEWEST_PATHS = 19
"""Minimum number of paths with all intervals between the outermost two: 2 / (N + 1) of a distribution lies beyond
them. With fewer paths, the ends beyond them are those of a fitted tail."""
KEYS = ("unique_id", "cutoff", "ds", "step", "y", "last", "scale", "squared_return", "range_variance")
"""The columns that all models of a bar share."""
BOUNDS = tuple(f"{side}_{level}" for level in LEVELS for side in ("lo", "hi"))
"""The ends of the intervals."""
QUANTILES = {
    **{f"lo_{level}": (100 - level) / 200 for level in LEVELS[::-1]},
    "median": 0.5,
    **{f"hi_{level}": (100 + level) / 200 for level in LEVELS},
}
"""The columns that are quantiles, with their probabilities, ascending."""
INTERVALS = (*BOUNDS, *(f"raw_{bound}" for bound in BOUNDS))
COLUMNS = (*KEYS, "model", "mean", "median", *INTERVALS, "variance", "p_up", "crps", "pit")

NAIVE, DRIFT, SEASONAL = "naive", "drift", "seasonal_naive"
POINT_BASELINES = (NAIVE, DRIFT, SEASONAL)
EWMA, GARCH, GJR_GARCH, HAR = "ewma", "garch", "gjr_garch", "har"
VOLATILITY_RIVALS = (EWMA, GARCH, GJR_GARCH, HAR)
"""Random walks that differ in their forecast of the volatility."""
LIGHTGBM, CHRONOS = "lightgbm", "chronos"
OPTIONAL_RIVALS = (LIGHTGBM, CHRONOS)
BASELINES = (*POINT_BASELINES, *VOLATILITY_RIVALS, *OPTIONAL_RIVALS)
BASE, CHECKPOINT, ADAPTER, ENSEMBLE = "base", "checkpoint", "adapter", "ensemble"
KRONOS = (BASE, CHECKPOINT, ADAPTER, ENSEMBLE)
"""Kronos models; the ensemble is of the trained models of several seeds, see `forecasting.ensemble`."""

Variant = Literal["sampled", "recentred", "rescaled"]
SAMPLED: Variant = "sampled"
RECENTRED: Variant = "recentred"
RESCALED: Variant = "rescaled"
VARIANTS: tuple[Variant, ...] = (SAMPLED, RECENTRED, RESCALED)


def variant_name(model: str, variant: Variant) -> str:
    """Return the name of a Kronos model's variant in the table: "adapter", "adapter_recentred", "adapter_rescaled"."""
    return model if variant == SAMPLED else f"{model}_{variant}"


MODELS = (*BASELINES, *(variant_name(model, variant) for model in KRONOS for variant in VARIANTS))
"""Every model of a table, in the order of tables and legends."""


def trained_model(recipe: Recipe) -> str:
    """Return the model that a recipe trains, "checkpoint" or "adapter"."""
    return CHECKPOINT if recipe.adapter == "none" else ADAPTER


def models_of(predictions: pd.DataFrame) -> list[str]:
    """Return the models of a table, in the order of `MODELS`."""
    present = set(predictions["model"].unique())
    return [model for model in MODELS if model in present]


def without_variants(models: Iterable[str]) -> list[str]:
    """Return the models without the variants of a Kronos model's paths, for plots and short tables."""
    return [model for model in models if model in BASELINES or model in KRONOS]


def check_predictions(predictions: pd.DataFrame) -> None:
    """Check that a table has its columns, and one row per ticker, cutoff, bar and model.

    Raises:
        ArtifactError: a column is missing, or a row occurs twice.
    """
    if missing := [column for column in COLUMNS if column not in predictions.columns]:
        raise ArtifactError(f"The table of predictions has no column {', '.join(missing)}; evaluate again.")
    keys = ["unique_id", "cutoff", "ds", "model"]
    if len(twice := predictions[predictions.duplicated(keys)]):
        first = twice.iloc[0]
        raise ArtifactError(
            f"The table of predictions has {first['unique_id']} at {first['ds']} from {first['cutoff']} twice, and "
            f"{len(twice)} such rows in all; evaluate each ticker once."
        )


def point_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return a row per ticker and bar: `unique_id, ds, cutoff, y`, and the mean path's close of each model, as sampled.

    A ticker without a forecast of a model has NaN in the model's column.
    """
    keys = ["unique_id", "ds", "cutoff", "y"]
    wide = predictions.pivot_table(index=keys, columns="model", values="mean").reset_index()
    wide.columns.name = None
    return wide[[*keys, *without_variants(models_of(predictions))]]
