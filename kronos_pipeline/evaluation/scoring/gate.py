"""The promotion gate: decide from verdicts whether a newly trained model replaces the champion, and give the reason.

Promotion needs evidence. Too few cutoffs, too few common cutoffs with the champion, or an undefined score is a reason
against promotion, under either gate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pandas as pd

from kronos_pipeline.errors import SettingsError
from kronos_pipeline.evaluation.predictions import BASE, NAIVE, check_predictions
from kronos_pipeline.evaluation.scoring.verdicts import BETTER, MIN_CUTOFFS, TOO_LITTLE, WORSE, Comparison, judge

CHAMPION = "champion"
_KEYS = ["unique_id", "cutoff", "ds"]
_ROUNDED = 0.01
"""Tolerance of the ratio between the closes of two tables: the price of a one-dollar stock is rounded to cents."""

Gate = Literal["strict", "lenient"]


@dataclass(frozen=True)
class Decision:
    """A decision on a model's promotion.

    Attributes:
        promote: True if the model is promoted.
        reason: the reason, one sentence.
        gate: the gate that decided, "strict" or "lenient".
        comparisons: the verdicts of the decision, by rival: "naive", "base" and, if there is one, "champion".
    """

    promote: bool
    reason: str
    gate: str
    comparisons: dict[str, Comparison]

    def as_dict(self) -> dict[str, Any]:
        """Return the decision for JSON: every number is finite or None."""
        return asdict(self)


def decide(
    predictions: pd.DataFrame,
    trained: str,
    *,
    champion: pd.DataFrame | None,
    gate: Gate,
    tickers_tested: int = 1,
) -> Decision:
    """Decide on a model's promotion.

    The strict gate requires "better" than the naive forecast and than the base model, and not "worse" than the
    champion. A champion with expired evidence (too few cutoffs are as old as its evidence) is no obstacle, or no model
    could ever replace it. The lenient gate requires not "worse" than each rival. If the table holds one ticker,
    "better" is corrected for the number of tickers tested; for several tickers the overall verdict counts. "Worse" is
    never corrected: a test of many tickers must not hide that a model does harm.

    Args:
        predictions: the new model's table, with the naive forecast and the base model beside it.
        trained: the model's name in it, "adapter" or "checkpoint".
        champion: the present champion's table, under the same model name; None without a champion. The two models are
            compared on the common bars of both tables, see `against_champion`.
        gate: "strict" or "lenient".
        tickers_tested: number of tickers with a trained model and a decision.

    Raises:
        ArtifactError: a table is not one of predictions.
        SettingsError: there is no such gate.
    """
    if gate not in get_args(Gate):
        raise SettingsError(f"There is no gate {gate!r}; choose {' or '.join(get_args(Gate))}.")
    strict = gate == "strict"
    comparisons = _against(predictions, trained, (NAIVE, BASE), tickers_tested if strict else 1)
    if champion is not None:
        comparisons[CHAMPION] = against_champion(predictions, champion, trained)
    expired = champion is not None and _expired(predictions, champion, trained)
    against = [
        comparison
        for rival, comparison in comparisons.items()
        if comparison.verdict == WORSE
        or (comparison.verdict == TOO_LITTLE and not (rival == CHAMPION and expired))
        or (strict and rival != CHAMPION and comparison.verdict != BETTER)
    ]
    reasons = "; ".join(map(_sentence, against or comparisons.values()))
    start = "Not promoted" if against else "Promoted"
    champion_note = (
        "; there is no champion yet" if champion is None else "; the champion's evidence has expired" if expired else ""
    )
    return Decision(not against, f"{start} by the {gate} gate: {reasons}{champion_note}.", gate, comparisons)


def against_champion(predictions: pd.DataFrame, champion: pd.DataFrame, trained: str) -> Comparison:
    """Compare a new model with the champion on the bars and cutoffs that both tables have.

    Prices before a split or a dividend are often restated by one factor, so the champion's forecast is restated by the
    factor of the close. If the closes of the two tables differ by more than one factor, there is no conclusion.
    """
    check_predictions(champion)
    challenger_rows = predictions[predictions["model"] == trained]
    champion_rows = champion.loc[champion["model"] == trained, [*_KEYS, "y", "mean"]]
    both = challenger_rows.merge(champion_rows, on=_KEYS, suffixes=("", "_then"))
    if both.empty:
        return Comparison(trained, CHAMPION, 0, reason="the champion was not measured on any of these cutoffs")
    factor = both["y"] / both["y_then"]
    by_ticker = factor.groupby(both["unique_id"])
    restated = by_ticker.transform("max") <= (1 + _ROUNDED) * by_ticker.transform("min")
    if not restated.all():
        tickers = ", ".join(sorted(both.loc[~restated, "unique_id"].unique()))
        cutoffs = both["cutoff"].nunique()
        return Comparison(trained, CHAMPION, cutoffs, reason=f"the champion was measured on other closes of {tickers}")
    rows = pd.concat([both, both.assign(model=CHAMPION, mean=both["mean_then"] * factor)], ignore_index=True)
    return _against(rows, trained, (CHAMPION,), 1)[CHAMPION]


def _expired(predictions: pd.DataFrame, champion: pd.DataFrame, trained: str) -> bool:
    """Return True if too few of the new cutoffs are as old as the champion's evidence to compare the two models."""
    cutoffs = predictions.loc[predictions["model"] == trained, "cutoff"].drop_duplicates()
    newest = champion.loc[champion["model"] == trained, "cutoff"].max()
    return len(cutoffs) >= MIN_CUTOFFS and int((cutoffs <= newest).sum()) < MIN_CUTOFFS


def _against(
    predictions: pd.DataFrame, trained: str, rivals: tuple[str, ...], tickers_tested: int
) -> dict[str, Comparison]:
    verdicts = judge(predictions, trained, rivals, tickers_tested=tickers_tested)
    per_symbol = list(verdicts.per_symbol.values())
    return dict(per_symbol[0] if len(per_symbol) == 1 else verdicts.overall)


def _sentence(comparison: Comparison) -> str:
    joint = "against" if comparison.verdict == TOO_LITTLE else "than"
    return f"{comparison.verdict} {joint} {comparison.rival} ({comparison.reason})"
