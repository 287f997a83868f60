"""Information coefficient: the correlation of predicted and real returns across tickers.

At each cutoff with enough tickers, the predicted returns from the cutoff's close to the forecast's last bar are
correlated with the real returns. The mean over the cutoffs is the information coefficient. The observations of its t
statistic are cutoffs, not tickers, as tickers of one day move together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from kronos_pipeline.evaluation.predictions import check_predictions

MIN_TICKERS = 8


@dataclass(frozen=True)
class InformationCoefficient:
    """Correlation of predicted and real returns across tickers; undefined numbers are None, with the reason.

    Attributes:
        model: its name in the table of predictions.
        cutoffs: number of cutoffs with at least `MIN_TICKERS` tickers that have equally many bars and differ.
        tickers: the smallest number of tickers at one of these cutoffs.
        ic: mean over the cutoffs of Pearson's correlation, from -1 to 1.
        ic_t: its t statistic, of cutoffs - 1 degrees of freedom.
        rank_ic, rank_ic_t: the same for Spearman's rank correlation.
        reason: the reason that a number is None, else empty.
    """

    model: str
    cutoffs: int = 0
    tickers: int = 0
    ic: float | None = None
    ic_t: float | None = None
    rank_ic: float | None = None
    rank_ic_t: float | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON: every number is finite or None."""
        return asdict(self)


def information_coefficient(predictions: pd.DataFrame, model: str) -> InformationCoefficient:
    """Correlate a model's predicted returns with the real ones, across tickers at each cutoff.

    Returns are from the close at the cutoff to the forecast's last bar. At each cutoff, a ticker is left out if its
    forecast has another number of bars than most forecasts, as when the end of its file cuts the forecast.

    Args:
        predictions: the table of `predictions.py`.
        model: the model.

    Raises:
        ArtifactError: the table is not one of predictions.
    """
    check_predictions(predictions)
    rows = predictions[predictions["model"] == model].sort_values("step")
    none_shared = InformationCoefficient(model, reason=f"no cutoff is shared by {MIN_TICKERS} tickers")
    if rows["unique_id"].nunique() < MIN_TICKERS:
        return none_shared
    last = rows.groupby(["unique_id", "cutoff"]).tail(1)
    returns = pd.DataFrame(
        {
            "cutoff": last["cutoff"],
            "step": last["step"],
            "predicted": last["mean"] / last["last"] - 1,
            "real": last["y"] / last["last"] - 1,
        }
    )
    usual = returns.groupby("cutoff")["step"].transform(lambda steps: steps.mode().max())
    returns = returns[returns["step"] == usual]
    groups = [group for _, group in returns.groupby("cutoff") if len(group) >= MIN_TICKERS]
    if not groups:
        return none_shared
    if not np.isfinite(pd.concat(groups)[["predicted", "real"]].to_numpy(np.float64)).all():
        return InformationCoefficient(model, reason="a return is not finite")
    correlations = []
    for group in groups:
        pair = group[["predicted", "real"]]
        with np.errstate(divide="ignore", invalid="ignore"):  # equal returns, as those of the naive forecast
            pair_correlations = [values["predicted"].corr(values["real"]) for values in (pair, pair.rank())]
        correlations += [(len(group), *pair_correlations)] if np.isfinite(pair_correlations).all() else []
    if not correlations:
        return InformationCoefficient(model, reason="the returns are the same for all tickers, so nothing is ranked")
    tickers, plain, ranked = (list(column) for column in zip(*correlations, strict=True))
    t, rank_t = _t_statistic(plain), _t_statistic(ranked)
    reason = "" if t is not None and rank_t is not None else "a t statistic needs two cutoffs that differ"
    means = float(np.mean(plain)), t, float(np.mean(ranked)), rank_t
    return InformationCoefficient(model, len(correlations), min(tickers), *means, reason)


def _t_statistic(values: list[float]) -> float | None:
    """Return the t statistic of the mean against 0, or None if the values have no spread."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)) / (spread / len(values) ** 0.5) if spread > 0 else None
