from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from made_predictions import predictions_of_losses

from kronos_pipeline.evaluation.scoring.model_confidence import compare_all

CUTOFFS = 24


def losses(level: float, seed: int, cutoffs: int = CUTOFFS) -> np.ndarray:
    return level * np.random.default_rng(seed).uniform(0.8, 1.2, cutoffs)


def test_the_clearly_best_model_is_alone_in_the_set_and_beats_the_benchmark() -> None:
    table = predictions_of_losses({"naive": losses(2, 0), "drift": losses(2.1, 1), "adapter": losses(1, 2)})
    compared = compare_all(table, "mean")
    assert compared.models[0] == "adapter"
    assert compared.confidence_set == ["adapter"]
    assert compared.spa_p == pytest.approx(0, abs=0.01)
    assert compared.p_values["adapter"] == 1
    assert max(compared.p_values["naive"], compared.p_values["drift"]) <= 0.1


def test_models_of_one_quality_stay_in_the_set_together() -> None:
    table = predictions_of_losses({"naive": losses(1, 0), "base": losses(1, 1), "adapter": losses(1, 2)})
    compared = compare_all(table, "mean")
    assert set(compared.confidence_set) == {"naive", "base", "adapter"}
    assert compared.spa_p is not None
    assert compared.spa_p > 0.1


@pytest.mark.slow
def test_the_best_of_many_by_chance_beats_no_benchmark_too_often() -> None:
    rejected = 0
    for seed in range(40):
        models = ("naive", "drift", "seasonal_naive", "base", "checkpoint", "adapter")
        table = predictions_of_losses({name: losses(1, 10 * seed + i) for i, name in enumerate(models)})
        spa_p = compare_all(table, "mean").spa_p
        assert spa_p is not None
        rejected += spa_p <= 0.05
    assert rejected <= 6  # the 99 % quantile of the binomial distribution of 40 draws at 5 %


def test_variants_compete_on_the_distribution_and_not_on_the_mean() -> None:
    series = {"naive": losses(1, 0), "ewma": losses(1, 1), "adapter": losses(1, 2), "adapter_rescaled": losses(0.8, 3)}
    table = predictions_of_losses(series)
    assert set(compare_all(table, "mean").models) == {"naive", "adapter"}
    assert set(compare_all(table, "distribution").models) == {"ewma", "adapter", "adapter_rescaled"}


def test_equal_models_count_once_and_undefined_models_not_at_all() -> None:
    series = {"ewma": losses(1, 0), "garch": losses(1, 0), "har": losses(1.1, 1), "adapter": losses(1, 2)}
    table = predictions_of_losses(series)
    table.loc[table["model"] == "adapter", "crps"] = np.nan
    assert set(compare_all(table, "distribution").models) == {"ewma", "har"}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (predictions_of_losses({"naive": losses(1, 0, 7), "base": losses(1, 1, 7)}), "7 cutoffs without common bars"),
        (predictions_of_losses({"naive": losses(1, 0)}), "no other model"),
        (predictions_of_losses({"naive": losses(1, 0), "base": losses(1, 0) + 1}), "by one amount at every cutoff"),
        (predictions_of_losses({"base": losses(1, 0), "adapter": losses(1, 1)}), "no loss of the naive forecast"),
    ],
)
def test_without_evidence_there_is_a_reason_and_no_set(table: pd.DataFrame, reason: str) -> None:
    compared = compare_all(table, "mean")
    assert reason in compared.reason
    assert (compared.confidence_set, compared.spa_p) == ([], None)
    json.dumps(compared.as_dict(), allow_nan=False)


def test_the_same_table_gives_the_same_numbers() -> None:
    table = predictions_of_losses({"naive": losses(1, 0), "base": losses(1.1, 1), "adapter": losses(0.9, 2)})
    assert compare_all(table, "mean") == compare_all(table, "mean")


def test_models_that_differ_by_one_amount_at_every_cutoff_leave_nothing_to_test() -> None:
    table = predictions_of_losses({"naive": losses(1, 0), "base": losses(1, 1), "adapter": losses(1, 1) + 0.5})
    compared = compare_all(table, "mean")
    assert compared.reason == "two models differ by one amount at every cutoff"
    assert compared.spa_p is None


def test_json_holds_what_the_comparison_holds() -> None:
    content = compare_all(predictions_of_losses({"naive": losses(1, 0), "base": losses(1.1, 1)}), "mean").as_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
