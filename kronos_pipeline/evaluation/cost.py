"""Cost of an evaluation on this machine, from a short measurement: for estimates before a run.

seconds = sampled bars * seconds per bar + tickers * seconds per ticker (rivals, scores, plots)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kronos_pipeline.evaluation.forecasting.batching import forecast_request, sample_requests, unwrap
from kronos_pipeline.evaluation.forecasting.holdout_table import predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.forecasting.tuning import MAX_ORIGINS, count_fit_forecasts

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.model.loading import KronosModel

_REPORTS = 25.0
"""Time of a ticker's scores and plots, relative to that of its rivals: measured on simulated tickers."""


@dataclass(frozen=True)
class EvaluationCost:
    """Cost of an evaluation.

    Attributes:
        bar: seconds per sampled bar of a path.
        rivals: seconds of a ticker's rivals.
    """

    bar: float
    rivals: float

    def seconds(self, windows: Iterable[WindowSet], recipe: Recipe, models: int, *, reports: bool = True) -> float:
        """Estimate the longest time of forecasting and scoring tickers.

        Args:
            windows: the tickers' windows; their holdout rows are the cutoffs.
            recipe: the recipe.
            models: number of models that forecast each ticker; each gets a sampling of its own.
            reports: whether each ticker gets scores and plots.
        """
        window_sets = list(windows)
        forecasts = sum(
            models * (ticker.counts()["holdout"] + count_fit_forecasts(ticker, recipe)) for ticker in window_sets
        )
        ticker_seconds = self.rivals * (1.0 + _REPORTS * reports)
        return forecasts * recipe.eval_samples * recipe.horizon * self.bar + len(window_sets) * ticker_seconds


def measure_evaluation(windows: Sequence[WindowSet], recipe: Recipe, base: KronosModel) -> EvaluationCost:
    """Time the forecasts of one ticker by a base model and by the rivals, after a warm-up.

    Args:
        windows: the tickers' windows; the first ticker with a cutoff is timed.
        recipe: the recipe.
        base: the base model.

    Raises:
        ModelError: the model's forecast is not finite.
    """
    timed = next((ticker for ticker in windows if ticker.counts()["holdout"]), None)
    if timed is None:
        return EvaluationCost(0.0, 0.0)
    cutoff = timed.of_split("holdout")[-1:]
    origins, ends = (np.repeat(cutoff[name].to_numpy(np.int64), MAX_ORIGINS) for name in ("origin", "end"))
    request = forecast_request(timed, origins, ends, base, recipe, plain_sampling(recipe))
    one_cutoff = replace(timed, rows=timed.rows[timed.rows["split"] == "holdout"].tail(1))
    for _ in range(2):  # the first call prepares the weights, and imports the rivals' packages
        start = time.perf_counter()
        unwrap(sample_requests([request])[0])
        sampled = time.perf_counter()
        predict(one_cutoff, {}, {}, recipe)
        ended = time.perf_counter()
    return EvaluationCost((sampled - start) / request.bars, ended - sampled)
