"""Today's forecast of each ticker by its champion, and whether that still errs as little as when it was measured."""

# Annotations are not postponed here: Dagster takes that of `context` as it stands, and refuses a text.
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import dagster as dg

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.orchestration.batch import Event, TickerBatch
from kronos_pipeline.orchestration.failures import failures_of
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import picture_metadata
from kronos_pipeline.orchestration.resources import PipelineSettings, Tracking, load_base_model

if TYPE_CHECKING:
    from kronos_pipeline.evaluation.rounds import Asking
    from kronos_pipeline.evaluation.scoring.drift import Drift
    from kronos_pipeline.model.loading import KronosModel
    from kronos_pipeline.promotion.champion_forecast import TickerForecast
    from kronos_pipeline.tracking.registry import Registry, Version

DRIFTED, FINDING, KIND = "drifted", "finding", "kind of champion"
"""Names under which a materialisation of `drift` tells the sensor what was found, and of whom."""


def forecast(
    context: dg.AssetExecutionContext, raw_bars: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """The next `horizon` bars of a ticker, with intervals, by its champion; without one, by base or the last close.

    Base forecasts only where the ticker's own verdict has it better than naive. Stored as `forecasts/<T>.parquet` and
    `plots/<T>/forecast.png`.
    """
    from kronos_pipeline.evaluation.rounds import good, together
    from kronos_pipeline.promotion.champion_forecast import forecasting_ticker
    from kronos_pipeline.tracking.registry import Registry

    with failures_of("forecast"):
        recipe, layout = pipeline.recipe("lora"), pipeline.layout
        base = load_base_model(recipe)
        registry = Registry(tracking.tracker(layout))
        batch = TickerBatch(context)
        jobs = {one: forecasting_ticker(registry, layout, raw_bars, one, base, recipe) for one in batch.tickers}
        for ticker, found in together(jobs):
            with batch.ticker(ticker):
                made = good(found)
                batch.add(ticker, made.file, _forecast_metadata(made))
        yield from batch.events()


def drift(
    context: dg.AssetExecutionContext, raw_bars: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """Whether a ticker's champion errs more on the bars that came since it was measured than its evidence lets expect.

    Nothing is stored but the figures here. Where it has drifted, the sensor `drifted_champions` asks for a training up
    to the gate.
    """
    from kronos_pipeline.evaluation.rounds import good, together
    from kronos_pipeline.tracking.registry import Registry

    with failures_of("drift"):
        base = load_base_model(pipeline.recipe("lora"))
        registry = Registry(tracking.tracker(pipeline.layout))
        batch = TickerBatch(context)
        for ticker, found in together({one: _watching(registry, raw_bars, one, base) for one in batch.tickers}):
            with batch.ticker(ticker):
                batch.add(ticker, None, good(found))
        yield from batch.events()


def _forecast_metadata(made: "TickerForecast") -> dict[str, Any]:
    return {
        "forecast by": made.label,
        "why": made.reason,
        "bars": len(made.table),
        "first bar": made.table["ds"].iloc[0].isoformat(),
        "close": dg.MetadataValue.md(made.sheet().markdown()),
        **picture_metadata({"forecast": made.plot}),
    }


def _watching(
    registry: "Registry", bars: Mapping[str, Bars], ticker: str, base: "KronosModel"
) -> "Asking[dict[str, Any]]":
    from kronos_pipeline.promotion.champion import find_champion

    champion, _ = find_champion(registry, ticker)
    if champion is None:
        return {DRIFTED: False, "result": f"{ticker} has no champion, so there is nothing to watch"}
    found = yield from _drift_of(registry, champion, bars[ticker], base)
    figures = {
        "scaled error": found.error,
        "usual error": found.expected,
        "bound": found.bound,
        "naive, times what it was": found.naive_ratio,
    }
    return {
        DRIFTED: found.drifted,
        "result": f"{champion}: {'drifted' if found.drifted else 'no drift'}, {found.reason}",
        "champion": str(champion),
        "cutoffs": found.cutoffs,
        KIND: champion.tags["kind"],
        # The same bars and the same champion say the same again, and ask for no second training.
        FINDING: f"{champion} up to {found.newest}",
        **{name: dg.MetadataValue.float(value) for name, value in figures.items() if value is not None},
    }


def _drift_of(registry: "Registry", champion: "Version", bars: Bars, base: "KronosModel") -> "Asking[Drift]":
    """Forecast the bars that came since the champion was measured, as it was measured, and compare."""
    from kronos_pipeline.evaluation.forecasting.holdout_table import predicting
    from kronos_pipeline.evaluation.forecasting.tuning import load_sampling, plain_sampling
    from kronos_pipeline.evaluation.scoring.drift import find_drift, windows_since
    from kronos_pipeline.model.lora import load_trained
    from kronos_pipeline.tracking.packaging import read_training_manifest

    model = champion.tags["kind"]
    evidence = registry.evidence(champion)
    evidence = evidence[evidence["unique_id"] == bars.ticker]
    with TemporaryDirectory() as temporary:
        folder = registry.fetch(champion, Path(temporary))
        manifest = read_training_manifest(folder)
        settings = manifest["config"]
        recipe = Recipe.model_validate({name: one for name, one in settings.items() if name in Recipe.model_fields})
        windows = windows_since(bars, evidence, recipe, manifest.get("seen_until", {}).get(bars.ticker))
        if windows is None:
            return find_drift(evidence, None, model, recipe.horizon)
        trained = load_trained(folder, base)
        sampling = load_sampling(folder, bars.ticker, trained, recipe) or plain_sampling(recipe)
    since = yield from predicting(windows, {model: trained}, {model: sampling}, recipe)
    return find_drift(evidence, since.predictions, model, recipe.horizon)
