"""Table that says what a model is good for: per symbol and target a mark, and the skill on the best rival."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from kronos_pipeline.evaluation.predictions import NAIVE
from kronos_pipeline.evaluation.reports.text_table import UNDEFINED, TextTable, difference, number, price
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target
from kronos_pipeline.evaluation.scoring.verdicts import (
    BETTER,
    MIN_CUTOFFS,
    NO_BETTER,
    TOO_LITTLE,
    WORSE,
    Verdict,
    combined_verdict,
)

MARKS: dict[Verdict, str] = {BETTER: "yes", NO_BETTER: "no", WORSE: "worse", TOO_LITTLE: "few"}
"""The mark of a verdict in a table."""
_LEGEND = (
    "yes: better than every rival by more than chance; no: not shown; worse: worse than a rival; few: too few cutoffs. "
    "Below it the skill on the best rival in percent (95 % interval)."
)


def worth_table(evaluation: Mapping[str, Any], what: str) -> TextTable:
    """Build the table: a row per symbol, a column per target, and the coverage of the interval of 80 percent.

    Args:
        evaluation: the result of `build_evaluation`.
        what: the kind of evaluation, "Holdout" or "Backtest".
    """
    model, total = evaluation["model"], evaluation["aggregate"]

    def cells(entry: Mapping[str, Any]) -> list[str]:
        coverage = entry["models"].get(model, {}).get("coverage_80")
        return [*(_cell(entry, model, target) for target in TARGETS), number(coverage, 0)]

    return TextTable(
        title=f"{what}: is the {model} worth using?",
        headers=["Symbol", *TARGETS, "80 %\nholds"],
        rows=[[entry["symbol"], *cells(entry)] for entry in evaluation["per_symbol"]],
        total=["all", *cells(total)] if len(evaluation["per_symbol"]) > 1 else [],
        notes=[*evaluation["warnings"], *little_evidence(evaluation), _LEGEND],
    )


def best_rival(entry: Mapping[str, Any], model: str, target: Target) -> Mapping[str, Any] | None:
    """Return the comparison with the rival of the lowest loss on a target; None if no skill is known.

    Args:
        entry: a symbol's entry or the aggregate of an evaluation.
        model: the judged model.
        target: the target.
    """
    comparisons = entry["verdicts"][target].get(model, {}).values()
    known = [comparison for comparison in comparisons if comparison["skill"] is not None]
    return min(known, key=lambda comparison: float(comparison["skill"]), default=None)


_HARDEST_FIRST = (WORSE, NO_BETTER, TOO_LITTLE, BETTER)


def hardest_first(entry: Mapping[str, Any], model: str, target: Target) -> list[Mapping[str, Any]]:
    """Return the comparisons of a model on a target: worse before no better, few and better, then by skill.

    Args:
        entry: a symbol's entry or the aggregate of an evaluation.
        model: the judged model.
        target: the target.
    """

    def order(comparison: Mapping[str, Any]) -> tuple[int, float]:
        return _HARDEST_FIRST.index(comparison["verdict"]), comparison["skill"] or 0.0

    return sorted(entry["verdicts"][target].get(model, {}).values(), key=order)


def skill_sentence(comparison: Mapping[str, Any]) -> str:
    """Return a comparison in a line, such as "skill against naive +3.1 %, no better (adjusted p 0.21, 12 cutoffs)"."""
    if comparison["skill"] is None or comparison["adjusted_p"] is None:
        return f"{comparison['verdict']} against {comparison['rival']}: {comparison['reason']}"
    p = "< 0.001" if comparison["adjusted_p"] < 0.001 else f"{comparison['adjusted_p']:.3f}"
    figures = f"adjusted p {p}, {comparison['cutoffs']} cutoffs"
    skill = f"{100 * comparison['skill']:+.1f} %"
    return f"skill against {comparison['rival']} {skill}, {comparison['verdict']} ({figures})"


def headline(evaluation: Mapping[str, Any]) -> str:
    """Return the main result in a line: the error beside that of the last close, and the verdict on each target.

    Args:
        evaluation: the result of `build_evaluation`.
    """
    model, entries = evaluation["model"], evaluation["per_symbol"]
    # For a single symbol its own verdict counts: it is corrected for all tickers that were tested.
    entry = entries[0] if len(entries) == 1 else evaluation["aggregate"]
    error, naive = (entry["models"].get(name, {}).get("mae") for name in (model, NAIVE))
    parts = [f"MAE of the {model} {price(error)}"]
    if error is not None and naive:
        parts[0] += f", of the last close {price(naive)} (error {difference(error, naive, 1)})"
    no_verdict: dict[str, list[str]] = {}
    for target in TARGETS:
        for comparison in hardest_first(entry, model, target)[:1]:
            if comparison["verdict"] == TOO_LITTLE:
                no_verdict.setdefault(comparison["reason"], []).append(target)
            else:
                parts.append(f"{target}: {skill_sentence(comparison)}")
    parts += [f"no verdict on {', '.join(targets)}: {reason}" for reason, targets in no_verdict.items()]
    return "; ".join(parts)


def combined_verdict_of(entry: Mapping[str, Any], model: str, target: Target) -> Verdict:
    """Return the verdict on a model over all rivals of a target, of a symbol's entry or the aggregate."""
    return combined_verdict(verdict["verdict"] for verdict in entry["verdicts"][target].get(model, {}).values())


def little_evidence(evaluation: Mapping[str, Any]) -> list[str]:
    """Return a note with the most frequent reason of verdicts of too little evidence; none without such a verdict."""
    entries = (evaluation["aggregate"], *evaluation["per_symbol"])
    reasons = Counter(
        verdict["reason"]
        for entry in entries
        for models in entry["verdicts"].values()
        for verdict in models.get(evaluation["model"], {}).values()
        if verdict["verdict"] == TOO_LITTLE
    )
    if not reasons:
        return []
    ((usual, _),) = reasons.most_common(1)
    more = " (--backtest-origins gives more)" if f"needs {MIN_CUTOFFS}" in usual else ""
    return [f"{MARKS[TOO_LITTLE].capitalize()}: too little evidence: {usual}{more}."]


def _cell(entry: Mapping[str, Any], model: str, target: Target) -> str:
    if not entry["verdicts"][target].get(model):
        return UNDEFINED
    mark, best = MARKS[combined_verdict_of(entry, model, target)], best_rival(entry, model, target)
    if best is None:
        return mark
    low, high = (UNDEFINED if best[end] is None else f"{100 * best[end]:.0f}" for end in ("skill_low", "skill_high"))
    return f"{mark}, on {best['rival']}\n{100 * best['skill']:.0f} ({low} to {high})"
