"""Propose settings that fit a folder's tickers; the end of the report of `kronos doctor`.

The windows keep the recipe's lookback and horizon if the tickers have the bars for them, and get shorter otherwise. The
holdout gets the cutoffs that a verdict needs, if enough training bars remain.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bar_schedule import BarSchedule, find_bar_schedule
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.doctor import HORIZONS_IN_ALL, HORIZONS_PER_TICKER
from kronos_pipeline.data.windows import WindowSet, build_all_windows
from kronos_pipeline.errors import count, enumerate_some

_SHORTER = ((64, 30), (64, 10), (32, 10), (32, 5), (16, 5))
"""Lookback and horizon to fall back on, longest first."""
_FEW = 0.1
"""Largest share of tickers that may be too short for the proposal."""
_WINDOWS = 2_000
"""Training windows of a ticker and epoch beyond which the stride grows."""
_STEPS_PER_EPOCH = 20
"""Smallest number of optimiser steps of an epoch before the batch shrinks."""
_SMALLEST_BATCH = 4


@dataclass(frozen=True)
class Proposal:
    """Settings that fit a folder.

    Attributes:
        recipe: the settings, or None if no settings fit.
        windows: the tickers' windows with these settings.
        reasons: why these settings, a sentence each; without settings, what is missing.
    """

    recipe: Recipe | None
    windows: tuple[WindowSet, ...]
    reasons: tuple[str, ...]

    def flags(self) -> str:
        """Return the settings that are not the defaults as flags of the command line."""
        if self.recipe is None:
            return ""
        return flags_of(self.recipe)


def flags_of(recipe: Recipe) -> str:
    """Return the settings that are not the defaults as flags of the command line."""
    defaults = Recipe().model_dump()
    arguments = []
    for name, value in recipe.model_dump().items():
        if value != defaults[name]:
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                text = ",".join(value) if isinstance(value, list) else str(value)
                arguments.append(f"--{flag} {shlex.quote(text)}")
    return " ".join(arguments)


@dataclass(frozen=True)
class _Sizes:
    """Lengths in bars."""

    lookback: int
    horizon: int
    selection: int
    validation: int

    @property
    def needed(self) -> int:
        """The number of bars with one training window."""
        return self.lookback + self.horizon + 1 + self.selection + self.validation

    def training(self, bars: int) -> int:
        """Return the number of target bars for training."""
        return bars - self.lookback - self.selection - self.validation


def propose(bars: Sequence[Bars], recipe: Recipe, cutoffs: int) -> Proposal:
    """Propose settings for tickers.

    Args:
        bars: the tickers' bars.
        recipe: the settings to start from; lookback and horizon are kept if they fit.
        cutoffs: number of cutoffs per ticker that a verdict needs.

    Raises:
        SettingsError: the lookback exceeds the base model's context.
        ModelError: the base model is unknown.
    """
    if not bars:
        return Proposal(None, (), ("no ticker can be read: mend the problems above first",))
    lengths = sorted(len(ticker_bars) for ticker_bars in bars)
    choices = [(recipe.used_lookback, recipe.horizon)]
    choices += [(lookback, horizon) for lookback, horizon in _SHORTER if horizon <= recipe.horizon]
    # A checkpoint over all tickers learns from the bars of all, if these are of one interval.
    pooled = math.ceil(HORIZONS_IN_ALL / len(bars)) if len(_intervals(bars)) == 1 else HORIZONS_PER_TICKER
    for length in lengths[math.floor(_FEW * len(lengths)) :]:
        if (sizes := _fit(length, choices, cutoffs, pooled)) is not None:
            settings = _settings(bars, recipe, sizes, length)
            proposed = Recipe.model_validate({**recipe.model_dump(), **settings})
            windows, unfit = build_all_windows(bars, proposed)
            return Proposal(proposed, tuple(windows.values()), _reasons(bars, proposed, sizes, length, cutoffs, unfit))
    shortest = _shortest(*choices[-1])
    missing = (
        f"the longest ticker has {count(lengths[-1], 'bar')}, and {shortest.needed} are the least, for a lookback of "
        f"{shortest.lookback} and a horizon of {shortest.horizon}: add bars"
    )
    return Proposal(None, (), (missing,))


def _fit(bars: int, choices: Sequence[tuple[int, int]], cutoffs: int, pooled: int) -> _Sizes | None:
    """Return the largest sizes that fit a ticker's number of bars.

    First with enough training horizons for an adapter, then with its part, `pooled`, of enough for a checkpoint over
    all tickers, then with any.
    """
    for lookback, horizon in choices:
        selection = max(2 * horizon, min(bars // 10, 250))
        for horizons in (HORIZONS_PER_TICKER, min(max(pooled, 2), HORIZONS_PER_TICKER)):
            for held_out in sorted({cutoffs, 4, 2, 1}, reverse=True):
                sizes = _Sizes(lookback, horizon, selection, held_out * horizon)
                if sizes.training(bars) >= horizons * horizon:
                    return sizes
    for lookback, horizon in choices:
        if bars >= (sizes := _shortest(lookback, horizon)).needed:
            return sizes
    return None


def _shortest(lookback: int, horizon: int) -> _Sizes:
    """Return the smallest blocks: a window to choose the weights by, and one cutoff."""
    return _Sizes(lookback, horizon, horizon + 1, horizon)


def _settings(bars: Sequence[Bars], recipe: Recipe, sizes: _Sizes, shared: int) -> dict[str, Any]:
    # Blocks of days suit daily bars; a day of intraday bars has another length on each exchange.
    unit = "days" if all(_schedule(ticker_bars).daily for ticker_bars in bars if len(ticker_bars) > 1) else "bars"
    stride = max(1, min(math.ceil(sizes.training(shared) / _WINDOWS), sizes.horizon))
    batch = recipe.batch_size
    while batch > _SMALLEST_BATCH and sizes.training(shared) / stride / batch < _STEPS_PER_EPOCH:
        batch //= 2
    blocks: dict[str, Any] = {f"validation_{unit}": sizes.validation, f"selection_{unit}": sizes.selection}
    if unit == "days":
        blocks |= {"validation_bars": None, "selection_bars": None}
    return {
        "lookback": sizes.lookback,
        "horizon": sizes.horizon,
        **blocks,
        "stride": stride,
        "batch_size": max(batch, 1),
        "adapter": _kind(bars, sizes),
    }


def _kind(bars: Sequence[Bars], sizes: _Sizes) -> Literal["none", "lora"]:
    """Choose a checkpoint if most tickers have too few bars for an adapter and all together have enough."""
    horizons = [max(sizes.training(len(ticker_bars)), 0) // sizes.horizon for ticker_bars in bars]
    share = np.mean([number >= HORIZONS_PER_TICKER for number in horizons])
    pooled = sum(horizons) >= HORIZONS_IN_ALL and len(_intervals(bars)) == 1
    return "none" if share < 1 - _FEW and pooled else "lora"


def _intervals(bars: Sequence[Bars]) -> set[int]:
    return {_schedule(ticker_bars).interval for ticker_bars in bars if len(ticker_bars) > 1}


def _schedule(bars: Bars) -> BarSchedule:
    return find_bar_schedule(bars.frame["timestamps"].to_numpy())


def _reasons(
    bars: Sequence[Bars], recipe: Recipe, sizes: _Sizes, shared: int, cutoffs: int, unfit: Collection[str]
) -> tuple[str, ...]:
    held_out = sizes.validation // sizes.horizon
    training = max(sizes.training(shared), 0)
    horizons = training // sizes.horizon
    reasons = [
        f"of {count(shared, 'bar')}, {sizes.validation} are held out for {count(held_out, 'cutoff')}, "
        f"{sizes.selection} choose the weights, and {training:,} are training targets, "
        f"{count(horizons, 'horizon')} end to end"
    ]
    if held_out < cutoffs:
        reasons.append(
            f"a verdict needs {cutoffs} cutoffs, and more held-out bars would leave too few for training: "
            f"--backtest-origins {cutoffs} gives one"
        )
    if recipe.stride > 1:
        reasons.append(f"--stride {recipe.stride}, as windows that start a bar apart are almost the same")
    if recipe.batch_size != Recipe().batch_size:
        reasons.append(f"--batch-size {recipe.batch_size}, so that an epoch has about {_STEPS_PER_EPOCH} steps")
    if recipe.adapter == "none":
        reasons.append("one checkpoint over all tickers, as few have enough bars for an adapter of their own")
    elif horizons >= HORIZONS_PER_TICKER:
        reasons.append("an adapter for each ticker, as each has enough bars of its own")
    else:
        reasons.append(f"this is little data: {HORIZONS_PER_TICKER} horizons end to end are the least to learn from")
    if unfit:
        fit = f"{len(bars) - len(unfit)} of {count(len(bars), 'ticker')} fit"
        reasons.append(f"{fit}; without a window in each split: {enumerate_some(sorted(unfit))}")
    return tuple(reasons)
