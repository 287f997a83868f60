"""The result of an evaluation in a few lines of plain words; `tables` and `worth` have all numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kronos_pipeline.errors import count, enumerate_some, join
from kronos_pipeline.evaluation.predictions import NAIVE
from kronos_pipeline.evaluation.reports.text_table import UNDEFINED, difference, number
from kronos_pipeline.evaluation.reports.worth import combined_verdict_of
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, MEAN, TARGETS, VOLATILITY, Target
from kronos_pipeline.evaluation.scoring.verdicts import BETTER, NO_BETTER, TOO_LITTLE, WORSE, Verdict

Entry = Mapping[str, Any]

_SHOWN = 12
"""Largest number of tickers with a line each; of more, the best and the worst are shown."""
_ENDS = 3
_NAMED = 3
_WORDS: dict[Verdict, str] = {
    BETTER: "better",
    WORSE: "worse",
    NO_BETTER: "not shown to be better",
    TOO_LITTLE: "too little evidence",
}
_OF: dict[Target, str] = {MEAN: "the path", DISTRIBUTION: "the intervals", VOLATILITY: "the volatility"}
_BETTER = "better: than every simple forecast and the untouched model, by more than chance"
_CUTOFF = "cutoff: a time from which the model has forecast, knowing no later bar"


def error_lines(evaluation: Entry) -> list[str]:
    """Return the errors of the closes in percent of the price, beside those of repeating the last close.

    Args:
        evaluation: the result of `build_evaluation`.
    """
    model, entries = evaluation["model"], list(evaluation["per_symbol"])
    if len(entries) > _SHOWN:
        ranked = ranked_tickers(evaluation)
        shown = [*ranked[:_ENDS], *ranked[-_ENDS:]]
        entries = sorted((entry for entry in entries if entry["symbol"] in shown), key=_order(ranked))
        left_out = len(evaluation["per_symbol"]) - len(entries)
    else:
        left_out = 0
    width = max(len("all tickers"), *(len(entry["symbol"]) for entry in entries))
    column = max(len(model), 9)
    lines = [f"{'error in %':<{width}}  {model:>{column}}  last close"]
    lines += [_error_line(entry, entry["symbol"], width, column) for entry in entries]
    if left_out:
        lines.insert(1 + _ENDS, f"... {left_out} more between the best and the worst ...")
    if len(evaluation["per_symbol"]) > 1:
        lines.append(_error_line(evaluation["aggregate"], "all tickers", width, column))
    return lines


def ranked_tickers(evaluation: Entry) -> list[str]:
    """Return the tickers, first those on which the model gains most on repeating the last close."""
    known = [(gain, entry["symbol"]) for entry in evaluation["per_symbol"] if (gain := _gain(entry)) is not None]
    unknown = [entry["symbol"] for entry in evaluation["per_symbol"] if _gain(entry) is None]
    return [symbol for _, symbol in sorted(known, key=lambda item: -item[0])] + unknown


def verdict_lines(evaluation: Entry) -> list[str]:
    """Return the verdicts on the trained model, a line for all tickers with the same, the best first; then a legend."""
    groups: dict[tuple[tuple[Verdict, str], ...], list[str]] = {}
    for entry in evaluation["per_symbol"]:
        verdicts = tuple(_verdict(entry, evaluation["model"], target) for target in TARGETS)
        groups.setdefault(verdicts, []).append(entry["symbol"])
    order = [BETTER, WORSE, NO_BETTER, TOO_LITTLE]
    ranked = sorted(groups.items(), key=lambda item: min(order.index(verdict) for verdict, _ in item[0]))
    lines = []
    for reached, tickers in ranked:
        who = f"{len(tickers)} tickers, {enumerate_some(tickers, _NAMED)}" if len(tickers) > _NAMED else None
        lines.append(f"{who or ', '.join(tickers)}: {_sentence(reached)}")
    little = evidence_is_little(evaluation)
    return [*lines, _CUTOFF if little else _BETTER]


def evidence_is_little(evaluation: Entry) -> bool:
    """Return whether no ticker has a verdict for lack of evidence."""
    return all(
        combined_verdict_of(entry, evaluation["model"], target) == TOO_LITTLE
        for entry in evaluation["per_symbol"]
        for target in TARGETS
    )


def better_tickers(evaluation: Entry) -> list[str]:
    """Return the tickers whose model is better on some target."""
    return [
        entry["symbol"]
        for entry in evaluation["per_symbol"]
        if any(combined_verdict_of(entry, evaluation["model"], target) == BETTER for target in TARGETS)
    ]


def measured_line(evaluation: Entry) -> str:
    """Return what the model was measured on: bars, cutoffs and days."""
    first, last = (evaluation["holdout"][end][:10] for end in ("first", "last"))
    measured = cutoffs_phrase(evaluation["per_symbol"])
    return f"{measured}, {first} to {last}; no model has read a bar that it is scored on"


def cutoffs_phrase(entries: Sequence[Entry]) -> str:
    """Return the numbers of bars and cutoffs of each ticker, such as "30 bars from 1 cutoff"."""
    bars, cutoffs = (sorted({int(entry[key]) for entry in entries}) for key in ("bars", "cutoffs"))
    each = " each" if len(entries) > 1 else ""
    return f"{_range(bars, 'bar')} from {_range(cutoffs, 'cutoff')}{each}"


def _range(numbers: Sequence[int], word: str) -> str:
    return count(numbers[0], word) if len(numbers) == 1 else f"{numbers[0]:,} to {count(numbers[-1], word)}"


def _order(ranked: Sequence[str]) -> Any:
    return lambda entry: ranked.index(entry["symbol"])


def _gain(entry: Entry) -> float | None:
    """Return the share by which the model's error is below that of the last close; None if it is undefined."""
    own, naive = entry["mape"], entry["models"].get(NAIVE, {}).get("mape")
    return None if own is None or not naive else 1 - own / naive


def _error_line(entry: Entry, name: str, width: int, column: int) -> str:
    own, naive = entry["mape"], entry["models"].get(NAIVE, {}).get("mape")
    percent, _, word = difference(own, naive).rpartition(" % ")
    compared = word if word == UNDEFINED else f"{percent:>3} {'%' if percent else ' '} {word}"
    return f"{name:<{width}}  {number(own):>{column}}  {number(naive):>10}  {compared}"


def _verdict(entry: Entry, model: str, target: Target) -> tuple[Verdict, str]:
    """Return the verdict on a target, and the most frequent reason if it is too little evidence."""
    verdict = combined_verdict_of(entry, model, target)
    if verdict != TOO_LITTLE:
        return verdict, ""
    comparisons = entry["verdicts"][target].get(model, {}).values()
    reasons = [comparison["reason"] for comparison in comparisons if comparison["verdict"] == TOO_LITTLE]
    return verdict, max(reasons, key=reasons.count, default="")


def _sentence(verdicts: Sequence[tuple[Verdict, str]]) -> str:
    """Return the verdicts of all targets as a phrase; targets of one verdict stand together."""
    targets: dict[tuple[Verdict, str], list[str]] = {}
    for target, with_reason in zip(TARGETS, verdicts, strict=True):
        targets.setdefault(with_reason, []).append(_OF[target])
    parts = []
    for (verdict, reason), names in targets.items():
        of = "" if len(names) == len(TARGETS) else f" on {join(names)}"
        parts.append(f"{_WORDS[verdict]}{of}{f' ({reason})' if reason else ''}")
    return "; ".join(parts)
