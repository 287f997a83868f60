"""Drift is distinguished from chance on whole horizons after the evidence, and never reported on too few cutoffs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_predictions import made_predictions, predictions_of_losses
from scipy import stats
from small_trainings import simulated_bars, small_recipe

from kronos_pipeline.evaluation.scoring.drift import RECENT, Drift, find_drift, join_drifts, windows_since
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, MEAN

HORIZON = 3
DAY = pd.Timedelta(days=1)


def table(losses: list[float] | np.ndarray, naive: list[float] | np.ndarray | None = None) -> pd.DataFrame:
    """Return an adapter's predictions with a given scaled error by cutoff, and the naive forecast's."""
    adapter = np.asarray(losses, np.float64)
    return predictions_of_losses(
        {"adapter": adapter, "naive": adapter if naive is None else np.asarray(naive)}, horizon=HORIZON
    )


def later(predictions: pd.DataFrame, evidence: pd.DataFrame) -> pd.DataFrame:
    """Move predictions to the bars right after another table's."""
    shift = evidence["ds"].max() + DAY - predictions["ds"].min()
    return predictions.assign(ds=predictions["ds"] + shift, cutoff=predictions["cutoff"] + shift)


def drift_of(before: list[float] | np.ndarray, now: list[float] | np.ndarray, **naive: list[float]) -> Drift:
    evidence = table(before, naive.get("naive_before"))
    return find_drift(evidence, later(table(now, naive.get("naive_now")), evidence), "adapter", HORIZON)


USUAL = [0.8, 1.0, 1.2, 0.9, 1.1, 1.0, 0.95, 1.05, 1.0, 0.9]


def test_an_error_far_above_what_was_usual_is_drift_and_a_usual_one_is_not() -> None:
    usual, high = drift_of(USUAL, [1.0, 1.1]), drift_of(USUAL, [2.0, 2.2])
    assert (usual.drifted, high.drifted) == (False, True)
    assert usual.bound == high.bound
    assert high.error == pytest.approx(np.sqrt(2.0 * 2.2))
    assert high.expected == pytest.approx(stats.gmean(USUAL))
    assert high.error is not None
    assert high.bound is not None
    assert high.expected is not None
    assert high.error > high.bound > high.expected
    for figure in ("2.1 over 2 cutoffs", "the evidence predicts 0.984"):
        assert figure in high.reason


def test_the_bound_is_the_prediction_interval_that_scipy_gives_for_one_more_loss() -> None:
    logs = np.log(USUAL)
    spread = logs.std(ddof=1) * np.sqrt(1 + 1 / len(logs))
    expected = np.exp(stats.t(df=len(logs) - 1, loc=logs.mean(), scale=spread).ppf(0.95))
    assert drift_of(USUAL, [1.0]).bound == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("cutoffs", [1, RECENT])
def test_on_random_walks_that_did_not_change_drift_comes_up_no_more_often_than_it_should(cutoffs: int) -> None:
    rng = np.random.default_rng(3)
    runs = 150
    walks = np.abs(rng.standard_normal((runs, 12 + cutoffs, 20)).cumsum(axis=2)).mean(axis=2)
    alarms = sum(drift_of(losses[:12], losses[12:]).drifted for losses in walks)
    low, high = stats.binom.interval(0.99, runs, 0.05)
    assert low <= alarms <= high


def test_it_is_said_whether_the_naive_forecast_errs_more_too() -> None:
    market_change = drift_of(USUAL, [3.0, 3.0], naive_before=USUAL, naive_now=[3.0, 3.0])
    model_change = drift_of(USUAL, [3.0, 3.0], naive_before=USUAL, naive_now=[1.0, 1.0])
    assert market_change.drifted
    assert model_change.drifted
    assert market_change.rival_ratio == pytest.approx(3 / stats.gmean(USUAL))
    assert "naive forecast's error is 3.05 times" in market_change.reason
    assert "naive forecast's error is 1.02 times" in model_change.reason


def test_intervals_that_hold_too_little_are_drift_of_the_distribution_and_not_of_the_mean() -> None:
    noise = np.random.default_rng(1).normal(size=(12 + RECENT, HORIZON))

    def with_widths(errors: np.ndarray, half_width: float) -> pd.DataFrame:
        y = 100 + errors.ravel()
        flat = {"adapter": np.full(len(y), 100.0)}
        return made_predictions(y, flat, horizon=HORIZON, half_widths={"adapter": half_width})

    evidence = with_widths(noise[:12], 0.6)
    usual, off = (later(with_widths(noise[12:], width), evidence) for width in (0.6, 20.0))
    for target, since, drifted in [(MEAN, off, False), (DISTRIBUTION, off, True), (DISTRIBUTION, usual, False)]:
        drift = find_drift(evidence, since, "adapter", HORIZON, target=target)
        assert drift.drifted is drifted
        assert drift.targets == ((target,) if drifted else ())
    both = [find_drift(evidence, off, "adapter", HORIZON, target=target, targets=2) for target in (MEAN, DISTRIBUTION)]
    joined = join_drifts(both)
    assert (joined.targets, joined.error) == ((DISTRIBUTION,), both[1].error)
    assert "scaled error" in joined.reason
    assert "scaled pinball loss" in joined.reason
    single = find_drift(evidence, off, "adapter", HORIZON, target=DISTRIBUTION)
    assert both[1].bound is not None
    assert single.bound is not None
    assert both[1].bound > single.bound


def test_a_forecast_that_is_cut_short_does_not_count() -> None:
    evidence = table(USUAL)
    complete = later(table([1.0, 1.0]), evidence)
    incomplete = later(table([90.0]), complete)
    incomplete = incomplete[incomplete["step"] < HORIZON]
    drift = find_drift(evidence, pd.concat([complete, incomplete]), "adapter", HORIZON)
    assert drift == find_drift(evidence, complete, "adapter", HORIZON)
    assert drift.cutoffs == 2


def test_the_newest_cutoffs_count_alone() -> None:
    assert not drift_of(USUAL, [9.0, *[1.0] * RECENT]).drifted
    assert drift_of(USUAL, [*[1.0] * RECENT, *[9.0] * RECENT]).drifted


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        (USUAL[:7], [99.0], "its evidence has 7 cutoffs, and 8 are needed"),
        ([0.0, *USUAL], [99.0], "0 or undefined"),
        (USUAL, [0.0], "0 or undefined"),
        (USUAL, [np.nan], "0 or undefined"),
    ],
)
def test_too_little_or_undefined_evidence_is_said_and_is_no_drift(
    before: list[float], now: list[float], reason: str
) -> None:
    drift = drift_of(before, now)
    assert not drift.drifted
    assert reason in drift.reason
    assert (drift.error, drift.bound) == (None, None)
    assert drift.cutoffs == len(now)


def test_without_a_whole_horizon_or_a_cutoff_nothing_is_said() -> None:
    evidence = table(USUAL)
    assert "not yet a whole horizon of 3" in find_drift(evidence, None, "adapter", HORIZON).reason
    incomplete = later(table([90.0]), evidence)
    drift = find_drift(evidence, incomplete[incomplete["step"] < HORIZON], "adapter", HORIZON)
    assert (drift.drifted, drift.cutoffs) == (False, 0)
    assert "no cutoff since it was measured" in drift.reason


def test_windows_begin_with_the_first_bar_that_the_evidence_did_not_measure(tiny_base: Path) -> None:
    recipe = small_recipe(tiny_base)
    bars = simulated_bars(bars=150)
    stamps = bars.frame["timestamps"]
    evidence = pd.DataFrame({"unique_id": ["AAPL", "MSFT"], "ds": [stamps.iloc[137], stamps.iloc[149]]})
    windows = windows_since(bars, evidence, recipe, None)  # 12 bars since, so two whole horizons of 5 and a cut one
    assert windows is not None
    assert windows.holdout_start == 138
    assert windows.of_split("holdout")["origin"].tolist() == [137, 142, 147]
    assert windows.of_split("selection")["end"].max() <= 138


@pytest.mark.parametrize(("since", "horizons"), [(4, 0), (5, 1), (9, 1), (34, 6)])
def test_windows_hold_the_newest_whole_horizons(tiny_base: Path, since: int, horizons: int) -> None:
    recipe = small_recipe(tiny_base)
    bars = simulated_bars(bars=150)
    evidence = pd.DataFrame({"unique_id": ["AAPL"], "ds": [bars.frame["timestamps"].iloc[149 - since]]})
    windows = windows_since(bars, evidence, recipe, None)
    if not horizons:
        assert windows is None
        return
    assert windows is not None
    rolls = windows.of_split("holdout")
    lengths = rolls["end"] - rolls["origin"] - 1
    assert (lengths == recipe.horizon).sum() == min(horizons, RECENT)
    assert (rolls["origin"] - (149 - since)).mod(recipe.horizon).eq(0).all()


@pytest.mark.parametrize(
    ("last_seen", "start"), [(None, 130), (120, 130), (129, 130), (133, 134), (145, None), (149, None)]
)
def test_no_bar_that_the_weights_may_have_seen_is_among_those_that_came_since(
    tiny_base: Path, last_seen: int | None, start: int | None
) -> None:
    bars = simulated_bars(bars=150)
    stamps = bars.frame["timestamps"]
    evidence = pd.DataFrame({"unique_id": ["AAPL"], "ds": [stamps.iloc[129]]})
    seen_until = None if last_seen is None else stamps.iloc[last_seen].isoformat()
    windows = windows_since(bars, evidence, small_recipe(tiny_base), seen_until)
    assert (windows and windows.holdout_start) == start
