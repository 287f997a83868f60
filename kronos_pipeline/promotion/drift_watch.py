"""Drift of a ticker's champion: compare its errors since its evidence with the errors of the evidence.

The forecasts that the champion issued come first: if the ledger has enough of its mean paths or its distributions, with
their bars, these are compared. Else the champion forecasts the bars since its evidence again, as the evidence was
forecast, and the mean paths are compared.

A forecast may have its centre from one version and its spread from another. The mean of a forecast counts for the
version of its centre, and its distribution for the version of its spread.
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
from kronos_pipeline.evaluation.composed_variants import composed_variant
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob
from kronos_pipeline.evaluation.forecasting.candidates import Candidate, evaluate_models_job
from kronos_pipeline.evaluation.forecasting.sampling import load_sampling, plain_sampling
from kronos_pipeline.evaluation.ledger import ENTRY, Ledger
from kronos_pipeline.evaluation.predictions import EWMA, NAIVE, QUANTILES, SAMPLED, Variant, variant_name
from kronos_pipeline.evaluation.scoring.drift import Drift, find_drift, join_drifts, windows_since
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, MEAN, Target
from kronos_pipeline.evaluation.scoring.track_record import score_ledger
from kronos_pipeline.evaluation.scoring.verdicts import MIN_CUTOFFS
from kronos_pipeline.model.lora import load_trained
from kronos_pipeline.promotion.champion import find_champion
from kronos_pipeline.tracking.known_champions import KnownChampions
from kronos_pipeline.tracking.packaging import read_training_manifest

if TYPE_CHECKING:
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.model.loading import KronosModel
    from kronos_pipeline.tracking.registry import Registry, Version


_SPREAD = ", spread of "
"""Stands in the label of a composed forecast between the names of its centre and its spread, see `Parts.label`."""


@dataclass(frozen=True)
class WatchedChampion:
    """The drift of the champion that forecasts a ticker; `champion` and `drift` are None if there is no champion.

    `warning` says that MLflow does not answer, so that the champion is the one that was known last.
    """

    ticker: str
    champion: Version | None = None
    drift: Drift | None = None
    warning: str | None = None

    def sentence(self) -> str:
        """Return the result in one line."""
        return f"{self.champion}: {self.finding()}" if self.drift else f"{self.ticker} has {self.finding()}"

    def finding(self) -> str:
        """Return the result without the ticker and the champion."""
        if self.drift is None:
            return "no champion, so no drift was measured"
        found = f"drifted in {' and '.join(self.drift.targets)}" if self.drift.drifted else "no drift"
        return f"{found}, {self.drift.reason}"


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
        TrackingError: the registry cannot be used, or does not answer and nothing is kept of it; or the champion's
            files are gone.
        ModelError: the champion was trained on another base model, is damaged, or forecasts no number.
    """
    champions = KnownChampions(registry)
    champion, _ = find_champion(champions, ticker, adapter_name)
    if champion is None:
        return WatchedChampion(ticker, warning=champions.warning)
    drift = yield from _drift_job(champions, entries, champion, bars[ticker], base)
    return WatchedChampion(ticker, champion, drift, champions.warning)


def _drift_job(
    champions: KnownChampions, entries: Ledger, champion: Version, bars: Bars, base: KronosModel
) -> ForecastJob[Drift]:
    model = champion.tags["kind"]
    table = champions.evidence_table(champion)
    evidence = table.predictions[table.predictions["unique_id"] == bars.ticker]
    chosen = table.variants.get(bars.ticker, {}).get(model, {}).get(DISTRIBUTION, SAMPLED)
    with TemporaryDirectory() as temporary:
        folder = champions.fetch(champion, Path(temporary))
        manifest = read_training_manifest(folder)
        settings = {name: value for name, value in manifest["config"].items() if name in Recipe.model_fields}
        recipe = Recipe.model_validate(settings)
        rows = entries.rows[entries.rows["unique_id"] == bars.ticker]
        issued = issued_predictions(rows, bars, champion, evidence, chosen)
        if issued:
            drifts = [
                find_drift(before, since, model, int(since["step"].max()), target=target, targets=len(issued))
                for target, (before, since) in issued.items()
            ]
            drift = join_drifts(drifts)
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
    rows: pd.DataFrame, bars: Bars, champion: Version, evidence: pd.DataFrame, variant: Variant
) -> dict[Target, tuple[pd.DataFrame, pd.DataFrame]]:
    """Return what is comparable by target: the evidence, and the champion's issued forecasts since, with a rival's.

    Forecasts that overlap are left out, from the newest on, as drift compares independent errors.

    Args:
        rows: the ticker's rows of the ledger.
        bars: the ticker's bars.
        champion: the champion; the forecasts of its refit count as its own.
        evidence: the ticker's predictions that the champion was judged on.
        variant: the variant of the champion's paths that was chosen for the distribution.

    Returns:
        Two tables of predictions for each target with `MIN_CUTOFFS` scored forecasts or more. The evidence of the
        distribution is that of the variant that was issued.
    """
    kind = champion.tags["kind"]
    own = rf"{re.escape(champion.name)} version (?:{champion.number}|\d+, a refit of version {champion.number})(?!\d)"
    composed = rows["model"].str.contains(_SPREAD, regex=False)
    centre, spread = rows["model"].str.match(own), rows["model"].str.contains(f"{_SPREAD}{own}")
    issued: dict[Target, tuple[pd.DataFrame, pd.DataFrame]] = {}
    if (since := _scored_table(rows[centre], bars, champion, evidence)) is not None:
        issued[MEAN] = evidence, since
    for by_another_centre in (False, True):  # the newer choice, or the only one
        of_spread = spread if by_another_centre else centre & ~composed
        since = _scored_table(rows[of_spread], bars, champion, evidence)
        earlier = issued.get(DISTRIBUTION)
        if since is None or (earlier is not None and earlier[1]["cutoff"].max() > since["cutoff"].max()):
            continue
        used = composed_variant(variant, own_centre=not by_another_centre)
        others = evidence[evidence["model"] != kind]
        judged = evidence[evidence["model"] == variant_name(kind, used)].assign(model=kind)
        issued[DISTRIBUTION] = pd.concat([others, judged], ignore_index=True), since
    return issued


def _scored_table(rows: pd.DataFrame, bars: Bars, champion: Version, evidence: pd.DataFrame) -> pd.DataFrame | None:
    """Return issued forecasts since the evidence as a table of predictions; None with fewer than `MIN_CUTOFFS`."""
    scored = score_ledger(rows, bars)
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
    ewma = table.assign(model=EWMA, **{name: table[f"rival_{name}"] for name in QUANTILES})
    return pd.concat([table, table.assign(model=NAIVE, mean=table["last"]), ewma], ignore_index=True)
