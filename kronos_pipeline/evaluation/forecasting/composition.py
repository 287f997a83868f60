"""Composition of a forecast: the mean path of one model or the last close, and the shape of another model or a rival.

    centre   the mean path: where the close goes
    shape    paths: how far, how skewed and how dependent; they are recentred on the centre, step by step

A model is good at one of them and not at the other more often than not; `scoring.gate` decides on each by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kronos_pipeline.data.bars import FloatArray
from kronos_pipeline.evaluation.forecasting.variants import recentre

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.evaluation.forecasting.sampling import Sampling
    from kronos_pipeline.model.loading import KronosModel


@dataclass(frozen=True)
class PathModel:
    """A model that gives a forecast its centre or its shape.

    Attributes:
        model: the model.
        sampling: its sampling for the ticker.
        recipe: lookback, horizon, number of paths and seed.
    """

    model: KronosModel
    sampling: Sampling
    recipe: Recipe


def compose(centre: FloatArray, shape: FloatArray) -> FloatArray:
    """Recentre paths on a mean path, by one factor per step.

    Args:
        centre: the mean path, (horizon,), above 0.
        shape: closes of the paths, (paths, horizon), above 0.

    Returns:
        Closes with the mean `centre`, (paths, horizon).
    """
    closes: FloatArray = recentre(shape[None], centre[None])[0]
    return closes
