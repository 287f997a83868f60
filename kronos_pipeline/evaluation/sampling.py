"""How a model is sampled for a ticker, and how far its intervals are stretched: chosen on the selection block alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kronos_pipeline.evaluation.predictions import LEVELS

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe

Score = tuple[float, float, float]
"""Temperature, top-p, and the mean CRPS of the closes that were forecast with them, in price units."""


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled for one ticker, and what that rests on.

    Attributes:
        temperature: divides the logits.
        top_p: the likeliest tokens up to this probability are kept.
        s2_position: "true" or "first", where decoding asks for a bar's fine token.
        widths: by level, the factor of its intervals at each step 1 to horizon.
        residuals: how many forecast closes the widths rest on; 0 where they are all 1.
        tuned: what each temperature and top-p scored; None where they are the recipe's own.
        weights_hash: of the model that this was fitted for; None where nothing was fitted.
        span: the first and the last bar that it was fitted on, ISO times; None where nothing was fitted.
    """

    temperature: float
    top_p: float
    s2_position: str
    widths: Mapping[int, tuple[float, ...]]
    residuals: int = 0
    tuned: tuple[Score, ...] | None = None
    weights_hash: str | None = None
    span: tuple[str, str] | None = None

    def widths_at(self, steps: NDArray[np.integer]) -> NDArray[np.float64]:
        """The factors of bars that are `steps` bars after their cutoff, (n,), counted from 1: (n, levels)."""
        return np.array([self.widths[level] for level in LEVELS])[:, steps - 1].T


def plain_sampling(recipe: Recipe) -> Sampling:
    """The recipe's own temperature and top-p, and intervals as they are sampled."""
    widths = dict.fromkeys(LEVELS, (1.0,) * recipe.horizon)
    return Sampling(recipe.temperature, recipe.top_p, recipe.s2_position, widths)
