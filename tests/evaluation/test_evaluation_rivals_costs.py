"""A rival that takes longer than the model's own sampling is named with its time, and no other rival is."""

from __future__ import annotations

import numpy as np
import pytest
from holdouts import HandMadeWindows, forecast

from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.predictions import VOLATILITY_RIVALS
from kronos_pipeline.evaluation.rivals.costs import costly_rivals


def test_the_rivals_that_cost_more_than_the_model_over_all_tickers_are_named_the_dearest_first() -> None:
    aapl = {"adapter": 20.0, "base": 90.0, "garch": 15.0, "har": 15.0, "ewma": 1.0}
    msft = {"adapter": 10.0, "base": 90.0, "garch": 20.0, "har": 10.0, "ewma": 1.0, "lightgbm": 1.0}
    assert costly_rivals([{"lightgbm": 119.0}, aapl, msft]) == (
        "rivals that cost more time than the sampling of the adapter (30 s): lightgbm 2 min, garch 35 s"
    )
    assert costly_rivals([{"lightgbm": 119.0}, aapl, msft], "base") is None


@pytest.mark.parametrize("seconds", [[], [{"garch": 99.0}], [{"base": 0.1, "garch": 9.0}]])
def test_without_a_model_or_a_wait_there_is_no_line(seconds: list[dict[str, float]]) -> None:
    assert costly_rivals(seconds) is None


def test_the_forecasts_of_a_holdout_have_the_time_of_each_model_and_rival() -> None:
    windows = HandMadeWindows(100.0 + np.arange(40) % 7, holdout=10, horizon=4)
    forecasts = forecast(windows, {"base": 0.0, "adapter": 1.0}, Recipe(horizon=4, lookback=8, eval_samples=3))
    assert set(forecasts.seconds) == {"base", "adapter", *VOLATILITY_RIVALS}
    assert min(forecasts.seconds.values()) > 0
