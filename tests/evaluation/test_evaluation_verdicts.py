from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from made_predictions import predictions_of_losses
from scipy import stats

from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.scoring.significance import bootstrap_skill, diebold_mariano, holm
from kronos_pipeline.evaluation.scoring.targets import target_losses
from kronos_pipeline.evaluation.scoring.verdicts import (
    BETTER,
    NO_BETTER,
    TOO_LITTLE,
    WORSE,
    Comparison,
    Verdicts,
    compare,
    judge,
    overlap,
)


def losses(cutoffs: int = 16, seed: int = 0, level: float = 1.0) -> np.ndarray:
    return level * np.random.default_rng(seed).uniform(0.7, 1.3, cutoffs)


def judged(adapter: np.ndarray, naive: np.ndarray, tickers_tested: int | None = None) -> Comparison:
    table = predictions_of_losses({"naive": naive, "adapter": adapter})
    return judge(table, "adapter", ("naive",), tickers_tested=tickers_tested).overall["naive"]


def by_cutoff(values: np.ndarray) -> pd.Series:
    return pd.Series(values, index=pd.date_range("2024-01-01", periods=len(values)))


@given(arrays.arrays(np.float64, st.integers(8, 40), elements=st.floats(-10, 10)), st.integers(0, 2**32 - 1))
def test_without_overlap_diebold_mariano_is_the_paired_t_test(differences: np.ndarray, seed: int) -> None:
    differences = differences + np.random.default_rng(seed).normal(size=len(differences))
    expected = stats.ttest_1samp(differences, 0)
    assert diebold_mariano(differences) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-6, abs=1e-12)


def test_with_overlap_the_correction_is_that_of_harvey_leybourne_and_newbold() -> None:
    d = np.array([1.0, 1.5, 0.5, -0.5, -1.0, 0.0, 1.0, 2.0, 2.5, 1.0, 0.5, 0.0])
    n, h, centred = 12, 2, d - d.mean()
    first = sum(a * b for a, b in pairwise(centred)) / n
    variance = (centred @ centred / n + 2 * first) / n
    expected = d.mean() / variance**0.5 * ((n + 1 - 2 * h + h * (h - 1) / n) / n) ** 0.5
    statistic, p_value = diebold_mariano(d, overlap=1)
    assert statistic == pytest.approx(expected)
    assert p_value == pytest.approx(2 * stats.t.sf(expected, n - 1))


def test_overlapping_forecasts_are_not_taken_for_independent_ones() -> None:
    shocks = np.random.default_rng(1).normal(size=(2000, 33))
    differences = (shocks[:, 1:] + shocks[:, :-1]) / 2  # each shares half of its shocks with the next
    shares = [np.mean([diebold_mariano(row, lags)[1] <= 0.05 for row in differences]) for lags in (0, 1)]
    assert shares[0] > 0.12
    assert shares[1] < 0.08


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_keeps_the_order() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005]), 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.01, 0.02, 0.03, 0.04, 0.05]), 5) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm(np.array([0.01, 0.001]), 100) == pytest.approx([0.99, 0.1])
    assert holm(np.array([]), 3).size == 0


@pytest.mark.parametrize(("cutoffs", "block"), [(12, 2), (40, 3)])
def test_the_interval_holds_the_true_skill_as_often_as_it_says(cutoffs: int, block: int) -> None:
    rng = np.random.default_rng(cutoffs)
    hits = 0
    for _ in range(500):
        rival = rng.gamma(4, size=cutoffs)
        model = 0.8 * rng.gamma(4, size=cutoffs)  # so that the skill is 0.2
        low, high, _ = bootstrap_skill(model, rival, block=block, draws=999)
        hits += low <= 0.2 <= high
    assert 0.92 <= hits / 500 <= 0.99


def test_the_interval_and_its_p_value_say_the_same() -> None:
    for seed in range(60):
        model, rival = losses(12, seed, 0.9), losses(12, seed + 1000)
        low, high, p_value = bootstrap_skill(model, rival, block=2, draws=9999)
        assert (p_value <= 0.05) == (low > 0 or high < 0)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(8, 40), st.floats(1e-3, 1e3))
def test_a_comparison_is_the_same_each_time_and_in_every_unit(seed: int, cutoffs: int, unit: float) -> None:
    model_losses, rival = losses(cutoffs, seed, 0.8), losses(cutoffs, seed + 1)
    first, second = (compare(by_cutoff(model_losses), by_cutoff(rival), model="a", rival="b") for _ in range(2))
    scaled = compare(by_cutoff(unit * model_losses), by_cutoff(unit * rival), model="a", rival="b")
    assert first == second
    assert (scaled.skill, scaled.p_value) == pytest.approx((first.skill, first.p_value))
    assert (scaled.skill_low, scaled.skill_high) == pytest.approx((first.skill_low, first.skill_high), abs=1e-3)


def test_a_loss_per_cutoff_is_the_mean_scaled_error_over_its_bars() -> None:
    table = predictions_of_losses({"naive": [1.0, 2.0], "base": [3.0, 0.5]}, horizon=4, scale=2.0)
    losses_of_base = target_losses(table, "base", "mean")
    assert losses_of_base.index.names == ["unique_id", "cutoff"]
    assert losses_of_base.tolist() == pytest.approx([3.0, 0.5])
    table.loc[table["model"] == "base", "mean"] += [0, 0, 0, 8] * 2
    assert target_losses(table, "base", "mean").tolist() == pytest.approx([4.0, 1.5])
    assert target_losses(table, "checkpoint", "mean").empty


def test_a_clear_and_steady_gain_is_better_and_the_other_way_round_worse() -> None:
    adapter, naive = losses(level=0.6), losses(seed=1)
    gain, loss = judged(adapter, naive), judged(naive, adapter)
    assert (gain.verdict, loss.verdict) == (BETTER, WORSE)
    assert gain.skill == pytest.approx(1 - adapter.sum() / naive.sum())
    assert gain.skill is not None
    assert gain.skill_low is not None
    assert gain.skill_high is not None
    assert 0 < gain.skill_low < gain.skill < gain.skill_high < 1
    assert gain.statistic is not None
    assert gain.statistic < 0
    assert "16 cutoffs" in gain.reason
    assert gain.p_value == pytest.approx(stats.ttest_rel(adapter, naive).pvalue)


@pytest.mark.slow
def test_a_gain_that_is_real_is_usually_found() -> None:
    verdicts = [judged(losses(24, seed, 0.8), losses(24, seed + 500)).verdict for seed in range(40)]
    assert verdicts.count(BETTER) >= 30


def test_a_gain_that_rests_on_one_cutoff_is_no_evidence() -> None:
    naive = losses(seed=1)
    naive[7] = 40.0
    comparison = judged(losses(), naive)
    assert comparison.skill is not None
    assert comparison.skill > 0.5
    assert comparison.verdict == NO_BETTER


@pytest.mark.parametrize(("cutoffs", "verdict"), [(1, TOO_LITTLE), (7, TOO_LITTLE), (8, BETTER)])
def test_fewer_than_eight_cutoffs_are_too_little_evidence(cutoffs: int, verdict: str) -> None:
    comparison = judged(losses(cutoffs, level=0.1), losses(cutoffs, seed=1))
    assert comparison.verdict == verdict
    assert comparison.cutoffs == cutoffs
    if verdict == TOO_LITTLE:
        assert comparison.reason == f"{cutoffs} cutoff{'s' * (cutoffs > 1)}, and a verdict needs 8"
        assert comparison.skill is None


def test_forecasts_that_overlap_count_for_fewer() -> None:
    table = predictions_of_losses({"naive": losses(12), "adapter": losses(12, level=0.1)}, horizon=2)
    assert overlap(table) == 0
    table["ds"] = table["cutoff"] + pd.to_timedelta(4 * table["step"] - 4, unit="D")
    assert overlap(table) == 1
    comparison = judge(table, "adapter", ("naive",)).overall["naive"]
    assert comparison.verdict == TOO_LITTLE
    assert comparison.reason == "only 6 of 12 cutoffs have forecasts that do not overlap, and it needs 8"


def test_the_same_forecasts_are_no_better_and_no_worse() -> None:
    comparison = judged(losses(), losses())
    assert (comparison.verdict, comparison.skill, comparison.p_value) == (NO_BETTER, 0, 1)
    rounded = judged(losses() * (1 - 1e-13), losses())
    assert rounded.verdict == NO_BETTER


def test_a_model_that_always_errs_half_as_much_is_better() -> None:
    comparison = judged(np.full(8, 0.5), np.full(8, 1.0))
    assert (comparison.verdict, comparison.skill, comparison.statistic) == (BETTER, 0.5, None)


def _no_scale(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(scale=0.0)


def _negative_scale(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(scale=-1.0)


def _no_number(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[(table["model"] == "adapter") & (table["step"] == 2), "mean"] = np.nan
    return table


def _infinite(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[table["model"] == "naive", "mean"] = np.inf
    return table


@pytest.mark.parametrize("damage", [_no_scale, _negative_scale, _no_number, _infinite])
def test_an_undefined_loss_is_too_little_evidence_and_never_a_verdict(
    damage: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    verdicts = judge(damage(predictions_of_losses({"naive": losses(), "adapter": losses(level=0.1)})), "adapter")
    for comparison in (verdicts.overall["naive"], verdicts.per_symbol["AAPL"]["naive"]):
        assert comparison.verdict == TOO_LITTLE
        assert comparison.reason.startswith("the loss is undefined at 16 of 16 cutoffs")
    json.dumps(verdicts.as_dict(), allow_nan=False)


def test_one_ticker_whose_loss_is_undefined_is_not_left_out_of_the_overall_verdict_unseen() -> None:
    good = predictions_of_losses({"naive": losses(), "adapter": losses(level=0.1)}, symbol="GOOD")
    flat = predictions_of_losses({"naive": losses(), "adapter": losses(level=0.1)}, symbol="FLAT").assign(scale=0.0)
    verdicts = judge(pd.concat([good, flat]), "adapter", ("naive",))
    assert verdicts.per_symbol["GOOD"]["naive"].verdict == BETTER
    assert verdicts.per_symbol["FLAT"]["naive"].verdict == TOO_LITTLE
    assert verdicts.overall["naive"].verdict == TOO_LITTLE


def test_a_rival_without_any_error_leaves_no_skill_to_measure() -> None:
    comparison = judged(losses(), np.zeros(16))
    assert comparison.verdict == TOO_LITTLE
    assert "naive model makes no error" in comparison.reason


def test_a_rival_that_is_right_at_most_cutoffs_bounds_the_skill_on_one_side_alone() -> None:
    naive = np.zeros(12)
    naive[3] = 1.0
    comparison = judged(np.full(12, 1.0), naive)
    assert comparison.verdict != BETTER
    json.dumps(comparison.as_dict(), allow_nan=False)


def test_a_model_that_is_not_there_is_named() -> None:
    verdicts = judge(predictions_of_losses({"naive": losses(), "adapter": losses()}), "adapter")
    assert verdicts.per_symbol["AAPL"]["base"].reason == "no forecast of the base model"
    assert judge(predictions_of_losses({"naive": losses()}), "checkpoint").overall["naive"].reason == (
        "no forecast of the checkpoint model"
    )


def test_a_model_is_not_compared_with_itself() -> None:
    table = predictions_of_losses({"naive": losses(), "base": losses(seed=1)})
    assert set(judge(table, "base").overall) == {"naive"}


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no column scale"):
        judge(predictions_of_losses({"naive": losses()}).drop(columns="scale"), "adapter")


def _many(count: int) -> Verdicts:
    tables = [predictions_of_losses({"naive": losses(24, 1), "adapter": losses(24, 2, 0.85)}, symbol="REAL")]
    for number in range(count - 1):
        table = {"naive": losses(24, 100 + number), "adapter": losses(24, 9000 + number)}
        tables.append(predictions_of_losses(table, symbol=f"CHANCE{number}"))
    return judge(pd.concat(tables), "adapter", ("naive",))


def test_what_many_tickers_were_tested_for_needs_more_evidence() -> None:
    single = _many(1).per_symbol["REAL"]["naive"]
    assert single.verdict == BETTER
    assert single.adjusted_p == max(single.p_value or 1, single.bootstrap_p or 1)
    family = _many(20)
    comparison = family.per_symbol["REAL"]["naive"]
    assert family.tickers_tested == 20
    assert (comparison.p_value, comparison.skill) == (single.p_value, single.skill)
    assert comparison.adjusted_p == pytest.approx(20 * single.adjusted_p)
    verdicts = [comparisons["naive"].verdict for symbol, comparisons in family.per_symbol.items() if symbol != "REAL"]
    assert verdicts == [NO_BETTER] * 19


def test_tickers_that_are_not_in_the_table_may_be_counted_too() -> None:
    table = predictions_of_losses({"naive": losses(40), "adapter": losses(40, 1, 0.7)})
    single, many = (judge(table, "adapter", ("naive",), tickers_tested=tested) for tested in (None, 400))
    assert single.per_symbol["AAPL"]["naive"].adjusted_p == max(
        single.overall["naive"].p_value or 1, single.overall["naive"].bootstrap_p or 1
    )
    assert many.per_symbol["AAPL"]["naive"].adjusted_p is not None
    assert many.per_symbol["AAPL"]["naive"].adjusted_p > single.per_symbol["AAPL"]["naive"].adjusted_p
    assert many.per_symbol["AAPL"]["naive"].verdict == BETTER  # evidence this strong can still be told
    assert many.overall == single.overall


def test_tickers_that_move_together_are_one_observation_per_cutoff() -> None:
    table = predictions_of_losses({"naive": losses(12, 1), "adapter": losses(12, 2, 0.95)})
    single = judge(table, "adapter", ("naive",)).overall["naive"]
    copies = pd.concat([table.assign(unique_id=f"COPY{number}") for number in range(30)])
    joint = judge(copies, "adapter", ("naive",)).overall["naive"]
    assert joint.cutoffs == single.cutoffs == 12
    assert joint.p_value == pytest.approx(single.p_value)
    assert joint.verdict == single.verdict == NO_BETTER


def test_the_overall_verdict_takes_from_each_cutoff_the_tickers_that_both_forecast() -> None:
    first = predictions_of_losses({"naive": losses(10, 1), "adapter": losses(10, 2, 0.5)}, symbol="ONE")
    second = predictions_of_losses({"naive": losses(10, 3, 50.0)}, symbol="OTHER")
    overall = judge(pd.concat([first, second]), "adapter", ("naive",)).overall["naive"]
    assert overall.skill == pytest.approx(1 - losses(10, 2, 0.5).sum() / losses(10, 1).sum())


def test_a_verdict_is_plain_data() -> None:
    table = predictions_of_losses({"naive": losses(), "base": losses(seed=2), "adapter": losses(seed=1, level=0.6)})
    verdict = json.loads(json.dumps(judge(table, "adapter").as_dict(), allow_nan=False))
    assert verdict["model"] == "adapter"
    assert verdict["per_symbol"]["AAPL"]["base"]["verdict"] == BETTER
    assert verdict["overall"]["naive"]["cutoffs"] == 16
