"""Spread of a recipe's losses over seeds of training and sampling, and the losses of the ensemble of its models.

A training draws its initial LoRA weights, the order of its windows and its dropout from a seed, and a sampler its
paths. If a recipe is better than a rival by less than its own spread over seeds, the difference is a matter of the
seed. The ensemble forecasts with the paths of all models together, so it averages over the seeds; it is a model of the
table of predictions with verdicts of its own, see `forecasting.ensemble`.

Here all models are compared as they sample, without a choice of variants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.forecasting.batching import ForecastJob, forecast_request, gather_jobs
from kronos_pipeline.evaluation.forecasting.candidates import Candidate, find_sampling_job
from kronos_pipeline.evaluation.forecasting.holdout_table import paths_table
from kronos_pipeline.evaluation.predictions import ENSEMBLE
from kronos_pipeline.evaluation.reports.text_table import UNDEFINED, TextTable, number
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target, rivals_in, target_losses

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet


def seed_name(seed: int) -> str:
    """Return the name of a seed's model in the table of predictions: "seed_7"."""
    return f"seed_{seed}"


def seeds_of(recipe: Recipe, count: int) -> list[int]:
    """Return `count` seeds, the recipe's own first."""
    return [(recipe.seed + number) % 2**32 for number in range(count)]


def forecast_seeds_job(
    windows: WindowSet, candidates: Mapping[int, Candidate], recipe: Recipe
) -> ForecastJob[pd.DataFrame]:
    """Forecast a ticker's holdout with the model of each seed.

    Args:
        windows: the ticker's windows.
        candidates: the models by seed.
        recipe: the recipe; each model is sampled with its own seed.

    Returns:
        A table of predictions: the models `seed_<seed>`.
    """
    recipes = {seed: recipe.model_copy(update={"seed": seed}) for seed in candidates}
    samplings = yield from gather_jobs(
        {seed: find_sampling_job(candidate, windows, recipes[seed]) for seed, candidate in candidates.items()}
    )
    rows = windows.of_split("holdout")
    origins, ends = rows["origin"].to_numpy(np.int64), rows["end"].to_numpy(np.int64)
    sampled = yield [
        forecast_request(windows, origins, ends, candidate.model, recipes[seed], samplings[seed])
        for seed, candidate in candidates.items()
    ]
    closes = {seed_name(seed): paths.closes for seed, paths in zip(candidates, sampled, strict=True)}
    return paths_table(windows, closes)


def compare_losses(predictions: pd.DataFrame, references: pd.DataFrame) -> dict[str, Any]:
    """Compare the losses of the seeds and of their ensemble with those of the rivals, per target.

    A loss is the mean over a ticker's cutoffs, and then over the tickers; None if it is undefined at a cutoff.

    Args:
        predictions: the tables of `forecast_seeds_job` of some tickers.
        references: the tables of predictions of the same tickers, with the ensemble and the rivals.

    Returns:
        By target: the loss of each seed's model (`seeds`); their `mean`, standard deviation `sd`, `lowest` and
        `highest`; the loss of the `ensemble`; and the loss of each rival (`rivals`).
    """
    seeds = list(map(str, predictions["model"].unique()))
    comparison: dict[str, Any] = {}
    for target in TARGETS:
        losses = {name: _mean_loss(predictions, name, target) for name in seeds}
        of_seeds = np.array(list(losses.values()))
        numbers = {
            "mean": float(of_seeds.mean()),
            "sd": float(of_seeds.std(ddof=1)),
            "lowest": float(of_seeds.min()),
            "highest": float(of_seeds.max()),
            ENSEMBLE: _mean_loss(references, ENSEMBLE, target),
        }
        rivals = {name: _mean_loss(references, name, target) for name in rivals_in(references, target)}
        comparison[target] = {
            **_defined(numbers),
            "seeds": _defined(losses),
            "rivals": _defined(rivals),
        }
    return comparison


def seeds_table(comparison: Mapping[str, Any], trained: str, tickers: int, left_out: Sequence[str] = ()) -> TextTable:
    """Build the table of a comparison: a row per target.

    Args:
        comparison: the result of `compare_losses`.
        trained: the model that the recipe trains, "adapter" or "checkpoint".
        tickers: number of compared tickers.
        left_out: sentences on tickers that are not compared.
    """
    columns = ("mean", "sd", "lowest", "highest", ENSEMBLE)
    rows = []
    for target, losses in comparison.items():
        rivals = {name: loss for name, loss in losses["rivals"].items() if loss is not None}
        best = min(rivals, key=lambda name: rivals[name], default=None)
        rival = UNDEFINED if best is None else f"{number(rivals[best], 3)} {best}"
        rows.append([target, *(number(losses[name], 3) for name in columns), rival])
    count_of_seeds = len(next(iter(comparison.values()))["seeds"])
    return TextTable(
        title=f"Loss of the {trained} over {count_of_seeds} seeds, holdout, mean over {count(tickers, 'symbol')}",
        headers=["Target", "mean", "sd", "lowest", "highest", ENSEMBLE, "best rival"],
        rows=rows,
        notes=["A difference below sd may be a matter of the seed.", *left_out],
    )


def _mean_loss(predictions: pd.DataFrame, model: str, target: Target) -> float:
    losses = target_losses(predictions, model, target)
    by_ticker = losses.groupby(level="unique_id").agg(lambda of_ticker: of_ticker.mean(skipna=False))
    return float(by_ticker.mean(skipna=False))


def _defined(losses: Mapping[str, float]) -> dict[str, float | None]:
    return {name: loss if np.isfinite(loss) else None for name, loss in losses.items()}
