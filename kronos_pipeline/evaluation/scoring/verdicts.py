"""Verdicts: is a model better or worse than its rivals on a target by more than chance?

A verdict rests on one loss per cutoff, as the bars of one forecast err together, see `targets.py`. Over all tickers it
rests on the mean over the tickers at each cutoff, as tickers of one day err together too. A model is "better" or
"worse" than a rival if the test of Diebold and Mariano and the block bootstrap of `significance.py` agree at 5 percent,
corrected for the number of tickers tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.predictions import check_predictions
from kronos_pipeline.evaluation.scoring.significance import bootstrap_skill, diebold_mariano, holm
from kronos_pipeline.evaluation.scoring.targets import MEAN, Target, loss_table, rivals_in

Verdict = Literal["better", "no better", "worse", "too little evidence"]
BETTER: Verdict = "better"
NO_BETTER: Verdict = "no better"
WORSE: Verdict = "worse"
TOO_LITTLE: Verdict = "too little evidence"

MIN_CUTOFFS = 8
ALPHA = 0.05
"""Significance level: at most this share of models that are no better is called "better"; the same for "worse"."""
DRAWS = 9_999
_DRAWS_PER_TEST = 60
"""Draws per test for a small p-value; 40 is the minimum for a significant smallest p-value after the correction."""
_ROUNDING = 1e-9
"""Relative difference of two losses that counts as rounding."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of one model with one rival.

    Attributes:
        model, rival: their names in the table of predictions.
        cutoffs: number of common cutoffs.
        skill: 1 - loss / the rival's loss, of the means over the cutoffs; 0.1 means a loss ten percent lower.
        skill_low, skill_high: its block-bootstrap interval of 95 percent, before any correction; None if the
            cutoffs do not bound it.
        statistic, p_value: of Diebold-Mariano with the correction of Harvey, Leybourne and Newbold, two-sided; the
            statistic is below 0 if the model has the lower loss, and None if the differences do not vary.
        bootstrap_p: of the block bootstrap, two-sided.
        adjusted_p: the larger of the two p-values, corrected for the number of tickers tested (Holm).
        verdict: "better", "no better", "worse" or "too little evidence".
        reason: the figures of the verdict, or the reason that there is too little evidence.
    """

    model: str
    rival: str
    cutoffs: int
    skill: float | None = None
    skill_low: float | None = None
    skill_high: float | None = None
    statistic: float | None = None
    p_value: float | None = None
    bootstrap_p: float | None = None
    adjusted_p: float | None = None
    verdict: Verdict = TOO_LITTLE
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the content for JSON: every number is finite or None."""
        return asdict(self)


@dataclass(frozen=True)
class Verdicts:
    """Comparisons of one model with its rivals, by rival: on each symbol, and over all symbols.

    Attributes:
        model: its name in the table of predictions.
        target: the target of the losses.
        tickers_tested: number of tickers that the verdicts per symbol are corrected for.
        per_symbol: by symbol and rival.
        overall: by rival; one test, so without correction.
    """

    model: str
    target: Target
    tickers_tested: int
    per_symbol: dict[str, dict[str, Comparison]]
    overall: dict[str, Comparison]

    def as_dict(self) -> dict[str, Any]:
        """Return the content for JSON: every number is finite or None."""
        return asdict(self)


def judge(
    predictions: pd.DataFrame,
    model: str,
    rivals: Sequence[str] | None = None,
    *,
    target: Target = MEAN,
    tickers_tested: int | None = None,
) -> Verdicts:
    """Compare a model with its rivals on each symbol and over all symbols.

    Args:
        predictions: a table of `predictions.py` with one symbol or many; `judged_rows` has chosen the variants.
        model: the model to judge, such as "adapter".
        rivals: the models to compare it with, by default the target's; the model itself is left out.
        target: the target of the losses.
        tickers_tested: number of tickers tested, if some are not in the table; at least the tickers of the table are
            corrected for.

    Raises:
        ArtifactError: the table is not one of predictions.
    """
    check_predictions(predictions)
    symbols = [str(symbol) for symbol in sorted(predictions["unique_id"].unique())]
    tested = max(tickers_tested or 1, len(symbols))
    losses, overall_overlap = loss_table(predictions, target), overlap(predictions)
    overlaps = {str(symbol): overlap(rows) for symbol, rows in predictions.groupby("unique_id")}
    by_symbol = {str(symbol): rows.droplevel(0) for symbol, rows in losses.groupby(level="unique_id")}
    per_symbol: dict[str, dict[str, Comparison]] = {symbol: {} for symbol in symbols}
    overall = {}
    rivals = rivals_in(predictions, target) if rivals is None else rivals
    for rival in (name for name in rivals if name != model):
        pair = (model, rival)
        compared = [_compare_in(by_symbol[symbol], pair, overlaps[symbol], tested) for symbol in symbols]
        for symbol, comparison in zip(symbols, correct(compared, tested), strict=True):
            per_symbol[symbol][rival] = comparison
        overall[rival] = correct([_compare_in(losses, pair, overall_overlap, 1)], 1)[0]
    return Verdicts(model, target, tested, per_symbol, overall)


def combined_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Combine the verdicts against all rivals of a target: better only if better than every rival.

    As a model must beat every rival, the combination says "better" by chance no more often than each comparison does
    (Berger, 1982, on tests of a union of hypotheses), and needs no correction for the number of rivals.
    """
    reached = set(verdicts)
    worst_first = (WORSE, TOO_LITTLE, NO_BETTER, BETTER)
    return next((verdict for verdict in worst_first if verdict in reached), TOO_LITTLE)


def _compare_in(losses: pd.DataFrame, pair: tuple[str, str], overlap: int, tickers_tested: int) -> Comparison:
    """Compare two models of a `loss_table`, or of its rows of one ticker by cutoff.

    A cutoff's loss is the mean over the tickers that both models forecast.
    """
    model, rival = pair
    values = losses.reindex(columns=list(pair)).to_numpy(np.float64)
    known = ~np.isnan(values)
    for name, any_known in zip(pair, known.any(axis=0), strict=True):
        if not any_known:
            return Comparison(model, rival, 0, reason=f"no forecast of the {name} model")
    of_both = known.all(axis=1)
    shared = pd.DataFrame(values[of_both], index=losses.index[of_both], columns=list(pair))
    means = shared.groupby(level="cutoff").mean() if shared.index.nlevels == 2 else shared
    return compare(means[model], means[rival], model=model, rival=rival, overlap=overlap, tickers_tested=tickers_tested)


def overlap(predictions: pd.DataFrame) -> int:
    """Return the maximum number of later cutoffs within one forecast; 0 if cutoffs are a horizon apart."""
    ends = predictions.groupby("cutoff", sort=True)["ds"].max()
    within = ends.index.searchsorted(ends.to_numpy(), side="left") - np.arange(1, len(ends) + 1)
    return int(within.max(initial=0))


def compare(
    losses: pd.Series,
    rival_losses: pd.Series,
    *,
    model: str,
    rival: str,
    overlap: int = 0,
    tickers_tested: int = 1,
) -> Comparison:
    """Compare two models on their common cutoffs; `correct` reaches the verdict.

    Args:
        losses: losses of the model by cutoff, at or above 0.
        rival_losses: losses of the rival by cutoff, at or above 0.
        model: name of the model.
        rival: name of the rival.
        overlap: number of later cutoffs within one forecast.
        tickers_tested: number of all tests, so that the bootstrap's p-value can be small enough for the correction.
    """
    if not (losses.index.equals(rival_losses.index) and losses.index.is_monotonic_increasing):
        paired = pd.concat({"model": losses, "rival": rival_losses}, axis=1, join="inner").sort_index()
        losses, rival_losses = paired["model"], paired["rival"]
    loss, rival_loss = losses.to_numpy(np.float64), rival_losses.to_numpy(np.float64)
    cutoffs = len(loss)
    comparison = Comparison(model, rival, cutoffs)
    if undefined := int((~np.isfinite(loss) | ~np.isfinite(rival_loss)).sum()):
        why = "a forecast that is not finite, or a close that does not move"
        return replace(comparison, reason=f"the loss is undefined at {undefined} of {cutoffs} cutoffs: {why}")
    if cutoffs < MIN_CUTOFFS:
        return replace(comparison, reason=f"{count(cutoffs, 'cutoff')}, and a verdict needs {MIN_CUTOFFS}")
    if cutoffs < MIN_CUTOFFS * (overlap + 1):
        apart = f"{cutoffs // (overlap + 1)} of {cutoffs} cutoffs"
        return replace(
            comparison, reason=f"only {apart} have forecasts that do not overlap, and it needs {MIN_CUTOFFS}"
        )
    loss = np.where(np.abs(loss - rival_loss) <= _ROUNDING * (loss + rival_loss), rival_loss, loss)
    if not rival_loss.any():
        return replace(comparison, reason=f"the {rival} model makes no error, so that there is no skill to measure")
    statistic, p_value = diebold_mariano(loss - rival_loss, overlap)
    low, high, bootstrap_p = bootstrap_skill(
        loss,
        rival_loss,
        block=max(round(cutoffs ** (1 / 3)), overlap + 1),
        draws=max(DRAWS, _DRAWS_PER_TEST * tickers_tested) if p_value <= ALPHA else DRAWS,
        level=1 - ALPHA,
    )
    return replace(
        comparison,
        skill=float(1 - loss.sum() / rival_loss.sum()),
        skill_low=_finite(low),
        skill_high=_finite(min(high, 1.0)),
        statistic=_finite(statistic),
        p_value=p_value,
        bootstrap_p=bootstrap_p,
    )


def correct(comparisons: Sequence[Comparison], tickers_tested: int) -> list[Comparison]:
    """Correct comparisons with one rival for the number of tickers tested, and reach their verdicts.

    Args:
        comparisons: results of `compare`, one per ticker.
        tickers_tested: number of tickers tested, at least as many.
    """
    tested = [comparison for comparison in comparisons if None not in (comparison.p_value, comparison.bootstrap_p)]
    p_values = [max(comparison.p_value or 0.0, comparison.bootstrap_p or 0.0) for comparison in tested]
    larger = np.array(p_values, dtype=np.float64)
    adjusted = iter(holm(larger, max(tickers_tested, len(tested))).tolist())
    return [
        _decided(comparison, next(adjusted)) if comparison.p_value is not None else comparison
        for comparison in comparisons
    ]


def _decided(comparison: Comparison, adjusted_p: float) -> Comparison:
    skill = comparison.skill or 0.0
    verdict = NO_BETTER if adjusted_p > ALPHA or skill == 0 else BETTER if skill > 0 else WORSE
    ends = ("unbounded" if end is None else f"{end:.1%}" for end in (comparison.skill_low, comparison.skill_high))
    p = "< 0.001" if adjusted_p < 0.001 else f"{adjusted_p:.3f}"
    reason = f"skill {skill:.1%} (95 % interval {' to '.join(ends)}), adjusted p {p}, {comparison.cutoffs} cutoffs"
    return replace(comparison, adjusted_p=adjusted_p, verdict=verdict, reason=reason)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
