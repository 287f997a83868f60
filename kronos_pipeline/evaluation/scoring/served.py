"""Scores of the forecast that is served: a champion's shape around its own mean path, or around the last close.

A served forecast is composed, see `forecasting.composition`: the gate judges its parts, and these scores the whole.
The composition is a variant of the model's paths in the table of predictions, except for rescaled paths around the
model's mean path.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from kronos_pipeline.evaluation.predictions import NAIVE, RESCALED, SAMPLED, Variant, variant_name
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, MEAN, ChosenVariants, judged_rows, rivals_in
from kronos_pipeline.evaluation.scoring.verdicts import Comparison, judge


@dataclass(frozen=True)
class ServedScore:
    """The skill of a served forecast.

    Attributes:
        distribution: against the best rival on the distribution.
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
    predictions: pd.DataFrame, model: str, variants: ChosenVariants, *, own_centre: bool
) -> ServedScore | None:
    """Score the forecast of a model that is champion of the distribution.

    As champion of the mean, too, the model gives the centre. Otherwise its paths are served in the variant that was
    chosen for the distribution: around its own mean path as sampled, around the last close as recentred or rescaled.

    Args:
        predictions: the evidence of the model.
        model: its name in the table, "adapter" or "checkpoint".
        variants: the variants that were chosen for each ticker.
        own_centre: True if the model is champion of the mean, too.

    Returns:
        None if the table does not have the composition, or too few cutoffs.
    """
    served: dict[str, dict[str, dict[str, Variant]]] = {}
    present = set(predictions["model"].unique())
    for ticker in map(str, predictions["unique_id"].unique()):
        chosen = variants.get(ticker, {})
        shape = chosen.get(model, {}).get(DISTRIBUTION, SAMPLED)
        variant = SAMPLED if own_centre else shape
        if variant_name(model, variant) not in present or (own_centre and shape == RESCALED):
            return None  # the rescaled paths of the table lie around the last close
        others = {name: dict(by_target) for name, by_target in chosen.items() if name != model}
        served[ticker] = {**others, model: {DISTRIBUTION: variant, MEAN: variant}}
    rows = judged_rows(predictions, DISTRIBUTION, served)
    rivals = [rival for rival in rivals_in(rows, DISTRIBUTION) if rival in present]
    distribution = judge(rows, model, rivals, target=DISTRIBUTION).overall
    mean = judge(judged_rows(predictions, MEAN, served), model, (NAIVE,), target=MEAN).overall.get(NAIVE)
    scored = [comparison for comparison in distribution.values() if comparison.skill is not None]
    if not scored or mean is None or mean.skill is None:
        return None
    return ServedScore(min(scored, key=lambda comparison: comparison.skill or 0.0), mean)
