"""What happens to a trained model once it was measured: it becomes a version, the gate decides, and both are recorded.

    trained --> evidence: backtest, else holdout --> decision of the gate --> version, alias challenger or champion

The command and the Dagster assets go through `submit`, so there is one way to become champion without a person.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout, read_json, read_parquet
from kronos_pipeline.evaluation.gate import Decision, decide
from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT, COLUMNS
from kronos_pipeline.evaluation.report import build_evaluation, load_predictions
from kronos_pipeline.evaluation.tables import flat_metrics
from kronos_pipeline.tracking.registry import Registry, registered_name

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe

_SAME_RECIPE_WITHOUT = {
    "validation_days", "validation_bars", "max_cutoffs", "backtest_origins", "backtest_refit_every", "gate",
    "refit_all", "calendars", "device", "num_workers", "save_steps",
}  # fmt: skip
"""Settings in which a backtest may differ from the training whose recipe it measured."""
_FINGERPRINT = "evidence_hash"


@dataclass(frozen=True)
class Evidence:
    """What a decision rests on.

    Attributes:
        source: "backtest", or "holdout" where there is no backtest of this recipe and data.
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


def find_evidence(layout: ArtifactLayout, trained: str, tickers: Sequence[str], recipe: Recipe) -> Evidence:
    """The backtest of some tickers, where it is of this recipe and these bars, else their holdout metrics.

    Args:
        layout: where artifacts lie.
        trained: "adapter" or "checkpoint".
        tickers: those that the model serves.
        recipe: what it was trained with.

    Raises:
        ArtifactError: a ticker has not been evaluated, or what is stored is damaged.
    """
    holdout = {ticker: layout.ticker_forecasts(ticker) for ticker in tickers}
    backtests = [layout.backtest(trained, ticker) for ticker in tickers]
    fit = all(
        path.is_file() and _measures(read_parquet(path)[1], read_json(layout.ticker_metrics(ticker)), ticker, recipe)
        for ticker, path in zip(tickers, backtests, strict=True)
    )
    predictions, manifest = load_predictions(backtests if fit else list(holdout.values()))
    return Evidence("backtest" if fit else "holdout", predictions, manifest)


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
        recipe: what it was trained with; its `gate` decides.
        tickers_tested: tickers whose models stand before the gate together, for which the verdict is corrected.

    Raises:
        ArtifactError: it has not been evaluated.
        TrackingError: the registry cannot be used.
    """
    trained = CHECKPOINT if adapter is None else ADAPTER
    folder = layout.best_checkpoint if adapter is None else layout.adapter(adapter)
    evidence = find_evidence(layout, trained, tickers, recipe)
    name = registered_name(adapter)
    champion = registry.champion(name)
    decision = decide(
        evidence.predictions,
        trained,
        champion=None if champion is None else registry.evidence(champion),
        gate=recipe.gate,
        tickers_tested=tickers_tested,
    )
    if decision.promote and (doubt := next(iter(evidence.manifest.get("doubts", {}).values()), None)):
        decision = replace(
            decision, promote=False, reason=f"Not promoted: {doubt}; a backtest would not have that flaw."
        )
    evaluation = build_evaluation(evidence.predictions, trained, [], evidence.manifest, tickers_tested)
    fingerprint = _fingerprint(evidence.predictions)
    known = [
        one for one in registry.versions(name) if one.run_id == run_id and one.tags.get(_FINGERPRINT) == fingerprint
    ]
    if known:
        registry.settle(name, known[-1].number, decision)
        return Submission(name, known[-1].number, evidence.source, decision)
    tags = {"evidence": evidence.source, _FINGERPRINT: fingerprint, "tickers": str(len(tickers))}
    if evaluation["warnings"]:
        tags["contamination"] = "; ".join(evaluation["warnings"])
    number = registry.register(
        folder,
        name,
        run_id,
        predictions=evidence.predictions,
        metrics=flat_metrics(evaluation, evidence.source),
        tags=tags,
    )
    registry.settle(name, number, decision)
    return Submission(name, number, evidence.source, decision)


def _fingerprint(predictions: pd.DataFrame) -> str:
    """A hash of what was predicted and of what came."""
    rows = pd.util.hash_pandas_object(predictions[list(COLUMNS)], index=False)
    return hashlib.sha256(rows.to_numpy("<u8").tobytes()).hexdigest()


def _measures(backtest: dict[str, Any], holdout: dict[str, Any], ticker: str, recipe: Recipe) -> bool:
    """Whether a backtest is one of this recipe, on the bars that the holdout metrics are of."""
    settings = backtest.get("config") or backtest["differing"]["config"][0]
    asked = recipe.model_dump(mode="json")
    same = all(settings.get(key) == value for key, value in asked.items() if key not in _SAME_RECIPE_WITHOUT)
    return same and backtest["data"].get(ticker) == holdout["manifest"]["data"].get(ticker)
