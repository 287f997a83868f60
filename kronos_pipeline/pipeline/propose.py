"""Propose the command that fits a folder of CSVs, with its reasons and its cost in time on this machine."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kronos_pipeline.errors import KronosError, first_sentence

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.model.loading import KronosModel


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


def _cost(windows: Sequence[WindowSet], recipe: Recipe) -> str:
    from kronos_pipeline.base_models import find_base_model
    from kronos_pipeline.model.loading import is_on_this_machine, load_recipe_base
    from kronos_pipeline.training.devices import device_name
    from kronos_pipeline.training.progress import duration

    if not windows:
        return "no ticker has windows"
    if not is_on_this_machine(find_base_model(recipe.model_name, recipe.tokenizer_name)):
        return f"not measured: {recipe.model_name} is not on this machine; the first training fetches it"
    try:
        base = load_recipe_base(recipe)
        training, evaluation = _measure(windows, recipe, base)
    except KronosError as error:
        return f"not measured: {first_sentence(error)}"
    return (
        f"about {duration(training + evaluation)} at most on {device_name(base.device)}: {duration(training)} for the "
        f"training, {duration(evaluation)} for the forecasts of the evaluation"
    )


def _measure(windows: Sequence[WindowSet], recipe: Recipe, base: KronosModel) -> tuple[float, float]:
    """Time a training batch and a forecast of one ticker; return the seconds of all trainings and all forecasts."""
    from kronos_pipeline.evaluation.forecasting.holdout_table import predict
    from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
    from kronos_pipeline.evaluation.forecasting.tuning import MAX_ORIGINS
    from kronos_pipeline.evaluation.predictions import BASE
    from kronos_pipeline.training.trainer import KronosTrainer

    shortest = min(windows, key=lambda window_set: window_set.counts()["train"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = KronosTrainer(recipe, folder, base=base, say=lambda _: None)
        training = trainer.expected_seconds([shortest], lora=recipe.adapter == "lora")
    counts = [window_set.counts() for window_set in windows]
    training *= sum(split["train"] for split in counts) / shortest.counts()["train"]

    one_cutoff = replace(shortest, rows=shortest.rows[shortest.rows["split"] == "holdout"].tail(1))
    seconds = []
    for _ in range(2):  # the first call prepares the weights
        start = time.perf_counter()
        predict(one_cutoff, {BASE: base}, {BASE: plain_sampling(recipe)}, recipe)
        seconds.append(time.perf_counter() - start)
    # The base model and the trained model forecast each cutoff of the holdout, and of the block that fits the widths.
    cutoffs = sum(split["holdout"] + (MAX_ORIGINS if recipe.recalibrate else 0) for split in counts)
    return training, 2 * cutoffs * seconds[-1]
