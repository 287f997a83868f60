"""The e-process: it may be looked at every day, and it finds a difference that is there."""

from __future__ import annotations

import numpy as np
import pytest

from kronos_pipeline.evaluation.scoring.sequential import (
    EVIDENCE,
    LARGEST_BET,
    e_process,
    loss_differences,
    predictable_bets,
)


def series(count: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cutoffs and ends of forecasts that are issued at every bar."""
    starts = np.arange(count)
    return starts, starts + horizon


def overlapping(rng: np.random.Generator, count: int, horizon: int, mean: float = 0.0) -> np.ndarray:
    """Return d of forecasts at every bar: means over the horizon of skewed outcomes, one per bar."""
    outcomes = np.where(rng.random(count + horizon) < 0.2, 0.8, -0.2)  # mean 0
    outcomes = np.clip(outcomes + mean, -1, 1)
    return np.convolve(outcomes, np.ones(horizon) / horizon, mode="valid")[1 : count + 1]


def crossings(repetitions: int, count: int, horizon: int, mean: float) -> float:
    """Return the share of series that are called better at any bar."""
    rng, (starts, ends) = np.random.default_rng(7), series(count, horizon)
    reached = [
        e_process(starts, ends, overlapping(rng, count, horizon, mean), horizon).confirmed is not None
        for _ in range(repetitions)
    ]
    return float(np.mean(reached))


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [1, 5])
def test_by_chance_the_level_is_ever_reached_in_at_most_five_percent(horizon: int) -> None:
    assert crossings(300, 150, horizon, 0.0) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("horizon", "count"), [(1, 250), (5, 500)])
def test_a_real_difference_is_found(horizon: int, count: int) -> None:
    assert crossings(40, count, horizon, 0.15) >= 0.8


def test_the_value_is_the_product_of_the_payoffs_of_the_bets() -> None:
    starts, ends = series(30, 1)
    d = np.random.default_rng(0).uniform(-0.2, 0.6, 30)
    bets = predictable_bets(starts, ends, d)
    np.testing.assert_allclose(e_process(starts, ends, d, 1).values, np.cumprod(1 + bets * d))
    assert bets[0] == 0
    assert bets.max() <= LARGEST_BET


def test_a_bet_knows_only_the_forecasts_that_ended_by_its_cutoff() -> None:
    starts, ends = series(40, 4)
    d = np.random.default_rng(1).uniform(-0.3, 0.5, 40)
    bets = predictable_bets(starts, ends, d)
    changed = np.where(ends > starts[20], -1.0, d)
    np.testing.assert_array_equal(predictable_bets(starts, ends, changed)[:21], bets[:21])
    assert predictable_bets(starts, ends, changed)[25] != bets[25]


def test_forecasts_of_a_stream_do_not_overlap_and_one_that_fits_no_stream_has_no_bet() -> None:
    starts, ends = series(12, 3)
    d = np.full(12, 0.1)
    stream = e_process(starts, ends, d, 3).stream
    assert (stream >= 0).all()
    for number in range(3):
        members = np.flatnonzero(stream == number)
        assert (starts[members[1:]] >= ends[members[:-1]]).all()
    assert e_process(starts, ends, d, 2).stream[2] == -1


def test_the_value_is_the_mean_wealth_of_the_streams() -> None:
    starts, ends = series(40, 3)
    d = np.random.default_rng(2).uniform(-0.3, 0.4, 40)
    bets, process = predictable_bets(starts, ends, d), e_process(starts, ends, d, 3)
    wealth = [np.prod(1 + bets[process.stream == number] * d[process.stream == number]) for number in range(3)]
    assert process.value == pytest.approx(np.mean(wealth))


def test_a_result_counts_when_no_bet_is_open_and_no_bet_is_placed_until_then() -> None:
    starts, ends = series(60, 3)
    d = np.full(60, 0.6)
    process = e_process(starts, ends, d, 3)
    assert process.confirmed is not None
    reached = int(process.times[np.flatnonzero(process.values >= EVIDENCE)[0]])
    assert reached < process.confirmed <= reached + 3
    waited = (starts >= reached) & (starts < process.confirmed)
    assert (process.stream[waited] == -1).all()
    assert (process.stream[~waited] >= 0).all()
    lost = np.where((starts < reached) & (ends > reached), -1.0, d)
    assert e_process(starts, ends, lost, 3).confirmed != process.confirmed


def test_a_forecast_that_is_waited_for_is_open_and_later_outcomes_change_no_earlier_value() -> None:
    starts, ends = series(50, 5)
    d = overlapping(np.random.default_rng(3), 50, 5, 0.1)
    now = np.where(ends <= 40, d, np.nan)
    before, after = e_process(starts, ends, now, 5), e_process(starts, ends, d, 5)
    np.testing.assert_allclose(before.values, after.values[: len(before.values)])
    assert before.times[-1] == 40


def test_without_an_ended_forecast_the_value_is_one() -> None:
    empty = np.array([], np.int64)
    assert e_process(empty, empty, np.array([]), 3).value == 1.0
    process = e_process(*series(3, 5), np.full(3, np.nan), 5)
    assert process.value == 1.0
    assert process.confirmed is None


def test_evidence_is_symmetric() -> None:
    starts, ends = series(200, 1)
    d = np.full(200, -0.2)
    assert e_process(starts, ends, d, 1).value < 1.000001
    worse = e_process(starts, ends, -d, 1)
    assert worse.value >= EVIDENCE
    assert worse.confirmed is not None


def test_the_difference_of_losses_is_between_minus_one_and_one_and_0_where_neither_errs() -> None:
    d = loss_differences(np.array([0.0, 1.0, 0.0, 3.0]), np.array([1.0, 0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(d, [1, -1, 0, -0.5])
