"""The monitoring assets: each ticker's forecast, the record of its forecasts, and the drift of its champion."""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from kronos_pipeline.errors import count, group_messages
from kronos_pipeline.evaluation.reports.text_table import price
from kronos_pipeline.orchestration.failures import as_failure
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import (
    DRIFTED,
    FINDING,
    KIND,
    SUMMARY,
    WARNINGS,
    bullets,
    picture_metadata,
    rounded,
)
from kronos_pipeline.orchestration.resources import Clock, PipelineSettings, Tracking, load_base_model
from kronos_pipeline.orchestration.sketch import sketch
from kronos_pipeline.orchestration.ticker_batch import Event, TickerBatch

if TYPE_CHECKING:
    from kronos_pipeline.promotion.champion_forecast import TickerForecast
    from kronos_pipeline.promotion.drift_watch import WatchedChampion
    from kronos_pipeline.promotion.track_record import TickerRecord


def forecast(
    context: dg.AssetExecutionContext,
    raw_bars: TickerArtifacts,
    pipeline: PipelineSettings,
    tracking: Tracking,
    clock: Clock,
) -> Iterator[Event]:
    """The next `horizon` bars of a ticker, with intervals, by its champions.

    Without a champion of the mean the centre is the last close, without a champion of the distribution the spread is
    that of the best rival; base comes before both if its own verdict is better than every rival. Stored as
    `forecasts/<T>.parquet` and `plots/<T>/forecast.png`, and appended to the ledger.
    """
    from kronos_pipeline.evaluation import ledger
    from kronos_pipeline.evaluation.forecasting.batching import run_jobs, unwrap
    from kronos_pipeline.promotion.champion_forecast import forecast_ticker_job
    from kronos_pipeline.tracking.registry import Registry

    with as_failure("forecast"):
        recipe, layout = pipeline.recipe("lora"), pipeline.layout
        base = load_base_model(recipe)
        registry = Registry(tracking.tracker(layout))
        batch = TickerBatch(context)
        jobs = {
            ticker: forecast_ticker_job(registry, layout, raw_bars, ticker, base, recipe, clock.now)
            for ticker in batch.tickers
        }
        issued, warnings = [], []
        for ticker, outcome in run_jobs(jobs):
            with batch.ticker(ticker):
                result = unwrap(outcome)
                batch.add(ticker, result.file, _forecast_metadata(result))
                issued.append(result.ledger_rows)
                warnings += [(ticker, warning) for warning in result.warnings]
        _, notes = ledger.append(layout, issued)
        for note in [*group_messages(warnings), *notes]:
            context.log.warning(note)
        yield from batch.events()


def track_record(
    context: dg.AssetExecutionContext, raw_bars: TickerArtifacts, pipeline: PipelineSettings
) -> Iterator[Event]:
    """The scores of a ticker's forecasts in the ledger whose bars have come, against the last close and EWMA.

    Forecasts of bars that existed at the issue never count. The e-values may be looked at every day; 20 is a result.
    Stored as `track_record/<T>.json` and `plots/<T>/record.png`.
    """
    from kronos_pipeline.evaluation import ledger
    from kronos_pipeline.promotion.track_record import record_ticker

    with as_failure("track_record"):
        batch = TickerBatch(context)
        entries = ledger.read(pipeline.layout, batch.tickers)
        for note in entries.notes:
            context.log.warning(note)
        for ticker in batch.tickers:
            with batch.ticker(ticker):
                record = record_ticker(pipeline.layout, entries, raw_bars[ticker])
                batch.add(ticker, record.file, _record_metadata(record))
        yield from batch.events()


def drift(
    context: dg.AssetExecutionContext, raw_bars: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """The drift of a ticker's champion: whether it errs more on the bars since its evidence than the evidence predicts.

    The figures are stored in the metadata alone. If the champion has drifted, the sensor `drifted_champions` requests a
    training and a decision by the gate.
    """
    from kronos_pipeline.evaluation import ledger
    from kronos_pipeline.evaluation.forecasting.batching import run_jobs, unwrap
    from kronos_pipeline.promotion.drift_watch import watch_drift_job
    from kronos_pipeline.tracking.registry import Registry

    with as_failure("drift"):
        base = load_base_model(pipeline.recipe("lora"))
        registry = Registry(tracking.tracker(pipeline.layout))
        batch = TickerBatch(context)
        entries = ledger.read(pipeline.layout, batch.tickers)
        jobs = {ticker: watch_drift_job(registry, entries, raw_bars, ticker, base) for ticker in batch.tickers}
        warnings = []
        for ticker, outcome in run_jobs(jobs):
            with batch.ticker(ticker):
                watched = unwrap(outcome)
                batch.add(ticker, None, _drift_metadata(watched))
                warnings += [(ticker, watched.warning)] if watched.warning else []
        for line in group_messages(warnings):
            context.log.warning(line)
        yield from batch.events()


def _forecast_metadata(forecast: "TickerForecast") -> dict[str, Any]:
    table = forecast.table
    last, end = table["last"].iloc[0], table.iloc[-1]
    lines = {"mean": table["mean"], "80 % from": table["lo_80"], "to": table["hi_80"]}
    return {
        SUMMARY: f"close {price(last)}, in {count(len(table), 'bar')} {price(end['mean'])} "
        f"(80 % from {price(end['lo_80'])} to {price(end['hi_80'])}), by {forecast.label}; {forecast.file}",
        **sketch({label: [last, *line] for label, line in lines.items()}),
        **picture_metadata({"forecast": forecast.plot}),
        "forecast by": forecast.label,
        "why": forecast.reason,
        **_warning_metadata(forecast.warnings),
        "bars": len(table),
        "first bar": str(table["ds"].iloc[0]),
        "close": dg.MetadataValue.md(forecast.text_table().markdown()),
        "file": dg.MetadataValue.path(str(forecast.file)),
    }


def _record_metadata(record: "TickerRecord") -> dict[str, Any]:
    total = record.total
    figures = {
        "mean/skill": total.mean_skill,
        "distribution/skill": total.crps_skill,
        "mean/e-value": total.mean_evidence,
        "distribution/e-value": total.crps_evidence,
        **{f"coverage_{level}": share for level, share in total.coverage.items()},
        "brier": total.brier,
    }
    return {
        SUMMARY: record.sentence(),
        "forecasts": total.forecasts,
        "waiting": total.waiting,
        "replays": total.replays,
        "record": dg.MetadataValue.md(record.text_table().markdown()),
        **{name: rounded(value) for name, value in figures.items() if value is not None},
        **picture_metadata({"record": record.plot} if record.plot else {}),
    }


def _warning_metadata(warnings: Sequence[str]) -> dict[str, Any]:
    return {WARNINGS: dg.MetadataValue.md(bullets(warnings))} if warnings else {}


def _drift_metadata(watched: "WatchedChampion") -> dict[str, Any]:
    champion, drift = watched.champion, watched.drift
    warned = _warning_metadata([watched.warning] if watched.warning else [])
    if champion is None or drift is None:
        return {SUMMARY: watched.sentence(), DRIFTED: False, **warned}
    figures = {
        "scaled error": drift.error,
        "usual error": drift.expected,
        "bound": drift.bound,
        "rival, times what it was": drift.rival_ratio,
    }
    return {
        SUMMARY: watched.sentence(),
        DRIFTED: drift.drifted,
        **warned,
        "drifted in": " and ".join(drift.targets) or "no target",
        "champion": str(champion),
        "cutoffs": drift.cutoffs,
        KIND: champion.tags["kind"],
        # The same bars and the same champion give the same finding, which the sensor answers once.
        FINDING: f"{champion} up to {drift.newest}",
        **{name: rounded(value) for name, value in figures.items() if value is not None},
    }
