"""The leaderboard as an MLflow run: scores over all tickers, and the key that tells a repeated evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kronos_pipeline.checksums import text_hash
from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.reports.tables import evaluation_frame, leaderboard_metrics
from kronos_pipeline.tracking.runs import Leaderboard

_SHAPING = ("weights", "data", "config", "differing", "group", "code_version")
"""Keys of the manifest of an evaluation that its scores depend on."""


def make_leaderboard(
    holdout: Mapping[str, Any], backtest: Mapping[str, Any] | None = None, plots: Sequence[Path] = ()
) -> tuple[Leaderboard, dict[str, str]]:
    """Return the leaderboard to record, and the tags that mark its run.

    Equal models, bars and settings give an equal key, so that a repeated evaluation makes no new run.

    Args:
        holdout: the evaluation on the holdout, the result of `build_evaluation`.
        backtest: the evaluation of the backtest, if there is one.
        plots: pictures of the backtest.
    """
    evaluations = {"holdout": holdout} | ({"backtest": backtest} if backtest else {})
    shaping = [{key: evaluation["manifest"].get(key) for key in _SHAPING} for evaluation in evaluations.values()]
    metrics = {key: value for what, one in evaluations.items() for key, value in leaderboard_metrics(one, what).items()}
    board = Leaderboard(
        key=text_hash(json.dumps(shaping, sort_keys=True, default=str)),
        subject=f"of {count(holdout['aggregate']['symbols_evaluated'], 'ticker')}",
        metrics=metrics,
        table=evaluation_frame(holdout),
        plots=plots,
    )
    return board, ({"contamination": "; ".join(holdout["warnings"])} if holdout["warnings"] else {})
