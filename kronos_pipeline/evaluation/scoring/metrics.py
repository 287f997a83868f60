"""Metrics of forecasts per symbol and model: errors in price units, scaled errors, and coverage of the intervals.

A scaled error is divided by the mean absolute change from one close to the next before the first evaluated bar, so
that a stock of 3,000 dollars does not outweigh a stock of 3 dollars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NotRequired, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from utilsforecast import losses

from kronos_pipeline.evaluation.predictions import (
    BOUNDS,
    LEVELS,
    QUANTILES,
    SAMPLED,
    Variant,
    check_predictions,
    variant_name,
)
from kronos_pipeline.evaluation.scoring.targets import (
    DISTRIBUTION,
    VOLATILITY,
    ChosenVariants,
    Target,
    qlike,
    variance_ratio,
)

PINBALL = {round(100 * level): column for column, level in QUANTILES.items() if column in BOUNDS}
"""Quantiles in percent with a pinball loss, and the end of an interval that each is."""
_OF_DISTRIBUTION = {"crps", "scaled", "pinball", "brier", "coverage", "width", "raw"}
_INTERVALS = [(prefix, level) for prefix in ("", "raw_") for level in LEVELS]

UNITS = {
    "mae": "price",
    "rmse": "price",
    "mape": "percent",
    "mase": "scaled",
    "bias": "price",
    "directional_accuracy": "percent",
    "crps": "price",
    "scaled_crps": "scaled",
    **{f"pinball_{quantile}": "scaled" for quantile in PINBALL},
    "brier": "squared probability",
    "qlike": "log ratio",
    "range_qlike": "log ratio",
    "log_variance_error": "log ratio",
    **{f"{prefix}coverage_{level}": "percent" for prefix, level in _INTERVALS},
    **{f"{prefix}width_{level}": "percent of the close" for prefix, level in _INTERVALS},
}
"""The unit of each metric; "scaled" is a multiple of the mean absolute change from one close to the next."""
METRICS = tuple(UNITS)
METRICS_OF: dict[Target, tuple[str, ...]] = {
    DISTRIBUTION: tuple(name for name in METRICS if name.partition("_")[0] in _OF_DISTRIBUTION),
    VOLATILITY: ("qlike", "range_qlike", "log_variance_error"),
}
"""The metrics of the targets that have variants."""

_OF_POINTS = ("mae", "rmse", "mape", "mase", "bias", "directional_accuracy")
_OF_VARIANCE = METRICS_OF[VOLATILITY]
_SERIES = "series"
_TOO_LARGE = "the errors are too large for a number"
_NO_SCALE = "no scale (the close never changed before the evaluation)"
_NO_VARIANCE = "the close, or its range, does not move over the bars of a forecast"
_NO_DIRECTION = "at no bar do the forecast and the close both differ from the close at the cutoff"

_OF_NO_VALUE = {
    "directional_accuracy": _NO_DIRECTION,
    **dict.fromkeys(_OF_VARIANCE, _NO_VARIANCE),
}
"""The reason that a metric has no value though all of its bars have one."""


class Scores(TypedDict):
    """Scores of one model on one symbol over all of the symbol's bars; `UNITS` has the units.

    mae, rmse, mape: of the mean path's close.
    mase: the mean absolute error, scaled.
    bias: the mean of forecast minus close; above 0 the forecasts are too high.
    directional_accuracy: of the bars with a forecast and a close that both differ from the close at the cutoff, the
        share with both on the same side of it.
    crps, scaled_crps: of the sampled paths; of a point forecast the absolute error.
    pinball_5: the mean pinball loss of the quantile of 5 percent, scaled; the quantiles are the ends of the intervals.
    brier: of `p_up`, the mean of (p_up - up)^2; 0.25 is that of 0.5. A close equal to the last counts half.
    qlike: of the variance over a forecast's bars against the sum of their squared returns, the mean over the cutoffs,
        see `targets.py`; range_qlike against the sum of their range variances.
    log_variance_error: the mean over the cutoffs of |ln(realised / forecast variance)|, against the squared returns.
    coverage_80: share of the bars with a close within the central interval of 80 percent; 80 is right.
    width_80: the interval's mean width, in percent of the close at the cutoff.
    raw_coverage_80, raw_width_80: the same before recalibration.

    A metric that cannot be computed is None, and `undefined` has the reason; without such a metric the key is missing.
    """

    mae: float | None
    rmse: float | None
    mape: float | None
    mase: float | None
    bias: float | None
    directional_accuracy: float | None
    crps: float | None
    scaled_crps: float | None
    pinball_5: float | None
    pinball_10: float | None
    pinball_25: float | None
    pinball_75: float | None
    pinball_90: float | None
    pinball_95: float | None
    brier: float | None
    qlike: float | None
    range_qlike: float | None
    log_variance_error: float | None
    coverage_50: float | None
    coverage_80: float | None
    coverage_90: float | None
    raw_coverage_50: float | None
    raw_coverage_80: float | None
    raw_coverage_90: float | None
    width_50: float | None
    width_80: float | None
    width_90: float | None
    raw_width_50: float | None
    raw_width_80: float | None
    raw_width_90: float | None
    undefined: NotRequired[dict[str, str]]


def score(predictions: pd.DataFrame) -> dict[str, dict[str, Scores]]:
    """Score each model on each symbol over all of the symbol's evaluated bars, of all cutoffs.

    Args:
        predictions: a table of `predictions.py` with one symbol or many.

    Returns:
        Scores by symbol and model. A model that does not forecast a symbol has no entry there.

    Raises:
        ArtifactError: a column is missing, or a symbol has two rows of a model for one bar and cutoff.
    """
    check_predictions(predictions)
    rows = predictions.reset_index(drop=True)
    rows[_SERIES] = rows.groupby(["unique_id", "model"], observed=True).ngroup()
    values, reasons = _values(rows)[list(METRICS)].to_numpy(np.float64), _reasons(rows)
    series = rows.drop_duplicates(_SERIES).sort_values(_SERIES)
    scores: dict[str, dict[str, Scores]] = {}
    for number, symbol, model in zip(series[_SERIES], series["unique_id"], series["model"], strict=True):
        series_values = dict(zip(METRICS, values[number].tolist(), strict=True))
        scores.setdefault(str(symbol), {})[str(model)] = _scores(series_values, reasons.get(number, {}))
    return scores


def score_as_judged(predictions: pd.DataFrame, variants: ChosenVariants) -> dict[str, dict[str, Scores]]:
    """Score each model as `score` does, a Kronos model's distribution and volatility by the variant of the target.

    Args:
        predictions: a table with the variants as models of their own.
        variants: the chosen variants.
    """
    scores = score(predictions)
    return {
        symbol: {model: _of_variants(model, models, variants.get(symbol, {}).get(model, {})) for model in models}
        for symbol, models in scores.items()
    }


def _of_variants(model: str, models: Mapping[str, Scores], variants: Mapping[str, Variant]) -> Scores:
    values: dict[str, float] = {name: models[model][name] for name in METRICS}  # type: ignore[literal-required]
    reasons = dict(models[model].get("undefined", {}))
    for target, names in METRICS_OF.items():
        chosen = models.get(variant_name(model, variants.get(target, SAMPLED)), models[model])
        for name in names:
            values[name] = chosen[name]  # type: ignore[literal-required]
            reasons.pop(name, None)
            if reason := chosen.get("undefined", {}).get(name):
                reasons[name] = reason
    return _scores(values, reasons)


def undefined_scores(reason: str) -> Scores:
    """Return the scores of a model without any defined metric, with the reason."""
    return _scores({}, dict.fromkeys(METRICS, reason))


def mean_scores(scores: list[Scores]) -> Scores:
    """Return the mean of each metric over symbols with equal weight; None if the metric is None for any symbol."""
    means, reasons = {}, {}
    for metric in METRICS:
        values = [symbol[metric] for symbol in scores]  # type: ignore[literal-required]
        missing = sum(value is None for value in values)
        if missing or not values:
            reasons[metric] = f"undefined for {missing} of {len(values)} symbols"
        else:
            means[metric] = float(np.mean(values))
    return _scores(means, reasons)


def _values(rows: pd.DataFrame) -> pd.DataFrame:
    """Return every metric, a row per series; for input that is not finite a value has no meaning, see `_reasons`."""
    plain = rows[[_SERIES, "y", "mean"]]
    scaled = plain.assign(y=rows["y"] / rows["scale"], mean=rows["mean"] / rows["scale"])
    forecast_move, move = (np.sign(rows[column] - rows["last"]) for column in ("mean", "y"))
    same = (forecast_move == move).astype(float).where((forecast_move != 0) & (move != 0))
    by_series = rows[_SERIES]
    values = {
        "mae": _loss(losses.mae, plain),
        "rmse": _loss(losses.rmse, plain),
        "mape": 100 * _loss(losses.mape, plain),  # utilsforecast returns a fraction
        "mase": _loss(losses.mae, scaled),
        "bias": _loss(losses.bias, plain),
        "directional_accuracy": 100 * same.groupby(by_series).mean(),
        "crps": rows["crps"].groupby(by_series).mean(),
        "scaled_crps": (rows["crps"] / rows["scale"]).groupby(by_series).mean(),
    }
    for quantile, column in PINBALL.items():
        above = rows["y"] - rows[column]
        losses_of = np.maximum(quantile / 100 * above, (quantile / 100 - 1) * above)  # Koenker and Bassett, 1978
        values[f"pinball_{quantile}"] = (losses_of / rows["scale"]).groupby(by_series).mean()
    up = (np.sign(rows["y"] - rows["last"]) + 1) / 2
    values["brier"] = ((rows["p_up"] - up) ** 2).groupby(by_series).mean()
    values |= _variance_scores(rows)
    for prefix, level in _INTERVALS:
        low, high = rows[f"{prefix}lo_{level}"], rows[f"{prefix}hi_{level}"]
        bounds = plain.assign(**{f"mean-lo-{level}": low, f"mean-hi-{level}": high})
        values[f"{prefix}coverage_{level}"] = 100 * _loss(losses.coverage, bounds, level=level)
        values[f"{prefix}width_{level}"] = 100 * ((high - low) / rows["last"].abs()).groupby(by_series).mean()
    return pd.DataFrame(values)


def _variance_scores(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the scores of the variance over each forecast, the mean over the cutoffs, by series."""
    forecasts = rows.assign(unique_id=rows[_SERIES])
    scores = {
        "qlike": qlike(forecasts, "squared_return"),
        "range_qlike": qlike(forecasts, "range_variance"),
        "log_variance_error": np.log(variance_ratio(forecasts, "squared_return")).abs(),
    }
    # A mean would leave NaN out.
    return {name: losses.fillna(np.inf).groupby(level="unique_id").mean() for name, losses in scores.items()}


def _loss(loss: Callable[..., pd.DataFrame], table: pd.DataFrame, **settings: int) -> pd.Series:
    # The table has no cutoff column: with one, utilsforecast would score each cutoff by itself.
    return loss(table, models=["mean"], id_col=_SERIES, target_col="y", **settings).set_index(_SERIES)["mean"]


def _reasons(rows: pd.DataFrame) -> dict[int, dict[str, str]]:
    """Return the reason that a metric has no value, by series and metric: pandas and utilsforecast skip such bars."""

    def finite(*columns: str) -> np.ndarray:
        mask: np.ndarray = np.isfinite(rows[list(columns)].to_numpy(np.float64)).all(axis=1)
        return mask

    no_scale = ~(finite("scale") & (rows["scale"] > 0).to_numpy())
    no_last = ~finite("last") | (rows["last"] == 0).to_numpy()
    rules: list[tuple[tuple[str, ...], np.ndarray, str]] = [
        (_OF_POINTS, ~finite("y", "mean"), "no finite forecast or close"),
        (("mape",), (rows["y"] == 0).to_numpy(), "the close is 0"),
        (("directional_accuracy",), ~finite("last"), "no finite close at the cutoff"),
        (("crps", "scaled_crps"), ~finite("crps"), "no finite CRPS"),
        (("mase", "scaled_crps"), no_scale, _NO_SCALE),
    ]
    no_variance, of_paths = ~finite("variance"), finite("p_up")  # a forecast of points has neither
    rules += [
        (_OF_VARIANCE, no_variance & ~of_paths, "no forecast of the variance"),
        (_OF_VARIANCE, no_variance & of_paths, "a sampled close is not above 0"),
    ]
    rules.append((("brier",), ~finite("p_up", "y", "last"), "no probability of a close above the last"))
    rules += [((f"pinball_{quantile}",), ~finite("y", column), "no interval") for quantile, column in PINBALL.items()]
    rules += [((f"pinball_{quantile}",), no_scale, _NO_SCALE) for quantile in PINBALL]
    for prefix, level in _INTERVALS:
        bounds = finite("y", f"{prefix}lo_{level}", f"{prefix}hi_{level}")
        coverage, width = f"{prefix}coverage_{level}", f"{prefix}width_{level}"
        rules += [((coverage, width), ~bounds, "no interval"), ((width,), no_last, "the close at the cutoff is 0")]
    series = rows[_SERIES].to_numpy()
    bars = np.bincount(series)
    reasons: dict[int, dict[str, str]] = {}
    for metrics, bad, rule in rules:
        counts = np.bincount(series, weights=bad, minlength=len(bars)).astype(int)
        for number in np.flatnonzero(counts):
            text = f"{rule} at {counts[number]} of {bars[number]} bars"
            for metric in metrics:
                reasons.setdefault(int(number), {}).setdefault(metric, text)
    return reasons


def _scores(values: dict[str, float], reasons: dict[str, str]) -> Scores:
    """Build scores of values and reasons; a value without a reason that is not finite has overflowed or has no bar."""
    reasons = dict(reasons)
    for metric in METRICS:
        if metric not in reasons and not np.isfinite(values[metric]):
            reasons[metric] = _OF_NO_VALUE.get(metric, _TOO_LARGE)
    scores: Scores = Scores(**{metric: None if metric in reasons else values[metric] for metric in METRICS})  # type: ignore[typeddict-item]
    if reasons:
        scores["undefined"] = reasons
    return scores


def quantile_score(quantiles: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return twice the mean pinball loss, in price units.

    Args:
        quantiles: `(n, 7)`, in the order of `QUANTILES`.
        y: `(n,)`.
    """
    levels = np.array(list(QUANTILES.values()))
    errors = y[:, None] - quantiles
    scores: NDArray[np.float64] = 2 * (errors * (levels - (errors < 0))).mean(axis=1)
    return scores
