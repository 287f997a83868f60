from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_trainings import simulated_bars

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.data.purge import holdout_start_time, outdated_tickers, purge_overlapping_targets
from kronos_pipeline.data.simulate import simulate_ticker
from kronos_pipeline.data.windows import WindowSet, build_windows

RECIPE = Recipe(model_name="kronos-nano", lookback=8, horizon=4, validation_days=15, selection_days=30)


def windows_of(bars: Bars, **options: bool) -> WindowSet:
    return build_windows(bars, RECIPE, **options)


def every_day(ticker: str, last: pd.Timestamp, bars: int = 200) -> Bars:
    start = last - pd.Timedelta(days=bars - 1)
    frame = simulate_ticker(3, bars, start=start, frequency="D").frame()
    return make_bars(ticker, frame, source=f"{ticker}.csv")


def windows_from(
    ticker: str, start: str, bars: int, frequency: str, zone: str | None = None, *, opens: int = 0
) -> WindowSet:
    """Windows on bars that are as many and as long as asked, those before an hour of the day left out."""
    frame = simulate_ticker(3, bars, start=start, frequency=frequency).frame()
    frame = frame[frame["timestamps"].dt.hour >= opens]
    return windows_of(make_bars(ticker, frame, source=f"{ticker}.csv", time_zone=zone))


def last_target(windows: WindowSet) -> pd.Timestamp:
    rows = windows.rows[windows.rows["split"] != "holdout"]
    target: pd.Timestamp = windows.bars.frame["timestamps"].iloc[rows["end"].max() - 1]
    return target


def test_a_ticker_that_trades_on_weekends_tells_nothing_of_the_others_holdout() -> None:
    stock = windows_of(simulated_bars("AAPL", 200))
    crypto = windows_of(every_day("BTCUSD", stock.bars.frame["timestamps"].iloc[-1]))
    cut = holdout_start_time(stock)
    assert cut is not None
    assert cut < holdout_start_time(crypto)  # type: ignore[operator]
    assert last_target(crypto) >= cut
    known = purge_overlapping_targets([stock, crypto])
    assert known[0] is stock
    assert last_target(known[1]) < cut
    # Nothing else is lost: each window whose targets are older is there, and the holdout is whole.
    assert known[1].counts()["holdout"] == crypto.counts()["holdout"]
    stamps = crypto.bars.frame["timestamps"].to_numpy()
    older = stamps[crypto.rows["end"].to_numpy() - 1] < np.datetime64(cut)
    assert len(known[1].rows) == (older | (crypto.rows["split"] == "holdout").to_numpy()).sum()
    assert known[1].training_hash != crypto.training_hash


def test_a_ticker_that_ended_long_ago_cuts_nothing_and_is_named() -> None:
    now, gone = windows_of(simulated_bars("AAPL", 300)), windows_of(simulated_bars("GONE", 150))
    assert outdated_tickers([now, gone]) == ["GONE"]
    assert purge_overlapping_targets([now, gone], ["GONE"])[0] is now
    assert last_target(purge_overlapping_targets([now, gone])[0]) < holdout_start_time(gone)  # type: ignore[operator]


@pytest.mark.parametrize("hold_out", [True, False])
def test_tickers_of_one_calendar_lose_nothing(hold_out: bool) -> None:
    tickers = [windows_of(simulated_bars(ticker, 200), hold_out=hold_out) for ticker in ("AAPL", "MSFT")]
    assert all(purged is original for purged, original in zip(purge_overlapping_targets(tickers), tickers, strict=True))
    assert outdated_tickers(tickers) == []


def test_windows_that_hold_nothing_out_use_the_last_bar_and_have_no_holdout() -> None:
    bars = simulated_bars("AAPL", 200)
    windows = windows_of(bars, hold_out=False)
    assert windows.counts()["holdout"] == 0
    assert holdout_start_time(windows) is None
    assert windows.rows["end"].max() == len(bars)
    assert windows.selection_start == len(bars) - 30


DAY, HOUR = pd.Timedelta(days=1), pd.Timedelta(hours=1)


@pytest.mark.parametrize(
    ("zone", "other_zone", "hours"),
    [
        ("UTC+09:00", "UTC", -9),  # midnight there is three in the afternoon of the day before in UTC
        ("UTC", "UTC-05:00", -5),
        ("UTC", "UTC+09:00", 9),
        (None, "UTC", None),
        (None, None, 0),
        ("UTC", "UTC-05:00/UTC-04:00", None),
        ("UTC-05:00/UTC-04:00", "UTC-05:00/UTC-04:00", 0),
    ],
)
def test_holdouts_of_other_zones_are_compared_in_utc_or_with_a_day_between(
    zone: str | None, other_zone: str | None, hours: int | None
) -> None:
    first = windows_from("FIRST", "2024-01-01", 24 * 60, "h", zone)
    cut = holdout_start_time(first)
    assert cut is not None
    # The other holds out later days, so that its own holdout cuts nothing.
    other = windows_from("OTHER", "2024-01-04", 24 * 60, "h", other_zone)
    known, beside = purge_overlapping_targets([first, other])
    assert known is first
    ends = last_target(beside) + HOUR
    if hours is None:
        assert ends == cut - DAY
    else:
        # No target ends after the cut in UTC, nor has the cut's time or a later one by its own clock.
        assert ends == min(cut, cut + pd.Timedelta(hours=hours))


def test_a_daily_bar_is_known_a_day_after_its_time_and_an_hourly_one_an_hour_after() -> None:
    hourly = windows_from("HOURLY", "2024-05-01", 24 * 60, "h", opens=10)
    daily = windows_from("DAILY", "2023-11-01", 300, "D")
    cut = holdout_start_time(hourly)
    assert cut is not None
    assert cut.hour == 10
    assert cut < holdout_start_time(daily)  # type: ignore[operator]
    assert last_target(daily) >= cut
    # That day's bar begins before the cut and closes after it.
    assert last_target(purge_overlapping_targets([hourly, daily])[1]) == cut.normalize() - DAY

    earlier = windows_from("DAILY", "2023-11-01", 230, "D")
    cut = holdout_start_time(earlier)
    assert cut is not None
    hourly = windows_from("HOURLY", "2024-05-01", 24 * 60, "h")
    assert last_target(hourly) >= cut
    assert last_target(purge_overlapping_targets([earlier, hourly])[1]) == cut - HOUR


@pytest.mark.parametrize("hour", [0, 16])
def test_a_daily_bar_of_the_date_before_is_kept_whatever_the_hour(hour: int) -> None:
    stock = windows_of(simulated_bars("AAPL", 200))
    crypto = windows_of(every_day("BTCUSD", stock.bars.frame["timestamps"].iloc[-1] + pd.Timedelta(hours=hour)))
    cut = holdout_start_time(stock)
    assert cut is not None
    assert last_target(purge_overlapping_targets([stock, crypto])[1]) == cut - DAY + pd.Timedelta(hours=hour)
