"""The recipes that were tried on the cutoffs of a registered model: the more were tried, the less one success says.

Tags of the registered model keep them as JSON, the first tried first: `[[hash, first cutoff, last cutoff], ...]`. A tag
holds a part of them, as MLflow's databases hold 5,000 characters in a tag. The best of many recipes on the same cutoffs
looks good by luck, and no test of that recipe alone can tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

_TRIED = "recipes_tried"
_KEPT = 500
_PER_TAG = 60
_TAGS = (_TRIED, *(f"{_TRIED}.{part}" for part in range(2, _KEPT // _PER_TAG + 2)))
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


def add_recipe(
    tags: Mapping[str, str], recipe: str, first: pd.Timestamp, last: pd.Timestamp
) -> tuple[dict[str, str], Tried]:
    """Add a recipe to the tags of a registered model, and count the recipes tried on overlapping spans of cutoffs.

    Args:
        tags: the tags of the model.
        recipe: hash of the recipe.
        first: the first cutoff that it was scored on.
        last: the last cutoff.

    Returns:
        The tags to write, in this order, which keep the newest recipes, and the place of this recipe.
    """
    stored = [row for key in _TAGS for row in json.loads(tags.get(key) or "[]")]
    spans = {known: (pd.Timestamp(start), pd.Timestamp(end)) for known, start, end in stored}
    start, end = spans.get(recipe, (first, last))
    spans[recipe] = min(start, first), max(end, last)
    kept = list(spans.items())[-_KEPT:]
    same = [known for known, (start, end) in kept if known == recipe or (start <= last and end >= first)]
    rows = [[known, start.isoformat(), end.isoformat()] for known, (start, end) in kept]
    parts = {key: json.dumps(rows[_PER_TAG * part :][:_PER_TAG]) for part, key in enumerate(_TAGS)}
    # The last part first: a kill must not lose what the first tag of an earlier version of the project has beyond it.
    changed = {key: parts[key] for key in reversed(_TAGS) if parts[key] != tags.get(key, "[]")}
    return changed, Tried(same.index(recipe) + 1, len(same))
