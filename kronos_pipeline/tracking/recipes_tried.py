"""The recipes that were tried on the cutoffs of a registered model: the more were tried, the less one success says.

A tag of the registered model keeps them as JSON, the first tried first: `[[hash, first cutoff, last cutoff], ...]`. The
best of many recipes on the same cutoffs looks good by luck, and no test of that recipe alone can tell.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pandas as pd

TRIED = "recipes_tried"
_KEPT = 500
_ENDINGS = {1: "st", 2: "nd", 3: "rd"}


@dataclass(frozen=True)
class Tried:
    """The place of a recipe among the recipes tried on the same cutoffs.

    Attributes:
        place: counted from 1 in the order of the first trials.
        count: number of recipes tried.
    """

    place: int
    count: int

    def __str__(self) -> str:
        """Return the place in words."""
        ending = "th" if self.place % 100 in (11, 12, 13) else _ENDINGS.get(self.place % 10, "th")
        if self.place == self.count:
            return f"the {self.place}{ending} recipe tried on these cutoffs"
        return f"the {self.place}{ending} of {self.count} recipes tried on these cutoffs"


def add_recipe(tag: str, recipe: str, first: pd.Timestamp, last: pd.Timestamp) -> tuple[str, Tried]:
    """Add a recipe to the tag of a registered model, and count the recipes tried on overlapping spans of cutoffs.

    Args:
        tag: the tag's value; empty before the first recipe.
        recipe: hash of the recipe.
        first: the first cutoff that it was scored on.
        last: the last cutoff.

    Returns:
        The new value of the tag, which keeps the newest recipes, and the place of this recipe.
    """
    spans = {known: (pd.Timestamp(start), pd.Timestamp(end)) for known, start, end in json.loads(tag or "[]")}
    start, end = spans.get(recipe, (first, last))
    spans[recipe] = min(start, first), max(end, last)
    kept = list(spans.items())[-_KEPT:]
    same = [known for known, (start, end) in kept if known == recipe or (start <= last and end >= first)]
    value = json.dumps([[known, start.isoformat(), end.isoformat()] for known, (start, end) in kept])
    return value, Tried(same.index(recipe) + 1, len(same))
