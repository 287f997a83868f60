"""`kronos forecast AAPL MSFT`: forecast the next bars of tickers, with the model and the reason for its choice."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Optional

from kronos_pipeline.cli.ages import age_of, is_old
from kronos_pipeline.cli.command import FAILED, verbose_flag
from kronos_pipeline.cli.tickers import TickersCommand, evaluated_setting
from kronos_pipeline.errors import KronosError, group_messages
from kronos_pipeline.training.progress import step

_PRINTED_ALONE = 3
"""Largest number of tickers with a table each; more tickers get a line each."""


class Forecast(TickersCommand):
    """Forecast the next bars of some or all tickers.

    The champion of the mean gives the centre, else it is the last close; the champion of the distribution gives the
    spread, else the best rival; the base model comes before both if it was better than every rival. Print and plot the
    forecasts with the reason for the choice. The forecasts are appended to the ledger, which `kronos record` scores.
    """

    horizon: Optional[int] = evaluated_setting("horizon")
    eval_samples: Optional[int] = evaluated_setting("eval_samples")
    seed: Optional[int] = evaluated_setting("seed")
    calendars: Optional[list[str]] = evaluated_setting("calendars")
    expires_days: Optional[int] = evaluated_setting("expires_days")
    strict_champion: Optional[bool] = evaluated_setting("strict_champion")
    verbose: bool = verbose_flag("print every bar, every ticker and the whole reason for the model")

    def run(self) -> int:
        """Forecast, print, plot and save the next bars of the tickers."""
        # Imported here, so that --help does not wait for slow imports.
        step("reading CSVs")
        from kronos_pipeline.artifacts import ArtifactLayout
        from kronos_pipeline.atomic_writes import check_writable
        from kronos_pipeline.evaluation import ledger
        from kronos_pipeline.evaluation.forecasting.batching import run_jobs
        from kronos_pipeline.evaluation.forecasting.forecast_progress import ForecastProgress
        from kronos_pipeline.evaluation.reports.text_table import print_tables
        from kronos_pipeline.pipeline.ingest import report_all_skipped
        from kronos_pipeline.pipeline.promote import deliver_waiting
        from kronos_pipeline.promotion.champion_forecast import TickerForecast, forecast_ticker_job, overview_table
        from kronos_pipeline.tracking.registry import Registry
        from kronos_pipeline.tracking.runs import Tracker

        layout = ArtifactLayout(Path(self.output_dir))
        folder = self.find_files(layout)
        names = self.symbols(folder)
        recipes, bars, errors = self.read_tickers(layout, folder)
        check_writable(layout.root)
        step("loading PyTorch and the models")
        tracker = Tracker(None, layout.root)
        for line in deliver_waiting(tracker, layout):
            print(line)
        registry, made = Registry(tracker), dict[str, TickerForecast]()
        jobs = {
            name: forecast_ticker_job(registry, layout, bars, name, self.base_of(recipe), recipe)
            for name, recipe in recipes.items()
        }
        failed: dict[str, KronosError] = {**errors}
        for name, outcome in run_jobs(jobs, progress=ForecastProgress("forecast", len(jobs))):
            if isinstance(outcome, KronosError):
                failed[name] = outcome
            else:
                made[name] = outcome
        if len(names) == 1 and failed:
            raise failed[names[0]]
        forecasts = [made[name] for name in names if name in made]
        file, notes = ledger.append(layout, [forecast.ledger_rows for forecast in forecasts])
        now = datetime.now(UTC)
        messages = [(name, note) for name in made for note in bars[name].notes]
        if len(forecasts) > _PRINTED_ALONE:  # a table alone has its notes below
            messages += [(name, warning) for name, forecast in made.items() for warning in forecast.warnings]
        for name in made:
            last = bars[name].frame["timestamps"].iloc[-1]
            if is_old(last, now):
                age = age_of(last, now)
                messages.append((name, f"the last bar is from {last:%Y-%m-%d}, {age} ago: the forecast starts there"))
        for line in group_messages(messages):
            print(line)
        for one in forecasts if len(forecasts) <= _PRINTED_ALONE else ():
            print_tables(one.text_table(details=True) if self.verbose else one.short_table())
            print(f"forecast  {one.file}\npicture   {one.plot}")
        if len(forecasts) > _PRINTED_ALONE:
            print_tables(overview_table(forecasts, all_rows=self.verbose))
            print(f"forecasts {forecasts[0].file.parent}\npictures  {forecasts[0].plot.parents[1]}")
        if file:
            print(f"ledger    {file}")
        for note in notes:
            print(note)
        report_all_skipped({name: failed[name] for name in names if name in failed}, self.verbose)
        return FAILED if failed else 0
