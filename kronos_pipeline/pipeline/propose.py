"""Propose the command that fits a folder of CSVs, with its reasons and its cost in time on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kronos_pipeline.errors import KronosError, count, enumerate_some, first_sentence

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.data.windows import WindowSet


def proposal_lines(bars: Sequence[Bars], recipe: Recipe, data_dir: str) -> list[str]:
    """Return the proposal for a folder: the command line, why, and what it costs; or what is missing.

    Raises:
        SettingsError: the lookback exceeds the base model's context.
        ModelError: the base model is unknown.
    """
    from kronos_pipeline.data.proposal import propose
    from kronos_pipeline.evaluation.scoring.verdicts import MIN_CUTOFFS

    proposal = propose(bars, recipe, MIN_CUTOFFS)
    if proposal.recipe is None:
        return [f"proposal: none; {reason}" for reason in proposal.reasons]
    command = f"python -m kronos_pipeline.run_training --data-dir {shlex.quote(data_dir)} {proposal.flags()}"
    return [
        f"proposal: {command.strip()}",
        *(f"  {reason}" for reason in proposal.reasons),
        f"  cost: {_cost(proposal.windows, proposal.recipe)}",
    ]


def conclusion_lines(windows: Sequence[WindowSet], recipe: Recipe) -> list[str]:
    """Return what can be concluded from tickers with these settings: their cutoffs, and whether a verdict can come.

    Args:
        windows: the windows of the fit tickers.
        recipe: the settings.
    """
    from kronos_pipeline.evaluation.scoring.verdicts import MIN_CUTOFFS

    if not windows:
        return []
    backtest = recipe.backtest_origins
    cutoffs = {window_set.ticker: backtest or window_set.counts()["holdout"] for window_set in windows}
    few = [ticker for ticker, number in cutoffs.items() if number < MIN_CUTOFFS]
    source = "the backtest" if backtest else "the holdout"
    lowest, highest = min(cutoffs.values()), max(cutoffs.values())
    numbers = count(lowest, "cutoff") if lowest == highest else f"{lowest} to {count(highest, 'cutoff')}"
    lines = [f"A verdict needs {MIN_CUTOFFS} cutoffs (times to forecast from); {source} has {numbers} per ticker."]
    if few:
        some = f"{len(few)} of {count(len(windows), 'ticker')} ({enumerate_some(few, 3)})"
        who = "any ticker" if len(few) == len(windows) else some
        lines.append(f"No verdict can come for {who}, however good a model is.")
    if len(few) < len(windows):
        scatter = smallest_gain(min(number for number in cutoffs.values() if number >= MIN_CUTOFFS))
        lines.append(f"A verdict can find a gain of {scatter:.1f} times its scatter from cutoff to cutoff, or larger.")
    if few and not backtest:
        short = [window_set.ticker for window_set in windows if len(window_set.bars) < _backtest_bars(window_set)]
        too_short = f", but {enumerate_some(short, 3)} have too few bars for it" if short else ""
        lines.append(f"A backtest of {MIN_CUTOFFS} cutoffs gives one (--backtest-origins {MIN_CUTOFFS}){too_short}.")
    return lines


def smallest_gain(cutoffs: int) -> float:
    """Return the gain that a test at 5 percent finds in 4 of 5 cases, in standard deviations between cutoffs."""
    from scipy.stats import t

    return float((t.ppf(0.975, cutoffs - 1) + t.ppf(0.8, cutoffs - 1)) / cutoffs**0.5)


def _backtest_bars(window_set: WindowSet) -> int:
    """Return the bars that a backtest of the fewest cutoffs of a verdict needs, with one training window."""
    from kronos_pipeline.evaluation.scoring.verdicts import MIN_CUTOFFS

    selection = window_set.holdout_start - window_set.selection_start
    return window_set.lookback + 1 + selection + (MIN_CUTOFFS + 1) * window_set.horizon


def _cost(windows: Sequence[WindowSet], recipe: Recipe) -> str:
    from kronos_pipeline.base_models import find_base_model
    from kronos_pipeline.model.loading import is_on_this_machine, load_recipe_base
    from kronos_pipeline.pipeline.estimate import estimate_run
    from kronos_pipeline.training.devices import device_name

    if not windows:
        return "no ticker has windows"
    if not is_on_this_machine(find_base_model(recipe.model_name, recipe.tokenizer_name)):
        return f"not measured: {recipe.model_name} is not on this machine; the first training fetches it"
    try:
        base = load_recipe_base(recipe)
        return estimate_run(windows, recipe, base).describe(device_name(base.device))
    except KronosError as error:
        return f"not measured: {first_sentence(error)}"
