"""How far forecasts were from what came: MAE and RMSE in price units, MAPE in percent, per symbol and model."""

from __future__ import annotations

from typing import NotRequired, TypedDict

import numpy as np
import pandas as pd
from utilsforecast import losses

from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.forecasts import KEYS

METRICS = ("mae", "rmse", "mape")
UNITS = {"mae": "price", "rmse": "price", "mape": "percent"}
_IN_PERCENT = {"mae": 1.0, "rmse": 1.0, "mape": 100.0}  # utilsforecast returns MAPE as a fraction


class Scores(TypedDict):
    """One model's errors on one symbol: `mae` and `rmse` in price units, `mape` in percent.

    A metric that cannot be computed is None, and `undefined` says why; the key is there only then.
    """

    mae: float | None
    rmse: float | None
    mape: float | None
    undefined: NotRequired[dict[str, str]]


def model_columns(forecasts: pd.DataFrame) -> list[str]:
    """The columns of a forecast table that are forecasts."""
    return [str(column) for column in forecasts.columns if column not in KEYS]


def score(forecasts: pd.DataFrame) -> dict[str, dict[str, Scores]]:
    """Score each model on each symbol, over all of its evaluated holdout bars together, whatever their cutoff.

    Args:
        forecasts: a table as `forecast_holdout` makes it, of one symbol or of many.

    Returns:
        Scores by symbol and model. A model whose column is empty for a symbol has no entry there: where tables of
        several symbols are put together, not every one has a checkpoint or an adapter.

    Raises:
        ArtifactError: a column is missing, or a symbol has two rows for one bar.
    """
    check_forecasts(forecasts)
    models = model_columns(forecasts)
    # With a cutoff column utilsforecast would score each roll by itself.
    table = forecasts.drop(columns="cutoff")
    values = {
        metric: getattr(losses, metric)(table, models=models, id_col="unique_id", target_col="y").set_index("unique_id")
        for metric in METRICS
    }
    return {
        str(symbol): {
            model: _scores(
                {metric: values[metric].loc[symbol, model] * _IN_PERCENT[metric] for metric in METRICS},
                _reasons(rows["y"].to_numpy(np.float64), rows[model].to_numpy(np.float64)),
            )
            for model in models
            if rows[model].notna().any()
        }
        for symbol, rows in table.groupby("unique_id", sort=True)
    }


def undefined_scores(reason: str) -> Scores:
    """Scores of a model of which nothing can be said, and why."""
    return {"mae": None, "rmse": None, "mape": None, "undefined": dict.fromkeys(METRICS, reason)}


def better(scores: Scores | None, rival: Scores | None) -> bool | None:
    """Whether `scores` has the lower MAE; None where either has none. It says nothing of chance."""
    if scores is None or rival is None or scores["mae"] is None or rival["mae"] is None:
        return None
    return scores["mae"] < rival["mae"]


def mean_scores(scores: list[Scores]) -> Scores:
    """The mean over symbols of each metric, every symbol weighing the same; None where it is None for any of them."""
    means = {}
    reasons = {}
    for metric in METRICS:
        values = [one[metric] for one in scores]  # type: ignore[literal-required]
        missing = sum(value is None for value in values)
        means[metric] = None if missing or not values else float(np.mean(values))
        if means[metric] is None:
            reasons[metric] = f"undefined for {missing} of {len(values)} symbols"
    return _scores(means, reasons)


def check_forecasts(forecasts: pd.DataFrame) -> None:
    """Check that a table has the columns of a forecast table, and one row per symbol and bar.

    Raises:
        ArtifactError: it has not.
    """
    if missing := [column for column in KEYS if column not in forecasts.columns]:
        raise ArtifactError(f"The forecast table has no column {', '.join(missing)}; evaluate again.")
    if len(twice := forecasts[forecasts.duplicated(["unique_id", "ds"])]):
        first = twice.iloc[0]
        raise ArtifactError(
            f"The forecast table has {first['unique_id']} at {first['ds']} twice, and {len(twice)} such rows in all; "
            "evaluate each symbol once."
        )


def _reasons(y: np.ndarray, forecast: np.ndarray) -> dict[str, str]:
    """Why a metric has no value, by metric: utilsforecast leaves such bars out without a word."""
    reasons = {}
    if bad := int((~np.isfinite(y) | ~np.isfinite(forecast)).sum()):
        reasons = dict.fromkeys(METRICS, f"no finite forecast or close at {bad} of {len(y)} bars")
    elif zeros := int((y == 0).sum()):
        reasons["mape"] = f"the close is 0 at {zeros} of {len(y)} bars"
    return reasons


def _scores(values: dict[str, float | None], reasons: dict[str, str]) -> Scores:
    """Put values and reasons together; what is left without a finite value is one that overflowed."""
    values = {metric: None if metric in reasons or value is None else float(value) for metric, value in values.items()}
    overflown = {metric for metric, value in values.items() if value is not None and not np.isfinite(value)}
    reasons = {**reasons, **dict.fromkeys(overflown, "the errors are too large for a number")}
    scores = Scores(**{metric: None if metric in overflown else values[metric] for metric in METRICS})  # type: ignore[typeddict-item]
    if reasons:
        scores["undefined"] = reasons
    return scores
