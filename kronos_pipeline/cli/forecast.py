"""`kronos forecast AAPL MSFT`: forecast the next bars of tickers, with the model and the reason for its choice."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from kronos_pipeline.cli.command import FAILED
from kronos_pipeline.cli.tickers import TickersCommand, evaluated_setting
from kronos_pipeline.errors import KronosError
from kronos_pipeline.training.progress import step

_PRINTED_BY_BAR = 3
"""Largest number of tickers with forecasts printed bar by bar; more tickers get a line each."""


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

    def run(self) -> int:
        """Forecast, print, plot and save the next bars of the tickers."""
        # Imported here, so that --help does not wait for slow imports.
        step("reading CSVs")
        from rich.console import Console

        from kronos_pipeline.artifacts import ArtifactLayout, check_writable
        from kronos_pipeline.evaluation import ledger
        from kronos_pipeline.evaluation.forecasting.batching import run_jobs
        from kronos_pipeline.evaluation.forecasting.forecast_progress import ForecastProgress
        from kronos_pipeline.pipeline.ingest import report_skipped
        from kronos_pipeline.promotion.champion_forecast import TickerForecast, forecast_ticker_job, overview_table
        from kronos_pipeline.tracking.registry import Registry
        from kronos_pipeline.tracking.runs import Tracker

        layout = ArtifactLayout(Path(self.output_dir))
        folder = self.find_files(layout)
        names = self.symbols(folder)
        recipes, bars, errors = self.read_tickers(layout, folder)
        check_writable(layout.root)
        step("loading PyTorch and the models")
        registry, made = Registry(Tracker(None, layout.root)), dict[str, TickerForecast]()
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
        for name in made:
            for note in bars[name].notes:
                print(f"{name}: {note}")
        console = Console()
        for one in forecasts if len(forecasts) <= _PRINTED_BY_BAR else ():
            console.print(one.text_table().terminal())
            print(f"forecast  {one.file}\npicture   {one.plot}")
        if len(forecasts) > _PRINTED_BY_BAR:
            console.print(overview_table(forecasts).terminal())
            print(f"forecasts {forecasts[0].file.parent}\npictures  {forecasts[0].plot.parents[1]}")
        if file:
            print(f"ledger    {file}")
        for note in notes:
            print(note)
        for name in names:
            if name in failed:
                report_skipped(name, failed[name])
        return FAILED if failed else 0
