"""The promotion gate: decide from verdicts whether a new model becomes champion of a target, and give the reason.

Each target is decided by itself: a model may be champion of the distribution and not of the mean. Promotion needs
evidence. Too few cutoffs, too few common cutoffs with the champion, or an undefined score is a reason against
promotion, under either gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pandas as pd

from kronos_pipeline.errors import SettingsError
from kronos_pipeline.evaluation.predictions import check_predictions
from kronos_pipeline.evaluation.scoring.targets import MEAN, Target, rivals_in, target_losses
from kronos_pipeline.evaluation.scoring.verdicts import (
    BETTER,
    MIN_CUTOFFS,
    NO_BETTER,
    TOO_LITTLE,
    WORSE,
    Comparison,
    judge,
)

CHAMPION = "champion"
_KEYS = ["unique_id", "cutoff", "ds"]
_FORECASTS = ["mean", "crps", "variance"]
"""The columns that the losses of the targets are computed from."""
_WORST_FIRST = (WORSE, TOO_LITTLE, NO_BETTER, BETTER)
_ROUNDED = 0.01
"""Tolerance of the ratio between the closes of two tables: the price of a one-dollar stock is rounded to cents."""

Gate = Literal["strict", "lenient"]


@dataclass(frozen=True)
class Decision:
    """A decision on a model's promotion to champion of a target.

    Attributes:
        promote: True if the model is promoted.
        reason: the reason, one sentence.
        gate: the gate that decided, "strict" or "lenient".
        comparisons: the verdicts of the decision, by rival, and of the champion, if there is one, as "champion".
        obstacle: the main reason against promotion, a few words; empty if the model is promoted.
    """

    promote: bool
    reason: str
    gate: str
    comparisons: dict[str, Comparison]
    obstacle: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the decision for JSON: every number is finite or None."""
        return asdict(self)


def decide(
    predictions: pd.DataFrame,
    trained: str,
    *,
    champion: pd.DataFrame | None,
    gate: Gate,
    target: Target = MEAN,
    tickers_tested: int = 1,
) -> Decision:
    """Decide on a model's promotion to champion of a target.

    The strict gate requires "better" than every rival of the target that the table has, and not "worse" than the
    target's champion. A champion with expired evidence (too few cutoffs are as old as its evidence), or with none on
    this target, is no obstacle, or no model could ever replace it. The lenient gate requires not "worse" than each
    rival. If the table holds one ticker, "better" is corrected for the number of tickers tested; for several tickers
    the overall verdict counts. "Worse" is never corrected: a test of many tickers must not hide that a model does harm.

    Args:
        predictions: the new model's table, with its rivals; `judged_rows` has chosen the variants.
        trained: the model's name in it, "adapter" or "checkpoint".
        champion: the table of the target's champion, under the same model name and with its own variants; None without
            a champion. The two models are compared on the common bars of both tables, see `against_champion`.
        gate: "strict" or "lenient".
        target: the target.
        tickers_tested: number of tickers with a trained model and a decision.

    Raises:
        ArtifactError: a table is not one of predictions.
        SettingsError: there is no such gate.
    """
    if gate not in get_args(Gate):
        raise SettingsError(f"There is no gate {gate!r}; choose {' or '.join(get_args(Gate))}.")
    strict = gate == "strict"
    rivals = rivals_in(predictions, target)
    comparisons = _against(predictions, trained, rivals, target, tickers_tested if strict else 1)
    note = "there is no champion yet"
    expired = False
    if champion is not None:
        check_predictions(champion)
        expired = _expired(predictions, champion, trained)
        note = "the champion's evidence has expired" if expired else ""
        if target_losses(champion, trained, target).notna().any():
            comparisons[CHAMPION] = against_champion(predictions, champion, trained, target)
        else:
            note = f"the champion was not measured on the {target}"
    against = [
        comparison
        for rival, comparison in comparisons.items()
        if comparison.verdict == WORSE
        or (comparison.verdict == TOO_LITTLE and not (rival == CHAMPION and expired))
        or (strict and rival != CHAMPION and comparison.verdict != BETTER)
    ]
    reasons = "; ".join([*map(_sentence, against or comparisons.values()), *filter(None, [note])])
    start = "Not promoted" if against else "Promoted"
    return Decision(
        not against, f"{start} by the {gate} gate: {reasons}.", gate, comparisons, _main(against) if against else ""
    )


def against_champion(
    predictions: pd.DataFrame, champion: pd.DataFrame, trained: str, target: Target = MEAN
) -> Comparison:
    """Compare a new model with the champion of a target on the bars and cutoffs that both tables have.

    The champion's forecast is restated by the factor of the close, see `common_forecasts`; log changes, and so
    variances, stay. If the closes of the two tables differ by more than one factor, there is no conclusion.
    """
    both = common_forecasts(predictions, champion, trained)
    if both.empty:
        return Comparison(trained, CHAMPION, 0, reason="the champion was not measured on any of these cutoffs")
    if not both["restated"].all():
        tickers = ", ".join(sorted(both.loc[~both["restated"], "unique_id"].unique()))
        cutoffs = both["cutoff"].nunique()
        return Comparison(trained, CHAMPION, cutoffs, reason=f"the champion was measured on other closes of {tickers}")
    restated_rows = both.assign(
        model=CHAMPION,
        mean=both["mean_then"] * both["factor"],
        crps=both["crps_then"] * both["factor"],
        variance=both["variance_then"],
    )
    rows = pd.concat([both, restated_rows], ignore_index=True)
    return _against(rows, trained, (CHAMPION,), target, 1)[CHAMPION]


def common_forecasts(predictions: pd.DataFrame, earlier: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return the forecasts of a model on the bars and cutoffs that two tables have.

    Prices before a split or a dividend are often restated by one factor from one table to the next.

    Args:
        predictions: a table of predictions.
        earlier: the other table.
        model: the model's name in both.

    Returns:
        The rows of `predictions`, and of the other table `mean_then`, `crps_then`, `variance_then` and `y_then`; the
        factor of the close, `factor`; and `restated`, True if the ticker's closes differ by that one factor alone.
    """
    rows = predictions[predictions["model"] == model]
    then = earlier.loc[earlier["model"] == model, [*_KEYS, "y", *_FORECASTS]]
    both = rows.merge(then, on=_KEYS, suffixes=("", "_then"))
    factor = both["y"] / both["y_then"]
    by_ticker = factor.groupby(both["unique_id"])
    restated = by_ticker.transform("max") <= (1 + _ROUNDED) * by_ticker.transform("min")
    return both.assign(factor=factor, restated=restated.astype(bool))


def _expired(predictions: pd.DataFrame, champion: pd.DataFrame, trained: str) -> bool:
    """Return True if too few of the new cutoffs are as old as the champion's evidence to compare the two models."""
    cutoffs = predictions.loc[predictions["model"] == trained, "cutoff"].drop_duplicates()
    newest = champion.loc[champion["model"] == trained, "cutoff"].max()
    return len(cutoffs) >= MIN_CUTOFFS and int((cutoffs <= newest).sum()) < MIN_CUTOFFS


def _against(
    predictions: pd.DataFrame, trained: str, rivals: tuple[str, ...], target: Target, tickers_tested: int
) -> dict[str, Comparison]:
    verdicts = judge(predictions, trained, rivals, target=target, tickers_tested=tickers_tested)
    per_symbol = list(verdicts.per_symbol.values())
    return dict(per_symbol[0] if len(per_symbol) == 1 else verdicts.overall)


def _main(against: Sequence[Comparison]) -> str:
    """Return the verdict that weighs most against promotion, in a few words."""
    worst = min(against, key=lambda found: (_WORST_FIRST.index(found.verdict), found.skill or 0.0))
    if worst.verdict == TOO_LITTLE:
        return _sentence(worst)
    return f"{worst.verdict} than {worst.rival}, skill {worst.skill or 0.0:.1%}"


def _sentence(comparison: Comparison) -> str:
    joint = "against" if comparison.verdict == TOO_LITTLE else "than"
    return f"{comparison.verdict} {joint} {comparison.rival} ({comparison.reason})"
