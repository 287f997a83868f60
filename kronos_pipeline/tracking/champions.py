"""The champions of a registered model per target: read from its aliases and tags, changed, and written as aliases.

    alias champion-mean  champion-distribution  champion-volatility     the champion of each target
    alias champion                                                      the version that serves a forecast
    tag champion_history                                                former champions by target, oldest first
    tag champion_served                                                 the version that `champion` was given to
    tag champion_change                                                 the change that is being written, else absent

The functions are pure; `champion_changes` writes the store. A change of the champions takes several writes. Its tag is
written first and removed last: if it is there, the champions are those after the change, whatever the aliases say.

Registries of earlier versions of the project have the alias `champion` alone. A champion that the gate made, by the
mean path, counts for the mean; a champion that a person made counts for every target. The same holds for former
champions. A version that a person gives the alias `champion` in MLflow itself counts for every target.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from kronos_pipeline.errors import join
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target
from kronos_pipeline.tracking.version import Version
from kronos_pipeline.tracking.version_store import CHAMPION

HISTORY, SERVED, CHANGE = "champion_history", "champion_served", "champion_change"
Kind = Literal["promotion", "rollback"]
_FORMER = "former_champions"
"""Tag of earlier versions of the project: the numbers of former champions, oldest first, separated by commas."""
_KEPT_FORMER = 100
_SERVING: tuple[Target, ...] = ("distribution", "mean", "volatility")
"""The champion of the first target that has one serves a forecast."""


@dataclass(frozen=True)
class Champions:
    """The champion of each target, and former champions by target, oldest first, by the numbers of their versions."""

    numbers: Mapping[Target, int]
    former: Mapping[Target, tuple[int, ...]]

    @property
    def serving(self) -> int | None:
        """The version that serves a forecast: the champion of distribution, else of mean, else of volatility."""
        return next((self.numbers[target] for target in _SERVING if target in self.numbers), None)

    def promote(self, number: int, targets: Sequence[Target]) -> Champions:
        """Return the champions after a version became champion of some targets."""
        numbers, former = dict(self.numbers), dict(self.former)
        for target in targets:
            champion = numbers.get(target)
            if champion is not None and champion not in (number, *former[target][-1:]):
                former[target] = (*former[target], champion)[-_KEPT_FORMER:]
            numbers[target] = number
        return Champions(numbers, former)

    def roll_back(self, targets: Sequence[Target], existing: Collection[int]) -> Champions:
        """Return the champions after some targets got their previous champion back, or none if there is no previous.

        Args:
            targets: the targets.
            existing: the numbers of the versions that exist; former champions that were deleted are passed over.
        """
        numbers, former = dict(self.numbers), dict(self.former)
        for target in targets:
            left = [number for number in former[target] if number in existing]
            champion = numbers.pop(target, None)
            while left and left[-1] == champion:
                left.pop()
            if left:
                numbers[target] = left.pop()
            former[target] = tuple(left)
        return Champions(numbers, former)

    def history(self) -> str:
        """Return the value of the tag with the former champions."""
        return json.dumps({target: list(numbers) for target, numbers in self.former.items()})

    def aliases(self) -> dict[str, int | None]:
        """Return the version that each alias of a champion points to, that of the serving version last."""
        return {**{alias_of(target): self.numbers.get(target) for target in TARGETS}, CHAMPION: self.serving}


_NO_HISTORY = Champions({}, dict.fromkeys(TARGETS, ())).history()


@dataclass(frozen=True)
class Change:
    """A change of the champions of a registered model.

    Attributes:
        kind: "promotion" or "rollback".
        targets: the targets that the change was asked for.
        asked: time of the change, ISO 8601 in UTC.
        reason: a person's reason, for the tags of the versions in `decided`; None if the gate decided, which writes its
            reasons before.
        decided: the version that a person decided on, by target: the promoted version, or the one that is rolled back.
        before: the versions that the aliases of the champions pointed to before the change, by alias.
        after: the champions after the change.
    """

    kind: Kind
    targets: tuple[Target, ...]
    asked: str
    reason: str | None
    decided: Mapping[Target, int]
    before: Mapping[str, int]
    after: Champions

    def __str__(self) -> str:
        reason = f' "{self.reason}"' if self.reason else ""
        asked = datetime.fromisoformat(self.asked).astimezone()
        return f"the {self.kind}{reason} of {asked:%Y-%m-%d %H:%M} for {join(self.targets)}"

    def to_tag(self) -> str:
        """Return the value of the tag of a change that is being written."""
        after = {"champions": self.after.numbers, "former": self.after.former}
        record = {**{key: value for key, value in vars(self).items() if key != "after"}, **after}
        return json.dumps(record, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Change | None:
        """Return the change that was cut off, or None; a tag that a person has edited in MLflow is no change."""
        with suppress(ValueError, LookupError, AttributeError, TypeError):
            stored = json.loads(tags[CHANGE])
            return cls(
                "rollback" if stored["kind"] == "rollback" else "promotion",
                tuple(target for target in TARGETS if target in stored["targets"]),
                datetime.fromisoformat(stored["asked"]).isoformat(timespec="seconds"),
                stored["reason"],
                _numbers(stored["decided"]),
                {str(alias): int(number) for alias, number in stored["before"].items()},
                Champions(_numbers(stored["champions"]), _histories(stored["former"])),
            )
        return None

    def champions(self, pointed: Mapping[str, int], existing: Collection[int]) -> Champions:
        """Return the champions after the change.

        If an alias points neither to the version before the change nor to that after it, a person has changed the alias
        meanwhile, and it counts. In place of a champion that a person has deleted comes the champion before it.

        Args:
            pointed: the version that each alias points to; MLflow removes the aliases of a version that is deleted.
            existing: the numbers of the versions that exist.
        """
        deleted = [target for target, number in self.after.numbers.items() if number not in existing]
        after = self.after.roll_back(deleted, existing)
        numbers: dict[Target, int] = {}
        for target in TARGETS:
            alias = alias_of(target)
            own = {self.before.get(alias), self.after.numbers.get(target)}
            removed = alias not in pointed and not own <= {None, *existing}
            number = after.numbers.get(target) if removed or pointed.get(alias) in own else pointed.get(alias)
            if number is not None:
                numbers[target] = number
        return Champions(numbers, after.former)


def alias_of(target: Target) -> str:
    """Return the alias of a target's champion."""
    return f"{CHAMPION}-{target}"


def aliased(versions: Sequence[Version]) -> dict[str, int]:
    """Return the number of the version that each alias points to."""
    return {alias: version.number for version in versions for alias in version.aliases}


def champion_tags(champions: Champions, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a registered model to write for its champions, without tags that are there already."""
    served = "" if champions.serving is None else str(champions.serving)
    stored = {HISTORY: "" if _FORMER in tags else _NO_HISTORY, SERVED: "", **tags}
    return {key: tag for key, tag in {HISTORY: champions.history(), SERVED: served}.items() if tag != stored[key]}


def read_champions(versions: Sequence[Version], tags: Mapping[str, str]) -> Champions:
    """Read the champions of a registered model: those after a change that was cut off, if there is one.

    Args:
        versions: all versions of the model.
        tags: the tags of the model.
    """
    pointed, change = aliased(versions), Change.from_tags(tags)
    existing = {version.number: version for version in versions}
    if change is None:
        numbers = {target: pointed[alias_of(target)] for target in TARGETS if alias_of(target) in pointed}
        champions, served = Champions(numbers, _former(versions, tags)), {tags.get(SERVED)}
    else:
        champions = change.champions(pointed, existing)
        served = {tags.get(SERVED), str(change.before.get(CHAMPION)), str(change.after.serving)}
    named = pointed.get(CHAMPION)
    if named is None or str(named) in served or named == champions.serving:
        return champions
    # Made by an earlier version of the project, or by a person in MLflow itself.
    return champions.promote(named, TARGETS if champions.numbers else _counts_for(existing[named]))


def _numbers(stored: Mapping[str, int]) -> dict[Target, int]:
    return {target: int(stored[target]) for target in TARGETS if target in stored}


def _histories(stored: Mapping[str, Sequence[int]]) -> dict[Target, tuple[int, ...]]:
    return {target: tuple(map(int, stored.get(target, ()))) for target in TARGETS}


def _former(versions: Sequence[Version], tags: Mapping[str, str]) -> dict[Target, tuple[int, ...]]:
    if HISTORY in tags:
        # A tag that a person has edited in MLflow restores nothing, and keeps no command from its work.
        with suppress(ValueError, AttributeError, TypeError):
            return _histories(json.loads(tags[HISTORY]))
        return dict.fromkeys(TARGETS, ())
    existing = {version.number: version for version in versions}
    numbers = [int(number) for number in tags.get(_FORMER, "").split(",") if number]
    return {
        target: tuple(number for number in numbers if number in existing and target in _counts_for(existing[number]))
        for target in TARGETS
    }


def _counts_for(version: Version) -> tuple[Target, ...]:
    """Return the targets of a champion of an earlier version of the project."""
    by_gate = version.tags.get("decided_by") == "gate" and version.tags.get("promoted") == "yes"
    return ("mean",) if by_gate else TARGETS
