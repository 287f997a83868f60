"""Submission of a trained and measured model: it becomes a version, the gate decides per target, and both are recorded.

    trained --> evidence: backtest, else holdout --> a decision per target --> version, aliases of champions

The command and the Dagster assets use `submit`, so there is one way to promote a model automatically.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, mlflow_run_of, read_json, read_manifest
from kronos_pipeline.config import Role, settings_of
from kronos_pipeline.errors import ArtifactError, count, enumerate_some, join
from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT, COLUMNS
from kronos_pipeline.evaluation.reports.tables import run_metrics
from kronos_pipeline.evaluation.scoring.gate import Decision, common_forecasts, decide
from kronos_pipeline.evaluation.scoring.report import build_evaluation, load_predictions, variants_of
from kronos_pipeline.evaluation.scoring.served import BAR, ServedScore, score_served
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, MEAN, TARGETS, Target, judged_rows
from kronos_pipeline.promotion.recipes import count_recipe
from kronos_pipeline.tracking.known_champions import KnownChampions
from kronos_pipeline.tracking.packaging import EvidenceTable, trained_weights_hash
from kronos_pipeline.tracking.recipes_tried import Tried
from kronos_pipeline.tracking.registry import Registry, Version, decision_tags, registered_name

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe

_SAME_RECIPE = Role.MODEL | Role.WINDOWS | Role.TRAINING | Role.NAME | Role.SAMPLING
"""Roles of the settings that a backtest shares with the training of the same recipe."""
_FINGERPRINT = "evidence_hash"
BACKTEST, HOLDOUT = "backtest", "holdout"


@dataclass(frozen=True)
class Evidence:
    """The evidence of a decision.

    Attributes:
        source: "backtest", or "holdout" without a backtest of this training's recipe and bars; with a remark if a
            backtest of other settings, tickers or bars exists.
        predictions: see `evaluation.predictions`.
        manifest: provenance of the predictions.
    """

    source: str
    predictions: pd.DataFrame
    manifest: dict[str, Any]


@dataclass(frozen=True)
class TrainedModel:
    """A trained model to submit.

    Attributes:
        adapter: the adapter's name, or None for the checkpoint.
        tickers: the evaluated tickers that it serves.
        run_id: the MLflow run that trained it.
    """

    adapter: str | None
    tickers: Sequence[str]
    run_id: str


@dataclass(frozen=True)
class Submission:
    """A submitted model.

    Attributes:
        name: name of the registered model.
        version: number of its version.
        source: source of the evidence, see `Evidence`.
        decisions: the gate's decision on each target.
        tried: the place of the recipe among the recipes tried on the same cutoffs.
        served: scores of the forecast that the champions serve after the decisions; None if they serve what they served
            before, or the evidence has too few cutoffs.
    """

    name: str
    version: int
    source: str
    decisions: Mapping[Target, Decision]
    tried: Tried
    served: ServedScore | None = None

    @property
    def promoted(self) -> tuple[Target, ...]:
        """The targets of the promotion."""
        return tuple(target for target, decision in self.decisions.items() if decision.promote)

    @property
    def obstacles(self) -> str:
        """The main reason against each target without a promotion, targets of one reason together."""
        by_reason: dict[str, list[Target]] = {}
        for target, decision in self.decisions.items():
            if not decision.promote:
                by_reason.setdefault(decision.obstacle, []).append(target)
        return "; ".join(f"{join(targets)}: {obstacle}" for obstacle, targets in by_reason.items())

    def sentence(self) -> str:
        """Return one line for users: champion of what, and for each other target the main reason against it."""
        promoted = f"champion of {join(self.promoted)}" if self.promoted else "not promoted"
        parts = [promoted, self.obstacles, str(self.tried), str(self.served) if self.served else ""]
        return f"{self.name} version {self.version}, by its {self.source}: {'; '.join(filter(None, parts))}"


def decision_lines(submissions: Sequence[Submission]) -> list[str]:
    """Return a line per promoted model, and a line for all other models with the same reasons."""
    lines = [submission.sentence() for submission in submissions if submission.promoted]
    others: dict[tuple[str, str], list[Submission]] = {}
    for submission in submissions:
        if not submission.promoted:
            others.setdefault((submission.source, submission.obstacles), []).append(submission)
    for (source, obstacles), alike in others.items():
        if len(alike) == 1:
            lines.append(alike[0].sentence())
        else:
            names = enumerate_some([submission.name for submission in alike], limit=3)
            lines.append(f"{names}, each by its {source}: not promoted; {obstacles}")
    return lines


def find_evidence(layout: ArtifactLayout, trained: str, tickers: Sequence[str], folder: Path) -> Evidence:
    """Return the evidence of a trained model: the backtest of its recipe on its bars, else the holdout.

    Args:
        layout: the layout of the artifacts.
        trained: "adapter" or "checkpoint".
        tickers: the evaluated tickers that the model serves.
        folder: the model's folder.

    Raises:
        ArtifactError: a ticker has no evaluation, or one of other weights; or a stored file is damaged.
    """
    training = read_json(folder / MANIFEST)
    weights = trained_weights_hash(folder)
    holdouts = [layout.ticker_forecasts(ticker) for ticker in tickers]
    predictions, manifest = load_predictions(holdouts)
    for ticker in tickers:
        if manifest.get("weights", {}).get(ticker, {}).get(trained) != weights:
            raise ArtifactError(
                f"The holdout metrics of {ticker} are not of the {trained} in {folder}; evaluate it again."
            )
    backtests, source = [layout.backtest(trained, ticker) for ticker in tickers], HOLDOUT
    if all(path.is_file() for path in backtests):
        backtest_predictions, backtest_manifest = load_predictions(backtests)
        if all(
            _measures(read_manifest(path), training, manifest, ticker)
            for path, ticker in zip(backtests, tickers, strict=True)
        ):
            return Evidence(BACKTEST, backtest_predictions, backtest_manifest)
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
    model: TrainedModel,
    recipe: Recipe,
    *,
    tickers_tested: int,
) -> Submission:
    """Let the gate decide on a trained model for each target, and record the model as a version with the decisions.

    The gate decides before any write: an error leaves no new champion. Weights that were submitted before with the same
    evidence keep their version.

    Args:
        registry: the registry.
        layout: the layout of the artifacts.
        model: the model.
        recipe: a recipe with the `gate`.
        tickers_tested: number of tickers with a submitted model, for which the verdict is corrected.

    Raises:
        ArtifactError: the model has no evaluation.
        TrackingError: the registry cannot be used.
    """
    with registry.exclusive(registered_name(model.adapter)):
        return _submit(registry, layout, model, recipe, tickers_tested)


def _submit(
    registry: Registry, layout: ArtifactLayout, model: TrainedModel, recipe: Recipe, tickers_tested: int
) -> Submission:
    trained = CHECKPOINT if model.adapter is None else ADAPTER
    folder = layout.trained(model.adapter)
    evidence = find_evidence(layout, trained, model.tickers, folder)
    name, fingerprint = registered_name(model.adapter), _fingerprint(evidence.predictions)
    versions, champions = registry.versions(name), registry.champions(name)
    warnings = [
        of_models[trained] for of_models in evidence.manifest.get("doubts", {}).values() if trained in of_models
    ]
    variants = variants_of(evidence.manifest)
    decisions: dict[Target, Decision] = {}
    for target in TARGETS:
        champion = champions.get(target)
        decision = decide(
            judged_rows(evidence.predictions, target, variants),
            trained,
            champion=None if champion is None else registry.evidence(champion, target),
            gate=recipe.gate,
            target=target,
            tickers_tested=tickers_tested,
        )
        if decision.promote and warnings:
            decision = _refused(decision, f"{warnings[0]}; run a backtest, which does not have this problem")
        if decision.promote and (why := _taken_back(versions, fingerprint, target)):
            decision = _refused(decision, why)
        decisions[target] = decision
    tried = count_recipe(registry, name, read_json(folder / MANIFEST)["config"], evidence.predictions)
    table = EvidenceTable(evidence.predictions, variants)
    served = _score_served(registry, table, trained, champions, decisions, tickers_tested)
    number = _known_version(registry.of_training(name, folder, model.run_id), fingerprint)
    if number is None:
        tags = {"recipes_tried": str(tried)} | ({"as_served": str(served)} if served else {})
        # In one call, as a tag of its own takes some milliseconds.
        tags |= decision_tags(decisions)
        number = _record_evidence(registry, layout, model, evidence, tickers_tested, tags)
        own = decisions
    else:  # the gate does not overrule a person, and a champion keeps the reason: here it was compared with itself
        known = registry.version(name, number)
        own = {
            target: decision
            for target, decision in decisions.items()
            if known.decision("decided_by", target) != "person"
            and (target not in champions or champions[target].number != number)
        }
    registry.record_decision(name, number, own)
    if any(decision.promote for decision in own.values()):
        KnownChampions(registry).refresh(name)
    return Submission(name, number, evidence.source, decisions, tried, served)


def record_evaluation(registry: Registry, layout: ArtifactLayout, model: TrainedModel, *, tickers_tested: int) -> int:
    """Add the evaluation of a trained model to its version, before the gate decides on the version.

    A version that was decided on keeps its evidence; an evaluation that is newer waits for `submit`.

    Args:
        registry: the registry.
        layout: the layout of the artifacts.
        model: the model.
        tickers_tested: number of tickers with a trained model, for which the verdict is corrected.

    Returns:
        The number of the version.

    Raises:
        ArtifactError: the model has no evaluation.
        TrackingError: the registry cannot be used.
    """
    with registry.exclusive(registered_name(model.adapter)):
        return _record_evaluation(registry, layout, model, tickers_tested)


def _record_evaluation(registry: Registry, layout: ArtifactLayout, model: TrainedModel, tickers_tested: int) -> int:
    trained = CHECKPOINT if model.adapter is None else ADAPTER
    versions = registry.of_training(registered_name(model.adapter), layout.trained(model.adapter), model.run_id)
    decided = [version.number for version in versions if version.decided]
    if decided:
        return decided[-1]
    evidence = find_evidence(layout, trained, model.tickers, layout.trained(model.adapter))
    return _record_evidence(registry, layout, model, evidence, tickers_tested, {})


def _cutoffs(predictions: pd.DataFrame) -> str:
    """Return the number of cutoffs and bars of a table, and the span of its bars."""
    first, last = (f"{moment:%Y-%m-%d}" for moment in (predictions["ds"].min(), predictions["ds"].max()))
    rows = predictions.groupby("model", sort=False).get_group(predictions["model"].iloc[0])
    cutoffs = rows[["unique_id", "cutoff"]].drop_duplicates()
    return f"{count(len(cutoffs), 'cutoff')}, {count(len(rows), 'bar')} from {first} to {last}"


def _known_version(versions: Sequence[Version], fingerprint: str) -> int | None:
    """Return the number of the version of a training that was decided on by the same evidence, or None."""
    for version in versions:
        if version.tags.get(_FINGERPRINT) == fingerprint and version.decided:
            return version.number
    return None


def _record_evidence(
    registry: Registry,
    layout: ArtifactLayout,
    model: TrainedModel,
    evidence: Evidence,
    tickers_tested: int,
    tags: Mapping[str, str],
) -> int:
    """Add evidence to the version of a training, or to a new version if that one was decided on; return its number."""
    trained = CHECKPOINT if model.adapter is None else ADAPTER
    name, folder = registered_name(model.adapter), layout.trained(model.adapter)
    evaluation = build_evaluation(evidence.predictions, trained, [], evidence.manifest, tickers_tested)
    evidence_tags = {
        "evidence": evidence.source,
        _FINGERPRINT: _fingerprint(evidence.predictions),
        "cutoffs": _cutoffs(evidence.predictions),
    }
    if evaluation["warnings"]:
        evidence_tags["contamination"] = "; ".join(evaluation["warnings"])
    table = EvidenceTable(evidence.predictions, variants_of(evidence.manifest))
    metrics = run_metrics(evaluation, BACKTEST if evidence.source == BACKTEST else HOLDOUT)
    known = [version for version in registry.of_training(name, folder, model.run_id) if not version.decided]
    if known:
        return registry.measure(known[-1], folder, table, metrics, {**evidence_tags, **tags})
    return registry.register(
        folder, name, model.run_id, evidence=table, metrics=metrics, tags={**evidence_tags, **tags}
    )


def _refused(decision: Decision, why: str) -> Decision:
    return replace(decision, promote=False, reason=f"Not promoted: {why}.", obstacle=why)


def _score_served(
    registry: Registry,
    own: EvidenceTable,
    trained: str,
    champions: Mapping[Target, Version],
    decisions: Mapping[Target, Decision],
    tickers_tested: int,
) -> ServedScore | None:
    """Score the forecast of the model's champions after the decisions; None if they serve what they served before.

    A part that stays with an earlier version is taken from the evidence of that version.
    """
    promoted = {target for target in (MEAN, DISTRIBUTION) if decisions[target].promote}
    if not promoted:
        return None
    earlier = {
        target: registry.evidence_table(champions[target])
        for target in (MEAN, DISTRIBUTION)
        if target in champions and target not in promoted
    }
    shapes = earlier.get(DISTRIBUTION, own)
    centre: str | pd.Series | None = None
    if MEAN in earlier or (MEAN in promoted and DISTRIBUTION in earlier):
        both = common_forecasts(shapes.predictions, earlier.get(MEAN, own).predictions, trained)
        both = both[both["restated"]].set_index(BAR)
        centre = both["mean_then"] * both["factor"]
    elif MEAN in promoted:
        centre = trained
    shape = trained if DISTRIBUTION in promoted or DISTRIBUTION in earlier else None
    return score_served(shapes.predictions, shapes.variants, shape=shape, centre=centre, tickers_tested=tickers_tested)


def _fingerprint(predictions: pd.DataFrame) -> str:
    """Return a hash of the predictions and the real closes."""
    rows = pd.util.hash_pandas_object(predictions[list(COLUMNS)], index=False)
    return hashlib.sha256(rows.to_numpy("<u8").tobytes()).hexdigest()


def _measures(
    backtest: Mapping[str, Any], training: Mapping[str, Any], holdout: Mapping[str, Any], ticker: str
) -> bool:
    """Return True if a backtest has a training's recipe, base model and tickers, and the holdout's bars."""
    settings = backtest.get("config") or backtest["differing"]["config"][0]
    same = all(settings.get(name) == training["config"].get(name) for name in settings_of(_SAME_RECIPE))
    return (
        same
        and backtest["weights"][ticker]["base"] == training["base_model"]["weights_hash"]
        and set(backtest["group"][ticker]) == set(training["data"])
        and backtest["data"][ticker] == holdout["data"][ticker]
    )


def _taken_back(versions: Sequence[Version], fingerprint: str, target: Target) -> str | None:
    """Return the reason that a person rolled back a champion of a target with the same evidence, or None."""
    for version in versions:
        if version.tags.get(_FINGERPRINT) == fingerprint and version.decision("promoted", target) == "rolled back":
            reason = str(version.decision("reason", target)).removesuffix(".")
            return f"version {version.number}, with the same evidence, was rolled back: {reason}"
    return None
