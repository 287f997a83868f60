"""The result of an exchange with the store."""

from __future__ import annotations

from dataclasses import dataclass, field

from kronos_pipeline.errors import KronosError


@dataclass
class Exchanged:
    """The result of an exchange.

    Attributes:
        fetched: artifacts that the store had newer.
        delivered: artifacts that were made here.
        notes: sentences on artifacts of this machine that those of another replaced.
        errors: errors by group.
    """

    fetched: list[str] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: dict[str, KronosError] = field(default_factory=dict)
