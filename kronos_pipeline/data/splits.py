"""Where a ticker's bars are split, oldest first: train | selection block | holdout; and what is said of too few."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.errors import DataError, Problem

SPLITS = ("train", "selection", "holdout")


@dataclass(frozen=True)
class Blocks:
    """Indices of the first bar of the selection block and of the holdout, and how many bars there are."""

    selection: int
    holdout: int
    bars: int

    def straddling(self, lookback: int, horizon: int, stride: int) -> int:
        """Windows that no split has, as their targets lie on both sides of a block's first bar.

        Around the selection block's start these are windows that training would have had, so its stride counts.
        """
        span = lookback + horizon + 1
        training = range(self.selection - span, -1, -stride)
        later = len(range(self.selection - span + stride, self.selection - lookback, stride)) if training else 0
        return later + min(horizon, self.bars - self.holdout)


def find_blocks(bars: Bars, recipe: Recipe, lookback: int, *, hold_out: bool = True) -> Blocks:
    """Find the blocks that the recipe's days or bars ask for; without a holdout, that block is empty.

    Raises:
        DataError: there are too few bars for one window in each block; it says how many there are and are needed, and
            which settings ask for them.
    """
    count = len(bars)
    dates = bars.frame["timestamps"].to_numpy().astype("datetime64[D]")
    first_bars = np.flatnonzero(np.concatenate([[True], dates[1:] != dates[:-1]]))
    held_out = _block_start(count, first_bars, recipe.validation_bars, recipe.validation_days)
    holdout = held_out if hold_out else count
    selection = _block_start(holdout, first_bars, recipe.selection_bars, recipe.selection_days)
    targets = recipe.horizon + 1
    window = lookback + targets
    if selection < window or holdout - selection < targets:
        raise _too_few(bars, recipe, lookback, len(first_bars))
    return Blocks(selection, holdout, count)


def need_windows(bars: Bars, split: str, windows: int, across: int, flat: int, recipe: Recipe) -> None:
    """Refuse a split whose windows are all left out.

    Raises:
        DataError: none of the split's windows is left; it says why.
    """
    if across + flat < windows:
        return
    if flat == windows and (bars.frame["close"] == bars.frame["close"].iloc[0]).all():
        close = bars.frame["close"].iloc[0]
        rule = f"the close is {close:g} in all {len(bars)} bars: a constant series has nothing to learn"
    elif flat == windows:
        rule = f"no {split} window is left: the close does not move in the lookback of any of the {windows}"
    else:
        rule = (
            f"no {split} window is left: of {windows}, {across} cross a hole of more than --max-gap {recipe.max_gap} "
            f"bars and {flat} have a flat lookback; fill the holes or raise --max-gap"
        )
    raise DataError(Problem(bars.source, rule), bars.ticker)


def _block_start(end: int, first_bars: np.ndarray, bars: int | None, days: int) -> int:
    """Index of the first bar of a block that ends before bar `end`; 0 where there are not that many."""
    if bars is not None:
        return max(end - bars, 0)
    earlier = first_bars[first_bars < end]
    return int(earlier[-days]) if len(earlier) >= days else 0


def _too_few(bars: Bars, recipe: Recipe, lookback: int, trading_days: int) -> DataError:
    horizon, targets = recipe.horizon, recipe.horizon + 1
    per_day = len(bars) / trading_days
    selection_setting, selection = _asked("selection", recipe.selection_bars, recipe.selection_days, per_day)
    holdout_setting, holdout = _asked("validation", recipe.validation_bars, recipe.validation_days, per_day)
    if selection < targets:
        rule = (
            f"{selection_setting} holds {selection} bars, and a selection window needs {targets} "
            f"(--horizon {horizon} + 1); raise it or lower --horizon"
        )
    else:
        about = "" if per_day == 1 else "about "
        rule = (
            f"{len(bars)} bars, and {about}{lookback + targets + selection + holdout} are needed: {lookback + targets} "
            f"for one training window (lookback {lookback} + --horizon {horizon} + 1), {selection} for "
            f"{selection_setting}, {holdout} for {holdout_setting}; add bars or lower these"
        )
    return DataError(Problem(bars.source, rule), bars.ticker)


def _asked(block: str, bars: int | None, days: int, per_day: float) -> tuple[str, int]:
    """The setting that sizes a block, as the command line spells it, and the bars that it asks for."""
    if bars is not None:
        return f"--{block}-bars {bars}", bars
    return f"--{block}-days {days}", math.ceil(days * per_day)
