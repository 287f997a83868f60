"""`kronos forecast AAPL`: the next bars, whose forecast it is and why, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from pydantic import Field
from pydantic_settings import CliPositionalArg

from kronos_pipeline.command_line import Command
from kronos_pipeline.config import KronosTrainingConfig, Recipe

if TYPE_CHECKING:
    from kronos_pipeline.artifacts import ArtifactLayout

_OF_THE_RECIPE = ("model_name", "tokenizer_name", "horizon", "eval_samples", "seed", "calendars", "adapter_name")


def _about(field: str) -> Any:
    """A flag with the description that the field has in the settings, but another default."""
    what = str(KronosTrainingConfig.model_fields[field].description).partition("; by default")[0]
    return Field(None, description=f"{what}; by default as in the ticker's last evaluation")


class Forecast(Command):
    """Forecast a ticker's next bars: by its champion; where it has none, by the base model if that was better than
    naive; else by repeating the last close. It prints the forecast, says whose it is and why, and draws it."""

    ticker: CliPositionalArg[str] = Field(description="the symbol, the name of its CSV")
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
        from kronos_pipeline.base_models import find_base_model
        from kronos_pipeline.data.csv_files import find_csv_files
        from kronos_pipeline.data.ingest import read_bars
        from kronos_pipeline.model.loading import load_base, pick_device
        from kronos_pipeline.tracking.forecasting import forecast_ticker
        from kronos_pipeline.tracking.registry import Registry
        from kronos_pipeline.tracking.runs import Tracker

        layout, ticker = ArtifactLayout(Path(self.output_dir)), self.ticker.upper()
        bars = read_bars(find_csv_files(Path(self.data_dir)).file(ticker))
        recipe = self._recipe(layout, ticker)
        check_writable(layout.root)
        base = load_base(find_base_model(recipe.model_name, recipe.tokenizer_name), pick_device(recipe.device))
        forecast = forecast_ticker(Registry(Tracker(None, layout.root)), layout, bars, base, recipe)
        for note in bars.notes:
            print(f"{ticker}: {note}")
        Console().print(forecast.sheet().terminal())
        print(f"forecast  {forecast.file}\npicture   {forecast.plot}")
        return 0

    def _recipe(self, layout: ArtifactLayout, ticker: str) -> Recipe:
        """The settings of the ticker's last evaluation, where there was one, and the flags in their place."""
        from kronos_pipeline.artifacts import read_json

        evaluation = layout.ticker_metrics(ticker)
        measured = read_json(evaluation)["manifest"]["config"] if evaluation.is_file() else {}
        known = {name: value for name, value in measured.items() if name in Recipe.model_fields}
        given = {name: getattr(self, name) for name in _OF_THE_RECIPE if getattr(self, name) is not None}
        return Recipe.model_validate({**known, **given, "device": self.device})
