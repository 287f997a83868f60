"""The three targets of a forecast, the loss of each, and the rivals that a model must beat on it.

    mean           scaled mean absolute error of the mean path
    distribution   scaled CRPS of the paths, which measures centre, width and tails at once
    volatility     QLIKE of the variance over the horizon

A target has one loss per ticker and cutoff, as the bars of one forecast err together.

QLIKE is the loss r - ln r - 1 of the ratio r = realised / forecast variance (Patton, Volatility forecast comparison
using imperfect volatility proxies, 2011). The realised variance is the sum of the squared log returns, which has the
true variance as its mean; QLIKE then ranks forecasts as the true variance would, however noisy the returns are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_pipeline.evaluation.predictions import (
    BASE,
    DRIFT,
    EWMA,
    KRONOS,
    MODELS,
    NAIVE,
    OPTIONAL_RIVALS,
    SAMPLED,
    SEASONAL,
    VOLATILITY_RIVALS,
    Variant,
    variant_name,
)

Target = Literal["mean", "distribution", "volatility"]
MEAN: Target = "mean"
DISTRIBUTION: Target = "distribution"
VOLATILITY: Target = "volatility"
TARGETS: tuple[Target, ...] = get_args(Target)

REQUIRED_RIVALS: Mapping[Target, tuple[str, ...]] = {
    MEAN: (NAIVE, BASE),
    DISTRIBUTION: (EWMA, BASE),
    VOLATILITY: (EWMA, BASE),
}
"""Rivals without which a model has no verdict."""
RIVALS: Mapping[Target, tuple[str, ...]] = {
    MEAN: (NAIVE, DRIFT, SEASONAL, *OPTIONAL_RIVALS, BASE),
    DISTRIBUTION: (*VOLATILITY_RIVALS, *OPTIONAL_RIVALS, BASE),
    VOLATILITY: (*VOLATILITY_RIVALS, *OPTIONAL_RIVALS, BASE),
}
"""All rivals of a target."""

ChosenVariants = Mapping[str, Mapping[str, Mapping[str, Variant]]]
"""By ticker, model and target: the variant that stands for the model; without an entry the paths as sampled."""


def rivals_in(predictions: pd.DataFrame, target: Target) -> tuple[str, ...]:
    """Return the rivals of a target that a table has, and the required rivals in any case."""
    present = {*predictions["model"].unique(), *REQUIRED_RIVALS[target]}
    return tuple(rival for rival in RIVALS[target] if rival in present)


def judged_rows(predictions: pd.DataFrame, target: Target, variants: ChosenVariants) -> pd.DataFrame:
    """Return a table in which each Kronos model has the rows of the variant that was chosen for a target.

    Args:
        predictions: a table with the variants as models of their own.
        target: the target.
        variants: see `ChosenVariants`; they were chosen on the selection block.
    """
    names = predictions["model"].to_numpy(object)
    judged = names.copy()
    ticker_codes, tickers = pd.factorize(predictions["unique_id"])
    for model in KRONOS:
        family = np.isin(names, [name for name in MODELS if name.startswith(f"{model}_")])
        judged[family] = ""
        chosen = [variants.get(ticker, {}).get(model, {}).get(target, SAMPLED) for ticker in tickers]
        chosen_of_row = np.array(chosen, dtype=object)[ticker_codes]
        for variant in sorted(set(chosen) - {SAMPLED}):
            rows = chosen_of_row == variant
            judged[rows & (names == model)] = ""
            judged[rows & (names == variant_name(model, variant))] = model
    table: pd.DataFrame = predictions.assign(model=judged)
    return table[table["model"] != ""]


def target_losses(predictions: pd.DataFrame, model: str, target: Target) -> pd.Series:
    """Return a model's loss on a target by `(unique_id, cutoff)`.

    A loss is NaN if it is undefined: a forecast or a close is not finite, the scale is not a number above 0, or the
    close does not move over the horizon. The result is empty if the table has no forecast of the model.

    Args:
        predictions: a table of `predictions.py`.
        model: a model of the table.
        target: the target.
    """
    losses = _losses(predictions[predictions["model"] == model], target, ["unique_id", "cutoff"])
    return losses.replace(np.inf, np.nan).rename("loss")


def loss_table(predictions: pd.DataFrame, target: Target) -> pd.DataFrame:
    """Return the losses of all models: a row per `(unique_id, cutoff)`, a column per model.

    A loss is infinite if it is undefined, see `target_losses`, and NaN if the table has no such forecast.
    """
    table: pd.DataFrame = _losses(predictions, target, ["unique_id", "cutoff", "model"]).unstack("model")  # noqa: PD010
    return table


def qlike_of_ratio(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return QLIKE of ratios of realised and forecast variance, which are above 0 or NaN."""
    losses: NDArray[np.float64] = ratio - np.log(ratio) - 1
    return losses


def qlike(rows: pd.DataFrame, measure: str, keys: Sequence[str] = ("unique_id", "cutoff")) -> pd.Series:
    """Return QLIKE of each forecast; NaN where a variance is not above 0.

    Args:
        rows: rows of a table of predictions.
        measure: column of the realised variance per bar, "squared_return" or "range_variance".
        keys: the columns that tell forecasts apart; those of one model's rows by default.
    """
    ratio = variance_ratio(rows, measure, keys)
    return pd.Series(qlike_of_ratio(ratio.to_numpy(np.float64)), index=ratio.index)


def variance_ratio(rows: pd.DataFrame, measure: str, keys: Sequence[str] = ("unique_id", "cutoff")) -> pd.Series:
    """Return realised / forecast variance over the horizon of each forecast; NaN if either is not above 0."""
    sums = rows[[measure, "variance"]].fillna(np.inf).groupby([rows[key] for key in keys]).sum()
    sums = sums.where((sums > 0) & np.isfinite(sums))
    return sums[measure] / sums["variance"]


def _losses(rows: pd.DataFrame, target: Target, keys: Sequence[str]) -> pd.Series:
    """Return the loss of each forecast by the columns that tell forecasts apart; infinite if it is undefined."""
    if target == VOLATILITY:
        return qlike(rows, "squared_return", keys).fillna(np.inf)
    scale = rows["scale"].where((rows["scale"] > 0) & np.isfinite(rows["scale"]))
    errors = (rows["mean"] - rows["y"]).abs() if target == MEAN else rows["crps"]
    filled = (errors / scale).fillna(np.inf)  # a mean would leave NaN out
    return pd.Series(filled.groupby([rows[key] for key in keys]).mean())
