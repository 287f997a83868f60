from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from market_files import crypto_five_minutes, hourly_fx, read_frame, stock_frames

from kronos_pipeline.evaluation.forecasting.baselines import (
    naive,
    no_season,
    random_walk_with_drift,
    seasonal_naive,
    week_length,
)

CLOSES = np.array([[10.0, 12.0, 11.0, 13.0], [5.0, 5.0, 4.0, 2.0]])
walks = st.lists(st.floats(0.01, 1e5), min_size=2, max_size=40)


def stamps_of(frame: pd.DataFrame) -> np.ndarray:
    return frame["timestamps"].to_numpy("datetime64[ns]")


def test_naive_repeats_the_last_close() -> None:
    np.testing.assert_array_equal(naive(CLOSES, 3), [[13, 13, 13], [2, 2, 2]])


def test_drift_goes_on_along_the_line_from_the_first_close_to_the_last() -> None:
    np.testing.assert_allclose(random_walk_with_drift(CLOSES, 3), [[14, 15, 16], [1, 0, -1]])


def test_seasonal_naive_repeats_the_last_season_however_far_it_goes() -> None:
    np.testing.assert_array_equal(seasonal_naive(CLOSES, 3, 7), [[12, 11, 13, 12, 11, 13, 12], [5, 4, 2, 5, 4, 2, 5]])


def test_a_season_of_one_bar_is_naive() -> None:
    np.testing.assert_array_equal(seasonal_naive(CLOSES, 1, 5), naive(CLOSES, 5))


def test_a_season_longer_than_the_lookback_gives_no_forecast_and_a_reason() -> None:
    assert seasonal_naive(CLOSES, 4, 2) is not None
    assert no_season(4, 4) is None
    assert seasonal_naive(CLOSES, 5, 2) is None
    assert no_season(5, 4) == "the ticker's week has 5 bars, and the lookback 4"
    assert seasonal_naive(CLOSES, None, 2) is None
    assert "no whole week" in str(no_season(None, 4))


@given(walks, st.integers(1, 12))
def test_the_recursive_definitions_hold_for_any_closes(closes: list[float], horizon: int) -> None:
    known = list(closes)
    for season in (1, 2):
        series = list(known)
        for _ in range(horizon):
            series.append(series[-season])
        forecast = seasonal_naive(np.array([known]), season, horizon)
        assert forecast is not None
        np.testing.assert_array_equal(forecast[0], series[len(known) :])
    mean_change = np.mean(np.diff(known))
    expected = known[-1] + mean_change * np.arange(1, horizon + 1)
    np.testing.assert_allclose(random_walk_with_drift(np.array([known]), horizon)[0], expected, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    ("freq", "periods", "week"),
    [
        ("B", 300, 5),
        ("D", 300, 7),
        ("B", 9, 5),
        ("h", 1000, 168),
        ("h", 192, 168),
        ("5min", 3000, 2016),
        ("W-FRI", 60, 1),
        ("MS", 60, 1),
    ],
)
def test_the_week_of_regular_bars(freq: str, periods: int, week: int) -> None:
    assert week_length(pd.date_range("2024-01-01 05:00", periods=periods, freq=freq).to_numpy()) == week


@pytest.mark.parametrize(("freq", "periods"), [("B", 4), ("D", 6), ("h", 160), ("5min", 700)])
def test_bars_that_span_no_week_have_none(freq: str, periods: int) -> None:
    assert week_length(pd.date_range("2024-01-01", periods=periods, freq=freq).to_numpy()) is None


def test_holidays_and_half_days_do_not_shorten_the_week() -> None:
    hours = pd.date_range("2024-01-01", "2024-06-28 23:00", freq="h")
    session = hours[(hours.weekday < 5) & (hours.hour >= 9) & (hours.hour < 16)]
    closed = session.normalize().isin(pd.to_datetime(["2024-01-15", "2024-02-19", "2024-03-29", "2024-05-27"]))
    short = session.normalize().isin(pd.to_datetime(["2024-01-03", "2024-02-05"])) & (session.hour >= 13)
    assert week_length(session[~closed & ~short].to_numpy()) == 35


def test_an_edge_that_moves_with_daylight_saving_is_counted_once() -> None:
    days = pd.bdate_range("2024-01-01", "2024-12-31", tz="America/New_York")
    times = [day + pd.Timedelta(hours=10 + hour) for day in days for hour in range(6)]
    utc = pd.DatetimeIndex(times).tz_convert("UTC").tz_localize(None)
    assert week_length(utc.to_numpy()) == 30


def test_the_weeks_of_files_as_exports_look(tmp_path: Path) -> None:
    stocks = read_frame(tmp_path, stock_frames()["IBM"].tail(500), "IBM")
    assert week_length(stamps_of(stocks.frame)) == 5
    assert week_length(stamps_of(read_frame(tmp_path, hourly_fx(), "EURUSD").frame)) == 4 * 24 + 17 + 7
    assert week_length(stamps_of(read_frame(tmp_path, crypto_five_minutes(), "BTCUSDT").frame)) == 2016
