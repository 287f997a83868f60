"""A registered model at work: bars as a request gives them, read as a CSV's are, and the forecast of the next bars."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import NAME, Recipe, environment_settings
from kronos_pipeline.data.bars import FEATURES, PRICES, Bars
from kronos_pipeline.data.csv_files import CsvFile
from kronos_pipeline.data.csv_table import CsvTable
from kronos_pipeline.data.ingest import read_table
from kronos_pipeline.errors import DataError, ModelError, Problem
from kronos_pipeline.evaluation.forecasting.future import forecast_ahead
from kronos_pipeline.evaluation.forecasting.sampling import load_sampling, plain_sampling
from kronos_pipeline.tracking.packaging import FORECAST, read_training_manifest

_REQUEST = "bars"
"""What messages call the table of a request."""


class ServedForecaster:
    """An adapter or checkpoint on its base model, ready for requests."""

    def __init__(self, folder: Path, base_model: str, tokenizer: str) -> None:
        """Load it. It runs on KRONOS_DEVICE, or on the best device that there is.

        Args:
            folder: the adapter or checkpoint, with its manifest.
            base_model: where its base model is.
            tokenizer: where that one's tokenizer is.

        Raises:
            ModelError: the base model is gone, or is another than the one that it was trained on.
            SettingsError: there is no such device.
        """
        from kronos_pipeline.model.devices import pick_device  # imports torch
        from kronos_pipeline.model.loading import load_base  # imports torch
        from kronos_pipeline.model.lora import load_trained

        manifest = read_training_manifest(folder)
        device = pick_device(environment_settings().get("device", "auto"))
        try:
            base = load_base(find_base_model(base_model, tokenizer), device)
        except ModelError as error:
            raise ModelError(f"The base model that this model was trained on is not to be had: {error}") from error
        self._folder = folder
        self._model = load_trained(folder, base)
        self._tickers = sorted(manifest["data"])
        try:
            # The base model was named from the folder that the training was started in.
            named = {"model_name": base_model, "tokenizer_name": tokenizer}
            self._recipe = Recipe.model_validate({**manifest["config"], **named})
        except ValidationError as error:
            raise ModelError(f"{folder}: its settings are of another version of this project: {error}") from error

    def forecast(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The forecast of the bars that follow some bars.

        Args:
            frame: oldest first, two bars or more, of which the newest `lookback` are used: `timestamps` (in the
                ticker's local time, in any form that a CSV may have), `open`, `high`, `low`, `close`, and, if known,
                `volume` and `amount`. `unique_id`, the ticker, counts where the model was trained on several.

        Returns:
            A row per bar to come: `ds`, its time; `mean`, `median` and the bounds of the central 50, 80 and 90 percent
            intervals of its close, in the unit of the prices.

        Raises:
            DataError: the bars are bad; every bad row is named.
        """
        ticker = self._ticker(frame)
        bars = _read(frame, ticker)
        sampling = load_sampling(self._folder, ticker, self._model, self._recipe) or plain_sampling(self._recipe)
        ahead = forecast_ahead(bars, self._model, sampling, self._recipe)
        return ahead[["ds", *FORECAST]].reset_index(drop=True)

    def _ticker(self, frame: pd.DataFrame) -> str:
        given = frame["unique_id"].dropna().unique().tolist() if "unique_id" in frame else []
        if len(given) > 1:
            raise _bad(f"unique_id names {len(given)} tickers; send the bars of one at a time")
        if given:
            if not NAME.fullmatch(str(given[0])):
                raise _bad(f"unique_id {given[0]!r} is no symbol: letters, digits and .-_^= only")
            return str(given[0])
        if len(self._tickers) > 1:
            raise _bad(f"say in unique_id whose bars they are; the model was trained on {', '.join(self._tickers)}")
        return self._tickers[0]


def _read(frame: pd.DataFrame, ticker: str) -> Bars:
    if missing := [name for name in ("timestamps", *PRICES) if name not in frame]:
        raise _bad(f"there is no column {', '.join(missing)}")
    if len(frame) < 2:
        raise _bad(f"a forecast needs 2 bars or more, and there {'is' if len(frame) == 1 else 'are'} {len(frame)}")
    cells = {name: [_text(cell) for cell in frame[name]] for name in ("timestamps", *FEATURES) if name in frame}
    for name in ("volume", "amount"):
        if not any(cells.get(name, [])):
            cells.pop(name, None)
    names = {name: name for name in cells}
    return read_table(CsvTable(CsvFile(ticker, Path(_REQUEST)), names, cells, list(range(1, len(frame) + 1)), ()))


def _text(cell: object) -> str:
    return "" if cell is None or cell is pd.NaT or cell != cell else str(cell)


def _bad(rule: str) -> DataError:
    return DataError(Problem(_REQUEST, rule))
