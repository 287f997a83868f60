"""The folds of a walk-forward backtest: what is trained on, and which cutoffs it is scored on.

    bars     |---- train ----|- selection -|x = horizon = |x = horizon = |                       fold 1 (2 cutoffs)
             |---------------- train ----------------|- selection -|x = horizon = |x = horizon = |        fold 2

`x` is a cutoff. The cutoffs are a horizon apart and the last leaves one horizon of real bars; `--backtest-refit-every`
says how many of them one training serves. A fold is the pipeline itself on bars that end with the fold: its holdout is
the fold's cutoffs, so training, the choice of weights, of the sampling and of the interval widths all lie before them.

Cutoffs stay where they are while bars come in, until there is room for a new one after the last: two backtests of one
ticker share cutoffs, so that a new model can be compared with the champion, and need not do old folds again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.errors import DataError, KronosError, Problem


@dataclass(frozen=True)
class Fold:
    """One training and the cutoffs that it is scored on.

    Attributes:
        group: the tickers that are trained together, those that this fold leaves out included.
        recipe: the recipe, with a holdout that holds the fold's cutoffs.
        windows: the tickers' windows on bars that end with the fold.
        known: the same for training: no bar that is newer than the earliest cutoff of any of the tickers.
    """

    group: tuple[str, ...]
    recipe: Recipe
    windows: tuple[WindowSet, ...]
    known: tuple[WindowSet, ...]


def plan_folds(
    groups: Sequence[Mapping[str, Bars]], recipe: Recipe, anchors: Mapping[str, pd.Timestamp] | None = None
) -> tuple[list[Fold], dict[str, KronosError]]:
    """The folds of a backtest.

    Args:
        groups: tickers that are trained together, by symbol.
        recipe: with the number of cutoffs per ticker, and of those that one training serves.
        anchors: by ticker, a cutoff that the others keep in step with; by default they are counted from the last bar.

    Returns:
        The folds, each group's oldest first, and why tickers have none.

    Raises:
        DataError: no ticker has bars enough for one cutoff.
    """
    folds: list[Fold] = []
    skipped: dict[str, KronosError] = {}
    for group in groups:
        found, errors = _folds_of(group, recipe, anchors or {})
        folds += found
        skipped |= errors
    if not folds:
        raise DataError([problem for error in skipped.values() for problem in getattr(error, "problems", ())])
    return folds, skipped


def _folds_of(
    bars: Mapping[str, Bars], recipe: Recipe, anchors: Mapping[str, pd.Timestamp]
) -> tuple[list[Fold], dict[str, KronosError]]:
    """The folds of tickers that are trained together, oldest first, and why tickers have none.

    A fold leaves out the tickers that have too few bars before it.
    """
    horizon, every = recipe.horizon, recipe.backtest_refit_every
    folds: list[Fold] = []
    errors: dict[str, KronosError] = {}
    for first in range(0, recipe.backtest_origins, every):
        cutoffs = min(every, recipe.backtest_origins - first)
        changes = {"validation_bars": cutoffs * horizon, "max_cutoffs": cutoffs, "backtest_origins": 0}
        own = recipe.model_copy(update=changes)
        later = recipe.backtest_origins - first - cutoffs
        windows = []
        for ticker, one in bars.items():
            try:
                end = _end(one, horizon, anchors.get(ticker)) - later * horizon
                windows.append(build_windows(_until(one, end), own))
            except DataError as error:
                errors[ticker] = error
        if windows:
            folds.append(Fold(tuple(bars), own, tuple(windows), _known_together(windows)))
    scored = {one.ticker for fold in folds for one in fold.windows}
    return folds, {ticker: error for ticker, error in errors.items() if ticker not in scored}


def _end(bars: Bars, horizon: int, anchor: pd.Timestamp | None) -> int:
    """The number of bars up to the end of the newest horizon that begins a whole number of them after the anchor."""
    if anchor is None:
        return len(bars)
    at = int(bars.frame["timestamps"].searchsorted(anchor, side="right"))
    return at + (len(bars) - at) // horizon * horizon


def _until(bars: Bars, end: int) -> Bars:
    """The bars before number `end`, as if there were no later ones."""
    if end < 1:
        rule = "there are too few bars for so many cutoffs; lower --backtest-origins or --horizon"
        raise DataError(Problem(bars.source, rule), bars.ticker)
    frame = bars.frame.iloc[:end]
    return make_bars(bars.ticker, frame, source=bars.source, time_zone=bars.time_zone, notes=bars.notes)


def _known_together(windows: Sequence[WindowSet]) -> tuple[WindowSet, ...]:
    """The windows for training, without what is newer than the earliest cutoff among the tickers.

    Their files may end on different days, and another ticker's later bars would tell of the market's.
    """
    until = min(one.bars.frame["timestamps"].iloc[one.holdout_start - 1] for one in windows)
    known = []
    for one in windows:
        stamps = one.bars.frame["timestamps"].to_numpy()
        late = stamps[one.rows["end"].to_numpy() - 1] > until.to_datetime64()
        kept = one.rows[(one.rows["split"] == "holdout") | ~late].reset_index(drop=True)
        known.append(one if len(kept) == len(one.rows) else replace(one, rows=kept))
    return tuple(known)
