"""Drift of a ticker's champion: compare its errors since its evidence with the errors of the evidence.

The forecasts that the champion issued come first: if the ledger has enough of its mean paths, with their bars, these
are compared. Else the champion forecasts the bars since its evidence again, as the evidence was forecast.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd

from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob
from kronos_pipeline.evaluation.forecasting.candidates import Candidate, evaluate_models_job
from kronos_pipeline.evaluation.forecasting.sampling import load_sampling, plain_sampling
from kronos_pipeline.evaluation.ledger import ENTRY, Ledger
from kronos_pipeline.evaluation.predictions import NAIVE
from kronos_pipeline.evaluation.scoring.drift import Drift, find_drift, windows_since
from kronos_pipeline.evaluation.scoring.track_record import score_ledger
from kronos_pipeline.evaluation.scoring.verdicts import MIN_CUTOFFS
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
    registry: Registry,
    entries: Ledger,
    bars: Mapping[str, Bars],
    ticker: str,
    base: KronosModel,
    adapter_name: str | None = None,
) -> ForecastJob[WatchedChampion]:
    """Measure the drift of a ticker's champion on its newest bars.

    Args:
        registry: holds the champions and their evidence.
        entries: the ledger, with the rows of the ticker.
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
    drift = yield from _drift_job(registry, entries, champion, bars[ticker], base)
    return WatchedChampion(ticker, champion, drift)


def _drift_job(
    registry: Registry, entries: Ledger, champion: Version, bars: Bars, base: KronosModel
) -> ForecastJob[Drift]:
    model = champion.tags["kind"]
    evidence = registry.evidence(champion)
    evidence = evidence[evidence["unique_id"] == bars.ticker]
    with TemporaryDirectory() as temporary:
        folder = registry.fetch(champion, Path(temporary))
        manifest = read_training_manifest(folder)
        settings = {name: value for name, value in manifest["config"].items() if name in Recipe.model_fields}
        recipe = Recipe.model_validate(settings)
        issued = issued_predictions(entries.rows[entries.rows["unique_id"] == bars.ticker], bars, champion, evidence)
        if issued is not None:
            drift = find_drift(evidence, issued, model, int(issued["step"].max()))
            return replace(drift, reason=f"{drift.reason}; by the forecasts in the ledger")
        windows = windows_since(bars, evidence, recipe, manifest.get("seen_until", {}).get(bars.ticker))
        if windows is None:
            return find_drift(evidence, None, model, recipe.horizon)
        trained = load_trained(folder, base)
        sampling = load_sampling(folder, bars.ticker, trained, recipe) or plain_sampling(recipe)
    candidate = Candidate(trained, folder, sampling=sampling)
    forecasts = yield from evaluate_models_job(windows, {model: candidate}, recipe)
    return find_drift(evidence, forecasts.predictions, model, recipe.horizon)


def issued_predictions(
    rows: pd.DataFrame, bars: Bars, champion: Version, evidence: pd.DataFrame
) -> pd.DataFrame | None:
    """Return the champion's issued mean paths since its evidence as a table of predictions, with naive beside it.

    Forecasts that overlap are left out, from the newest on, as drift compares independent errors.

    Args:
        rows: the ticker's rows of the ledger.
        bars: the ticker's bars.
        champion: the champion; the forecasts of its refit count as its own.
        evidence: the ticker's predictions that the champion was judged on.

    Returns:
        The table; None with fewer than `MIN_CUTOFFS` scored forecasts.
    """
    own = rf"{re.escape(champion.name)} version ({champion.number}|\d+, a refit of version {champion.number})(?!\d)"
    scored = score_ledger(rows[rows["model"].str.match(own)], bars)
    forecasts = scored.forecasts[scored.forecasts["state"] == "scored"]
    forecasts = forecasts[forecasts["cutoff"] >= evidence["ds"].max()].drop_duplicates("cutoff")
    if len(forecasts) < MIN_CUTOFFS:
        return None
    kept, start = [], pd.Timestamp.max
    for index in forecasts.index[::-1]:
        if forecasts.loc[index, "end"] <= start:
            kept.append(index)
            start = forecasts.loc[index, "cutoff"]
    table = scored.bars.merge(forecasts.loc[kept, ENTRY], on=ENTRY)
    before = bars.frame.loc[bars.frame["timestamps"] <= table["cutoff"].min(), "close"]
    table = table.assign(scale=float(before.diff().abs().mean()), model=champion.tags["kind"])
    return pd.concat([table, table.assign(model=NAIVE, mean=table["last"])], ignore_index=True)
