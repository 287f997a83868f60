"""`kronos record AAPL`: how good the forecasts were that were issued before their bars existed."""

from __future__ import annotations

from pathlib import Path

from kronos_pipeline.cli.command import FAILED, verbose_flag
from kronos_pipeline.cli.tickers import TickersCommand
from kronos_pipeline.errors import KronosError


class Record(TickersCommand):
    """Score the forecasts of the ledger whose bars have come, against the last close and EWMA volatility.

    The ledger has every forecast that `kronos forecast` and the asset `forecast` issued. The e-value may be looked at
    every day: 20 means better (or worse) than the rival. Stored as `track_record/<T>.json` and `plots/<T>/record.png`.
    """

    verbose: bool = verbose_flag("print the reason of each ticker that drops out")

    def run(self) -> int:
        """Print the record by ticker; of a single ticker, by model too."""
        # Imported here, so that --help needs no imports that take seconds.
        from kronos_pipeline.artifacts import ArtifactLayout
        from kronos_pipeline.atomic_writes import check_writable
        from kronos_pipeline.evaluation import ledger
        from kronos_pipeline.evaluation.reports.record import record_table
        from kronos_pipeline.evaluation.reports.text_table import print_tables
        from kronos_pipeline.pipeline.ingest import report_all_skipped
        from kronos_pipeline.promotion.track_record import TickerRecord, record_ticker

        layout = ArtifactLayout(Path(self.output_dir))
        folder = self.find_files(layout)
        tickers = self.symbols(folder)
        _, bars, errors = self.read_tickers(layout, folder)
        check_writable(layout.root)
        entries = ledger.read(layout, tickers)
        failed: dict[str, KronosError] = {**errors}
        records: list[TickerRecord] = []
        for ticker in tickers:
            if ticker in bars:
                try:
                    records.append(record_ticker(layout, entries, bars[ticker]))
                except KronosError as error:
                    failed[ticker] = error
        if len(tickers) == 1 and failed:
            raise failed[tickers[0]]
        for note in entries.notes:
            print(note)
        if len(records) == 1:
            print_tables(records[0].text_table())
            print(records[0].sentence())
            print(f"record    {records[0].file}")
            if records[0].plot:
                print(f"picture   {records[0].plot}")
        elif records:
            print_tables(record_table([record.total for record in records]))
            for note in (note for record in records for note in record.total.notes):
                print(note)
            print(f"records   {layout.track_record(tickers[0]).parent}")
        report_all_skipped(failed, self.verbose)
        return FAILED if failed else 0
