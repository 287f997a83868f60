"""Repair turns any six numbers into a valid candle, and keeps open and close."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.evaluation.forecasting.batching import repair_candles

O, H, L, C, V, A = range(6)  # noqa: E741
BARS = array_shapes(max_dims=3, max_side=4).flatmap(
    lambda shape: arrays(np.float64, (*shape, 6), elements=st.floats(-50, 50, width=16))
)


def is_candle(values: np.ndarray) -> np.ndarray:
    """Return whether each bar is valid by the rules of `data.schemas`."""
    low, high = values[..., L], values[..., H]
    body = values[..., [O, C]]
    traded: np.ndarray = (values[..., V] >= 0) & (values[..., A] >= 0)
    contains_body: np.ndarray = (low <= body.min(-1)) & (high >= body.max(-1))
    valid: np.ndarray = np.logical_and(traded, contains_body)
    return valid


def test_the_features_are_where_these_tests_think() -> None:
    assert FEATURES == ("open", "high", "low", "close", "volume", "amount")


@given(BARS)
def test_every_bar_becomes_a_candle_and_those_that_were_one_stay(values: np.ndarray) -> None:
    before = values.copy()
    repaired, count = repair_candles(values)
    assert is_candle(repaired).all()
    assert count == (~is_candle(values)).sum()
    np.testing.assert_array_equal(repaired[is_candle(values)], values[is_candle(values)])
    np.testing.assert_array_equal(repaired[..., [O, C]], values[..., [O, C]])
    np.testing.assert_array_equal(values, before)
    repaired_again, count = repair_candles(repaired)
    assert count == 0
    np.testing.assert_array_equal(repaired_again, repaired)


def test_a_range_is_widened_no_further_than_it_must_and_volume_is_not_negative() -> None:
    repaired, count = repair_candles(
        np.array([[10.0, 9.0, 11.0, 12.0, -5.0, -1.0], [10.0, 13.0, 9.0, 12.0, 5.0, 60.0]])
    )
    np.testing.assert_array_equal(repaired, [[10.0, 12.0, 10.0, 12.0, 0.0, 0.0], [10.0, 13.0, 9.0, 12.0, 5.0, 60.0]])
    assert count == 1
