"""The distance of the newest lookback from the training windows."""

from __future__ import annotations

import numpy as np
import pytest
from small_trainings import simulated_bars

from kronos_pipeline.evaluation.scoring.input_distance import MIN_WINDOWS, input_distance, window_features

LOOKBACK = 20
VALUES = simulated_bars(bars=700).values


def newest_changed(**changes: float) -> np.ndarray:
    """Return bars of which the newest lookback was changed."""
    values = VALUES[:640].copy()
    if "jump" in changes:
        values[-1:, :4] *= changes["jump"]
    if "alternating" in changes:
        values[-LOOKBACK:, :4] = (100 + changes["alternating"] * (np.arange(LOOKBACK) % 2))[:, None]
    return values


def test_lookbacks_like_those_of_the_training_are_seldom_outside() -> None:
    found = [input_distance(VALUES[:end], 500, LOOKBACK) for end in range(520, 700, 5)]
    assert np.mean([distance is not None and distance.outside for distance in found]) <= 0.1


@pytest.mark.parametrize("changes", [{"jump": 1.8}, {"alternating": 1.0}])
def test_a_jump_and_closes_that_alternate_lie_outside(changes: dict[str, float]) -> None:
    found = input_distance(newest_changed(**changes), 500, LOOKBACK)
    assert found is not None
    assert found.outside
    assert found.windows == 481
    assert "the newest lookback lies outside the 481 lookbacks of its training (distance " in found.sentence()


def test_the_scale_of_prices_and_volumes_does_not_matter() -> None:
    before = input_distance(VALUES, 500, LOOKBACK)
    after = input_distance(VALUES * [3, 3, 3, 3, 10, 30], 500, LOOKBACK)
    assert before is not None
    assert after is not None
    assert after.distance == pytest.approx(before.distance, rel=0.01)


def test_bars_after_the_training_change_no_bound() -> None:
    changed = VALUES.copy()
    changed[500:, :4] *= np.linspace(1, 3, 200)[:, None]
    before, after = input_distance(VALUES, 500, LOOKBACK), input_distance(changed, 500, LOOKBACK)
    assert before is not None
    assert after is not None
    assert before.bound == after.bound


def test_a_volume_that_the_training_never_had_lies_outside_and_none_at_all_is_no_error() -> None:
    values = VALUES.copy()
    values[:, 4:] = 0.0
    without = input_distance(values, 500, LOOKBACK)
    assert without is not None
    assert np.isfinite(without.distance)
    values[-3:, 4] = 1_000.0
    suddenly = input_distance(values, 500, LOOKBACK)
    assert suddenly is not None
    assert suddenly.outside


def test_with_few_training_windows_or_a_close_that_stands_still_there_is_no_distance() -> None:
    assert input_distance(VALUES, MIN_WINDOWS + LOOKBACK - 2, LOOKBACK) is None
    still = VALUES.copy()
    still[-LOOKBACK:, :4] = 5.0
    assert input_distance(still, 500, LOOKBACK) is None
    assert len(window_features(still[None, -LOOKBACK:])) == 0
