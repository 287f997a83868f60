from __future__ import annotations

from pathlib import Path

import exchange_calendars
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_files import crypto_five_minutes, hourly_fx, read_frame, stock_frames

from kronos_pipeline.data.bars import FEATURES, Bars, make_bars
from kronos_pipeline.data.calendars import find_calendar, next_stamps
from kronos_pipeline.errors import SettingsError


def bars_at(times: pd.DatetimeIndex, ticker: str = "ACME", zone: str | None = None) -> Bars:
    frame = pd.DataFrame({name: np.ones(len(times)) for name in FEATURES})
    frame.insert(0, "timestamps", times)
    return make_bars(ticker, frame, source=f"{ticker}.csv", time_zone=zone)


def trading_times(name: str, start: str, end: str, freq: str, zone: str, closed: str = "left") -> pd.DatetimeIndex:
    """When a market's bars are, by the library's own index, in a zone's local time."""
    calendar = exchange_calendars.get_calendar(name, start=start, end=end)
    first, last = calendar.first_session, calendar.last_session
    index = calendar.trading_index(first, last, freq, intervals=False, closed=closed, curtail_overlaps=True)
    times: pd.DatetimeIndex = index.tz_convert(zone).tz_localize(None)
    return times


# By an exchange's calendar


def test_daily_stocks_skip_the_exchange_s_holidays(tmp_path: Path) -> None:
    ibm = read_frame(tmp_path, stock_frames()["IBM"], "IBM")
    assert ibm.frame["timestamps"].iloc[-1] == pd.Timestamp("2013-03-01")
    stamps = next_stamps(ibm, 21, ["XNYS"])
    assert stamps[0] == pd.Timestamp("2013-03-04")
    assert list(stamps[-2:]) == [pd.Timestamp("2013-04-01"), pd.Timestamp("2013-04-02")]  # Good Friday lies before
    assert pd.Timestamp("2013-03-29") not in stamps
    assert pd.Timestamp("2013-03-29") in next_stamps(ibm, 21, [])


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["left", "right"])
@pytest.mark.parametrize("freq", ["5min", "60min"])
@pytest.mark.parametrize(
    ("name", "zone", "start", "now", "end"),
    [
        ("XNYS", "America/New_York", "2024-09-03", "2024-11-27 12:00", "2024-12-31"),  # half days, holidays
        ("XNYS", "UTC", "2025-01-02", "2025-03-05 17:00", "2025-03-14"),  # clocks change on March 9
        ("XTKS", "Asia/Tokyo", "2024-01-04", "2024-04-26 10:00", "2024-05-10"),  # lunch breaks, Golden Week
        ("XSHG", "Asia/Shanghai", "2024-06-03", "2024-09-12 10:00", "2024-10-11"),
    ],
)
def test_intraday_bars_keep_sessions_half_days_and_lunch_breaks(
    name: str, zone: str, start: str, now: str, end: str, freq: str, closed: str
) -> None:
    times = trading_times(name, start, end, freq, zone, closed)
    past, ahead = times[times <= pd.Timestamp(now)], times[times > pd.Timestamp(now)]
    bars = bars_at(past, zone="UTC" if zone == "UTC" else None)
    pd.testing.assert_index_equal(next_stamps(bars, len(ahead), [name]), ahead, check_names=False)


@pytest.mark.slow
@pytest.mark.parametrize("stated", [None, "UTC-05:00/UTC-04:00"])
def test_a_file_in_the_exchange_s_own_time_stays_in_it_over_a_change_of_clocks(stated: str | None) -> None:
    times = trading_times("XNYS", "2025-01-02", "2025-03-14", "60min", "America/New_York")
    split = pd.Timestamp("2025-03-05")
    past, ahead = times[times < split], times[times >= split]
    stamps = next_stamps(bars_at(past, zone=stated), len(ahead), ["XNYS"])
    pd.testing.assert_index_equal(stamps, ahead, check_names=False)


@pytest.mark.slow
def test_daily_bars_of_the_far_east_in_utc_keep_their_hour() -> None:
    sessions = exchange_calendars.get_calendar("XTKS", start="2024-01-04", end="2024-05-10").sessions
    utc = sessions - pd.Timedelta(hours=9)  # midnight in Tokyo
    past, ahead = utc[utc < "2024-04-25"], utc[utc >= "2024-04-25"]
    stamps = next_stamps(bars_at(past, zone="UTC"), len(ahead), ["XTKS"])
    pd.testing.assert_index_equal(stamps, ahead, check_names=False, exact="equiv", check_exact=False)


def test_round_the_clock(tmp_path: Path) -> None:
    bitcoin = read_frame(tmp_path, crypto_five_minutes(), "BTCUSDT")
    last = bitcoin.frame["timestamps"].iloc[-1]
    expected = pd.date_range(last, periods=1001, freq="5min")[1:]
    for calendars in ([], ["24/7"]):
        assert (next_stamps(bitcoin, 1000, calendars) == expected).all()


def test_the_ticker_s_own_calendar_comes_before_that_of_all() -> None:
    assert find_calendar("AAPL", ["AAPL=XTKS", "XNYS"]) == "XTKS"
    assert find_calendar("MSFT", ["AAPL=XTKS", "XNYS"]) == "XNYS"
    assert find_calendar("MSFT", ["AAPL=XTKS"]) is None
    assert find_calendar("EURUSD=X", ["EURUSD=X=24/5"]) == "24/5"
    assert find_calendar("AAPL", [" aapl = nyse "]) == "NYSE"


@pytest.mark.parametrize(
    ("calendars", "message"),
    [
        (["XNYZ"], "no exchange calendar is called 'XNYZ'. Is it .*XNYS"),
        (["MSFT=qqqqqq"], "no exchange calendar is called 'qqqqqq'. Names are such as"),
        (["EURUSD=X"], "no exchange calendar is called 'X'"),
        (["=XNYS"], "names no ticker"),
        (["XNYS", "XTKS"], "all tickers has two calendars"),
        (["AAPL=XNYS", "aapl=XTKS"], "AAPL has two calendars"),
    ],
)
def test_an_unknown_calendar_is_told_whichever_ticker_it_is_for(calendars: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")):
        next_stamps(bars_at(pd.bdate_range("2024-01-01", periods=30), "AAPL"), 3, calendars)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "freq"), [("2024-01-01", "D"), ("2024-01-01", "5min")])
def test_a_calendar_of_another_market_is_refused(start: str, freq: str) -> None:
    with pytest.raises(SettingsError, match=r"BTC: only \d\d% of its newest bars lie in the sessions of calendar XNYS"):
        next_stamps(bars_at(pd.date_range(start, periods=3000, freq=freq), "BTC"), 3, ["XNYS"])


@pytest.mark.slow
def test_a_calendar_that_does_not_reach_is_told() -> None:
    end = exchange_calendars.get_calendar("XSHG").bound_max()
    sessions = exchange_calendars.get_calendar("XSHG", start=end - pd.Timedelta(days=90), end=end).sessions
    assert len(next_stamps(bars_at(sessions[:-5]), 5, ["XSHG"])) == 5
    with pytest.raises(SettingsError, match=r"calendar XSHG ends on .*, before 6 bars ahead"):
        next_stamps(bars_at(sessions[:-5]), 6, ["XSHG"])
    with pytest.raises(SettingsError, match="calendar XSHG is known from"):
        next_stamps(bars_at(pd.bdate_range("1985-01-01", periods=60)), 6, ["XSHG"])
    with pytest.raises(SettingsError, match="calendar XSHG is known from"):
        next_stamps(bars_at(pd.bdate_range(end + pd.Timedelta(days=400), periods=60)), 6, ["XSHG"])


# By the ticker's own schedule


def test_hourly_fx_rests_from_friday_afternoon_to_sunday_afternoon(tmp_path: Path) -> None:
    euro = read_frame(tmp_path, hourly_fx(), "EURUSD")
    assert euro.frame["timestamps"].iloc[-1] == pd.Timestamp("2024-04-26 16:00")  # a Friday
    hours = pd.date_range("2024-04-28 17:00", "2024-05-03 16:00", freq="h")
    assert (next_stamps(euro, len(hours) + 1, []) == hours.append(pd.DatetimeIndex(["2024-05-05 17:00"]))).all()


@pytest.mark.parametrize("weeks", range(1, 7))
def test_a_session_s_edge_that_moves_with_the_clocks_is_followed_and_never_doubled(weeks: int) -> None:
    """However long ago the clocks went forward, a day has seven bars; after three weeks, all at the new hours."""
    times = trading_times("XNYS", "2024-01-02", "2024-05-31", "60min", "UTC")
    now = pd.Timestamp("2024-03-12 18:00") + pd.Timedelta(weeks=weeks - 1)  # on a Tuesday
    stamps = next_stamps(bars_at(times[times < now], zone="UTC"), 40, [])
    whole_days = stamps.normalize().value_counts(sort=False).iloc[1:-1]
    assert len(whole_days) >= 4
    assert (whole_days == 7).all()
    if weeks > 3:
        assert {f"{stamp:%H:%M}" for stamp in stamps[7:]} == {f"{hour}:30" for hour in range(13, 20)}


def test_holidays_and_half_days_of_the_newest_weeks_are_not_repeated() -> None:
    times = trading_times("XNYS", "2024-09-03", "2024-12-03", "60min", "America/New_York")
    assert len(times[times >= pd.Timestamp("2024-11-28")]) == 4 + 2 * 7  # Thanksgiving, a half day, and two whole ones
    expected = [
        day + pd.Timedelta(hours=9.5 + bar) for day in pd.bdate_range("2024-12-04", periods=10) for bar in range(7)
    ]
    assert list(next_stamps(bars_at(times), 70, [])) == expected


def test_an_unfinished_last_bar_is_not_forecast_again() -> None:
    times = pd.date_range("2024-01-01", periods=500, freq="5min")
    odd = pd.DatetimeIndex([*times[:-1], times[-1] + pd.Timedelta(seconds=200)])
    assert next_stamps(bars_at(odd), 1, [])[0] == times[-1] + pd.Timedelta(minutes=5)
    days = pd.bdate_range("2024-01-01", periods=50)  # the last one a Friday
    today = pd.DatetimeIndex([*days[:-1], days[-1] + pd.Timedelta(hours=11)])
    assert next_stamps(bars_at(today), 1, [])[0] == days[-1] + pd.Timedelta(days=3)


@pytest.mark.parametrize("days", [1, 2, 3])
def test_a_file_of_some_days_goes_on_through_the_week(days: int) -> None:
    session = [
        day + pd.Timedelta(hours=9, minutes=5 * bar)
        for day in pd.bdate_range("2024-01-01", periods=days)
        for bar in range(72)
    ]
    stamps = next_stamps(bars_at(pd.DatetimeIndex(session)), 72 * 6, [])
    assert stamps[-1].normalize() == pd.bdate_range("2024-01-01", periods=days + 6)[-1]
    crypto = pd.date_range("2024-01-05", periods=288 * days, freq="5min")  # from a Friday on
    expected = pd.date_range(crypto[-1], periods=101, freq="5min")[1:]
    if days > 1:  # from a Friday alone nobody knows
        assert (next_stamps(bars_at(crypto), 100, []) == expected).all()


def test_bars_that_no_day_s_length_is_a_multiple_of_go_on_evenly() -> None:
    times = pd.date_range("2024-01-01", periods=3000, freq="7min")
    expected = pd.date_range(times[-1], periods=400, freq="7min")[1:]
    assert (next_stamps(bars_at(times), 399, []) == expected).all()


@pytest.mark.parametrize("freq", ["W-MON", "W-FRI", "MS", "ME", "BMS", "BME", "QS", "QE", "BQE", "YE", "3D", "2W-WED"])
@pytest.mark.parametrize("calendars", [[], ["XNYS"]])
def test_bars_slower_than_daily_keep_their_place(freq: str, calendars: list[str]) -> None:
    times = pd.date_range("2019-12-20 16:00", periods=60, freq=freq)
    stamps = next_stamps(bars_at(times[:30]), 30, calendars)
    assert (stamps == times[30:]).all()


def test_a_friday_that_was_a_holiday_does_not_move_weekly_and_monthly_bars() -> None:
    fridays = pd.date_range(end="2024-03-29", periods=40, freq="W-FRI")
    stamps = pd.DatetimeIndex([*fridays[:-1], pd.Timestamp("2024-03-28")])
    assert next_stamps(bars_at(stamps), 1, [])[0] == pd.Timestamp("2024-04-05")
    months = pd.date_range(end="2024-03-29", periods=40, freq="BME")
    stamps = pd.DatetimeIndex([*months[:-1], pd.Timestamp("2024-03-28")])
    assert next_stamps(bars_at(stamps), 1, [])[0] == pd.Timestamp("2024-04-30")


def test_monthly_bars_of_another_day_keep_it() -> None:
    times = pd.DatetimeIndex([f"2024-{month:02d}-15" for month in range(1, 10)])
    assert list(next_stamps(bars_at(times), 2, [])) == [pd.Timestamp("2024-10-15"), pd.Timestamp("2024-11-15")]


@pytest.mark.slow
@settings(max_examples=60)
@given(
    freq=st.sampled_from(["B", "D", "h", "5min", "4h", "W-TUE", "MS", "7min"]),
    bars=st.integers(2, 700),
    count=st.integers(1, 60),
    gone=st.lists(st.floats(0, 1), max_size=20),
    start=st.integers(0, 20_000),
)
def test_stamps_ahead_are_as_many_as_asked_after_the_last_bar_and_in_order(
    freq: str, bars: int, count: int, gone: list[float], start: int
) -> None:
    times = pd.date_range(pd.Timestamp("1980-01-01") + pd.Timedelta(days=start), periods=bars, freq=freq)
    present = np.ones(bars, np.bool_)
    present[[int(share * (bars - 1)) for share in gone]] = False
    present[[0, -1]] = True
    stamps = next_stamps(bars_at(times[present]), count, [])
    assert len(stamps) == count
    assert stamps[0] > times[-1]
    assert stamps.is_monotonic_increasing
    assert stamps.is_unique
