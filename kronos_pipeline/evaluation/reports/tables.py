"""Tables of an evaluation: a row per symbol, the leaderboard with a row per model, and flat metrics for tracking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout, write_json
from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.predictions import (
    ADAPTER,
    BASE,
    CHECKPOINT,
    EWMA,
    FEWEST_PATHS,
    NAIVE,
    without_variants,
)
from kronos_pipeline.evaluation.reports.summary import cutoffs_phrase
from kronos_pipeline.evaluation.reports.text_table import UNDEFINED, TextTable, number, price
from kronos_pipeline.evaluation.reports.worth import MARKS, combined_verdict_of, little_evidence
from kronos_pipeline.evaluation.scoring.metrics import METRICS, UNITS
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, MEAN, TARGETS, VOLATILITY, Target
from kronos_pipeline.evaluation.scoring.verdicts import Verdict

_ORDER = (ADAPTER, CHECKPOINT, BASE, NAIVE)
_COMPARED = ("mae", "mase", "scaled_crps", "qlike", "coverage_80", "directional_accuracy")
_SKILLS: dict[Target, tuple[str, str]] = {
    MEAN: ("mase", NAIVE),
    DISTRIBUTION: ("scaled_crps", EWMA),
    VOLATILITY: ("qlike", EWMA),
}
"""The mean loss of each target, and the rival of its skill."""
_HEADERS: dict[Target, str] = {MEAN: "mean", DISTRIBUTION: "distri-\nbution", VOLATILITY: "vola-\ntility"}

Entry = Mapping[str, Any]
Column = tuple[str, Callable[[Entry], str]]
"""A header, and a function that formats the cell of an entry: a symbol's entry, or the aggregate."""


def evaluation_table(evaluation: Mapping[str, Any], what: str = "Holdout") -> TextTable:
    """Build the table of symbols: errors of the trained model and its rivals, and verdicts; the aggregate comes last.

    Args:
        evaluation: the result of `build_evaluation`.
        what: the kind of evaluation, "Holdout" or "Backtest".
    """
    trained, total = evaluation["model"], evaluation["aggregate"]
    rivals = [name for name in _ORDER if name in total["models"] and name != trained]
    columns: list[Column] = [
        (f"MAE\n{trained}\n(price)", lambda entry: price(entry["mae"])),
        *(_error_of(name) for name in rivals),
        (f"RMSE\n{trained}\n(price)", lambda entry: price(entry["rmse"])),
        (f"MAPE\n{trained}\n(%)", lambda entry: number(entry["mape"])),
        *(_verdict_column(trained, target) for target in TARGETS),
    ]
    return TextTable(
        title=f"{what}: {trained} on base model {evaluation['base_model']}",
        headers=["Symbol", *(header for header, _ in columns)],
        rows=[[entry["symbol"], *(cell(entry) for _, cell in columns)] for entry in evaluation["per_symbol"]],
        total=["all", *(cell(total) for _, cell in columns)],
        notes=_notes(evaluation),
    )


def leaderboard_table(evaluation: Mapping[str, Any], what: str = "Holdout") -> TextTable:
    """Build the leaderboard: a row per model over all symbols, the smallest scaled error first.

    The variants of a Kronos model's paths are left out; `leaderboard_rows` has them.
    """
    columns: list[Column] = [
        ("MASE", lambda row: number(row["mase"])),
        ("CRPS\nscaled", lambda row: number(row["scaled_crps"])),
        ("QLIKE", lambda row: number(row["qlike"])),
        ("right\nway\n(%)", lambda row: number(row["directional_accuracy"], 0)),
        ("80 %\nholds\n(raw)", _coverage),
        ("rank\nIC", lambda row: number(row.get("rank_ic"))),
        *(_verdict_of_row(target) for target in TARGETS),
    ]
    shown = without_variants(evaluation["aggregate"]["models"])
    rows = [row for row in leaderboard_rows(evaluation) if row["model"] in shown]
    return TextTable(
        title=f"{what} on base model {evaluation['base_model']}, mean over "
        f"{count(evaluation['aggregate']['symbols_evaluated'], 'symbol')}",
        headers=["Model", *(header for header, _ in columns)],
        rows=[[row["model"], *(cell(row) for _, cell in columns)] for row in rows],
        notes=[*evaluation["warnings"], *_partial(evaluation)],
    )


def leaderboard_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per model with its mean scores over symbols and its verdicts, the smallest scaled error first.

    Models without a forecast of some symbols come last, as their means are over other symbols.

    Args:
        evaluation: the result of `build_evaluation`.
    """
    total = evaluation["aggregate"]
    rows = [
        {
            "model": name,
            **{key: value for key, value in scores.items() if key != "undefined"},
            **{
                f"verdict_{target}": combined_verdict_of(total, name, target)
                for target in TARGETS
                if name in total["verdicts"][target]
            },
        }
        for name, scores in total["models"].items()
    ]
    symbols = total["symbols_evaluated"]
    return sorted(rows, key=lambda row: (row["symbols"] < symbols, row["mase"] is None, row["mase"]))


def save_leaderboard(
    layout: ArtifactLayout, holdout: Mapping[str, Any], backtest: Mapping[str, Any] | None = None
) -> None:
    """Write `metrics/leaderboard.json`: the rows of the holdout and of the backtest, and the units."""
    evaluations = {"holdout": holdout} | ({"backtest": backtest} if backtest else {})
    parts = {
        kind: {
            "base_model": evaluation["base_model"],
            "warnings": evaluation["warnings"],
            "span": evaluation["holdout"],
            **{key: evaluation["aggregate"][key] for key in ("symbols_evaluated", "bars", "cutoffs")},
            "models": leaderboard_rows(evaluation),
        }
        for kind, evaluation in evaluations.items()
    }
    write_json(layout.leaderboard, {"units": UNITS, **parts})


def evaluation_frame(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row per symbol and model with every metric, NaN if undefined; `metrics.UNITS` has the units."""
    return pd.DataFrame(
        [
            {"symbol": entry["symbol"], "model": model, **{metric: scores[metric] for metric in METRICS}}
            for entry in evaluation["per_symbol"]
            for model, scores in entry["models"].items()
        ]
    ).astype(dict.fromkeys(METRICS, "float64"))


def run_metrics(evaluation: Mapping[str, Any], what: str = "holdout", model: str | None = None) -> dict[str, float]:
    """Return the scores of a model to compare runs by, such as `holdout/mae`; undefined scores are left out.

    `skill_mean` and the like are 1 - the model's loss / the loss of the target's first rival, of the mean scores over
    symbols; above 0 is better.

    Args:
        evaluation: the result of `build_evaluation`.
        what: "holdout" or "backtest".
        model: the model; by default the trained model.
    """
    models = evaluation["aggregate"]["models"]
    scores = models[model or evaluation["model"]]
    found = {metric: scores[metric] for metric in _COMPARED}
    for target, (loss, rival) in _SKILLS.items():
        if rival in models and scores[loss] is not None and models[rival][loss]:
            found[f"skill_{target}"] = 1 - scores[loss] / models[rival][loss]
    return {f"{what}/{metric}": value for metric, value in found.items() if value is not None}


def leaderboard_metrics(evaluation: Mapping[str, Any], what: str = "holdout") -> dict[str, float]:
    """Return the scores of each model to compare leaderboards by, such as `holdout/adapter/mae`.

    The variants of a Kronos model have none of their own.
    """
    shown = without_variants(evaluation["aggregate"]["models"])
    return {key: value for model in shown for key, value in run_metrics(evaluation, f"{what}/{model}", model).items()}


def verdict_sentences(entry: Entry, model: str) -> list[str]:
    """Return the verdicts on a model by target and rival, of a symbol's entry or the aggregate, with the figures."""
    return [
        f"{target} against {rival}: {verdict['verdict']}, {verdict['reason']}"
        for target in TARGETS
        for rival, verdict in entry["verdicts"][target].get(model, {}).items()
    ]


def _error_of(name: str) -> Column:
    return f"MAE\n{name}\n(price)", lambda entry: price(entry["models"].get(name, {}).get("mae"))


def _verdict_column(model: str, target: Target) -> Column:
    return _HEADERS[target], lambda entry: MARKS[combined_verdict_of(entry, model, target)]


def _verdict_of_row(target: Target) -> Column:
    return _HEADERS[target], lambda row: _short(row.get(f"verdict_{target}"))


def _short(verdict: Verdict | None) -> str:
    return UNDEFINED if verdict is None else MARKS[verdict]


def _coverage(row: Entry) -> str:
    """Format the coverage of the interval of 80 percent, and the coverage before recalibration."""
    if row["coverage_80"] is None:
        return UNDEFINED
    return f"{row['coverage_80']:.0f} ({number(row['raw_coverage_80'], 0)})"


def _notes(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the notes below the table: counts, warnings, left-out cutoffs, undefined metrics, skipped symbols."""
    total = evaluation["aggregate"]
    measured = f"{count(total['symbols_evaluated'], 'symbol')}: {cutoffs_phrase(evaluation['per_symbol'])}."
    notes = [*evaluation["warnings"], measured]
    notes += little_evidence(evaluation)
    notes += _partial(evaluation)
    if evaluation["samples"] is not None and evaluation["samples"] < FEWEST_PATHS:
        notes.append(f"Intervals reach beyond {count(evaluation['samples'], 'path')} by a fitted tail, and are rough.")
    if left_out := total["cutoffs_left_out"]:
        notes.append(f"Left out: {count(left_out, 'older cutoff')} (--max-cutoffs).")
    if mended := _mended(evaluation):
        notes.append(mended)
    notes += [
        f"{entry['symbol']}: {metric.upper()} is undefined: {reason}."
        for entry in evaluation["per_symbol"]
        for metric, reason in entry.get("undefined", {}).items()
        if metric in ("mae", "rmse", "mape", "mase")
    ]
    return notes + [f"Skipped {entry['symbol']}: {entry['reason']}" for entry in evaluation["skipped"]]


def _partial(evaluation: Mapping[str, Any]) -> list[str]:
    """Return a note on models without a forecast of some symbols, as their means are over other symbols."""
    total = evaluation["aggregate"]
    symbols = total["symbols_evaluated"]
    counts = {name: total["models"][name]["symbols"] for name in without_variants(total["models"])}
    few = [f"{name} {number}" for name, number in counts.items() if number < symbols]
    return [f"Means over fewer than the {symbols} symbols, not to be compared: {', '.join(few)}."] if few else []


def _mended(evaluation: Mapping[str, Any]) -> str | None:
    """Return a note on the share of sampled bars that were no valid candles, if there were any."""
    shares: dict[str, list[float]] = {}
    for entry in evaluation["per_symbol"]:
        for name, share in entry["mended"].items():
            shares.setdefault(name, []).append(share)
    means = {name: sum(values) / len(values) for name, values in shares.items()}
    if not any(means.values()):
        return None
    listed = ", ".join(f"{name} {share:.1%}" for name, share in means.items())
    return f"Sampled bars repaired to valid candles: {listed}."
