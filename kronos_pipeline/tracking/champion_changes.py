"""Changes of the champions of a registered model: the gate's decision, a person's promotion, a rollback.

    tag champion_change --> tags of the decision --> history and aliases --> tag champion_change removed

The first write counts: a change that was cut off before it did not happen, and a change that was cut off after it is
completed by the next change of the model. Nothing is lost, doubled or half done, and a reader between two writes sees
the champions after the change, see `champions.read_champions`.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kronos_pipeline.errors import join
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target
from kronos_pipeline.tracking.champions import CHANGE, Champions, Change, Kind, aliased, champion_tags, read_champions
from kronos_pipeline.tracking.store import TrackingError
from kronos_pipeline.tracking.version import Version
from kronos_pipeline.tracking.version_page import DECIDED_AT, decision_tags, person_tags, utc_now
from kronos_pipeline.tracking.version_store import CHALLENGER, VersionStore

if TYPE_CHECKING:
    from kronos_pipeline.evaluation.scoring.gate import Decision

_LONGEST_TAG = 4500
"""Characters of the tag of a change. MLflow's databases hold 5,000; the rest is for what a person changes meanwhile."""
_PROMOTED = {"promotion": "yes", "rollback": "rolled back"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolledBack:
    """The result of a rollback.

    Attributes:
        champions: the new champion of each target that was rolled back; None without a previous champion.
        completed: the interrupted rollback of the same targets, if this one completed it and did nothing else.
    """

    champions: Mapping[Target, Version | None]
    completed: Change | None = None


class ChampionChanges:
    """The champions of a registered model, read to be changed by one of the methods.

    The caller holds the lock of the model, see `store.change_model`. A change that was cut off is completed first.
    """

    def __init__(self, store: VersionStore, name: str) -> None:
        self._store, self._name = store, name
        self._read()
        self._completed = self._complete()

    def record_decision(self, number: int, decisions: Mapping[Target, Decision]) -> None:
        """Record the gate's decisions on a version; see `Registry.record_decision`."""
        version = check_measured(self._version(number))
        tags = decision_tags(decisions)
        # The time alone makes no difference: `register` may have written the tags already, in one call.
        written = all(version.tags.get(key) == tag for key, tag in tags.items() if not key.startswith(DECIDED_AT))
        # First: there is no champion without a reason. The gate repeats a decision that is cut off here.
        self._store.tag_version(version, {} if written else tags)
        promoted = tuple(target for target, decision in decisions.items() if decision.promote)
        self._change("promotion", promoted, self._champions.promote(number, promoted))

    def promote(self, number: int | None, reason: str, targets: Sequence[Target]) -> Version:
        """Make a version champion by a person's decision; see `Registry.promote`."""
        version = self._challenger() if number is None else self._version(number)
        if version is None:
            available = self._store.describe_available(self._name)
            raise TrackingError(f"{self._name} has no measured version to promote. {available}")
        check_measured(version)
        new = {target: version.number for target in targets if self._champions.numbers.get(target) != version.number}
        self._change("promotion", targets, self._champions.promote(version.number, tuple(new)), new, reason)
        return self._version(version.number)

    def roll_back(self, reason: str, targets: Sequence[Target]) -> RolledBack:
        """Restore the previous champions by a person's decision; see `Registry.rollback`."""
        if (change := self._completed) and change.kind == "rollback" and set(change.targets) == set(targets):
            return RolledBack(self._champions_of(change.decided), change)
        lost = {target: self._champions.numbers[target] for target in targets if target in self._champions.numbers}
        if not lost:
            of_targets = "" if set(targets) == set(TARGETS) else f" of {join(targets)}"
            available = self._store.describe_available(self._name)
            raise TrackingError(f"{self._name} has no champion{of_targets} to roll back. {available}")
        after = self._champions.roll_back(tuple(lost), self._versions)
        self._change("rollback", targets, after, lost, reason)
        return RolledBack(self._champions_of(lost))

    def _read(self) -> None:
        versions, self._tags = self._store.read(self._name)
        self._versions = {version.number: version for version in versions}
        self._aliases = aliased(versions)
        self._champions = read_champions(versions, self._tags)

    def _version(self, number: int) -> Version:
        return self._versions.get(number) or self._store.get(self._name, number)

    def _champions_of(self, targets: Iterable[Target]) -> dict[Target, Version | None]:
        numbers = self._champions.numbers
        return {target: self._versions[numbers[target]] if target in numbers else None for target in targets}

    def _challenger(self) -> Version | None:
        """Return the version with the alias `challenger`, or else the newest measured version, or None."""
        number = self._aliases.get(CHALLENGER, self._newest_measured())
        return None if number is None else self._versions[number]

    def _newest_measured(self) -> int | None:
        return max((number for number, version in self._versions.items() if version.measured), default=None)

    def _complete(self) -> Change | None:
        """Complete the change that was cut off, and return it, or None."""
        change = Change.from_tags(self._tags)
        if change is None:
            if CHANGE in self._tags:  # edited by a person
                self._store.remove_tag(self._name, CHANGE)
            return None
        _log.warning("%s: %s was interrupted, and is completed now.", self._name, change)
        if self._champions != change.after:  # a person has changed an alias or deleted a version meanwhile
            change = replace(change, before=self._pointed(), after=self._champions)
            self._store.set_tag(self._name, CHANGE, change.to_tag())
        self._carry_out(change)
        return change

    def _change(
        self,
        kind: Kind,
        targets: Sequence[Target],
        after: Champions,
        decided: Mapping[Target, int] | None = None,
        reason: str | None = None,
    ) -> None:
        """Change the champions; without a difference write what an earlier version of the project did not write."""
        change = Change(kind, tuple(targets), utc_now(), reason, decided or {}, self._pointed(), after)
        if (excess := len(change.to_tag()) - _LONGEST_TAG) > 0:
            raise TrackingError(f"The reason is too long for the registry: shorten it by {excess} characters.")
        if self._is_to_do(change):
            self._store.set_tag(self._name, CHANGE, change.to_tag())
            self._carry_out(change)
        else:
            self._write_challenger()

    def _pointed(self) -> dict[str, int]:
        """Return the versions that the aliases of the champions point to."""
        return {alias: self._aliases[alias] for alias in self._champions.aliases() if alias in self._aliases}

    def _is_to_do(self, change: Change) -> bool:
        aliases = {alias: number for alias, number in change.after.aliases().items() if number is not None}
        return bool(change.decided) or change.before != aliases or bool(champion_tags(change.after, self._tags))

    def _carry_out(self, change: Change) -> None:
        """Write what a change has not written yet, and remove its tag."""
        for number in sorted(set(change.decided.values()) & set(self._versions)):
            version, reason = self._versions[number], str(change.reason)
            tags = [
                person_tags(version, target, _PROMOTED[change.kind], reason, change.asked)
                for target in change.decided
                if change.decided[target] == number
            ]
            self._store.tag_version(version, dict(ChainMap(*tags)))
        for key, tag in champion_tags(change.after, self._tags).items():
            self._store.set_tag(self._name, key, tag)
        for alias, pointed in change.after.aliases().items():
            self._write_alias(alias, pointed)
        self._champions = change.after
        self._write_challenger()
        self._store.remove_tag(self._name, CHANGE)
        self._read()

    def _write_challenger(self) -> None:
        """Point the alias `challenger` to the newest measured version, unless this is champion of every target."""
        newest = self._newest_measured()
        if newest is not None:
            every = {self._champions.numbers.get(target) for target in TARGETS} == {newest}
            self._write_alias(CHALLENGER, None if every else newest)

    def _write_alias(self, alias: str, number: int | None) -> None:
        pointed = self._aliases.get(alias)
        if number is None and pointed is not None:
            self._store.remove_alias(self._versions[pointed], alias)
        elif number is not None and number != pointed:
            self._store.set_alias(self._versions[number], alias)


def check_measured(version: Version) -> Version:
    """Check that a version was measured, and return it.

    Raises:
        TrackingError: the version is a refit, or has not been evaluated yet.
    """
    if not version.measured and not version.is_refit:
        raise TrackingError(
            f"{version} was trained, but has not been evaluated; materialise holdout_metrics, or train with "
            "`python -m kronos_pipeline.run_training`, which evaluates too."
        )
    if not version.measured:
        refit_of = version.tags.get("refit_of", "unknown")
        raise TrackingError(
            f"{version} was not itself measured, so it cannot be champion. It is a refit of version {refit_of}: "
            f"promote version {refit_of}, and its forecasts use the refit."
        )
    return version
