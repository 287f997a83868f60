"""`kronos drift AAPL MSFT`: report champions with larger errors on new bars than their evidence predicts."""

from __future__ import annotations

from pathlib import Path

from kronos_pipeline.cli.command import FAILED, verbose_flag
from kronos_pipeline.cli.tickers import TickersCommand
from kronos_pipeline.errors import KronosError, group_messages
from kronos_pipeline.training.progress import step


class Drift(TickersCommand):
    """Compare each champion's errors on the bars since its evaluation with its errors in the evaluation.

    The champion's forecasts in the ledger come first; with too few of them it forecasts these bars again.

    Report each champion that has drifted. Nothing is written; train and promote again if a champion has drifted.
    """

    verbose: bool = verbose_flag("print a line per ticker")

    def run(self) -> int:
        """Print the findings: a line per champion that has drifted, and the other tickers by finding."""
        step("reading CSVs")
        # Imported here, so that --help needs no imports that take seconds.
        from kronos_pipeline.artifacts import ArtifactLayout
        from kronos_pipeline.evaluation import ledger
        from kronos_pipeline.evaluation.forecasting.batching import run_jobs
        from kronos_pipeline.evaluation.forecasting.forecast_progress import ForecastProgress
        from kronos_pipeline.pipeline.ingest import report_all_skipped
        from kronos_pipeline.promotion.drift_watch import WatchedChampion, watch_drift_job
        from kronos_pipeline.tracking.registry import Registry
        from kronos_pipeline.tracking.runs import Tracker

        layout = ArtifactLayout(Path(self.output_dir))
        folder = self.find_files(layout)
        symbols = self.symbols(folder)
        recipes, bars, errors = self.read_tickers(layout, folder)
        step("loading PyTorch and the models")
        registry = Registry(Tracker(None, layout.root))
        entries = ledger.read(layout, symbols)
        jobs = {
            ticker: watch_drift_job(registry, entries, bars, ticker, self.base_of(recipe), self.adapter_name)
            for ticker, recipe in recipes.items()
        }
        progress = ForecastProgress("drift", len(jobs))
        results: dict[str, WatchedChampion | KronosError] = {**errors, **dict(run_jobs(jobs, progress=progress))}
        failed: dict[str, KronosError] = {}
        others: list[tuple[str, str]] = []
        warnings: list[tuple[str, str]] = []
        for ticker in symbols:
            result = results[ticker]
            if isinstance(result, WatchedChampion) and result.warning:
                warnings.append((ticker, result.warning))
            if isinstance(result, KronosError):
                failed[ticker] = result
            elif self.verbose or len(symbols) == 1 or (result.drift and result.drift.drifted):
                print(f"{ticker}: {result.sentence()}" if result.champion else result.sentence())
            else:
                others.append((ticker, result.finding()))
        for line in group_messages([*others, *warnings]):
            print(line)
        report_all_skipped(failed, self.verbose)
        return FAILED if failed else 0
