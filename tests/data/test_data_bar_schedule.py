"""The interval of a ticker's bars, and tickers of different intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from kronos_pipeline.data.bar_schedule import StampArray, interval_name, mixed_intervals


def stamps(freq: str, periods: int = 60) -> StampArray:
    return pd.date_range("2021-01-01", periods=periods, freq=freq).to_numpy()


def test_tickers_are_named_by_interval_the_shortest_first() -> None:
    mixed = mixed_intervals({"AAPL": stamps("B"), "MSFT": stamps("D"), "SPY": stamps("7D"), "BTCUSD": stamps("5min")})

    assert mixed == "5 min: BTCUSD; 1 day: AAPL, MSFT; 7 day: SPY"


def test_months_of_any_length_are_one_interval() -> None:
    thirty = np.cumsum([0, *[30] * 12]).astype("timedelta64[D]") + np.datetime64("2021-01-01")

    assert mixed_intervals({"AAPL": stamps("MS"), "MSFT": thirty}) is None


def test_a_ticker_with_one_bar_has_no_interval() -> None:
    assert mixed_intervals({"AAPL": stamps("D"), "NEW": stamps("D", 1)}) is None


@pytest.mark.parametrize(("freq", "name"), [("D", "1 day"), ("4h", "4 h"), ("90min", "90 min"), ("30s", "30 s")])
def test_intervals_have_names(freq: str, name: str) -> None:
    interval: Any = pd.tseries.frequencies.to_offset(freq)
    assert interval_name(pd.Timedelta(interval).value) == name
