"""Asset checks of the verdicts: is the trained model better than every rival on a target?

A check that has too little evidence does not apply: it is neither passed nor failed, and the UI shows it as skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout, read_json
from kronos_pipeline.evaluation.predictions import ADAPTER
from kronos_pipeline.evaluation.reports.worth import hardest_first, skill_sentence
from kronos_pipeline.evaluation.scoring.targets import Target
from kronos_pipeline.evaluation.scoring.verdicts import BETTER, MIN_CUTOFFS, TOO_LITTLE
from kronos_pipeline.orchestration.checks import Outcome
from kronos_pipeline.orchestration.metadata import markdown_table

MORE_EVIDENCE = {
    "holdout_metrics": f"materialize `backtest`, or hold out {MIN_CUTOFFS} horizons (`validation_days`)",
    "backtest": f"materialize `backtest` with `backtest_origins` of {MIN_CUTOFFS} or more",
}
"""The way to enough cutoffs for a verdict, by asset."""


def holdout_report(layout: ArtifactLayout, ticker: str) -> Path:
    """Return the report with the verdicts of a ticker's holdout."""
    return layout.ticker_metrics(ticker)


def backtest_report(layout: ArtifactLayout, ticker: str) -> Path:
    """Return the report with the verdicts of a ticker's backtest."""
    return layout.backtest_report(ADAPTER, ticker)


REPORTS = {"holdout_metrics": holdout_report, "backtest": backtest_report}
"""The report that the checks of an asset read."""


def better_on(target: Target, asset: str) -> Callable[[ArtifactLayout, str], Outcome]:
    """Return a check of the verdict on a target in the report of an asset.

    Args:
        target: the target.
        asset: "holdout_metrics" or "backtest".
    """

    def check(layout: ArtifactLayout, ticker: str) -> Outcome:
        evaluation = read_json(REPORTS[asset](layout, ticker))
        model, entry = evaluation["model"], evaluation["per_symbol"][0]
        comparisons = hardest_first(entry, model, target)
        if not comparisons:
            return Outcome(None, f"There is no verdict on the {target} of the {model}.")
        # The first comparison decides: a rival that is not beaten, else a rival without enough evidence.
        passed = {BETTER: True, TOO_LITTLE: None}.get(comparisons[0]["verdict"], False)
        if passed is None:
            text, notes = f"{TOO_LITTLE}: {comparisons[0]['reason']}", [f"For more, {MORE_EVIDENCE[asset]}."]
        else:
            text, notes = "; ".join(map(skill_sentence, comparisons)), evaluation["warnings"]
        return Outcome(passed, " ".join([f"{text[0].upper()}{text[1:]}.", *notes]), _figures(comparisons))

    check.__doc__ = (
        f"Skipped: fewer than {MIN_CUTOFFS} cutoffs are too little evidence; for more, {MORE_EVIDENCE[asset]}.\n\n"
        f"Passes if the {target} of the trained model is better than that of every rival, by the Diebold-Mariano test "
        "and a block bootstrap over the cutoffs, corrected for the number of tickers."
    )
    return check


def _figures(comparisons: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rounded figures against the hardest rival, and a table of all rivals."""
    hardest = comparisons[0]
    figures = {"hardest rival": hardest["rival"], "cutoffs": hardest["cutoffs"]}
    if hardest["skill"] is not None:
        figures["skill (%)"] = round(100 * hardest["skill"], 1)
    if hardest["adjusted_p"] is not None:
        figures["adjusted p"] = round(hardest["adjusted_p"], 4)
    rows = [{"rival": row["rival"], "verdict": row["verdict"], "why": row["reason"]} for row in comparisons]
    return figures | {"rivals": dg.MetadataValue.md(markdown_table(pd.DataFrame(rows)))}
