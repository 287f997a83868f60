"""The champions of a registered model per target: read from its aliases and tags, changed, and written as aliases.

    alias champion-mean  champion-distribution  champion-volatility     the champion of each target
    alias champion                                                      the version that serves a forecast
    tag champion_history                                                former champions by target, oldest first
    tag champion_served                                                 the version that `champion` was given to

The functions are pure; `registry.Registry` reads and writes the store.

Registries of earlier versions of the project have the alias `champion` alone. A champion that the gate made, by the
mean path, counts for the mean; a champion that a person made counts for every target. The same holds for former
champions. A version that a person gives the alias `champion` in MLflow itself counts for every target.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target
from kronos_pipeline.tracking.version import Version
from kronos_pipeline.tracking.version_store import CHAMPION

HISTORY, SERVED = "champion_history", "champion_served"
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

    def roll_back(self, targets: Sequence[Target], existing: Sequence[int]) -> Champions:
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


NO_HISTORY = Champions({}, dict.fromkeys(TARGETS, ())).history()


def alias_of(target: Target) -> str:
    """Return the alias of a target's champion."""
    return f"{CHAMPION}-{target}"


def read_champions(versions: Sequence[Version], tags: Mapping[str, str]) -> Champions:
    """Read the champions of a registered model.

    Args:
        versions: all versions of the model.
        tags: the tags of the model.
    """
    by_alias = {alias: version for version in versions for alias in version.aliases}
    numbers = {target: by_alias[alias_of(target)].number for target in TARGETS if alias_of(target) in by_alias}
    champions = Champions(numbers, _former(versions, tags))
    named = by_alias.get(CHAMPION)
    if named is None or str(named.number) == tags.get(SERVED) or named.number == champions.serving:
        return champions
    # Made by an earlier version of the project, or by a person in MLflow itself.
    return champions.promote(named.number, TARGETS if numbers else _counts_for(named))


def _former(versions: Sequence[Version], tags: Mapping[str, str]) -> dict[Target, tuple[int, ...]]:
    if HISTORY in tags:
        # A tag that a person has edited in MLflow restores nothing, and keeps no command from its work.
        with suppress(ValueError, AttributeError, TypeError):
            stored = json.loads(tags[HISTORY])
            return {target: tuple(map(int, stored.get(target, ()))) for target in TARGETS}
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
