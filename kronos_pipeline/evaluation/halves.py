"""Half of a selection block: which cutoffs are forecast to score its bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kronos_pipeline.data.bar_schedule import find_bar_schedule
from kronos_pipeline.evaluation.forecasting.batching import Rolls, SampledRolls, rolls_from

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.evaluation.forecasting.tuning import Sampling
    from kronos_pipeline.model.loading import KronosModel

ORIGINS = 16
"""Cutoffs per half of the selection block, at most."""


class Half:
    """The bars [first, end) before the holdout, and the cutoffs whose forecasts score them.

    The cutoffs are spread evenly, so that each step of the horizon is scored at as many bars as any other. As in
    `build_windows`, none has a flat lookback, or a hole between its first bar and its last.
    """

    def __init__(self, windows: WindowSet, first: int, end: int, recipe: Recipe) -> None:
        self.first, self.end = first, end
        self._windows, self._recipe = windows, recipe
        stamps = windows.bars.frame["timestamps"].to_numpy()[: windows.holdout_start]
        close = windows.bars.frame["close"].to_numpy()
        holes = np.concatenate([[0], np.cumsum(find_bar_schedule(stamps).missing(stamps) > recipe.max_gap)])
        origins = np.arange(max(first - recipe.horizon, windows.lookback - 1), end - 1)
        starts, lasts = origins + 1 - windows.lookback, np.minimum(origins + recipe.horizon, end - 1)
        moves = [np.ptp(close[start : origin + 1]) > 0 for start, origin in zip(starts, origins, strict=True)]
        usable = origins[np.array(moves, np.bool_) & (holes[starts] == holes[lasts])]
        spread = np.linspace(0, len(usable) - 1, min(ORIGINS, len(usable)))
        self.origins = usable[np.rint(spread).astype(np.int64)]

    @property
    def disjoint(self) -> int:
        """How many forecasts that share no bar the cutoffs have room for."""
        return min(1 + int(self.origins[-1] - self.origins[0]) // self._recipe.horizon, len(self.origins))

    def rolls(self, model: KronosModel, sampling: Sampling) -> Rolls:
        """What a model is asked for: the bars after each cutoff."""
        ends = np.minimum(self.origins + 1 + self._recipe.horizon, self.end)
        return rolls_from(self._windows, self.origins, ends, model, self._recipe, sampling)

    def scored(self, sampled: SampledRolls) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Of each forecast bar in this half: paths of the close (n, paths), the real one (n,), its step (n,)."""
        rolls, steps = np.meshgrid(np.arange(len(self.origins)), np.arange(1, self._recipe.horizon + 1), indexing="ij")
        targets = self.origins[rolls] + steps
        scored = (targets >= self.first) & (targets < self.end)
        y = self._windows.bars.frame["close"].to_numpy(np.float64)[targets[scored]]
        return sampled.closes.swapaxes(1, 2)[scored], y, steps[scored]
