"""Drift of a ticker's champion: forecast the bars since its evidence as the evidence was forecast, and compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob
from kronos_pipeline.evaluation.forecasting.candidates import Candidate, evaluate_models_job
from kronos_pipeline.evaluation.forecasting.sampling import load_sampling, plain_sampling
from kronos_pipeline.evaluation.scoring.drift import Drift, find_drift, windows_since
from kronos_pipeline.model.lora import load_trained
from kronos_pipeline.promotion.champion import find_champion
from kronos_pipeline.tracking.packaging import read_training_manifest

if TYPE_CHECKING:
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.model.loading import KronosModel
    from kronos_pipeline.tracking.registry import Registry, Version


@dataclass(frozen=True)
class WatchedChampion:
    """The drift of the champion that forecasts a ticker; `champion` and `drift` are None if there is no champion."""

    ticker: str
    champion: Version | None = None
    drift: Drift | None = None

    def sentence(self) -> str:
        """Return the result in one line."""
        if self.drift is None:
            return f"{self.ticker} has no champion, so no drift was measured"
        return f"{self.champion}: {'drifted' if self.drift.drifted else 'no drift'}, {self.drift.reason}"


def watch_drift_job(
    registry: Registry, bars: Mapping[str, Bars], ticker: str, base: KronosModel, adapter_name: str | None = None
) -> ForecastJob[WatchedChampion]:
    """Measure the drift of a ticker's champion on its newest bars.

    Args:
        registry: holds the champions and their evidence.
        bars: each ticker's bars; those of `ticker` are loaded only if it has a champion.
        ticker: the ticker.
        base: the base model that an adapter is loaded on.
        adapter_name: name of an adapter over several tickers that may forecast this ticker.

    Raises:
        TrackingError: the registry cannot be reached, or the champion's files are gone.
        ModelError: the champion was trained on another base model, is damaged, or forecasts no number.
    """
    champion, _ = find_champion(registry, ticker, adapter_name)
    if champion is None:
        return WatchedChampion(ticker)
    drift = yield from _drift_job(registry, champion, bars[ticker], base)
    return WatchedChampion(ticker, champion, drift)


def _drift_job(registry: Registry, champion: Version, bars: Bars, base: KronosModel) -> ForecastJob[Drift]:
    model = champion.tags["kind"]
    evidence = registry.evidence(champion)
    evidence = evidence[evidence["unique_id"] == bars.ticker]
    with TemporaryDirectory() as temporary:
        folder = registry.fetch(champion, Path(temporary))
        manifest = read_training_manifest(folder)
        settings = {name: value for name, value in manifest["config"].items() if name in Recipe.model_fields}
        recipe = Recipe.model_validate(settings)
        windows = windows_since(bars, evidence, recipe, manifest.get("seen_until", {}).get(bars.ticker))
        if windows is None:
            return find_drift(evidence, None, model, recipe.horizon)
        trained = load_trained(folder, base)
        sampling = load_sampling(folder, bars.ticker, trained, recipe) or plain_sampling(recipe)
    candidate = Candidate(trained, folder, sampling=sampling)
    forecasts = yield from evaluate_models_job(windows, {model: candidate}, recipe)
    return find_drift(evidence, forecasts.predictions, model, recipe.horizon)
