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
from kronos_pipeline.data.purge import purge_overlapping_targets
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.errors import DataError, KronosError, Problem


class BacktestError(DataError):
    """No ticker could be backtested.

    Attributes:
        skipped: why, by ticker.
    """

    def __init__(self, skipped: Mapping[str, KronosError]) -> None:
        self.skipped = dict(skipped)
        problems: list[Problem] = []
        for ticker, error in skipped.items():
            problems += error.problems if isinstance(error, DataError) else [Problem(ticker, str(error))]
        super().__init__(list(dict.fromkeys(problems)))


@dataclass(frozen=True)
class Fold:
    """One training and the cutoffs that it is scored on.

    Attributes:
        group: the tickers that are trained together, those that this fold leaves out included.
        recipe: the recipe, with a holdout that holds the fold's cutoffs.
        windows: the tickers' windows on bars that end with the fold.
        known: the same for training: no target bar that is newer than the earliest cutoff of any of the tickers.
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
        BacktestError: no ticker has bars enough for one cutoff.
    """
    folds: list[Fold] = []
    skipped: dict[str, KronosError] = {}
    for group in groups:
        found, errors = _folds_of(group, recipe, anchors or {})
        folds += found
        skipped |= errors
    if not folds:
        raise BacktestError(skipped)
    return folds, skipped


def _folds_of(
    bars: Mapping[str, Bars], recipe: Recipe, anchors: Mapping[str, pd.Timestamp]
) -> tuple[list[Fold], dict[str, KronosError]]:
    """The folds of tickers that are trained together, oldest first, and why tickers have none.

    A fold leaves out the tickers that have too few bars before it.
    """
    horizon, every = recipe.horizon, recipe.backtest_refit_every
    folds: list[Fold] = []
    group = tuple(bars)
    bars, errors = _aligned(bars, recipe)
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
                errors[ticker] = _of_the_fold(error, cutoffs * horizon, cutoffs)
        if windows:
            folds.append(Fold(group, own, tuple(windows), tuple(purge_overlapping_targets(windows))))
    scored = {one.ticker for fold in folds for one in fold.windows}
    return folds, {ticker: error for ticker, error in errors.items() if ticker not in scored}


def _of_the_fold(error: DataError, held_out: int, cutoffs: int) -> DataError:
    """The error in the words of a backtest: nobody set the bars that a fold holds out."""
    fold = "the one cutoff of a fold" if cutoffs == 1 else f"the {cutoffs} cutoffs of a fold (--backtest-refit-every)"
    problems = [replace(one, rule=one.rule.replace(f"--validation-bars {held_out}", fold)) for one in error.problems]
    return DataError(problems, error.ticker)


def _aligned(bars: Mapping[str, Bars], recipe: Recipe) -> tuple[dict[str, Bars], dict[str, KronosError]]:
    """The tickers' bars up to the earliest of their ends, and why a ticker that ended long before is left out."""
    last = {ticker: one.frame["timestamps"].iloc[-1] for ticker, one in bars.items()}
    newest = bars[max(last, key=lambda ticker: last[ticker])]
    first_cutoff = newest.frame["timestamps"].iloc[max(len(newest) - recipe.backtest_origins * recipe.horizon - 1, 0)]
    rule = f"its bars end before {first_cutoff}, where the others' cutoffs begin; backtest it alone"
    errors: dict[str, KronosError] = {
        ticker: DataError(Problem(one.source, rule), ticker)
        for ticker, one in bars.items()
        if last[ticker] < first_cutoff
    }
    end = min(stamp for ticker, stamp in last.items() if ticker not in errors)
    kept = {ticker: one for ticker, one in bars.items() if ticker not in errors}
    ends = {ticker: int(one.frame["timestamps"].searchsorted(end, side="right")) for ticker, one in kept.items()}
    return {ticker: _until(one, ends[ticker]) for ticker, one in kept.items()}, errors


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
    if end == len(bars):
        return bars
    frame = bars.frame.iloc[:end]
    return make_bars(bars.ticker, frame, source=bars.source, time_zone=bars.time_zone, notes=bars.notes)
