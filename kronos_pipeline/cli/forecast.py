"""`kronos forecast AAPL MSFT`: the next bars of one ticker, of some or of all, whose forecast each is and why."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from pydantic import Field
from pydantic_settings import CliPositionalArg

from kronos_pipeline.cli.command import FAILED, Command
from kronos_pipeline.config import KronosTrainingConfig, Recipe
from kronos_pipeline.errors import KronosError

if TYPE_CHECKING:
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.model.loading import KronosModel


def _about(field: str) -> Any:
    """A flag with the description that the field has in the settings, but another default."""
    what = str(KronosTrainingConfig.model_fields[field].description).partition("; by default")[0]
    return Field(None, description=f"{what}; by default as in the ticker's last evaluation")


_IN_FULL = 3
"""Tickers whose forecasts are printed bar by bar; of more, a line each."""


class Forecast(Command):
    """Forecast the next bars of some tickers, or of all: each by its champion; where it has none, by the base model if
    that was better than naive; else by repeating the last close. It prints the forecasts, says whose each is and why,
    and draws them. Many are sampled together."""

    tickers: CliPositionalArg[list[str]] = Field(
        [], description="symbols, the names of their CSVs; by default every CSV's"
    )
    data_dir: str = Field("trainingdata", description=KronosTrainingConfig.model_fields["data_dir"].description)
    output_dir: str = Field("artifacts", description=KronosTrainingConfig.model_fields["output_dir"].description)
    model_name: Optional[str] = _about("model_name")
    tokenizer_name: Optional[str] = _about("tokenizer_name")
    horizon: Optional[int] = _about("horizon")
    eval_samples: Optional[int] = _about("eval_samples")
    seed: Optional[int] = _about("seed")
    calendars: Optional[list[str]] = _about("calendars")
    adapter_name: Optional[str] = Field(None, description="an adapter over several tickers that may serve this one")
    device: str = Field("auto", description=KronosTrainingConfig.model_fields["device"].description)

    def run(self) -> int:
        # Imported here, for --help can do without what takes seconds to import.
        from rich.console import Console

        from kronos_pipeline.artifacts import ArtifactLayout, check_writable
        from kronos_pipeline.data.csv_files import find_csv_files
        from kronos_pipeline.data.ingest import read_files
        from kronos_pipeline.evaluation.forecasting.batching import run_jobs
        from kronos_pipeline.pipeline.ingest import report_skipped
        from kronos_pipeline.promotion.champion_forecast import TickerForecast, forecast_ticker_job, overview_sheet
        from kronos_pipeline.tracking.registry import Registry
        from kronos_pipeline.tracking.runs import Tracker

        layout, folder = ArtifactLayout(Path(self.output_dir)), find_csv_files(Path(self.data_dir))
        names = list(dict.fromkeys(map(str.upper, self.tickers))) or sorted(folder.files)
        bars, errors = read_files([folder.file(name) for name in names])
        recipes = {name: self._recipe(layout, name) for name in names if name in bars}
        check_writable(layout.root)
        registry, made = Registry(Tracker(None, layout.root)), dict[str, TickerForecast]()
        jobs = {
            name: forecast_ticker_job(registry, layout, bars, name, self._base(recipe), recipe)
            for name, recipe in recipes.items()
        }
        failed: dict[str, KronosError] = {**errors}
        for name, found in run_jobs(jobs):
            if isinstance(found, KronosError):
                failed[name] = found
            else:
                made[name] = found
        if len(names) == 1 and failed:
            raise failed[names[0]]
        forecasts = [made[name] for name in names if name in made]
        for name in made:
            for note in bars[name].notes:
                print(f"{name}: {note}")
        console = Console()
        for one in forecasts if len(forecasts) <= _IN_FULL else ():
            console.print(one.sheet().terminal())
            print(f"forecast  {one.file}\npicture   {one.plot}")
        if len(forecasts) > _IN_FULL:
            console.print(overview_sheet(forecasts).terminal())
            print(f"forecasts {forecasts[0].file.parent}\npictures  {forecasts[0].plot.parents[1]}")
        for name in names:
            if name in failed:
                report_skipped(name, failed[name])
        return FAILED if failed else 0

    @cached_property
    def _bases(self) -> dict[tuple[str, str | None], KronosModel]:
        return {}

    def _base(self, recipe: Recipe) -> KronosModel:
        """The base model of a recipe, loaded once for all tickers that have it."""
        from kronos_pipeline.base_models import find_base_model
        from kronos_pipeline.model.devices import pick_device
        from kronos_pipeline.model.loading import load_base

        names = recipe.model_name, recipe.tokenizer_name
        if names not in self._bases:
            self._bases[names] = load_base(find_base_model(*names), pick_device(recipe.device))
        return self._bases[names]

    def _recipe(self, layout: ArtifactLayout, ticker: str) -> Recipe:
        """The settings of the ticker's last evaluation, where there was one, and the flags in their place."""
        from kronos_pipeline.artifacts import read_json

        evaluation = layout.ticker_metrics(ticker)
        measured = read_json(evaluation)["manifest"]["config"] if evaluation.is_file() else {}
        known = {name: value for name, value in measured.items() if name in Recipe.model_fields}
        flags = self.model_dump(include=set(Recipe.model_fields), exclude_none=True)
        return Recipe.model_validate({**known, **flags})
