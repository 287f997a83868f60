"""The registry: every adapter and checkpoint a version, with its evidence; who is champion, and why.

    kronos-AAPL   the adapter of that name        alias challenger   the newest that was measured
    kronos-all    the checkpoint over all         alias champion     the one that forecasts are made with
                                                  alias refit        the newest that was trained on all bars

What was decided on a version, and why, is on its tags. Nothing but a person decides here: the gate's decisions come
from `evaluation.gate`.
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
"""Tag of a registered model: the numbers of the versions that were champion before, the oldest first."""
_KEPT_FORMER = 100


class Registry:
    """The registered models of a tracker's store, which is opened at the first use.

    Every method raises TrackingError where the store cannot be used, and leaves no promotion behind then.
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
        """Make a measured adapter or checkpoint a version, with the alias `challenger`.

        Args:
            folder: the adapter or checkpoint, with its manifest.
            name: the registered model's; see `registered_name`.
            run_id: the MLflow run that trained it.
            predictions: the evidence: what its verdict rests on.
            metrics: its scores, by MLflow's names; undefined ones are no measurement and are not among them.
            tags: what should be found again, beside what the manifest says.

        Returns:
            The version's number.

        Raises:
            ArtifactError: the folder has no manifest, or the predictions are no such table.
            TrackingError: there is no such run.
        """
        check_predictions(predictions)
        known = {**(tags or {}), "measured": "yes"}
        number = self._store.add(folder, name, run_id, predictions, metrics, known)
        self._store.set_alias(self.version(name, number), CHALLENGER)
        return number

    def register_refit(
        self, folder: Path, name: str, run_id: str, *, refit_of: int, tags: Mapping[str, str] | None = None
    ) -> int:
        """Make a model of the same recipe that was trained on all bars a version, with the alias `refit`.

        Arguments and errors are those of `register`; `refit_of` is the version that was measured in its place.
        """
        measured = self.version(name, refit_of)
        known = {**(tags or {}), "measured": "no", "refit_of": str(measured.number)}
        number = self._store.add(folder, name, run_id, None, {}, known)
        self._store.set_alias(self.version(name, number), REFIT)
        return number

    def record_decision(self, name: str, number: int, decision: Decision) -> None:
        """Write on a version what the gate decided, and make it champion where that is to promote it.

        The words are written first, so that there is no champion without a reason.

        Raises:
            TrackingError: there is no such version, or it is a refit.
        """
        version = _measured(self.version(name, number))
        compared = decision.comparisons
        tags = {
            "gate": decision.gate,
            "gate_reason": decision.reason,  # a person's reason may take the place of `reason` later
            "comparisons": json.dumps({rival: one.as_dict() for rival, one in compared.items()}, allow_nan=False),
            **{f"verdict.{rival}": one.verdict for rival, one in compared.items()},
        }
        self._tag_decision(version, "gate", "yes" if decision.promote else "no", decision.reason, tags)
        if decision.promote:
            self._set_champion(version)

    def promote(self, name: str, number: int | None, reason: str) -> Version:
        """Make a version champion because a person says so.

        Args:
            name: the registered model's.
            number: the version; None is the challenger.
            reason: the person's words, which are kept on the version.

        Returns:
            The champion.

        Raises:
            TrackingError: there is no such version, it is a refit, or it is champion already.
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
        """Take the champion back because a person says so: the one before it is champion again.

        Args:
            name: the registered model's.
            reason: the person's words, which are kept on the version that is no longer champion.

        Returns:
            The champion now; None where there was none before, and forecasts fall back on the base model or naive.

        Raises:
            TrackingError: there is no champion.
        """
        champion = self.champion(name)
        if champion is None:
            raise TrackingError(f"{name} has no champion to roll back. {self._store.describe_available(name)}")
        there = {version.number: version for version in self.versions(name) if version.number != champion.number}
        former = self._former_champions(name)
        while former and former[-1] not in there:  # deleted since
            former.pop()
        self._tag_decision(champion, "person", "rolled back", reason)
        if former:
            self._store.set_alias(there[former.pop()], CHAMPION)
        else:
            self._store.remove_alias(champion, CHAMPION)
        self._set_former_champions(name, former)
        return self.champion(name)

    def names(self) -> list[str]:
        """The project's registered models, sorted."""
        return self._store.names()

    def versions(self, name: str) -> list[Version]:
        """The versions of a registered model, the oldest first; none where there is no such model."""
        return self._store.search(name)

    def version(self, name: str, number: int) -> Version:
        """One version.

        Raises:
            TrackingError: there is no such version.
        """
        return self._store.get(name, number)

    def champion(self, name: str) -> Version | None:
        """The champion; None where there is none, or no such registered model."""
        return self._store.get_by_alias(name, CHAMPION)

    def refit_of(self, version: Version) -> Version | None:
        """The newest refit of a version, or None."""
        found = self._store.search(version.name, f" and tags.refit_of = '{version.number}'")
        return found[-1] if found else None

    def evidence(self, version: Version) -> pd.DataFrame:
        """The predictions that a version was judged by.

        Raises:
            TrackingError: they are gone or damaged, or it is a refit, which nothing judged.
        """
        with TemporaryDirectory() as temporary:
            try:
                return read_parquet(self._store.fetch(_measured(version), EVIDENCE, Path(temporary)))[0]
            except ArtifactError as error:
                raise TrackingError(f"The evidence of {version} is damaged: {error}") from error

    def fetch(self, version: Version, into: Path) -> Path:
        """Copy a version's adapter or checkpoint below the folder `into`, and say where it is.

        Raises:
            TrackingError: its files are gone.
        """
        return self._store.fetch(version, FOLDER, into)

    def _tag_decision(
        self, version: Version, by: str, promoted: str, reason: str, tags: Mapping[str, str] | None = None
    ) -> None:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        decided = {"decided_by": by, "decided_at": when, "promoted": promoted}
        self._store.tag_version(version, reason, {**(tags or {}), **decided})

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
    """The version itself, which no refit may pass for.

    Raises:
        TrackingError: it was not measured.
    """
    if not version.measured:
        of = version.tags.get("refit_of", "none that is known")
        raise TrackingError(
            f"{version} was not itself measured, so it can be no champion. It is a refit of version {of}: promote that "
            "one, and the refit is used with it."
        )
    return version
