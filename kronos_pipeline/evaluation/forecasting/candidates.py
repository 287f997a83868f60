"""The models whose forecasts are compared, and how each is sampled.

They are those that exist, stand on the same base, and have not seen the holdout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json
from kronos_pipeline.data.purge import holdout_start_time
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob, run_job
from kronos_pipeline.evaluation.forecasting.holdout_table import Forecasts
from kronos_pipeline.evaluation.forecasting.sampling import Sampling, load_sampling, save_sampling
from kronos_pipeline.evaluation.forecasting.tuning import fit_sampling_job
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, CHECKPOINT

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.model.loading import KronosModel

Loader = Callable[[str, Path], "KronosModel"]
"""Loads a "checkpoint" or an "adapter" from its folder."""


@dataclass(frozen=True)
class Candidate:
    """A model that can be compared.

    Attributes:
        model: the model.
        folder: where what belongs to it lies: how it is sampled, by ticker.
        doubt: what must be said of its scores on this ticker, or None.
    """

    model: KronosModel
    folder: Path
    doubt: str | None = None


def load_candidates(
    layout: ArtifactLayout,
    base: KronosModel,
    windows: WindowSet,
    adapter_name: str | None,
    load: Loader | None = None,
) -> tuple[dict[str, Candidate], list[str]]:
    """Load what can be compared on a ticker's holdout.

    Args:
        layout: where artifacts lie.
        base: the untouched base model.
        windows: the ticker's windows.
        adapter_name: the adapter that serves the ticker, or None for none.
        load: `loader(base)` by default; one for many tickers loads once what serves them all.

    Returns:
        Candidates by model, in the order base, checkpoint, adapter; and a sentence for each that exists and is left
        out, saying why.

    Raises:
        ModelError, ArtifactError: one that belongs here is damaged.
    """
    load = load or loader(base)
    found, notes = {BASE: Candidate(base, layout.base)}, []
    places = [(CHECKPOINT, layout.best_checkpoint)]
    if adapter_name is not None:
        places.append((ADAPTER, layout.adapter(adapter_name)))
    for name, folder in places:
        if not folder.is_dir():
            continue
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        if reason := _unfit(manifest, base, windows):
            notes.append(f"{windows.ticker}: the {name} is left out: {reason}.")
        else:
            found[name] = Candidate(load(name, folder), folder, _doubt(name, manifest, windows))
    return found, notes


def loader(base: KronosModel) -> Loader:
    """What loads checkpoints and adapters on a base model; of those asked for in turn it keeps the last two."""
    from kronos_pipeline.model.loading import load_checkpoint  # imports torch
    from kronos_pipeline.model.lora import load_adapter

    loads = {CHECKPOINT: load_checkpoint, ADAPTER: load_adapter}
    return lru_cache(maxsize=2)(lambda name, folder: loads[name](folder, base))


def find_sampling(candidate: Candidate, windows: WindowSet, recipe: Recipe) -> Sampling:
    """How a model is sampled for a ticker: as it was fitted on these windows before, or fitted now and kept."""
    return run_job(find_sampling_job(candidate, windows, recipe))


def find_sampling_job(candidate: Candidate, windows: WindowSet, recipe: Recipe) -> ForecastJob[Sampling]:
    """`find_sampling`, side by side with other evaluations."""
    known = load_sampling(candidate.folder, windows, candidate.model, recipe)
    if known is not None:
        return known
    fitted = yield from fit_sampling_job(windows, candidate.model, recipe)
    save_sampling(candidate.folder, windows, fitted, recipe)
    return fitted


def doubts(ticker: str, candidates: Mapping[str, Candidate]) -> dict[str, Any]:
    """The entry of a manifest that says what must be said of each model's scores, by ticker; empty without doubts."""
    found = {name: one.doubt for name, one in candidates.items() if one.doubt}
    return {"doubts": {ticker: found} if found else {}}


def weights_of(ticker: str, candidates: Mapping[str, Candidate]) -> dict[str, Any]:
    """The entry of a manifest that says which weights were evaluated: the hash of each model's, by ticker."""
    return {"weights": {ticker: {name: one.model.weights_hash for name, one in candidates.items()}}}


def how_sampled(ticker: str, samplings: Mapping[str, Sampling], forecasts: Forecasts) -> dict[str, Any]:
    """Entries of a manifest: how each model was sampled, and the share of its bars that were mended, by ticker."""
    return {
        "sampling": {ticker: {name: one.summary() for name, one in samplings.items()}},
        "mended": {ticker: forecasts.mended},
    }


def _unfit(manifest: Mapping[str, Any], base: KronosModel, windows: WindowSet) -> str | None:
    """Why a trained model cannot be compared on this holdout, or None where it can."""
    made_on = manifest.get("base_model", {})
    if made_on.get("weights_hash") != base.weights_hash:
        return f"it was trained on another base model, {made_on.get('name')}"
    seen_until, first = manifest.get("seen_until", {}).get(windows.ticker), holdout_start_time(windows)
    if seen_until is not None and first is not None and pd.Timestamp(seen_until) >= first:
        return f"it has seen bars up to {seen_until}, and the holdout begins at {first.isoformat()}"
    return None


def _doubt(name: str, manifest: Mapping[str, Any], windows: WindowSet) -> str | None:
    """Whether a model over several tickers knows others' bars of the holdout's time, which tell of the market's."""
    others = {ticker: until for ticker, until in manifest.get("seen_until", {}).items() if until is not None}
    latest = max(others, key=lambda ticker: pd.Timestamp(others[ticker]), default=None)
    first = holdout_start_time(windows)
    if latest is None or first is None or pd.Timestamp(others[latest]) < first:
        return None
    return f"the {name} was trained on bars of {latest} up to {others[latest][:10]}, later than this holdout's first"
