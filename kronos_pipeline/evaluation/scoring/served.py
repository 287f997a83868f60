"""Scores of the forecast that is served, as one thing: the shape of one model around the centre of another.

The gate judges centre and shape apart, each on its target; `forecasting.future` puts them together. On the cutoffs
of the evidence the composition follows from the table of predictions: its quantiles are those of the shape's paths,
scaled at each bar from their own mean to the centre. So its distribution is scored by the quantiles, twice the mean
pinball loss, as the ledger scores the forecasts that were issued.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kronos_pipeline.evaluation.composed_variants import composed_variant, keeps_its_centre
from kronos_pipeline.evaluation.predictions import (
    BASE,
    KRONOS,
    NAIVE,
    QUANTILES,
    SAMPLED,
    VOLATILITY_RIVALS,
    Variant,
    variant_name,
)
from kronos_pipeline.evaluation.scoring.metrics import quantile_score
from kronos_pipeline.evaluation.scoring.targets import (
    DISTRIBUTION,
    MEAN,
    ChosenVariants,
    Target,
    judged_rows,
    rivals_in,
    target_losses,
)
from kronos_pipeline.evaluation.scoring.verdicts import BETTER, Comparison, combined_verdict, judge

BAR = ["unique_id", "cutoff", "ds"]
"""The columns that tell the forecast bars of a model apart."""
_SERVED = "served"


@dataclass(frozen=True)
class ServedScore:
    """The skill of a served forecast.

    Attributes:
        distribution: against the best rival on the quantiles of the distribution.
        mean: against the last close.
    """

    distribution: Comparison
    mean: Comparison

    def __str__(self) -> str:
        """Return the skills in words."""
        best = self.distribution
        return (
            f"as served: distribution skill {best.skill or 0.0:.1%} against {best.rival}, the best rival; "
            f"mean skill {self.mean.skill or 0.0:.1%} against the last close"
        )


def score_served(
    predictions: pd.DataFrame,
    variants: ChosenVariants,
    *,
    shape: str | None = None,
    centre: str | pd.Series | None = None,
    tickers_tested: int = 1,
) -> ServedScore | None:
    """Score the forecast that is composed of a shape and a centre, on the cutoffs of a table of predictions.

    Args:
        predictions: the evidence of the shape's model, with all variants.
        variants: the variants that were chosen for each ticker.
        shape: the champion of the distribution, a Kronos model of the table; without one, base if its own verdict is
            better than every rival, else the volatility rival with the lowest loss.
        centre: the champion of the mean, a Kronos model of the table, or the mean path of another version by the
            columns of `BAR`; without one, base by the same rule, else the last close, or the shape's own mean path if
            the shape was judged as sampled.
        tickers_tested: number of tickers that the verdicts on base are corrected for.

    Returns:
        None if the table does not have the parts, or too few cutoffs.
    """
    base_is_better = {
        target: _tickers_of_better_base(predictions, variants, target, tickers_tested)
        for target, part in ((DISTRIBUTION, shape), (MEAN, centre))
        if part is None
    }
    composed = []
    for ticker, rows in predictions.groupby("unique_id"):
        shape_model = shape
        if shape_model is None:
            shape_model = BASE if ticker in base_is_better[DISTRIBUTION] else _best_rival(rows)
        centre_model = BASE if centre is None and ticker in base_is_better[MEAN] else centre
        variant = variants.get(str(ticker), {}).get(shape_model or "", {}).get(DISTRIBUTION, SAMPLED)
        composed.append(_compose(rows, shape_model, variant, centre_model))
    served = pd.concat(composed)
    if served.empty:
        return None
    others = judged_rows(predictions, DISTRIBUTION, variants)
    others = others[others.set_index(BAR).index.isin(served.index)]
    rows = pd.concat([served.reset_index(), others], ignore_index=True)
    rows["crps"] = quantile_score(rows[list(QUANTILES)].to_numpy(np.float64), rows["y"].to_numpy(np.float64))
    rivals = [rival for rival in rivals_in(rows, DISTRIBUTION) if rival in set(rows["model"])]
    distribution = judge(rows, _SERVED, rivals, target=DISTRIBUTION).overall
    mean = judge(rows, _SERVED, (NAIVE,), target=MEAN).overall.get(NAIVE)
    scored = [comparison for comparison in distribution.values() if comparison.skill is not None]
    if not scored or mean is None or mean.skill is None:
        return None
    return ServedScore(min(scored, key=lambda comparison: comparison.skill or 0.0), mean)


def _compose(rows: pd.DataFrame, shape: str | None, variant: Variant, centre: str | pd.Series | None) -> pd.DataFrame:
    """Return the composed forecast of one ticker, by the columns of `BAR`; empty if the rows do not have its parts."""
    name = shape
    if shape in KRONOS:
        own_centre = keeps_its_centre(variant) if centre is None else isinstance(centre, str) and centre == shape
        name = variant_name(shape, composed_variant(variant, own_centre=own_centre))
        centre = shape if own_centre else centre
    paths = rows[rows["model"] == name].set_index(BAR)
    if centre is None:
        means = paths["last"]
    elif isinstance(centre, str):
        means = rows[rows["model"] == centre].set_index(BAR)["mean"]
    else:
        means = centre
    factor = means.reindex(paths.index) / paths["mean"]
    return paths.assign(model=_SERVED, **{column: paths[column] * factor for column in ("mean", *QUANTILES)}).dropna(
        subset=["mean"]
    )


def _tickers_of_better_base(
    predictions: pd.DataFrame, variants: ChosenVariants, target: Target, tickers_tested: int
) -> set[str]:
    """Return the tickers on which the base model is better than every rival of a target."""
    rows = judged_rows(predictions, target, variants)
    per_symbol = judge(rows, BASE, target=target, tickers_tested=tickers_tested).per_symbol
    return {
        ticker
        for ticker, against in per_symbol.items()
        if combined_verdict(comparison.verdict for comparison in against.values()) == BETTER
    }


def _best_rival(rows: pd.DataFrame) -> str | None:
    """Return the volatility rival with the lowest loss on the distribution; None without one."""
    losses = {name: target_losses(rows, name, DISTRIBUTION).mean() for name in VOLATILITY_RIVALS}
    defined = {name: loss for name, loss in losses.items() if np.isfinite(loss)}
    return min(defined, key=lambda name: defined[name], default=None)
