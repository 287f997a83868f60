"""The leaderboard: models by metrics over all tickers, of the holdout and, where there is one, of the backtest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kronos_pipeline.artifacts import ArtifactLayout, write_json
from kronos_pipeline.evaluation.scoring.metrics import UNITS


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
