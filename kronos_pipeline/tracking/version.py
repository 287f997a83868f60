"""A version of a registered model, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

TRAINED_AT = "trained_at"


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: name of the registered model.
        number: counted from 1.
        run_id: the MLflow run of the training.
        aliases: aliases that point to the version.
        tags: `kind`, `trained_on`, `base_model`, `base_hash`, `measured`, and of the decision on each target
            `promoted.mean`, `reason.mean`, `verdict.mean` and the like, see `version_page`.
        registered_at: time of the registration, in UTC.
    """

    name: str
    number: int
    run_id: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    registered_at: datetime

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"

    @property
    def measured(self) -> bool:
        """True if the version has evidence. A refit never has: it was trained on all bars, so none is left for it."""
        return self.tags.get("measured") == "yes"

    @property
    def trained_at(self) -> datetime:
        """The time at which the training ended, in UTC; in earlier registries, that of the registration."""
        return datetime.fromisoformat(self.tags[TRAINED_AT]) if TRAINED_AT in self.tags else self.registered_at

    def trained(self) -> str:
        """Return the time of the training in words, in the local time zone."""
        return f"trained {self.trained_at.astimezone():%Y-%m-%d %H:%M}"

    @property
    def decided(self) -> bool:
        """True if the gate or a person has decided on the version for some target."""
        return any(key.startswith("decided_by") for key in self.tags)

    @property
    def is_refit(self) -> bool:
        """True if the version was trained on all bars, as a refit of a measured version."""
        return "refit_of" in self.tags

    def decision(self, key: str, target: str) -> str | None:
        """Return a tag of the decision on a target, such as "reason"; None without a decision.

        Earlier versions of the project decided on all targets at once, and wrote tags without a target.
        """
        return self.tags.get(f"{key}.{target}", self.tags.get(key))

    def covers(self, ticker: str) -> bool:
        """Return whether the version was trained on a ticker."""
        return ticker in self._trained_on

    @cached_property
    def _trained_on(self) -> frozenset[str]:
        """The tickers of the training; a checkpoint has thousands, and is asked for each of them."""
        return frozenset(self.tags.get("trained_on", "").split(","))
