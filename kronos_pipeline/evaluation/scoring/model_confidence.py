"""Joint tests of all models and variants on a target: which of them may be the best, and does any beat the benchmark?

A verdict compares a model with one rival at a time. With a dozen models and variants the best of them looks good by
chance; these tests look at all of them at once, by bootstrap, with `arch.bootstrap`:

    model confidence set            the models that are not told from the best (Hansen, Lunde and Nason, 2011)
    superior predictive ability     p-value of "no model is better than the benchmark" (Hansen, 2005, "consistent")

They describe a table and promote nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.predictions import (
    EWMA,
    KRONOS,
    NAIVE,
    OPTIONAL_RIVALS,
    POINT_BASELINES,
    VARIANTS,
    VOLATILITY_RIVALS,
    variant_name,
)
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, MEAN, VOLATILITY, Target, loss_table
from kronos_pipeline.evaluation.scoring.verdicts import MIN_CUTOFFS, overlap

_WITH_VARIANTS = tuple(variant_name(model, variant) for model in KRONOS for variant in VARIANTS)
COMPETITORS: dict[Target, tuple[str, ...]] = {
    MEAN: (*POINT_BASELINES, *OPTIONAL_RIVALS, *KRONOS),
    DISTRIBUTION: (*VOLATILITY_RIVALS, *OPTIONAL_RIVALS, *_WITH_VARIANTS),
    VOLATILITY: (*VOLATILITY_RIVALS, *OPTIONAL_RIVALS, *_WITH_VARIANTS),
}
"""The models and variants that are compared on a target, the benchmark first."""
BENCHMARKS: dict[Target, str] = {MEAN: NAIVE, DISTRIBUTION: EWMA, VOLATILITY: EWMA}
SET_LEVEL = 0.1
"""One minus the probability that the model confidence set holds the best model."""
DRAWS = 1_000
_SEED = 0
_EQUAL = 1e-9
"""Relative difference below which two models have one series of losses, such as two fall-backs to one rival."""


@dataclass(frozen=True)
class ModelConfidence:
    """The joint comparison of the models on one target.

    Attributes:
        cutoffs: number of cutoffs that all compared models share.
        models: the compared models, the lowest mean loss first.
        confidence_set: the models of the model confidence set of 90 percent; empty without a test.
        p_values: of the model confidence set by model; a model is in the set if its p-value is above 0.1.
        benchmark: the benchmark of the test of superior predictive ability.
        spa_p: its consistent p-value; small if some model is better than the benchmark. None without a test.
        reason: the reason that there is no test; empty with a test.
    """

    cutoffs: int
    models: list[str]
    confidence_set: list[str]
    p_values: dict[str, float]
    benchmark: str
    spa_p: float | None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return asdict(self) | {"models": list(self.models), "confidence_set": list(self.confidence_set)}


def compare_all(predictions: pd.DataFrame, target: Target) -> ModelConfidence:
    """Compare all models and variants of a table on a target.

    The loss at a cutoff is the mean over the tickers. A model without a finite loss at every cutoff of the benchmark is
    left out, and of models with equal losses the first remains.

    Args:
        predictions: a table of one symbol or more, with the variants as models of their own.
        target: the target.
    """
    benchmark = BENCHMARKS[target]
    losses = _losses(predictions, target)
    if benchmark not in losses:
        return _without_test(losses, benchmark, f"no loss of the {benchmark} forecast is defined at every cutoff")
    if len(losses.columns) < 2:
        return _without_test(losses, benchmark, "there is no other model to compare")
    apart = len(losses) // (overlap(predictions) + 1)
    if apart < MIN_CUTOFFS:
        few = f"{count(apart, 'cutoff')} without common bars, and the tests need {MIN_CUTOFFS}"
        return _without_test(losses, benchmark, few)
    if _differ_by_constants(losses):
        return _without_test(losses, benchmark, "two models differ by one amount at every cutoff")
    from arch.bootstrap import MCS, SPA  # loads statsmodels

    block = max(round(len(losses) ** (1 / 3)), overlap(predictions) + 1)
    confidence = MCS(losses, SET_LEVEL, reps=DRAWS, block_size=block, seed=_SEED)
    confidence.compute()
    others = losses.drop(columns=benchmark)
    ability = SPA(losses[benchmark], others, reps=DRAWS, block_size=block, seed=_SEED)
    ability.compute()
    p_values = confidence.pvalues["Pvalue"]
    return ModelConfidence(
        len(losses),
        list(losses.columns),
        [model for model in losses.columns if model in set(confidence.included)],
        {model: float(p_values[model]) for model in losses.columns},
        benchmark,
        float(ability.pvalues["consistent"]),
    )


def _losses(predictions: pd.DataFrame, target: Target) -> pd.DataFrame:
    """Return a row per cutoff and a column per model, without undefined and repeated columns, the best first."""
    losses = loss_table(predictions, target)
    present = [model for model in COMPETITORS[target] if model in losses]
    # The mean over other tickers would be another quantity.
    finite = np.isfinite(losses[present].to_numpy(np.float64)).all(axis=0)
    table = losses[[model for model, usable in zip(present, finite, strict=True) if usable]]
    table = table.groupby(level="cutoff").mean()
    values = {str(model): table[model].to_numpy(np.float64) for model in table}
    kept: list[str] = []
    for model, own in values.items():
        least = _EQUAL * np.abs(own).max(initial=0.0)
        if all(np.abs(own - values[other]).max(initial=0.0) > least for other in kept):
            kept.append(model)
    order: Sequence[str] = table[kept].mean().sort_values(kind="stable").index.tolist()
    return table[list(order)]


def _differ_by_constants(losses: pd.DataFrame) -> bool:
    """Return True if the difference between two models has no variance, by which the tests divide."""
    values = losses.to_numpy(np.float64)
    spreads = (values[:, :, None] - values[:, None, :]).std(axis=0)
    np.fill_diagonal(spreads, np.inf)
    return bool((spreads <= _EQUAL * np.abs(values).max()).any())


def _without_test(losses: pd.DataFrame, benchmark: str, reason: str) -> ModelConfidence:
    return ModelConfidence(len(losses), list(losses.columns), [], {}, benchmark, None, reason)
