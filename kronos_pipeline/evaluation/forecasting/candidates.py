"""Candidates: the models that are compared on a ticker, their sampling, and the one sequence that evaluates them.

Candidates exist, share one base model, were trained on the ticker, and have not seen its holdout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json
from kronos_pipeline.data.purge import holdout_start_time
from kronos_pipeline.errors import ArtifactError, enumerate_some
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob, gather_jobs, run_job
from kronos_pipeline.evaluation.forecasting.ensemble import Ensemble, count_models
from kronos_pipeline.evaluation.forecasting.holdout_table import predict_job
from kronos_pipeline.evaluation.forecasting.sampling import Sampling, load_sampling, save_sampling
from kronos_pipeline.evaluation.forecasting.tuning import count_fit_forecasts, fit_sampling_job
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, CHECKPOINT, ENSEMBLE
from kronos_pipeline.evaluation.provenance import evaluation_manifest
from kronos_pipeline.evaluation.rivals.optional import NO_RIVALS, OptionalRivals

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.evaluation.forecasting.ensemble import Forecaster
    from kronos_pipeline.model.loading import KronosModel


@dataclass(frozen=True)
class Candidate:
    """A model to compare.

    Attributes:
        model: the model.
        folder: the model's folder, with a file of its sampling per ticker.
        doubt: warning about its scores on this ticker, or None.
        sampling: its sampling; None to read it from the folder, or to fit it on the windows.
    """

    model: Forecaster
    folder: Path
    doubt: str | None = None
    sampling: Sampling | None = None


class TrainedModels:
    """The models of an output folder on one base model.

    Attributes:
        layout: the layout of the artifacts.
        base: the untouched base model.
        seeds: by ticker, the folders of the models of several seeds that form its ensemble, by seed.
        load: loads a "checkpoint" or an "adapter" from its folder; the last few are kept.
    """

    def __init__(
        self, layout: ArtifactLayout, base: KronosModel, seeds: Mapping[str, Mapping[int, Path]] | None = None
    ) -> None:
        self.layout, self.base, self.seeds = layout, base, seeds or {}
        self.load = lru_cache(maxsize=2 + max(map(len, self.seeds.values()), default=0))(partial(_load, base))


@dataclass(frozen=True)
class ModelEvaluation:
    """The forecasts of candidates on a ticker's holdout.

    Attributes:
        predictions: a row per holdout bar and model, see `evaluation.predictions`.
        manifest: provenance of the forecasts, see `evaluation_manifest`, with sampling, repaired bars and weights.
        notes: baselines without a forecast, and the reason.
        seconds: wall time of each model's sampling and of each rival, by model; in no file, as it differs each time.
    """

    predictions: pd.DataFrame
    manifest: dict[str, Any]
    notes: tuple[str, ...]
    seconds: dict[str, float]


def load_candidates(
    models: TrainedModels, windows: WindowSet, adapter_name: str | None
) -> tuple[dict[str, Candidate], list[str]]:
    """Load the models that can be compared on a ticker's holdout.

    Args:
        models: the models; shared by tickers, so that a model that serves many is loaded once.
        windows: the ticker's windows.
        adapter_name: the adapter that serves the ticker, or None for none.

    Returns:
        Candidates by model, in the order base, checkpoint, adapter, ensemble; and a sentence with the reason for each
        model that exists and is left out.

    Raises:
        ModelError, ArtifactError: a model of the ticker is damaged.
    """
    layout, base = models.layout, models.base
    candidates, notes = {BASE: Candidate(base, layout.base)}, []
    folders = [(CHECKPOINT, layout.best_checkpoint)]
    if adapter_name is not None:
        folders.append((ADAPTER, layout.adapter(adapter_name)))
    for name, folder in folders:
        if not folder.is_dir():
            continue
        manifest = read_json(folder / MANIFEST)
        if reason := _unfit(manifest, base, windows):
            notes.append(f"{windows.ticker}: the {name} is left out: {reason}.")
        else:
            candidates[name] = Candidate(models.load(name, folder), folder, _doubt(name, manifest, windows))
            members = models.seeds.get(windows.ticker, {})
            if folder in members.values():
                ensemble = Ensemble({seed: models.load(name, of_seed) for seed, of_seed in members.items()})
                candidates[ENSEMBLE] = Candidate(ensemble, layout.ensemble, candidates[name].doubt)
    return candidates, notes


def find_sampling(candidate: Candidate, windows: WindowSet, recipe: Recipe) -> Sampling:
    """Return a candidate's sampling for a ticker: the one stored for these windows, else a new fit, which is stored."""
    return run_job(find_sampling_job(candidate, windows, recipe))


def find_sampling_job(candidate: Candidate, windows: WindowSet, recipe: Recipe) -> ForecastJob[Sampling]:
    """Run `find_sampling` as a job."""
    if (stored := _stored_sampling(candidate, windows, recipe)) is not None:
        return stored
    fitted = yield from fit_sampling_job(windows, candidate.model, recipe)
    save_sampling(candidate.folder, windows, fitted, recipe)
    return fitted


def _stored_sampling(candidate: Candidate, windows: WindowSet, recipe: Recipe) -> Sampling | None:
    try:
        return candidate.sampling or load_sampling(candidate.folder, windows, candidate.model, recipe)
    except ArtifactError:
        return None  # damaged; a new fit gives the same and replaces it


def count_bars(windows: WindowSet, candidates: Iterable[Candidate], recipe: Recipe) -> int:
    """Return the number of bars that the evaluation of a ticker samples, at most."""
    fits = count_fit_forecasts(windows, recipe)
    forecasts = sum(
        count_models(candidate.model)
        * (windows.counts()["holdout"] + (0 if _stored_sampling(candidate, windows, recipe) else fits))
        for candidate in candidates
    )
    return forecasts * recipe.eval_samples * recipe.horizon


def evaluate_models_job(
    windows: WindowSet,
    candidates: Mapping[str, Candidate],
    recipe: Recipe,
    mlflow_runs: Mapping[str, str] | None = None,
    rivals: OptionalRivals = NO_RIVALS,
) -> ForecastJob[ModelEvaluation]:
    """Forecast a ticker's holdout with the baselines and each candidate: the holdout's, a fold's, or bars since then.

    Args:
        windows: the ticker's windows.
        candidates: the candidates by model name, all on one base model.
        recipe: horizon, paths per forecast, temperature, top_p, seed and number format.
        mlflow_runs: the id of the MLflow run that trained the ticker's model, by ticker.
        rivals: the rivals of `--rivals`.

    Raises:
        ModelError: a model's forecast is not finite.
        ArtifactError: a new sampling cannot be written.
    """
    ticker = windows.ticker
    samplings = yield from gather_jobs(
        {name: find_sampling_job(candidate, windows, recipe) for name, candidate in candidates.items()}
    )
    models = {name: candidate.model for name, candidate in candidates.items()}
    forecasts = yield from predict_job(windows, models, samplings, recipe, rivals)
    model = next(iter(models.values()))
    manifest = evaluation_manifest([windows], recipe, model.source, str(model.device), mlflow_runs) | {
        "sampling": {ticker: {name: sampling.summary() for name, sampling in samplings.items()}},
        "mended": {ticker: forecasts.mended},
        "weights": {ticker: {name: model.weights_hash for name, model in models.items()}},
        "rivals": rivals.provenance,
    }
    return ModelEvaluation(forecasts.predictions, manifest, forecasts.notes, forecasts.seconds)


def doubts(ticker: str, candidates: Mapping[str, Candidate]) -> dict[str, Any]:
    """Return a manifest's entry with the warning about each model's scores, by ticker; empty without warnings."""
    warnings = {name: candidate.doubt for name, candidate in candidates.items() if candidate.doubt}
    return {"doubts": {ticker: warnings} if warnings else {}}


def _load(base: KronosModel, name: str, folder: Path) -> KronosModel:
    from kronos_pipeline.model.loading import load_checkpoint  # imports torch
    from kronos_pipeline.model.lora import load_adapter

    return (load_checkpoint if name == CHECKPOINT else load_adapter)(folder, base)


def _unfit(manifest: Mapping[str, Any], base: KronosModel, windows: WindowSet) -> str | None:
    """Return the reason that a trained model cannot be compared on this holdout, or None if it can."""
    trained_on = manifest.get("base_model", {})
    if trained_on.get("weights_hash") != base.weights_hash:
        return f"it was trained on another base model, {trained_on.get('name')}"
    tickers = manifest.get("data", {})
    if tickers and windows.ticker not in tickers:
        return (
            f"it was trained on {enumerate_some(sorted(tickers), limit=3)}, and not on this ticker; train it again on "
            "this data folder, or give the folder an output folder of its own (--output-dir)"
        )
    seen_until, first = manifest.get("seen_until", {}).get(windows.ticker), holdout_start_time(windows)
    if seen_until is not None and first is not None and pd.Timestamp(seen_until) >= first:
        return f"it has seen bars up to {seen_until}, and the holdout begins at {first.isoformat()}"
    return None


def _doubt(name: str, manifest: Mapping[str, Any], windows: WindowSet) -> str | None:
    """Return a warning if a model of several tickers has seen other tickers' bars of the holdout's time, else None.

    Tickers of one market move together, so such bars tell of the holdout.
    """
    seen_until = {ticker: until for ticker, until in manifest.get("seen_until", {}).items() if until is not None}
    latest = max(seen_until, key=lambda ticker: pd.Timestamp(seen_until[ticker]), default=None)
    first = holdout_start_time(windows)
    if latest is None or first is None or pd.Timestamp(seen_until[latest]) < first:
        return None
    day = seen_until[latest][:10]
    return f"the {name} was trained on bars of {latest} up to {day}, later than this holdout's first"
