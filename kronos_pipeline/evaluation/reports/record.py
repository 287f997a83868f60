"""The track record as a table and as a plot: running skill against the rivals, and running coverage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.predictions import LEVELS
from kronos_pipeline.evaluation.reports.text_table import UNDEFINED, TextTable, number
from kronos_pipeline.evaluation.scoring.sequential import EVIDENCE
from kronos_pipeline.evaluation.scoring.track_record import OPEN, ScoredLedger, TrackRecord, counted_forecasts

_SHOWN_SKILL = 1.0
"""Bound of the axis of skills: the skill of the first forecasts is far below."""


def record_table(records: Sequence[TrackRecord], notes: Sequence[str] = ()) -> TextTable:
    """Build a table of track records, a row each.

    Args:
        records: the records, of one ticker or of many.
        notes: notes below the table.
    """
    rows = []
    for record in records:
        scored = f"{record.forecasts:,}" + (f" +{record.waiting:,}" if record.waiting else "")
        mean = _evidence(record.mean_evidence, record.mean_against, record.mean_verdict)
        crps = _evidence(record.crps_evidence, record.crps_against, record.crps_verdict)
        figures = [_percent(record.mean_skill), mean, _percent(record.crps_skill), crps]
        coverage = [number(record.coverage[str(level)], 0) for level in LEVELS]
        rows.append([record.ticker, record.model, scored, *figures, *coverage, number(record.brier)])
    headers = ["Ticker", "by", "fore-\ncasts", "mean\nskill", "\ne", "distr.\nskill", "\ne"]
    return TextTable(
        title="Track record of the forecasts in the ledger",
        headers=[*headers, *(f"in\n{level} %" for level in LEVELS), "Brier"],
        rows=rows,
        notes=[
            "forecasts: scored, + waiting for their bars. Skill: of the mean against the last close, of the "
            "distribution against EWMA.",
            f"e: evidence for better or, with <, for worse; {EVIDENCE:.0f} is a result, on whichever day one looks.",
            "in 80 %: closes within the interval, in percent. Brier: of the probability of a rise; 0.25 is a coin.",
            *notes,
        ],
    )


def record_sentence(record: TrackRecord) -> str:
    """Return a track record in one sentence."""
    if not record.forecasts:
        others = [
            f"{count(number, 'forecast')} {state}"
            for number, state in (
                (record.waiting, "waiting for bars"),
                (record.replays, "of bars that existed already, which never count"),
            )
            if number
        ]
        return f"{record.ticker}: {', '.join(['no forecast of the ledger has been scored yet', *others])}."
    parts = [
        f"{name} {_percent(skill)} against {rival} ({verdict}, {_evidence_for(better, worse)})"
        for name, rival, skill, verdict, better, worse in (
            (
                "mean",
                "the last close",
                record.mean_skill,
                record.mean_verdict,
                record.mean_evidence,
                record.mean_against,
            ),
            ("distribution", "EWMA", record.crps_skill, record.crps_verdict, record.crps_evidence, record.crps_against),
        )
    ]
    coverage = record.coverage["80"]
    inside = "" if coverage is None else f"; {coverage:.0f} % of the closes within the 80 % interval"
    return f"{record.ticker}: skill of {count(record.forecasts, 'forecast')}: {', '.join(parts)}{inside}."


def record_plot(scored: ScoredLedger, record: TrackRecord) -> bytes:
    """Draw the running skill and the running coverage of a ticker's forecasts over their cutoffs, as PNG.

    Args:
        scored: the result of `score_ledger`.
        record: the ticker's record over all models.
    """
    from kronos_pipeline.evaluation.reports.figures import (
        BANDS,
        BLUE,
        INK,
        ORANGE,
        bar_axis,
        new_figure,
        to_png,
    )

    forecasts = counted_forecasts(scored)
    forecasts = forecasts[forecasts["state"] == "scored"]
    cutoffs = pd.DatetimeIndex(forecasts["cutoff"])
    x = np.arange(len(forecasts))
    dots = "o" if len(x) < 20 else "none"
    title = f"{record.ticker}: track record of {count(record.forecasts, 'forecast')} issued before their bars existed"
    figure, (left, right) = new_figure(title, record.notes, panels=2)
    left.axhline(0, color=INK, linewidth=1)
    crps_evidence = _evidence_for(record.crps_evidence, record.crps_against)
    mean_evidence = _evidence_for(record.mean_evidence, record.mean_against)
    for name, loss, rival, colour, verdict, evidence in (
        ("distribution against EWMA", "loss", "rival_loss", BLUE, record.crps_verdict, crps_evidence),
        ("mean against the last close", "mean_loss", "naive_loss", ORANGE, record.mean_verdict, mean_evidence),
    ):
        totals = forecasts[[loss, rival]].cumsum()
        skill = 1 - totals[loss] / totals[rival].where(totals[rival] > 0)
        label = f"{name}: {verdict}, {evidence}"
        left.plot(x, skill, color=colour, linewidth=1.8, marker=dots, markersize=4, label=label)
    low, high = left.get_ylim()
    left.set_ylim(max(min(low, -0.02), -_SHOWN_SKILL), min(max(high, 0.02), _SHOWN_SKILL))
    left.set_ylabel("running skill (above 0: better than the rival)")

    keys = ["unique_id", "issued", "cutoff", "model", "version"]
    inside = scored.bars.groupby(keys)[[f"inside_{level}" for level in LEVELS]].agg(["sum", "count"])
    inside = inside.reindex(pd.MultiIndex.from_frame(forecasts[keys])).cumsum()
    colours = {50: BANDS[50], 80: BLUE, 90: "#00395c"}
    for level in LEVELS:
        share = 100 * inside[f"inside_{level}", "sum"] / inside[f"inside_{level}", "count"]
        right.axhline(level, color=colours[level], linewidth=1, linestyle=(0, (4, 3)))
        label = f"within the {level} % interval"
        right.plot(x, share, color=colours[level], linewidth=1.8, marker=dots, markersize=4, label=label)
    right.set_ylim(0, 102)
    right.set_ylabel("running share of closes (percent; dashed: as it should be)")
    for axes in (left, right):
        bar_axis(axes, cutoffs, 0, len(cutoffs) - 1)
        axes.xaxis.get_major_locator().set_params(nbins=4)  # type: ignore[call-arg]
        axes.set_xlabel("cutoff of the forecast")
    return to_png(figure, columns=3)


def _percent(value: float | None) -> str:
    return UNDEFINED if value is None else f"{100 * value:+.1f}%"


def _evidence(better: float, worse: float, verdict: str = OPEN) -> str:
    """Format the larger of two e-values, with < before that of "worse", and a verdict unless it is open."""
    value = f"{'<' if worse > better else ''}{max(better, worse):.2g}"
    return value if verdict == OPEN else f"{value} {verdict}"


def _evidence_for(better: float, worse: float) -> str:
    """Say the larger of two e-values, and its side."""
    return f"e-value {max(better, worse):.2g} for {'worse' if worse > better else 'better'}"
