"""An evaluation as sheets: a row per symbol, and the leaderboard with a row per model; and flat, for tracking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout, write_json
from kronos_pipeline.evaluation.forecasting.distributions import FEWEST_PATHS
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, CHECKPOINT, NAIVE
from kronos_pipeline.evaluation.reports.text_table import UNDEFINED, Sheet, count, number, price
from kronos_pipeline.evaluation.scoring.metrics import METRICS, UNITS
from kronos_pipeline.evaluation.scoring.verdicts import BETTER, MIN_CUTOFFS, NO_BETTER, TOO_LITTLE, WORSE

_ORDER = (ADAPTER, CHECKPOINT, BASE, NAIVE)
_FEW = "few"
_SHORT: dict[str, str] = {BETTER: "yes", NO_BETTER: "no", WORSE: "worse", TOO_LITTLE: _FEW}
"""A verdict under the heading "better than"."""

Entry = Mapping[str, Any]
Column = tuple[str, Callable[[Entry], str]]
"""A header, and the cell of an entry: a symbol's, or the aggregate."""


def evaluation_sheet(evaluation: Mapping[str, Any], what: str = "Holdout") -> Sheet:
    """A row per symbol: the errors of the trained model and of its rivals, and its verdicts; the aggregate last.

    Args:
        evaluation: as `build_evaluation` returns it.
        what: what was evaluated, "Holdout" or "Backtest".
    """
    trained, total = evaluation["model"], evaluation["aggregate"]
    rivals = [name for name in _ORDER if name in total["models"] and name != trained]
    columns: list[Column] = [
        (f"MAE\n{trained}\n(price)", lambda entry: price(entry["mae"])),
        *(_error_of(name) for name in rivals),
        (f"RMSE\n{trained}\n(price)", lambda entry: price(entry["rmse"])),
        (f"MAPE\n{trained}\n(%)", lambda entry: number(entry["mape"])),
        *(_verdict_column(trained, rival) for rival in (NAIVE, BASE) if rival in rivals),
    ]
    return Sheet(
        title=f"{what}: {trained} on base model {evaluation['base_model']}",
        headers=["Symbol", *(header for header, _ in columns)],
        rows=[[entry["symbol"], *(cell(entry) for _, cell in columns)] for entry in evaluation["per_symbol"]],
        total=["all", *(cell(total) for _, cell in columns)],
        notes=_notes(evaluation),
    )


def leaderboard_sheet(evaluation: Mapping[str, Any], what: str = "Holdout") -> Sheet:
    """The leaderboard: a row per model over all symbols, the smallest scaled error first."""
    columns: list[Column] = [
        ("MASE", lambda row: number(row["mase"])),
        ("CRPS\nscaled", lambda row: number(row["scaled_crps"])),
        ("MAPE\n(%)", lambda row: number(row["mape"])),
        ("right\nway\n(%)", lambda row: number(row["directional_accuracy"], 0)),
        ("80 %\nholds\n(raw)", _coverage),
        ("rank\nIC", lambda row: number(row.get("rank_ic"))),
        ("better\nthan\nnaive", lambda row: _short(row.get("against_naive"))),
        ("better\nthan\nbase", lambda row: _short(row.get("against_base"))),
    ]
    rows = leaderboard_rows(evaluation)
    return Sheet(
        title=f"{what} on base model {evaluation['base_model']}, mean over "
        f"{count(evaluation['aggregate']['symbols_evaluated'], 'symbol')}",
        headers=["Model", *(header for header, _ in columns)],
        rows=[[row["model"], *(cell(row) for _, cell in columns)] for row in rows],
        notes=[*evaluation["warnings"], *_partial(evaluation)],
    )


def leaderboard_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per model: its mean scores over its symbols, and its verdicts; the smallest scaled error first.

    Models that not every symbol has come last, as their means are over other symbols.

    Args:
        evaluation: as `build_evaluation` returns it.
    """
    total = evaluation["aggregate"]
    rows = [
        {
            "model": name,
            **{key: value for key, value in scores.items() if key != "undefined"},
            **{f"against_{rival}": one["verdict"] for rival, one in total["verdicts"].get(name, {}).items()},
        }
        for name, scores in total["models"].items()
    ]
    symbols = total["symbols_evaluated"]
    return sorted(rows, key=lambda row: (row["symbols"] < symbols, row["mase"] is None, row["mase"]))


def save_leaderboard(
    layout: ArtifactLayout, holdout: Mapping[str, Any], backtest: Mapping[str, Any] | None = None
) -> None:
    """Write `metrics/leaderboard.json`: rows of the holdout's evaluation and of the backtest's, and their units."""
    found = {"holdout": holdout} | ({"backtest": backtest} if backtest else {})
    parts = {
        what: {
            "base_model": evaluation["base_model"],
            "warnings": evaluation["warnings"],
            "span": evaluation["holdout"],
            **{key: evaluation["aggregate"][key] for key in ("symbols_evaluated", "bars", "cutoffs")},
            "models": leaderboard_rows(evaluation),
        }
        for what, evaluation in found.items()
    }
    write_json(layout.leaderboard, {"units": UNITS, **parts})


def evaluation_frame(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """A row per symbol and model with every metric, NaN where undefined; `metrics.UNITS` has the units."""
    return pd.DataFrame(
        [
            {"symbol": entry["symbol"], "model": model, **{metric: scores[metric] for metric in METRICS}}
            for entry in evaluation["per_symbol"]
            for model, scores in entry["models"].items()
        ]
    ).astype(dict.fromkeys(METRICS, "float64"))


def flat_metrics(evaluation: Mapping[str, Any], what: str = "holdout") -> dict[str, float]:
    """Each model's aggregate, flat, for a tracking run: `holdout/adapter/mae` and so on, without the undefined."""
    return {
        f"{what}/{model}/{metric}": scores[metric]
        for model, scores in evaluation["aggregate"]["models"].items()
        for metric in METRICS
        if scores[metric] is not None
    }


def verdict_sentences(entry: Entry, model: str) -> list[str]:
    """What a symbol's entry, or the aggregate, says of a model against each rival, with the figures."""
    return [
        f"against {rival}: {one['verdict']}, {one['reason']}" for rival, one in entry["verdicts"].get(model, {}).items()
    ]


def _error_of(name: str) -> Column:
    return f"MAE\n{name}\n(price)", lambda entry: price(entry["models"].get(name, {}).get("mae"))


def _verdict_column(model: str, rival: str) -> Column:
    return f"better\nthan\n{rival}", lambda entry: _short(
        entry["verdicts"].get(model, {}).get(rival, {}).get("verdict")
    )


def _short(verdict: str | None) -> str:
    return UNDEFINED if verdict is None else _SHORT[verdict]


def _coverage(row: Entry) -> str:
    """How much the interval of 80 percent holds, and what it held before recalibration."""
    if row["coverage_80"] is None:
        return UNDEFINED
    return f"{row['coverage_80']:.0f} ({number(row['raw_coverage_80'], 0)})"


def _notes(evaluation: Mapping[str, Any]) -> list[str]:
    """What the cells cannot say: how much was evaluated, what was left out, undefined metrics, skipped symbols."""
    total = evaluation["aggregate"]
    counts = [
        count(total[key], word)
        for key, word in (("bars", "bar"), ("symbols_evaluated", "symbol"), ("cutoffs", "cutoff"))
    ]
    notes = [*evaluation["warnings"], "{} of {} forecast from {}.".format(*counts)]
    if why := _little_evidence(evaluation):
        notes.append(f"{_FEW.capitalize()}: too little evidence: {why}.")
    notes += _partial(evaluation)
    if evaluation["samples"] is not None and evaluation["samples"] < FEWEST_PATHS:
        notes.append(f"Intervals end at the outermost of {count(evaluation['samples'], 'path')} and are too narrow.")
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
    return notes + [f"Skipped {one['symbol']}: {one['reason']}" for one in evaluation["skipped"]]


def _little_evidence(evaluation: Mapping[str, Any]) -> str | None:
    """The reason that most verdicts of too little evidence give, or None where there is no such verdict."""
    entries = (evaluation["aggregate"], *evaluation["per_symbol"])
    verdicts = [one for entry in entries for one in entry["verdicts"].get(evaluation["model"], {}).values()]
    reasons = [one["reason"] for one in verdicts if one["verdict"] == TOO_LITTLE]
    if not reasons:
        return None
    usual = max(reasons, key=reasons.count)
    return f"{usual} (--backtest-origins gives more)" if f"needs {MIN_CUTOFFS}" in usual else usual


def _partial(evaluation: Mapping[str, Any]) -> list[str]:
    """What must be said of models that not every symbol has: their means are over others than those beside them."""
    total = evaluation["aggregate"]
    symbols = total["symbols_evaluated"]
    few = [f"{name} {one['symbols']}" for name, one in total["models"].items() if one["symbols"] < symbols]
    return [f"Means over fewer than the {symbols} symbols, not to be compared: {', '.join(few)}."] if few else []


def _mended(evaluation: Mapping[str, Any]) -> str | None:
    """The share of sampled bars that were no valid candles, over the symbols, where there were any."""
    shares: dict[str, list[float]] = {}
    for entry in evaluation["per_symbol"]:
        for name, share in entry["mended"].items():
            shares.setdefault(name, []).append(share)
    means = {name: sum(some) / len(some) for name, some in shares.items()}
    if not any(means.values()):
        return None
    said = ", ".join(f"{name} {share:.1%}" for name, share in means.items())
    return f"Sampled bars that were no valid candles, and were mended: {said}."
