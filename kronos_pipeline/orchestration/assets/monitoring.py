"""The monitoring assets: each ticker's forecast by its champion, and the drift of the champion."""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from kronos_pipeline.orchestration.failures import as_failure
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import DRIFTED, FINDING, KIND, picture_metadata
from kronos_pipeline.orchestration.resources import PipelineSettings, Tracking, load_base_model
from kronos_pipeline.orchestration.ticker_batch import Event, TickerBatch

if TYPE_CHECKING:
    from kronos_pipeline.promotion.champion_forecast import TickerForecast
    from kronos_pipeline.promotion.drift_watch import WatchedChampion


def forecast(
    context: dg.AssetExecutionContext, raw_bars: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """The next `horizon` bars of a ticker, with intervals, by its champion, else by base or the last close.

    Base forecasts only if the ticker's own verdict says that base is better than naive. Stored as
    `forecasts/<T>.parquet` and `plots/<T>/forecast.png`.
    """
    from kronos_pipeline.evaluation.forecasting.batching import run_jobs, unwrap
    from kronos_pipeline.promotion.champion_forecast import forecast_ticker_job
    from kronos_pipeline.tracking.registry import Registry

    with as_failure("forecast"):
        recipe, layout = pipeline.recipe("lora"), pipeline.layout
        base = load_base_model(recipe)
        registry = Registry(tracking.tracker(layout))
        batch = TickerBatch(context)
        jobs = {
            ticker: forecast_ticker_job(registry, layout, raw_bars, ticker, base, recipe) for ticker in batch.tickers
        }
        for ticker, outcome in run_jobs(jobs):
            with batch.ticker(ticker):
                result = unwrap(outcome)
                batch.add(ticker, result.file, _forecast_metadata(result))
        yield from batch.events()


def drift(
    context: dg.AssetExecutionContext, raw_bars: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """The drift of a ticker's champion: whether it errs more on the bars since its evidence than the evidence predicts.

    The figures are stored in the metadata alone. If the champion has drifted, the sensor `drifted_champions` requests a
    training and a decision by the gate.
    """
    from kronos_pipeline.evaluation.forecasting.batching import run_jobs, unwrap
    from kronos_pipeline.promotion.drift_watch import watch_drift_job
    from kronos_pipeline.tracking.registry import Registry

    with as_failure("drift"):
        base = load_base_model(pipeline.recipe("lora"))
        registry = Registry(tracking.tracker(pipeline.layout))
        batch = TickerBatch(context)
        jobs = {ticker: watch_drift_job(registry, raw_bars, ticker, base) for ticker in batch.tickers}
        for ticker, outcome in run_jobs(jobs):
            with batch.ticker(ticker):
                batch.add(ticker, None, _drift_metadata(unwrap(outcome)))
        yield from batch.events()


def _forecast_metadata(forecast: "TickerForecast") -> dict[str, Any]:
    return {
        "forecast by": forecast.label,
        "why": forecast.reason,
        "bars": len(forecast.table),
        "first bar": forecast.table["ds"].iloc[0].isoformat(),
        "close": dg.MetadataValue.md(forecast.text_table().markdown()),
        **picture_metadata({"forecast": forecast.plot}),
    }


def _drift_metadata(watched: "WatchedChampion") -> dict[str, Any]:
    champion, drift = watched.champion, watched.drift
    if champion is None or drift is None:
        return {DRIFTED: False, "result": watched.sentence()}
    figures = {
        "scaled error": drift.error,
        "usual error": drift.expected,
        "bound": drift.bound,
        "naive, times what it was": drift.naive_ratio,
    }
    return {
        DRIFTED: drift.drifted,
        "result": watched.sentence(),
        "champion": str(champion),
        "cutoffs": drift.cutoffs,
        KIND: champion.tags["kind"],
        # The same bars and the same champion give the same finding, which the sensor answers once.
        FINDING: f"{champion} up to {drift.newest}",
        **{name: dg.MetadataValue.float(value) for name, value in figures.items() if value is not None},
    }
