"""Estimate the time of a whole run before it starts, from short measurements on this machine."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.model.loading import KronosModel

_START = 80.0
"""Time to load packages and to make MLflow's store, relative to the rivals of a ticker; by measured runs."""
_TRACKING = 25.0
"""Time to log and to register a model, relative to the rivals of a ticker; by measured runs."""


@dataclass(frozen=True)
class RunEstimate:
    """The longest time of each part of a run, in seconds.

    Attributes:
        training: the trainings, further seeds and the refit included.
        evaluation: forecasts, tuning of the sampling, rivals, scores and plots.
        backtest: trainings and forecasts of the backtest; 0 without a backtest.
        tracking: loading of packages, MLflow and its registry.
    """

    training: float
    evaluation: float
    backtest: float
    tracking: float

    @property
    def seconds(self) -> float:
        """The time of all parts."""
        return self.training + self.evaluation + self.backtest + self.tracking

    def describe(self, device: str) -> str:
        """Return a sentence with the time in all and by part."""
        from kronos_pipeline.training.progress import duration

        parts = {
            "the training": self.training,
            "the evaluation": self.evaluation,
            "the backtest": self.backtest,
            "MLflow and its registry": self.tracking,
        }
        listed = ", ".join(f"{duration(seconds)} for {name}" for name, seconds in parts.items() if seconds)
        return f"about {duration(self.seconds)} at most on {device}: {listed}"


def estimate_run(windows: Sequence[WindowSet], recipe: Recipe, base: KronosModel, seeds: int = 1) -> RunEstimate:
    """Estimate the longest time of a run, by timing a batch of a training and forecasts of one ticker.

    Args:
        windows: the windows of the tickers, at least one ticker.
        recipe: the recipe.
        base: the base model.
        seeds: number of seeds to compare.

    Raises:
        KronosError: a model cannot be trained or does not forecast numbers.
    """
    from kronos_pipeline.evaluation.cost import measure_evaluation
    from kronos_pipeline.training.trainer import KronosTrainer

    lora = recipe.adapter == "lora"
    trained_on = [ticker for ticker in windows if ticker.counts()["train"]] or list(windows)
    shortest = min(trained_on, key=lambda ticker: ticker.counts()["train"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = KronosTrainer(recipe, folder, base=base, say=lambda _: None)
        one = trainer.expected_seconds([shortest], lora=lora)
    training = one * sum(ticker.counts()["train"] for ticker in windows) / max(shortest.counts()["train"], 1)
    cost = measure_evaluation(windows, recipe, base)
    evaluation = cost.seconds(windows, recipe, 2)
    forecasts = cost.seconds(windows, recipe, 2, reports=False)
    folds = math.ceil(recipe.backtest_origins / recipe.backtest_refit_every)
    models = len(windows) if lora and not recipe.adapter_name else 1
    return RunEstimate(
        training * (seeds + recipe.refit_all),
        evaluation + forecasts * (seeds - 1),
        folds * (training + forecasts),
        cost.rivals * (_START + _TRACKING * models),
    )
