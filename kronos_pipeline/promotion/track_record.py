"""The track record of a ticker: the ledger's forecasts, scored on the bars that have come, as file, table and plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kronos_pipeline.artifacts import ArtifactLayout, write_json
from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.code_version import code_version
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.evaluation.ledger import Ledger
from kronos_pipeline.evaluation.reports.record import record_plot, record_sentence, record_table
from kronos_pipeline.evaluation.reports.text_table import TextTable
from kronos_pipeline.evaluation.scoring.track_record import TrackRecord, score_ledger, summarise


@dataclass(frozen=True)
class TickerRecord:
    """A ticker's track record and its files.

    Attributes:
        total: the record of all forecasts of the ticker.
        models: the record of each model and version that issued forecasts, by name.
        file: `track_record/<T>.json`.
        plot: `plots/<T>/record.png`; None without a scored forecast.
    """

    total: TrackRecord
    models: tuple[TrackRecord, ...]
    file: Path
    plot: Path | None

    def text_table(self) -> TextTable:
        """Build the table of the record: all forecasts, then each model's."""
        return record_table([self.total, *self.models], self.total.notes)

    def sentence(self) -> str:
        """Return the record in one sentence."""
        return record_sentence(self.total)


def record_ticker(layout: ArtifactLayout, ledger: Ledger, bars: Bars) -> TickerRecord:
    """Score a ticker's ledger, and write its record and its plot.

    Args:
        layout: the layout of the artifacts.
        ledger: the entries of the ticker, perhaps among those of others.
        bars: the ticker's bars.

    Raises:
        ArtifactError: a file cannot be written.
    """
    rows = ledger.rows[ledger.rows["unique_id"] == bars.ticker]
    scored = score_ledger(rows, bars)
    total = summarise(scored, bars.ticker)
    issued = scored.forecasts.loc[scored.forecasts["state"] != "replay", ["model", "version"]]
    models = tuple(
        summarise(scored, bars.ticker, model, version)
        for model, version in sorted(issued.drop_duplicates().itertuples(index=False, name=None))
    )
    file, plot = layout.track_record(bars.ticker), layout.picture(bars.ticker, "record")
    content = {
        **total.as_dict(),
        "models": [record.as_dict() for record in models],
        "data": bars.content_hash,
        "ledger_notes": list(ledger.notes),
        "code_version": code_version(),
    }
    write_json(file, content)
    if not total.forecasts:
        return TickerRecord(total, models, file, None)
    png = record_plot(scored, total)
    write_file(plot, lambda handle: handle.write(png))
    return TickerRecord(total, models, file, plot)
