"""Forecast of a ticker's next bars by its champions, for `kronos forecast` and the asset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.errors import count
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob
from kronos_pipeline.evaluation.forecasting.future import (
    describe_sampled_model,
    forecast_composed_job,
    forecast_manifest,
    forecast_text_table,
    forecast_title,
    save_forecast,
)
from kronos_pipeline.evaluation.predictions import FEWEST_PATHS
from kronos_pipeline.evaluation.reports.text_table import TextTable, price
from kronos_pipeline.promotion.select_parts import select_parts

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.model.loading import KronosModel
    from kronos_pipeline.tracking.registry import Registry

_ROWS = 20
"""Largest number of rows of a short overview."""
NOT_RECALIBRATED = "intervals as sampled, not recalibrated"


@dataclass(frozen=True)
class TickerForecast:
    """A forecast and its files.

    Attributes:
        table: see `forecast_ahead`.
        summary: which model gives the centre and which the shape, and why, in a few words.
        reason: the same with the whole reason.
        notes: notes on the forecast.
        warnings: the notes of an unusual selection, see `Parts.warnings`.
        file: `forecasts/<T>.parquet`.
        plot: the fan chart.
        ledger_rows: the rows for the ledger, see `ledger.ledger_rows`.
    """

    table: pd.DataFrame
    summary: str
    reason: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    file: Path
    plot: Path
    ledger_rows: pd.DataFrame

    @property
    def label(self) -> str:
        """The model's name in tables and plots."""
        return str(self.table["model"].iloc[0])

    def text_table(self, *, details: bool = False) -> TextTable:
        """Build the table of the forecast, with the whole reason for the model if details are wanted."""
        reason = f"By {self.label}: {self.reason}" if details else self.summary
        return forecast_text_table(self.table, [reason, *self.notes])

    def short_table(self) -> TextTable:
        """Build the table of the next and the last bar of the forecast, with a legend."""
        legend = f"P(up): probability of a close above the last, {price(self.table['last'].iloc[0], 5)}."
        notes = [self.summary, *self.notes, legend, "-v prints every bar, and the whole reason for the model."]
        return replace(
            forecast_text_table(self.table.iloc[sorted({0, len(self.table) - 1})], notes),
            title=forecast_title(self.table),
        )


def overview_table(forecasts: Sequence[TickerForecast], *, all_rows: bool = True) -> TextTable:
    """Build a table of many forecasts: a row per ticker, with the close of the last forecast bar.

    Args:
        forecasts: the forecasts.
        all_rows: show every ticker; otherwise, of many, those with the highest and the lowest probability of a rise.
    """
    shown, others = list(forecasts), []
    if len(forecasts) > _ROWS and not all_rows:
        shown = sorted(forecasts, key=lambda forecast: -float(forecast.table["p_up"].iloc[-1]))
        others = [f"{len(shown) - _ROWS} tickers are between the highest and the lowest P(up); -v shows them."]
        shown = [*shown[: _ROWS // 2], *shown[-_ROWS // 2 :]]
    rows = []
    for forecast in shown:
        last, steps = forecast.table.iloc[-1], len(forecast.table)
        known = f"{last['cutoff']:%Y-%m-%d}"
        prices = (price(last[name]) for name in ("lo_80", "median", "mean", "hi_80"))
        rows.append([str(last["unique_id"]), known, str(steps), *prices, f"{last['p_up']:.0%}", forecast.label])
    return TextTable(
        title=f"Close (price) of the last forecast bar, {count(len(forecasts), 'ticker')}",
        headers=["Ticker", "after", "bars\nahead", "lo\n80 %", "median", "mean", "hi\n80 %", "P(up)", "by"],
        rows=rows,
        notes=[
            *others,
            "The file's manifest, and `kronos forecast` of a single ticker, give the reason for the model.",
        ],
    )


def forecast_ticker_job(  # noqa: PLR0913
    registry: Registry,
    layout: ArtifactLayout,
    bars: Mapping[str, Bars],
    ticker: str,
    base: KronosModel,
    recipe: Recipe,
    now: Callable[[], datetime] = ledger.now,
) -> ForecastJob[TickerForecast]:
    """Forecast a ticker's next bars by its champions, else by base or rivals, and write the table and the fan chart.

    The caller appends the rows for the ledger, those of all tickers of a command or a run as one file.

    Args:
        registry: the registry of champions.
        layout: the layout of the artifacts.
        bars: each ticker's bars, the newest last; those of `ticker` are read when the job starts.
        ticker: the ticker.
        base: the untouched base model.
        recipe: horizon, paths per forecast, seed and calendars; lookback, if no champion has its own.
        now: returns the time of the issue, with a zone.

    Raises:
        TrackingError: the registry cannot be used, or does not answer and nothing is kept of it; or a champion's files
            are gone.
        ModelError: the champion was trained on another base model, is damaged, or forecasts no number.
        DataError, SettingsError: these bars cannot be forecast, or a calendar does not fit.
        ArtifactError: a file cannot be written.
    """
    ticker_bars = bars[ticker]
    parts = select_parts(registry, layout, ticker_bars, base, recipe, now())
    centre, shape = parts.models.get("centre"), parts.models.get("shape")
    table, rival_notes = yield from forecast_composed_job(
        ticker_bars, centre, shape or str(parts.shape.source), recipe, label=parts.label
    )
    notes = (*parts.notes, *rival_notes)
    if shape is not None and not shape.sampling.residuals:
        notes = (*notes, NOT_RECALIBRATED)
    if shape is not None and recipe.eval_samples < FEWEST_PATHS:
        notes = (*notes, f"intervals reach beyond the {recipe.eval_samples} paths by a fitted tail, and are rough")
    sampled = {name: describe_sampled_model(part) for name, part in parts.models.items()}
    settings = next(iter(parts.models.values())).recipe if parts.models else recipe
    manifest = forecast_manifest(ticker_bars, table, sampled or None, settings, parts.reason, notes)
    manifest |= {"summary": parts.summary}
    hashes = dict.fromkeys(str(part.model.weights_hash)[:12] for part in parts.models.values())
    rows = ledger.ledger_rows(
        ticker_bars,
        table,
        settings,
        version=" ".join(hashes),
        issued=now(),
        known_until=[*ledger.known_bars_end(layout, ticker), *map(pd.Timestamp, parts.seen_until)],
    )
    files = save_forecast(layout, ticker_bars, table, manifest)
    return TickerForecast(table, parts.summary, parts.reason, notes, parts.warnings, *files, rows)
