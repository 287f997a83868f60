from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_predictions import predictions_of_losses

from kronos_pipeline.errors import ArtifactError, SettingsError
from kronos_pipeline.evaluation.scoring.gate import Decision, decide
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target

CUTOFFS = 16
PRICES = ["y", "last", "scale", "mean", "median"]


def losses(level: float, seed: int, cutoffs: int = CUTOFFS) -> np.ndarray:
    return level * np.random.default_rng(seed).uniform(0.9, 1.1, cutoffs)


def table(
    adapter: float, naive: float = 1.0, base: float = 1.0, *, cutoffs: int = CUTOFFS, **options: Any
) -> pd.DataFrame:
    levels = {"naive": naive, "base": base, "adapter": adapter}
    return predictions_of_losses(
        {model: losses(level, seed, cutoffs) for seed, (model, level) in enumerate(levels.items())}, **options
    )


def strict(predictions: pd.DataFrame, champion: pd.DataFrame | None = None, **options: Any) -> Decision:
    return decide(predictions, "adapter", champion=champion, gate="strict", **options)


def lenient(predictions: pd.DataFrame, champion: pd.DataFrame | None = None, **options: Any) -> Decision:
    return decide(predictions, "adapter", champion=champion, gate="lenient", **options)


@pytest.mark.parametrize(
    ("adapter", "naive", "base", "by_strict", "by_lenient"),
    [
        (0.5, 1.0, 1.0, True, True),
        (1.0, 1.0, 1.0, False, True),  # no better than either
        (0.5, 1.0, 0.5, False, True),  # no better than base
        (0.5, 0.5, 1.0, False, True),  # no better than naive
        (0.7, 1.0, 0.5, False, False),  # worse than base
        (0.7, 0.5, 1.0, False, False),  # worse than naive
    ],
)
def test_strict_wants_better_than_both_and_lenient_not_worse(
    adapter: float, naive: float, base: float, by_strict: bool, by_lenient: bool
) -> None:
    predictions = table(adapter, naive, base)
    assert strict(predictions).promote is by_strict
    assert lenient(predictions).promote is by_lenient


def test_the_reason_names_the_gate_and_every_rival_that_stands_in_the_way() -> None:
    decision = strict(table(1.0))
    assert decision.gate == "strict"
    assert decision.reason.startswith("Not promoted by the strict gate: no better than naive (skill ")
    assert "no better than base (skill " in decision.reason
    assert decision.reason.endswith("there is no champion yet.")
    promoted = strict(table(0.5))
    assert promoted.reason.startswith("Promoted by the strict gate: better than naive (skill ")
    assert set(promoted.comparisons) == {"naive", "base"}
    json.dumps(promoted.as_dict(), allow_nan=False)


@pytest.mark.parametrize("decide_by", [strict, lenient])
def test_seven_cutoffs_promote_nobody(decide_by: Callable[..., Decision]) -> None:
    decision = decide_by(table(0.1, cutoffs=7))
    assert not decision.promote
    assert "too little evidence against naive (7 cutoffs, and a verdict needs 8)" in decision.reason


@pytest.mark.parametrize("decide_by", [strict, lenient])
@pytest.mark.parametrize("model", ["adapter", "naive", "base"])
def test_an_undefined_score_promotes_nobody(decide_by: Callable[..., Decision], model: str) -> None:
    predictions = table(0.1)
    predictions.loc[(predictions["model"] == model) & (predictions["step"] == 1), "mean"] = np.nan
    decision = decide_by(predictions)
    assert not decision.promote
    assert "the loss is undefined" in decision.reason


@pytest.mark.parametrize("decide_by", [strict, lenient])
@pytest.mark.parametrize("model", ["adapter", "naive", "base"])
def test_a_rival_or_a_model_that_is_missing_promotes_nobody(decide_by: Callable[..., Decision], model: str) -> None:
    predictions = table(0.1)
    decision = decide_by(predictions[predictions["model"] != model])
    assert not decision.promote
    assert f"no forecast of the {model} model" in decision.reason


def test_a_champion_that_is_better_stays() -> None:
    decision = strict(table(0.5), champion=table(0.3))
    assert not decision.promote
    assert decision.comparisons["champion"].verdict == "worse"
    assert "worse than champion" in decision.reason
    assert "naive" not in decision.reason  # naive is not the reason of the decision


@pytest.mark.parametrize("champion", [0.5, 0.9])
def test_a_champion_that_is_no_better_gives_way(champion: float) -> None:
    decision = strict(table(0.5), champion=table(champion))
    assert decision.promote
    assert "champion" in decision.reason


@pytest.mark.parametrize("decide_by", [strict, lenient])
def test_the_same_model_measured_twice_is_not_worse(decide_by: Callable[..., Decision]) -> None:
    predictions = table(0.5)
    decision = decide_by(predictions, champion=predictions)
    assert decision.promote
    assert decision.comparisons["champion"].skill == 0


def later(predictions: pd.DataFrame, days: int) -> pd.DataFrame:
    """Return the table without its oldest `days` bars."""
    first: pd.Timestamp = predictions["cutoff"].min() + pd.Timedelta(days=days)
    return predictions[predictions["cutoff"] >= first]


def test_a_champion_is_compared_on_the_cutoffs_that_both_have() -> None:
    predictions = table(0.5)
    champion = table(0.5)
    early = champion["cutoff"] < champion["cutoff"].min() + pd.Timedelta(days=18)
    champion.loc[early & (champion["model"] == "adapter"), "mean"] = 100.0  # right at cutoffs that are not shared
    shared = strict(later(predictions, 18), champion=champion)
    assert shared.promote
    assert shared.comparisons["champion"].cutoffs == CUTOFFS - 6
    assert shared.comparisons["champion"].skill == 0
    assert shared.comparisons["naive"].cutoffs == CUTOFFS - 6


@pytest.mark.parametrize("decide_by", [strict, lenient])
def test_too_few_cutoffs_shared_with_the_champion_promote_nobody(decide_by: Callable[..., Decision]) -> None:
    decision = decide_by(table(0.1), champion=later(table(0.5), 27))
    assert not decision.promote
    assert "too little evidence against champion (7 cutoffs" in decision.reason
    never = decide_by(table(0.1), champion=table(0.5, symbol="OTHER"))
    assert not never.promote
    assert "the champion was not measured on any of these cutoffs" in never.reason


def test_prices_restated_by_a_split_change_nothing() -> None:
    before = table(0.5).astype(dict.fromkeys(PRICES, float))
    before[PRICES] *= 4
    for champion, promote in ((before, True), (table(0.3).assign(**4 * table(0.3)[PRICES]), False)):
        assert strict(table(0.5), champion=champion).promote is promote
    assert strict(table(0.5), champion=before).comparisons["champion"].skill == pytest.approx(0, abs=1e-9)


def test_a_champion_measured_on_other_closes_stays_and_the_tickers_are_named() -> None:
    champion = table(0.9)
    champion.loc[champion["cutoff"] > champion["cutoff"].median(), "y"] *= 1.2
    decision = strict(table(0.1), champion=champion)
    assert not decision.promote
    assert "the champion was measured on other closes of AAPL" in decision.reason


def test_many_tickers_need_more_evidence_for_better_and_no_more_for_worse() -> None:
    rng = np.random.default_rng(5)
    naive, adapter = rng.uniform(0.7, 1.3, 24), 0.82 * rng.uniform(0.7, 1.3, 24)
    good = predictions_of_losses({"naive": naive, "base": naive, "adapter": adapter})
    assert strict(good).promote
    assert not strict(good, tickers_tested=100).promote
    bad = predictions_of_losses({"naive": adapter, "base": adapter, "adapter": naive})
    assert not lenient(bad).promote
    assert not lenient(bad, tickers_tested=100).promote
    fair = predictions_of_losses({"naive": 10 * naive, "base": 10 * naive, "adapter": naive})
    assert strict(fair, tickers_tested=100).promote
    assert not strict(fair, champion=good, tickers_tested=100).promote


def test_over_several_tickers_the_overall_verdict_decides() -> None:
    tables = [table(level, symbol=symbol) for symbol, level in (("A", 0.5), ("B", 0.6), ("C", 1.1))]
    assert not strict(tables[2]).promote
    decision = strict(pd.concat(tables))
    assert decision.promote
    assert decision.comparisons["naive"].cutoffs == CUTOFFS


def test_a_gate_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingsError, match="no gate 'open'; choose strict or lenient"):
        decide(table(0.5), "adapter", champion=None, gate="open")  # type: ignore[arg-type]


def test_a_champion_table_that_is_none_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no column crps"):
        strict(table(0.5), champion=table(0.5).drop(columns="crps"))


def test_a_champion_whose_evidence_has_expired_does_not_stand_in_the_way_for_ever() -> None:
    new = table(0.5)
    cutoffs = sorted(new["cutoff"].unique())
    old = table(0.4)
    # Its newest cutoffs are the oldest of the new ones: fewer than eight can ever be shared again.
    shift = cutoffs[6] - cutoffs[-1]
    old[["cutoff", "ds"]] += shift
    decision = strict(new, old)
    assert decision.promote
    assert "the champion's evidence has expired" in decision.reason
    # One that was measured lately, on other cutoffs, is not out of date: nothing is known, so nothing is promoted.
    recent = table(0.4)
    recent[["cutoff", "ds"]] += pd.Timedelta(hours=1)
    decision = strict(new, recent)
    assert not decision.promote
    assert "expired" not in decision.reason


RIVALS = {"mean": ["naive", "drift", "base"], "distribution": ["ewma", "garch", "base"]}
RIVALS["volatility"] = RIVALS["distribution"]


def table_of(target: Target, levels: dict[str, float], factor: float = 1.0) -> pd.DataFrame:
    """Return predictions with a loss on one target of about the given level by model, at prices times a factor."""
    losses_of = {model: losses(level, seed) for seed, (model, level) in enumerate(levels.items())}
    predictions = predictions_of_losses(losses_of).astype(dict.fromkeys(PRICES, float))
    predictions[[*PRICES, "crps"]] *= factor
    if target != "mean":
        predictions["mean"] = np.nan  # neither target reads it
    if target == "volatility":
        loss = predictions["crps"] / predictions["scale"]
        predictions["variance"] = predictions["squared_return"] * (1 + loss)  # QLIKE rises with the ratio above 1
        predictions["crps"] = np.nan
    return predictions


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_strict_wants_better_than_every_rival_of_the_target_and_lenient_not_worse(target: Target) -> None:
    for rival in RIVALS[target]:
        levels = {**dict.fromkeys(RIVALS[target], 1.0), "adapter": 0.5}
        assert strict(table_of(target, levels), target=target).promote
        equal = table_of(target, {**levels, rival: 0.5})
        decision = strict(equal, target=target)
        assert not decision.promote
        assert f"no better than {rival}" in decision.reason
        assert decision.obstacle.startswith(f"no better than {rival}, skill ")
        assert lenient(equal, target=target).promote
        assert not lenient(table_of(target, {**levels, rival: 0.3}), target=target).promote


def test_the_rivals_of_another_target_do_not_count() -> None:
    worse_mean = table_of("distribution", {"ewma": 1.0, "base": 1.0, "naive": 0.1, "adapter": 0.5})
    assert strict(worse_mean, target="distribution").promote
    without = table_of("distribution", {"naive": 1.0, "base": 1.0, "adapter": 0.1})
    decision = strict(without, target="distribution")
    assert not decision.promote
    assert decision.obstacle == "too little evidence against ewma (no forecast of the ewma model)"


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_champion_of_the_target_that_is_better_stays_whatever_split_came_since(target: Target) -> None:
    rivals = dict.fromkeys(RIVALS[target], 1.0)
    new = table_of(target, {**rivals, "adapter": 0.5})
    for level, promote in ((0.3, False), (0.5, True), (0.9, True)):
        champion = table_of(target, {**rivals, "adapter": level}, factor=4.0)
        decision = strict(new, champion=champion, target=target)
        assert decision.promote is promote
        if not promote:
            assert decision.obstacle.startswith("worse than champion, skill -")


def test_a_champion_that_was_never_measured_on_a_target_is_no_obstacle_on_it() -> None:
    new = table_of("volatility", {**dict.fromkeys(RIVALS["volatility"], 1.0), "adapter": 0.5})
    decision = strict(new, champion=new.assign(variance=np.nan), target="volatility")
    assert decision.promote
    assert "champion" not in decision.comparisons
    assert decision.reason.endswith("the champion was not measured on the volatility.")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("decide_by", [strict, lenient])
def test_an_undefined_forecast_promotes_nobody_on_any_target(
    decide_by: Callable[..., Decision], target: Target
) -> None:
    column = {"mean": "mean", "distribution": "crps", "volatility": "variance"}[target]
    predictions = table_of(target, {**dict.fromkeys(RIVALS[target], 1.0), "adapter": 0.1})
    for value in (np.nan, np.inf, 0.0) if target == "volatility" else (np.nan, np.inf):
        broken = predictions.copy()
        broken.loc[(broken["model"] == "adapter") & (broken["cutoff"] == broken["cutoff"].min()), column] = value
        decision = decide_by(broken, target=target)
        assert not decision.promote
        assert "the loss is undefined at 1 of 16 cutoffs" in decision.reason
