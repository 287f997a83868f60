"""The folds of a walk-forward backtest: the bars of each training, and the cutoffs of its scores.

    bars     |---- train ----|- selection -|x = horizon = |x = horizon = |                       fold 1 (2 cutoffs)
             |---------------- train ----------------|- selection -|x = horizon = |x = horizon = |        fold 2

`x` is a cutoff. The cutoffs are a horizon apart, with one horizon of real bars after the last; `--backtest-refit-every`
is the number of cutoffs per training. A fold is the pipeline itself on bars that end with the fold: its holdout is the
fold's cutoffs, so training and the choice of weights, sampling and interval widths use only earlier bars.

New bars do not move the cutoffs, until there is room for a new cutoff after the last: two backtests of one ticker share
cutoffs, so that a new model can be compared with the champion, and old folds are reused.
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
        skipped: the reason by ticker.
    """

    def __init__(self, skipped: Mapping[str, KronosError]) -> None:
        self.skipped = dict(skipped)
        problems: list[Problem] = []
        for ticker, error in skipped.items():
            problems += error.problems if isinstance(error, DataError) else [Problem(ticker, str(error))]
        super().__init__(list(dict.fromkeys(problems)))


@dataclass(frozen=True)
class Fold:
    """One training and its cutoffs.

    Attributes:
        group: the tickers of a joint training, including those that this fold leaves out.
        recipe: the recipe, with a holdout of the fold's cutoffs.
        windows: the tickers' windows on bars that end with the fold.
        known: the windows for training: without target bars after the earliest cutoff of any ticker.
    """

    group: tuple[str, ...]
    recipe: Recipe
    windows: tuple[WindowSet, ...]
    known: tuple[WindowSet, ...]


def plan_folds(
    groups: Sequence[Mapping[str, Bars]], recipe: Recipe, anchors: Mapping[str, pd.Timestamp] | None = None
) -> tuple[list[Fold], dict[str, KronosError]]:
    """Plan the folds of a backtest.

    Args:
        groups: groups of tickers that are trained together, by symbol.
        recipe: the recipe, with the number of cutoffs per ticker and per training.
        anchors: by ticker, an existing cutoff to align with; by default cutoffs are counted from the last bar.

    Returns:
        The folds, each group's oldest first, and the reason that a ticker has none.

    Raises:
        BacktestError: no ticker has enough bars for a cutoff.
    """
    folds: list[Fold] = []
    skipped: dict[str, KronosError] = {}
    for group in groups:
        group_folds, errors = _folds_of(group, recipe, anchors or {})
        folds += group_folds
        skipped |= errors
    if not folds:
        raise BacktestError(skipped)
    return folds, skipped


def _folds_of(
    bars: Mapping[str, Bars], recipe: Recipe, anchors: Mapping[str, pd.Timestamp]
) -> tuple[list[Fold], dict[str, KronosError]]:
    """Plan the folds of tickers that are trained together, oldest first; return the reason that a ticker has none.

    A fold leaves out the tickers with too few bars before it.
    """
    horizon, every = recipe.horizon, recipe.backtest_refit_every
    folds: list[Fold] = []
    group = tuple(bars)
    bars, errors = _aligned(bars, recipe)
    for first in range(0, recipe.backtest_origins, every):
        cutoffs = min(every, recipe.backtest_origins - first)
        changes = {"validation_bars": cutoffs * horizon, "max_cutoffs": cutoffs, "backtest_origins": 0}
        fold_recipe = recipe.model_copy(update=changes)
        later = recipe.backtest_origins - first - cutoffs
        windows = []
        for ticker, ticker_bars in bars.items():
            try:
                end = _end(ticker_bars, horizon, anchors.get(ticker)) - later * horizon
                windows.append(build_windows(_until(ticker_bars, end), fold_recipe))
            except DataError as error:
                errors[ticker] = _of_the_fold(error, cutoffs * horizon, cutoffs)
        if windows:
            folds.append(Fold(group, fold_recipe, tuple(windows), tuple(purge_overlapping_targets(windows))))
    scored = {ticker_windows.ticker for fold in folds for ticker_windows in fold.windows}
    return folds, {ticker: error for ticker, error in errors.items() if ticker not in scored}


def _of_the_fold(error: DataError, held_out: int, cutoffs: int) -> DataError:
    """Reword an error about held-out bars for a backtest, as users set cutoffs and not the bars of a fold."""
    fold = "the one cutoff of a fold" if cutoffs == 1 else f"the {cutoffs} cutoffs of a fold (--backtest-refit-every)"
    flag = f"--validation-bars {held_out}"
    problems = [replace(problem, rule=problem.rule.replace(flag, fold)) for problem in error.problems]
    return DataError(problems, error.ticker)


def _aligned(bars: Mapping[str, Bars], recipe: Recipe) -> tuple[dict[str, Bars], dict[str, KronosError]]:
    """Cut the tickers' bars at the earliest end; return the reason that a ticker with a far earlier end is left out."""
    last = {ticker: ticker_bars.frame["timestamps"].iloc[-1] for ticker, ticker_bars in bars.items()}
    newest = bars[max(last, key=lambda ticker: last[ticker])]
    first_cutoff = newest.frame["timestamps"].iloc[max(len(newest) - recipe.backtest_origins * recipe.horizon - 1, 0)]
    rule = f"its bars end before {first_cutoff}, the first cutoff of the other tickers; backtest it alone"
    errors: dict[str, KronosError] = {
        ticker: DataError(Problem(ticker_bars.source, rule), ticker)
        for ticker, ticker_bars in bars.items()
        if last[ticker] < first_cutoff
    }
    end = min(stamp for ticker, stamp in last.items() if ticker not in errors)
    aligned = {}
    for ticker, ticker_bars in bars.items():
        if ticker not in errors:
            stamps = ticker_bars.frame["timestamps"]
            aligned[ticker] = _until(ticker_bars, int(stamps.searchsorted(end, side="right")))
    return aligned, errors


def _end(bars: Bars, horizon: int, anchor: pd.Timestamp | None) -> int:
    """Return the number of bars up to the end of the newest horizon, in whole horizons from the anchor."""
    if anchor is None:
        return len(bars)
    anchored = int(bars.frame["timestamps"].searchsorted(anchor, side="right"))
    return anchored + (len(bars) - anchored) // horizon * horizon


def _until(bars: Bars, end: int) -> Bars:
    """Return the bars before number `end`."""
    if end < 1:
        rule = "there are too few bars for so many cutoffs; lower --backtest-origins or --horizon"
        raise DataError(Problem(bars.source, rule), bars.ticker)
    if end == len(bars):
        return bars
    frame = bars.frame.iloc[:end]
    return make_bars(bars.ticker, frame, source=bars.source, time_zone=bars.time_zone, notes=bars.notes)
