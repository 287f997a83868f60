"""Warnings about a champion: it is old, or the newest bars are unlike those that it was trained on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pandas as pd

from kronos_pipeline.data.bars import Bars
from kronos_pipeline.evaluation.scoring.input_distance import input_distance
from kronos_pipeline.tracking.version_page import DECIDED_AT

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.tracking.registry import Version


def champion_warnings(
    champion: Version, seen_until: str | None, bars: Bars, recipe: Recipe, now: datetime
) -> tuple[str, ...]:
    """Return the warnings about a champion, a sentence each; empty without any.

    Args:
        champion: the version.
        seen_until: time of the newest bar of the ticker that its training may have read, ISO 8601, or None.
        bars: the ticker's bars.
        recipe: `lookback` of the champion, and `expires_days`.
        now: the time of the forecast, with a zone.
    """
    warnings = []
    age = champion_age(champion, now)
    if age is not None and recipe.expires_days and age > recipe.expires_days:
        warnings.append(f"{champion} was promoted {age} days ago, and expires after {recipe.expires_days}")
    if seen_until is not None:
        trained = int(bars.frame["timestamps"].searchsorted(pd.Timestamp(seen_until), side="right"))
        distance = input_distance(bars.values, trained, recipe.lookback)
        if distance is not None and distance.outside:
            warnings.append(f"{champion}: {distance.sentence()}")
    return tuple(warnings)


def champion_age(champion: Version, now: datetime) -> int | None:
    """Return the whole days since the newest decision on a version; None without a readable time of decision."""
    times = []
    for tag, value in champion.tags.items():
        if tag.partition(".")[0] == DECIDED_AT:
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                continue
            times.append(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return (now - max(times)).days if times else None
