"""Count the recipes that were tried on the same cutoffs, by submissions and by backtests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from kronos_pipeline.checksums import text_hash
from kronos_pipeline.config import Recipe, Role, settings_of
from kronos_pipeline.tracking.recipes_tried import Tried
from kronos_pipeline.tracking.registry import Registry

_SHAPING = Role.MODEL | Role.WINDOWS | Role.TRAINING | Role.SAMPLING
"""Roles of the settings that shape weights and sampling: a change of them is another recipe."""
_HASH_DIGITS = 16


def recipe_hash(config: Mapping[str, Any]) -> str:
    """Return a hash of the settings that shape weights and sampling.

    Settings at their defaults are left out, so a setting that is added later changes no hash.

    Args:
        config: settings by name, as `Recipe.model_dump(mode="json")` returns them.
    """
    defaults = Recipe().model_dump(mode="json")
    names = sorted(settings_of(_SHAPING))
    changed = {name: config[name] for name in names if name in config and config[name] != defaults[name]}
    return text_hash(json.dumps(changed))[:_HASH_DIGITS]


def count_recipe(registry: Registry, name: str, config: Mapping[str, Any], predictions: pd.DataFrame) -> Tried:
    """Record that a recipe was scored on the cutoffs of a table, and count the recipes tried on the same cutoffs.

    Args:
        registry: the registry.
        name: name of the registered model, which may have no version yet.
        config: see `recipe_hash`.
        predictions: the table of predictions.

    Raises:
        TrackingError: the registry cannot be used.
    """
    cutoffs = predictions["cutoff"]
    return registry.record_recipe(name, recipe_hash(config), cutoffs.min(), cutoffs.max())
