"""The spread over seeds, and the ensemble: pooled paths, seeds of their own, losses that can be recomputed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from holdouts import HandMadeWindows, RecordingSampler, forecast

from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.forecasting.batching import run_job, sampling_seed
from kronos_pipeline.evaluation.forecasting.candidates import Candidate
from kronos_pipeline.evaluation.forecasting.ensemble import Ensemble
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.predictions import check_predictions
from kronos_pipeline.evaluation.scoring.targets import target_losses
from kronos_pipeline.evaluation.seeds import compare_losses, forecast_seeds_job, seeds_of, seeds_table

RECIPE = Recipe(model_name="kronos-nano", horizon=4, lookback=8, eval_samples=5, seed=7)


def predict(ticker: str = "AAPL", sampler: RecordingSampler | None = None, closes: np.ndarray | None = None) -> Any:
    """Forecast with models that add 0.5, -1 and 2 to the last close."""
    walk = 100 + np.cumsum(np.random.default_rng(len(ticker)).normal(size=60))
    windows: Any = HandMadeWindows(walk if closes is None else closes, holdout=10, horizon=4, ticker=ticker)
    candidates: Any = {
        seed: Candidate(offset, Path(), sampling=plain_sampling(RECIPE))  # type: ignore[arg-type]
        for seed, offset in ((7, 0.5), (8, -1.0), (9, 2.0))
    }
    return run_job(forecast_seeds_job(windows, candidates, RECIPE), sampler or RecordingSampler())


def test_the_seeds_are_the_recipes_own_and_the_next_and_stay_in_range() -> None:
    assert seeds_of(RECIPE, 3) == [7, 8, 9]
    assert seeds_of(RECIPE.model_copy(update={"seed": 2**32 - 1}), 2) == [2**32 - 1, 0]


def test_each_seed_forecasts_every_bar() -> None:
    table = predict()
    check_predictions(table)
    means = table.pivot_table(index=["cutoff", "step"], columns="model", values="mean")
    assert list(means) == ["seed_7", "seed_8", "seed_9"]
    np.testing.assert_allclose(means["seed_9"] - means["seed_7"], 1.5)


def test_an_ensemble_is_a_model_of_the_table_whose_paths_are_those_of_its_members_with_their_seeds() -> None:
    walk = 100 + np.cumsum(np.random.default_rng(4).normal(size=60))
    windows: Any = HandMadeWindows(walk, holdout=10, horizon=4)
    members: Any = {7: 0.5, 8: -1.0}
    models = {"base": members[7], "adapter": members[8], "ensemble": Ensemble(members)}
    sampler = RecordingSampler()
    table = forecast(windows, models, RECIPE, sampler=sampler).predictions
    means = table.pivot_table(index=["cutoff", "step"], columns="model", values="mean")
    np.testing.assert_allclose(means["ensemble"], means[["base", "adapter"]].mean(axis=1))
    assert {"ensemble_recentred", "ensemble_rescaled"} <= set(means)
    seeds = {(model, seed) for call in sampler.calls for model, seed in zip(call["models"], call["seed"], strict=True)}
    assert seeds == {
        (0.5, sampling_seed(7, "AAPL")),
        (-1.0, sampling_seed(7, "AAPL")),
        (-1.0, sampling_seed(8, "AAPL")),
    }


def test_each_model_is_sampled_with_its_own_seed() -> None:
    sampler = RecordingSampler()
    predict(sampler=sampler)
    seeds = {(model, seed) for call in sampler.calls for model, seed in zip(call["models"], call["seed"], strict=True)}
    assert len({model for model, _ in seeds}) == len({seed for _, seed in seeds}) == len(seeds) == 3


def test_the_comparison_is_that_of_the_tables_losses() -> None:
    table = pd.concat([predict("AAPL"), predict("MSFT!")], ignore_index=True)
    naive, ensemble = table[table["model"] == "seed_9"], table[table["model"] == "seed_7"]
    references = pd.concat([naive.assign(model="naive"), ensemble.assign(model="ensemble")])
    comparison = compare_losses(table, references)
    assert list(comparison) == ["mean", "distribution", "volatility"]
    for target in ("mean", "distribution"):
        of_target = comparison[target]
        for name, loss in of_target["seeds"].items():
            assert loss == pytest.approx(target_losses(table, name, target).groupby("unique_id").mean().mean())
        losses = list(of_target["seeds"].values())
        assert of_target["sd"] == pytest.approx(np.std(losses, ddof=1))
        assert (of_target["lowest"], of_target["highest"]) == (min(losses), max(losses))
        assert of_target["mean"] == pytest.approx(np.mean(losses))
    assert comparison["mean"]["ensemble"] == comparison["mean"]["seeds"]["seed_7"]
    assert comparison["mean"]["rivals"]["naive"] == pytest.approx(comparison["mean"]["seeds"]["seed_9"])
    assert comparison["mean"]["rivals"]["base"] is None  # it is not in the table


def test_an_undefined_loss_is_no_number_and_its_cell_is_empty() -> None:
    closes = 100 + np.cumsum(np.random.default_rng(1).normal(size=60))
    closes[-11:] = closes[-11]  # the close does not move, so QLIKE is undefined
    table = predict(closes=closes)
    comparison = compare_losses(table, table)
    assert comparison["volatility"]["mean"] is None
    assert comparison["volatility"]["seeds"]["seed_7"] is None
    assert comparison["mean"]["mean"] is not None
    rows = seeds_table(comparison, "adapter", 1).rows
    assert rows[2][:3] == ["volatility", "–", "–"]
