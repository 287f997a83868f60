"""The model registry: a version per adapter or checkpoint, its evidence, and the promotion of champions.

    kronos-AAPL   the adapter of that name        alias challenger   the newest measured version
    kronos-all    the checkpoint over all         alias champion     the version that makes forecasts
                                                  alias refit        the newest version trained on all bars

Tags of a version record each decision and its reason. This module records decisions of the gate, `scoring.gate`, and of
people; it decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd

from kronos_pipeline.artifacts import read_parquet
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.predictions import check_predictions
from kronos_pipeline.tracking.packaging import EVIDENCE, FOLDER
from kronos_pipeline.tracking.store import TrackingError
from kronos_pipeline.tracking.version_store import CHALLENGER, CHAMPION, REFIT, Version, VersionStore, registered_name

if TYPE_CHECKING:
    from kronos_pipeline.evaluation.scoring.gate import Decision
    from kronos_pipeline.tracking.runs import Tracker

__all__ = ["Registry", "Version", "registered_name"]

_FORMER = "former_champions"
"""Tag of a registered model: the numbers of former champions, oldest first."""
_KEPT_FORMER = 100


class Registry:
    """The registered models of a tracker's MLflow store, opened at the first use.

    Every method raises TrackingError if the store cannot be used, and then promotes nothing.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.uri = tracker.uri
        self._store = VersionStore(tracker.uri)

    def register(
        self,
        folder: Path,
        name: str,
        run_id: str,
        *,
        predictions: pd.DataFrame,
        metrics: Mapping[str, float],
        tags: Mapping[str, str] | None = None,
    ) -> int:
        """Register a measured adapter or checkpoint as a version with the alias `challenger`.

        Args:
            folder: the adapter or checkpoint, with its manifest.
            name: name of the registered model, see `registered_name`.
            run_id: the MLflow run of the training.
            predictions: the evidence of the verdict.
            metrics: scores by MLflow metric name, without undefined scores.
            tags: tags beside those from the manifest.

        Returns:
            The version's number.

        Raises:
            ArtifactError: the folder has no manifest, or the table of predictions is invalid.
            TrackingError: the run does not exist.
        """
        check_predictions(predictions)
        number = self._store.add(folder, name, run_id, predictions, metrics, {**(tags or {}), "measured": "yes"})
        self._store.set_alias(self.version(name, number), CHALLENGER)
        return number

    def register_refit(
        self, folder: Path, name: str, run_id: str, *, refit_of: int, tags: Mapping[str, str] | None = None
    ) -> int:
        """Register a model of the same recipe, trained on all bars, as a version with the alias `refit`.

        Arguments and errors are those of `register`; `refit_of` is the measured version of the same recipe.
        """
        measured = self.version(name, refit_of)
        refit_tags = {**(tags or {}), "measured": "no", "refit_of": str(measured.number)}
        number = self._store.add(folder, name, run_id, None, {}, refit_tags)
        self._store.set_alias(self.version(name, number), REFIT)
        return number

    def record_decision(self, name: str, number: int, decision: Decision) -> None:
        """Record the gate's decision on a version, and make the version champion if the gate promotes it.

        The reason is written first, so that there is no champion without a reason.

        Raises:
            TrackingError: the version does not exist or is a refit.
        """
        version = _measured(self.version(name, number))
        comparisons = {rival: comparison.as_dict() for rival, comparison in decision.comparisons.items()}
        tags = {
            "gate": decision.gate,
            "gate_reason": decision.reason,  # a person's reason may replace `reason` later
            "comparisons": json.dumps(comparisons, allow_nan=False),
            **{f"verdict.{rival}": comparison.verdict for rival, comparison in decision.comparisons.items()},
        }
        self._tag_decision(version, "gate", "yes" if decision.promote else "no", decision.reason, tags)
        if decision.promote:
            self._set_champion(version)

    def promote(self, name: str, number: int | None, reason: str) -> Version:
        """Make a version champion by a person's decision.

        Args:
            name: name of the registered model.
            number: number of the version; None for the challenger.
            reason: the person's reason, stored on the version.

        Returns:
            The champion.

        Raises:
            TrackingError: the version does not exist, is a refit, or is already champion.
        """
        version = self._store.get_by_alias(name, CHALLENGER) if number is None else self.version(name, number)
        if version is None:
            raise TrackingError(f"{name} has no challenger to promote. {self._store.describe_available(name)}")
        if CHAMPION in _measured(version).aliases:
            raise TrackingError(f"{version} is the champion already.")
        self._tag_decision(version, "person", "yes", reason)
        self._set_champion(version)
        return self.version(name, version.number)

    def rollback(self, name: str, reason: str) -> Version | None:
        """Restore the previous champion by a person's decision.

        Args:
            name: name of the registered model.
            reason: the person's reason, stored on the version that was champion.

        Returns:
            The new champion; None without a previous champion: forecasts then come from the base model or naive.

        Raises:
            TrackingError: there is no champion.
        """
        champion = self.champion(name)
        if champion is None:
            raise TrackingError(f"{name} has no champion to roll back. {self._store.describe_available(name)}")
        others = {version.number: version for version in self.versions(name) if version.number != champion.number}
        former = self._former_champions(name)
        while former and former[-1] not in others:  # deleted since
            former.pop()
        self._tag_decision(champion, "person", "rolled back", reason)
        if former:
            self._store.set_alias(others[former.pop()], CHAMPION)
        else:
            self._store.remove_alias(champion, CHAMPION)
        self._set_former_champions(name, former)
        return self.champion(name)

    def names(self) -> list[str]:
        """List the names of the project's registered models, sorted."""
        return self._store.names()

    def versions(self, name: str) -> list[Version]:
        """List the versions of a registered model, oldest first; empty if the model does not exist."""
        return self._store.search(name)

    def version(self, name: str, number: int) -> Version:
        """Return a version.

        Raises:
            TrackingError: the version does not exist.
        """
        return self._store.get(name, number)

    def champion(self, name: str) -> Version | None:
        """Return the champion; None without a champion or without such a registered model."""
        return self._store.get_by_alias(name, CHAMPION)

    def refit_of(self, version: Version) -> Version | None:
        """Return the newest refit of a version, or None."""
        refits = self._store.search(version.name, f" and tags.refit_of = '{version.number}'")
        return refits[-1] if refits else None

    def evidence(self, version: Version) -> pd.DataFrame:
        """Load the predictions that are the evidence of a version.

        Raises:
            TrackingError: the predictions are missing or damaged, or the version is a refit without evidence.
        """
        with TemporaryDirectory() as temporary:
            try:
                return read_parquet(self._store.fetch(_measured(version), EVIDENCE, Path(temporary)))[0]
            except ArtifactError as error:
                raise TrackingError(f"The evidence of {version} is damaged: {error}") from error

    def fetch(self, version: Version, into: Path) -> Path:
        """Copy a version's adapter or checkpoint below the folder `into`, and return its path.

        Raises:
            TrackingError: the files are missing.
        """
        return self._store.fetch(version, FOLDER, into)

    def _tag_decision(
        self, version: Version, by: str, promoted: str, reason: str, tags: Mapping[str, str] | None = None
    ) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        decision = {"decided_by": by, "decided_at": now, "promoted": promoted}
        self._store.tag_version(version, reason, {**(tags or {}), **decision})

    def _set_champion(self, version: Version) -> None:
        champion = self.champion(version.name)
        if champion is not None and champion.number != version.number:
            self._set_former_champions(version.name, [*self._former_champions(version.name), champion.number])
        self._store.set_alias(version, CHAMPION)
        self._store.remove_alias(version, CHALLENGER)

    def _former_champions(self, name: str) -> list[int]:
        return [int(number) for number in self._store.get_tag(name, _FORMER).split(",") if number]

    def _set_former_champions(self, name: str, numbers: list[int]) -> None:
        self._store.set_tag(name, _FORMER, ",".join(map(str, numbers[-_KEPT_FORMER:])))


def _measured(version: Version) -> Version:
    """Check that a version was measured, and return it.

    Raises:
        TrackingError: the version is a refit, which was not measured.
    """
    if not version.measured:
        refit_of = version.tags.get("refit_of", "unknown")
        raise TrackingError(
            f"{version} was not itself measured, so it cannot be champion. It is a refit of version {refit_of}: "
            f"promote version {refit_of}, and its forecasts use the refit."
        )
    return version
