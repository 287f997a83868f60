"""Serve a registered model: parse the bars of a request as a CSV is parsed, and forecast the next bars."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe, environment_settings
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.frames import read_frame
from kronos_pipeline.errors import DataError, ModelError, Problem
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.evaluation.forecasting.future import forecast_ahead
from kronos_pipeline.evaluation.forecasting.sampling import load_sampling, plain_sampling
from kronos_pipeline.names import NAME, NAME_RULE
from kronos_pipeline.tracking.packaging import FORECAST, read_training_manifest

LEDGER = "KRONOS_LEDGER"
"""Environment variable: the output folder whose ledger gets the forecasts; without it they are not recorded."""
_REQUEST = "bars"
"""Name of a request's table in messages."""


class ServedForecaster:
    """An adapter or checkpoint on its base model, ready for requests."""

    def __init__(self, folder: Path, base_model: str, tokenizer: str) -> None:
        """Load the model on KRONOS_DEVICE, or on the best device available.

        Args:
            folder: the adapter or checkpoint, with its manifest.
            base_model: name or folder of its base model.
            tokenizer: name or folder of the base model's tokenizer.

        Raises:
            ModelError: the base model is missing, or differs from the base model of the training.
            SettingsError: the device does not exist.
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
        self._seen_until = manifest.get("seen_until", {})
        self._tickers = sorted(manifest["data"])
        try:
            # The recipe's base model may be a path relative to the working directory of the training.
            base_names = {"model_name": base_model, "tokenizer_name": tokenizer}
            self._recipe = Recipe.model_validate({**manifest["config"], **base_names})
        except ValidationError as error:
            raise ModelError(f"{folder}: its settings are of another version of this project: {error}") from error

    def forecast(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Forecast the bars that follow the given bars, and append the forecast to the ledger of KRONOS_LEDGER, if set.

        Args:
            frame: two bars or more, oldest first; the newest `lookback` bars are used. Columns: `timestamps` (in the
                ticker's local time, in any format of a CSV), `open`, `high`, `low`, `close`, and, if known, `volume`
                and `amount`. `unique_id`, the ticker, is needed if the model was trained on several tickers.

        Returns:
            A row per future bar: `ds`, its time; `mean`, `median` and the bounds of the central 50, 80 and 90 percent
            intervals of its close, in the unit of the prices.

        Raises:
            DataError: the bars are invalid; the error names every invalid row.
            ArtifactError: the ledger cannot be written.
        """
        ticker = self._ticker(frame)
        bars = read_frame(frame.drop(columns="unique_id", errors="ignore"), ticker, name=_REQUEST, first_row=1)
        sampling = load_sampling(self._folder, ticker, self._model, self._recipe) or plain_sampling(self._recipe)
        ahead = forecast_ahead(bars, self._model, sampling, self._recipe)
        if folder := os.environ.get(LEDGER):
            self._append(ArtifactLayout(Path(folder)), bars, ahead)
        return ahead[["ds", *FORECAST]].reset_index(drop=True)

    def _append(self, layout: ArtifactLayout, bars: Bars, ahead: pd.DataFrame) -> None:
        """Append a forecast to the ledger of an output folder."""
        seen = self._seen_until.get(bars.ticker)
        known = [*ledger.known_bars_end(layout, bars.ticker), *([pd.Timestamp(seen)] if seen else [])]
        rows = ledger.ledger_rows(
            bars,
            ahead.assign(model=f"served on {ahead['model'].iloc[0]}"),
            self._recipe,
            version=str(self._model.weights_hash)[:12],
            issued=ledger.now(),
            known_until=known,
        )
        ledger.append(layout, [rows])

    def _ticker(self, frame: pd.DataFrame) -> str:
        symbols = frame["unique_id"].dropna().unique().tolist() if "unique_id" in frame else []
        if len(symbols) > 1:
            raise _bad(f"unique_id names {len(symbols)} tickers; send the bars of one ticker per request")
        if symbols:
            if not NAME.fullmatch(str(symbols[0])):
                raise _bad(f"unique_id {symbols[0]!r} is no symbol: {NAME_RULE}")
            return str(symbols[0])
        if len(self._tickers) > 1:
            raise _bad(f"name the ticker of the bars in unique_id; the model was trained on {', '.join(self._tickers)}")
        return str(self._tickers[0])


def _bad(rule: str) -> DataError:
    return DataError(Problem(_REQUEST, rule))
