"""The model registry: a version per adapter or checkpoint, its evidence, and the promotion of champions.

    kronos-AAPL   the adapter of that name        alias challenger      the newest measured version, until champion
    kronos-all    the checkpoint over all         alias champion-mean   the champion of a target, see `champions`
                                                  alias champion        the version that serves a forecast
                                                  alias refit           the newest version trained on all bars

A training registers its version without scores, its evaluation adds the evidence (`measure`), and the gate or a person
decides. Tags of a version record the decision on each target and its reason. The registry records decisions of the
gate, `scoring.gate`, and of people, see `champion_changes`; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import pandas as pd

from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.predictions import check_predictions
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target, judged_rows
from kronos_pipeline.tracking.champion_changes import ChampionChanges, RolledBack, check_measured
from kronos_pipeline.tracking.champions import Champions, read_champions
from kronos_pipeline.tracking.packaging import (
    EVIDENCE,
    FOLDER,
    WEIGHTS_HASH,
    EvidenceTable,
    read_evidence,
    trained_weights_hash,
)
from kronos_pipeline.tracking.recipes_tried import Tried, add_recipe
from kronos_pipeline.tracking.store import TrackingError, change_model
from kronos_pipeline.tracking.version import Version
from kronos_pipeline.tracking.version_page import decision_tags
from kronos_pipeline.tracking.version_store import CHALLENGER, REFIT, VersionStore, registered_name

if TYPE_CHECKING:
    from kronos_pipeline.evaluation.scoring.gate import Decision
    from kronos_pipeline.tracking.runs import Tracker

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

__all__ = ["Registry", "Version", "decision_tags", "registered_name"]


def _exclusively(
    method: Callable[Concatenate[Registry, str, Arguments], Result],
) -> Callable[Concatenate[Registry, str, Arguments], Result]:
    """Let no other process change the registered model during a method, whose first argument is the model's name."""

    @wraps(method)
    def exclusive_method(
        self: Registry, name: str, /, *arguments: Arguments.args, **settings: Arguments.kwargs
    ) -> Result:
        with self.exclusive(name):
            return method(self, name, *arguments, **settings)

    return exclusive_method


class Registry:
    """The registered models of a tracker's MLflow store, opened at the first use.

    Every method raises TrackingError if the store cannot be used, and then promotes nothing.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.uri, self._tracker = tracker.uri, tracker
        self.layout, self.outbox = tracker.layout, tracker.outbox

    @cached_property
    def _store(self) -> VersionStore:
        self._tracker.deliver()  # a run that waits may have the version that is asked for
        return VersionStore(self.uri)

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Let no other process change a registered model during the block, which reads it and then writes it.

        Raises:
            TrackingError: another process holds the lock for minutes.
        """
        with change_model(self.uri, name):
            yield

    def register_trained(self, folder: Path, name: str, run_id: str) -> int:
        """Register an adapter or checkpoint as its training ends; see `VersionStore.add_trained`."""
        return self._store.add_trained(folder, name, run_id)

    def measure(
        self,
        version: Version,
        folder: Path,
        evidence: EvidenceTable,
        metrics: Mapping[str, float],
        tags: Mapping[str, str] | None = None,
    ) -> int:
        """Add evidence to a version that nobody has decided on, and point the alias `challenger` to the version.

        Args:
            version: the version; earlier evidence of it is replaced.
            folder: the adapter or checkpoint of the version.
            evidence: the evidence of the verdict.
            metrics: scores by MLflow metric name, without undefined scores.
            tags: tags to set.

        Returns:
            The version's number.

        Raises:
            ArtifactError: the table of predictions is invalid.
        """
        check_predictions(evidence.predictions)
        with self.exclusive(version.name):
            self._store.add_evidence(version, folder, evidence, metrics)
            # In this order: a decision that an interruption cut off is completed only for a measured version.
            self._store.tag_version(version, {"measured": "yes", **(tags or {})})
            self._store.set_alias(version, CHALLENGER)
        return version.number

    def register(
        self,
        folder: Path,
        name: str,
        run_id: str,
        *,
        evidence: EvidenceTable,
        metrics: Mapping[str, float],
        tags: Mapping[str, str] | None = None,
    ) -> int:
        """Register a measured adapter or checkpoint as a version of its own, with the alias `challenger`.

        Args:
            folder: the adapter or checkpoint, with its manifest.
            name: name of the registered model, see `registered_name`.
            run_id: the MLflow run of the training.
            evidence: the evidence of the verdict.
            metrics: scores by MLflow metric name, without undefined scores.
            tags: tags beside those from the manifest.

        Returns:
            The version's number.

        Raises:
            ArtifactError: the folder has no manifest, or the table of predictions is invalid.
            TrackingError: the run does not exist.
        """
        check_predictions(evidence.predictions)
        run_id = self._tracker.resolve(run_id)
        with self.exclusive(name):
            number = self._store.add(folder, name, run_id, evidence, metrics, {**(tags or {}), "measured": "yes"})
            self._store.set_alias(self.version(name, number), CHALLENGER)
        return number

    def register_refit(
        self, folder: Path, name: str, run_id: str, *, refit_of: int, tags: Mapping[str, str] | None = None
    ) -> int:
        """Register a model of the same recipe, trained on all bars, as a version with the alias `refit`.

        Arguments and errors are those of `register`; `refit_of` is the measured version of the same recipe. A refit
        that was registered before an interruption keeps its version.
        """
        measured, weights = self.version(name, refit_of), trained_weights_hash(folder)
        known = self.refit_of(measured)
        if known is not None and known.tags.get(WEIGHTS_HASH) == weights and self._store.has_files(known):
            self._store.set_alias(known, REFIT)
            return known.number
        refit_tags = {**(tags or {}), "measured": "no", "refit_of": str(measured.number)}
        run_id = self._tracker.resolve(run_id)
        with self.exclusive(name):
            number = self._store.add(folder, name, run_id, None, {}, refit_tags)
            self._store.set_alias(self.version(name, number), REFIT)
        return number

    @_exclusively
    def record_decision(self, name: str, number: int, decisions: Mapping[Target, Decision]) -> None:
        """Record the gate's decisions on a version, and make the version champion of the targets of its promotion.

        The reasons are written first, so that there is no champion without a reason.

        Args:
            name: name of the registered model.
            number: number of the version.
            decisions: the decision on each target; the other targets stay as they are.

        Raises:
            TrackingError: the version does not exist or has no evidence.
        """
        ChampionChanges(self._store, name).record_decision(number, decisions)

    @_exclusively
    def promote(self, name: str, number: int | None, reason: str, targets: Sequence[Target] = TARGETS) -> Version:
        """Make a version champion by a person's decision.

        Args:
            name: name of the registered model.
            number: number of the version; None for the challenger, or else the newest measured version.
            reason: the person's reason, stored on the version.
            targets: the targets of the promotion.

        Returns:
            The champion. If it is champion of all these targets already, its reasons stay.

        Raises:
            TrackingError: the version does not exist or has no evidence, or the reason is too long.
        """
        return ChampionChanges(self._store, name).promote(number, reason, targets)

    @_exclusively
    def rollback(self, name: str, reason: str, targets: Sequence[Target] = TARGETS) -> RolledBack:
        """Restore the previous champions by a person's decision.

        A rollback of the same targets that was interrupted is completed, with its own reason, and not repeated.

        Args:
            name: name of the registered model.
            reason: the person's reason, stored on the versions that were champion.
            targets: the targets to roll back; targets without a champion are left out.

        Returns:
            The new champion of each target that was rolled back.

        Raises:
            TrackingError: no target has a champion, or the reason is too long.
        """
        return ChampionChanges(self._store, name).roll_back(reason, targets)

    @_exclusively
    def record_recipe(self, name: str, recipe: str, first: pd.Timestamp, last: pd.Timestamp) -> Tried:
        """Record that a recipe was tried on a span of cutoffs, and count the recipes tried on the same cutoffs.

        Args:
            name: name of the registered model, which may have no version yet.
            recipe: hash of the recipe.
            first: the first cutoff.
            last: the last cutoff.
        """
        changed, tried = add_recipe(self._store.tags(name), recipe, first, last)
        for key, tag in changed.items():
            self._store.set_tag(name, key, tag)
        return tried

    def names(self) -> list[str]:
        """List the names of the project's registered models, sorted."""
        return self._store.names()

    def versions(self, name: str) -> list[Version]:
        """List the versions of a registered model, oldest first; empty if the model does not exist."""
        return self._store.search(name)

    def of_training(self, name: str, folder: Path, run_id: str) -> list[Version]:
        """List the versions of a training, oldest first, without refits; see `VersionStore.of_training`."""
        return self._store.of_training(name, folder, run_id)

    def version(self, name: str, number: int) -> Version:
        """Return a version.

        Raises:
            TrackingError: the version does not exist.
        """
        return self._store.get(name, number)

    def champion(self, name: str, target: Target | None = None) -> Version | None:
        """Return the champion of a target, or None.

        Args:
            name: name of the registered model.
            target: the target; None for the version that serves a forecast: the champion of distribution, else of
                mean, else of volatility.
        """
        champions, versions = self._champions(name)
        number = champions.serving if target is None else champions.numbers.get(target)
        return None if number is None else versions[number]

    def champions(self, name: str) -> dict[Target, Version]:
        """Return the champion of each target that has a champion."""
        champions, versions = self._champions(name)
        return {target: versions[number] for target, number in champions.numbers.items()}

    def refit_of(self, version: Version) -> Version | None:
        """Return the newest refit of a version, or None."""
        refits = self._store.search(version.name, f" and tags.refit_of = '{version.number}'")
        return refits[-1] if refits else None

    def evidence(self, version: Version, target: Target | None = None) -> pd.DataFrame:
        """Load the predictions that are the evidence of a version.

        Args:
            version: the version.
            target: the target whose chosen variants stand for the models; None for the table with all variants.

        Raises:
            TrackingError: the predictions are missing or damaged, or the version is a refit without evidence.
        """
        evidence = self.evidence_table(version)
        predictions = evidence.predictions
        return predictions if target is None else judged_rows(predictions, target, evidence.variants)

    def evidence_table(self, version: Version) -> EvidenceTable:
        """Load the evidence of a version, with the variants that were chosen.

        Raises:
            TrackingError: see `evidence`.
        """
        with TemporaryDirectory() as temporary:
            try:
                return read_evidence(self._store.fetch(check_measured(version), EVIDENCE, Path(temporary)))
            except ArtifactError as error:
                raise TrackingError(f"The evidence of {version} is damaged: {error}") from error

    def fetch(self, version: Version, into: Path, part: str = FOLDER) -> Path:
        """Copy a version's adapter or checkpoint, or another part of it, below the folder `into`, and return its path.

        Raises:
            TrackingError: the files are missing.
        """
        return self._store.fetch(version, part, into)

    def _champions(self, name: str) -> tuple[Champions, dict[int, Version]]:
        """Return the champions of a registered model, and its versions by number."""
        versions, tags = self._store.read(name)
        return read_champions(versions, tags), {version.number: version for version in versions}
