"""What happens to a trained model once it was measured: it becomes a version, the gate decides, and both are recorded.

    trained --> evidence: backtest, else holdout --> decision of the gate --> version, alias challenger or champion

The command and the Dagster assets go through `submit`, so there is one way to become champion without a person.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, mlflow_run_of, read_json, read_parquet
from kronos_pipeline.config import Role, settings_of
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT, COLUMNS
from kronos_pipeline.evaluation.reports.tables import flat_metrics
from kronos_pipeline.evaluation.scoring.gate import Decision, decide
from kronos_pipeline.evaluation.scoring.report import build_evaluation, load_predictions
from kronos_pipeline.tracking.registry import Registry, registered_name

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe

_SAME_RECIPE = Role.MODEL | Role.WINDOWS | Role.TRAINING | Role.NAME | Role.SAMPLING
"""Roles of the settings that a backtest has in common with the training whose recipe it measured."""
_FINGERPRINT = "evidence_hash"
BACKTEST, HOLDOUT = "backtest", "holdout"


@dataclass(frozen=True)
class Evidence:
    """What a decision rests on.

    Attributes:
        source: "backtest", or "holdout" where there is no backtest of this training's recipe and bars; it says so where
            there is one of others.
        predictions: see `evaluation.predictions`.
        manifest: what made them.
    """

    source: str
    predictions: pd.DataFrame
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Submission:
    """A model that was submitted: its version, and what the gate decided on which evidence."""

    name: str
    version: int
    source: str
    decision: Decision

    def sentence(self) -> str:
        """One line for people."""
        return f"{self.name} version {self.version}, by its {self.source}: {self.decision.reason}"


def find_evidence(layout: ArtifactLayout, trained: str, tickers: Sequence[str], folder: Path) -> Evidence:
    """What was measured of a trained model: by the backtest of its recipe on its bars, else by the holdout.

    Args:
        layout: where artifacts lie.
        trained: "adapter" or "checkpoint".
        tickers: those that the model serves and that were evaluated.
        folder: where it lies.

    Raises:
        ArtifactError: a ticker has not been evaluated, or with other weights than these; or what is stored is damaged.
    """
    training = read_json(folder / MANIFEST)
    weights = _weights_hash(folder, training)
    holdouts = [layout.ticker_forecasts(ticker) for ticker in tickers]
    predictions, manifest = load_predictions(holdouts)
    for ticker in tickers:
        if manifest.get("weights", {}).get(ticker, {}).get(trained) != weights:
            raise ArtifactError(
                f"The holdout metrics of {ticker} are not of the {trained} in {folder}; evaluate it again."
            )
    backtests, source = [layout.backtest(trained, ticker) for ticker in tickers], HOLDOUT
    if all(path.is_file() for path in backtests):
        measured, made = load_predictions(backtests)
        if all(
            _measures(read_parquet(path)[1], training, manifest, ticker)
            for path, ticker in zip(backtests, tickers, strict=True)
        ):
            return Evidence(BACKTEST, measured, made)
        source = f"{HOLDOUT} (the backtest is of other settings, tickers or bars)"
    return Evidence(source, predictions, manifest)


def evaluated_run(layout: ArtifactLayout, ticker: str) -> str:
    """Return the id of the MLflow run that trained a ticker's adapter, if the ticker's holdout metrics are of it.

    Raises:
        ArtifactError: there is no adapter, or it was trained after the metrics were made.
    """
    run = mlflow_run_of(layout.adapter(ticker))
    if run is None:
        raise ArtifactError(f"{ticker} has no adapter with an MLflow run; train (materialise) its adapter first.")
    if read_json(layout.ticker_metrics(ticker))["manifest"]["mlflow_runs"].get(ticker) != run:
        raise ArtifactError(f"The holdout metrics of {ticker} are of another adapter; evaluate (materialise) it again.")
    return run


def submit(
    registry: Registry,
    layout: ArtifactLayout,
    adapter: str | None,
    tickers: Sequence[str],
    run_id: str,
    recipe: Recipe,
    *,
    tickers_tested: int,
) -> Submission:
    """Let the gate decide on a trained model, and record it as a version with the decision and its reason.

    The decision is made before anything is written: what fails on the way leaves no champion. A training that stood
    before the gate with this very evidence keeps its version.

    Args:
        registry: the registry.
        layout: where artifacts lie.
        adapter: the adapter's name, or None for the checkpoint.
        tickers: those that it serves.
        run_id: the MLflow run that trained it.
        recipe: whose `gate` decides.
        tickers_tested: tickers whose models stand before the gate together, for which the verdict is corrected.

    Raises:
        ArtifactError: it has not been evaluated.
        TrackingError: the registry cannot be used.
    """
    trained = CHECKPOINT if adapter is None else ADAPTER
    folder = layout.best_checkpoint if adapter is None else layout.adapter(adapter)
    evidence = find_evidence(layout, trained, tickers, folder)
    name = registered_name(adapter)
    champion = registry.champion(name)
    decision = decide(
        evidence.predictions,
        trained,
        champion=None if champion is None else registry.evidence(champion),
        gate=recipe.gate,
        tickers_tested=tickers_tested,
    )
    fingerprint = _fingerprint(evidence.predictions)
    doubted = [of_models[trained] for of_models in evidence.manifest.get("doubts", {}).values() if trained in of_models]
    if decision.promote and doubted:
        reason = f"Not promoted: {doubted[0]}; a backtest would not have that flaw."
        decision = replace(decision, promote=False, reason=reason)
    if decision.promote and (why := _taken_back(registry, name, fingerprint)):
        decision = replace(decision, promote=False, reason=f"Not promoted: {why}")
    for known in registry.versions(name):
        if known.run_id == run_id and known.tags.get(_FINGERPRINT) == fingerprint:
            if known.tags.get("decided_by") != "person":  # whose word stands
                registry.record_decision(name, known.number, decision)
            return Submission(name, known.number, evidence.source, decision)
    evaluation = build_evaluation(evidence.predictions, trained, [], evidence.manifest, tickers_tested)
    tags = {"evidence": evidence.source, _FINGERPRINT: fingerprint, "tickers": str(len(tickers))}
    if evaluation["warnings"]:
        tags["contamination"] = "; ".join(evaluation["warnings"])
    number = registry.register(
        folder,
        name,
        run_id,
        predictions=evidence.predictions,
        metrics=flat_metrics(evaluation, BACKTEST if evidence.source == BACKTEST else HOLDOUT),
        tags=tags,
    )
    registry.record_decision(name, number, decision)
    return Submission(name, number, evidence.source, decision)


def _fingerprint(predictions: pd.DataFrame) -> str:
    """A hash of what was predicted and of what came."""
    rows = pd.util.hash_pandas_object(predictions[list(COLUMNS)], index=False)
    return hashlib.sha256(rows.to_numpy("<u8").tobytes()).hexdigest()


def _weights_hash(folder: Path, training: Mapping[str, Any]) -> str:
    from kronos_pipeline.model.loading import checkpoint_hash  # imports torch
    from kronos_pipeline.model.lora import CONFIG, adapter_hash

    base_hash = training["base_model"]["weights_hash"]
    return adapter_hash(folder, base_hash) if (folder / CONFIG).is_file() else checkpoint_hash(folder, base_hash)


def _measures(
    backtest: Mapping[str, Any], training: Mapping[str, Any], holdout: Mapping[str, Any], ticker: str
) -> bool:
    """Whether a backtest is one of a training's recipe, base model and tickers, on the bars that were evaluated."""
    settings = backtest.get("config") or backtest["differing"]["config"][0]
    same = all(settings.get(name) == training["config"].get(name) for name in settings_of(_SAME_RECIPE))
    return (
        same
        and backtest["weights"][ticker]["base"] == training["base_model"]["weights_hash"]
        and set(backtest["group"][ticker]) == set(training["data"])
        and backtest["data"][ticker] == holdout["data"][ticker]
    )


def _taken_back(registry: Registry, name: str, fingerprint: str) -> str | None:
    """Why a person took back a champion that had this very evidence, or None where nobody did."""
    for version in registry.versions(name):
        if version.tags.get(_FINGERPRINT) == fingerprint and version.tags.get("promoted") == "rolled back":
            return f"version {version.number}, with this very evidence, was rolled back: {version.tags.get('reason')}"
    return None
