"""What the UI shows of evaluations: tables, verdicts, numbers to follow over time, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from kronos_pipeline.orchestration.metadata import bullets, inline_image

_OWN = ("mae", "mape", "mase", "scaled_crps", "bias", "directional_accuracy", "coverage_80", "width_80")
"""Metrics of the trained model that the asset's page draws over time."""
_RIVALS = ("base", "naive")
_OF_RIVALS = ("mae", "mase", "scaled_crps")
_PICTURES = {
    "holdout": ("forecasts", "forecasts beside the truth"),
    "fan": ("fan chart", "intervals beside the truth"),
    "steps": ("error by step", "error by bars ahead"),
    "reliability": ("reliability", "how often the intervals hold"),
    "forecast": ("fan chart", "the bars to come, with intervals"),
}


def evaluation_metadata(
    evaluation: Mapping[str, Any],
    what: str = "Holdout",
    *,
    plots: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The tables, the verdicts in sentences, some scores as numbers, and pictures.

    Args:
        evaluation: as `build_evaluation` returns it.
        what: "Holdout" or "Backtest".
        plots: pictures by kind; see `HoldoutResult.plots`.
        notes: what was left out, and why.
    """
    from kronos_pipeline.evaluation.reports.tables import evaluation_sheet, leaderboard_sheet, verdict_sentences

    total, trained = evaluation["aggregate"], evaluation["model"]
    metadata: dict[str, Any] = {
        "leaderboard": dg.MetadataValue.md(leaderboard_sheet(evaluation, what).markdown()),
        "scores": dg.MetadataValue.md(evaluation_sheet(evaluation, what).markdown()),
        "verdicts": dg.MetadataValue.md(bullets(_verdicts(evaluation, verdict_sentences)) or "none"),
        **_numbers(total["models"], trained),
        "evaluated": f"{evaluation['holdout']['first']} to {evaluation['holdout']['last']}",
        "bars": total["bars"],
        "cutoffs": total["cutoffs"],
    }
    if said := [*evaluation["warnings"], *notes]:
        metadata["notes"] = dg.MetadataValue.md(bullets(said))
    return metadata | picture_metadata(plots or {})


def picture_metadata(plots: Mapping[str, Path]) -> dict[str, Any]:
    """Pictures by kind, each shown in a dialog, and where the full-sized ones lie."""
    if not plots:
        return {}
    shown = {_PICTURES[kind][0]: inline_image(path.read_bytes(), _PICTURES[kind][1]) for kind, path in plots.items()}
    return shown | {"pictures": dg.MetadataValue.md(bullets([f"`{path}`" for path in plots.values()]))}


def _verdicts(evaluation: Mapping[str, Any], sentences: Any) -> list[str]:
    trained, entries = evaluation["model"], evaluation["per_symbol"]
    # Of one symbol its own verdict counts, as it is corrected for all that were tested.
    entry = entries[0] if len(entries) == 1 else evaluation["aggregate"]
    return [f"{trained} {one}" for one in sentences(entry, trained)]


def _numbers(models: Mapping[str, Mapping[str, Any]], trained: str) -> dict[str, Any]:
    return {
        f"{model}/{metric}": dg.MetadataValue.float(models[model][metric])
        for model in (trained, *_RIVALS)
        if model in models
        for metric in (_OWN if model == trained else _OF_RIVALS)
        if models[model][metric] is not None
    }
