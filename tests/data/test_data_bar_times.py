"""Daily bars have the dates of the exchange, a forming bar is left out, two sizes of bars are refused."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from market_files import NOW

from kronos_pipeline.data.bar_times import BarTimes, arrange_bars

DAYS = pd.date_range("2023-01-03", periods=400, freq="B")
CASES = settings(max_examples=60)


def arrange(
    times: Iterable[pd.Timestamp], zone: str | None = None, now: pd.Timestamp = NOW, *, keep_forming: bool = False
) -> BarTimes:
    index = pd.DatetimeIndex(list(times)).as_unit("ns")
    return arrange_bars(index.to_numpy(), zone, now, keep_forming=keep_forming)


def session(days: pd.DatetimeIndex, freq: str, begin: str = "09:30", end: str = "16:00") -> list[pd.Timestamp]:
    """Bars from the beginning of each day's session to before its end."""
    slots = [
        slot for slot in pd.timedelta_range(f"{begin}:00", f"{end}:00", freq=freq) if slot < pd.Timedelta(f"{end}:00")
    ]
    return [day + slot for day in days for slot in slots]


def at(times: Iterable[pd.Timestamp], zone: str) -> pd.DatetimeIndex:
    """Local times of a zone in UTC, without a zone."""
    index = pd.DatetimeIndex(list(times))
    local = index.tz_localize(zone, ambiguous=np.ones(len(index), np.bool_))
    return local.tz_convert("UTC").tz_localize(None)


def is_plain(arranged: BarTimes) -> bool:
    return not arranged.problems and not arranged.notes and arranged.forming is None and not arranged.temporary


# dates of daily bars


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["XNYS", "XLON", "XFRA", "XTKS", "XHKG", "XBOM", "XASX", "XNZE", "XTAE", "CMES", "BVMF"]
)
@pytest.mark.parametrize("stamped", ["opening", "midnight"])
def test_daily_bars_stamped_in_utc_have_the_exchanges_dates_over_a_year(name: str, stamped: str) -> None:
    import exchange_calendars

    calendar = exchange_calendars.get_calendar(name, start="2023-01-02", end="2023-12-31")
    opens = calendar.opens.dt.tz_convert("UTC").dt.tz_localize(None)
    midnights = calendar.sessions.tz_localize(calendar.tz, ambiguous=np.True_, nonexistent="shift_forward")
    stamps = opens if stamped == "opening" else midnights.tz_convert("UTC").tz_localize(None)

    arranged = arrange(stamps, "UTC")

    assert list(arranged.times) == list(calendar.sessions.as_unit("ns").to_numpy())
    assert arranged.problems == ()
    assert arranged.forming is None
    dates_differ = bool((pd.DatetimeIndex(stamps).normalize() != calendar.sessions).any())
    assert arranged.zone == (None if dates_differ else "UTC")


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize("freq", ["W-MON", "MS"])
def test_weeks_and_months_stamped_at_local_midnight_in_utc_keep_their_first_day(zone: str, freq: str) -> None:
    days = pd.date_range("2018-01-01", periods=60, freq=freq)
    assert list(arrange(at(days, zone), "UTC").times) == list(days.to_numpy())


def test_sunday_is_a_day_of_trading_where_bars_open_in_the_morning() -> None:
    days = pd.date_range("2023-01-01", periods=300, freq="D")
    days = days[np.isin(days.weekday, [6, 0, 1, 2, 3])]
    assert list(arrange(days + pd.Timedelta(hours=7), "UTC").times) == list(days.to_numpy())


def test_bars_of_every_day_of_the_week_keep_their_dates() -> None:
    days = pd.date_range("2023-01-01", periods=300, freq="D")
    assert list(arrange(days + pd.Timedelta(hours=15), "UTC").times) == list(days.to_numpy())


@pytest.mark.parametrize("freq", ["12h", "8h", "1h"])
def test_several_sessions_a_day_keep_their_times(freq: str) -> None:
    times = pd.date_range("2024-01-01 01:00", periods=300, freq=freq)
    assert list(arrange(times).times) == list(times.to_numpy())


def test_a_second_bar_of_a_date_is_refused_in_mid_file() -> None:
    times = sorted([*DAYS, DAYS[100] + pd.Timedelta("16:00:01")])
    assert arrange(times).problems == (
        (101, "a second bar of a date of daily bars, at 16:00:01 beside 00:00:00; remove one of both"),
    )


# a forming last bar


@pytest.mark.parametrize("keep", [False, True])
def test_a_last_bar_with_a_time_of_day_of_its_own_is_left_out_or_kept(keep: bool) -> None:
    arranged = arrange([*DAYS[:-1], DAYS[-1] + pd.Timedelta("11:42:07")], keep_forming=keep)

    assert arranged.forming == (None if keep else 399)
    assert list(arranged.times) == list(DAYS.to_numpy())
    bar, note = arranged.notes[-1]
    assert bar == 399
    assert "2024-07-15 11:42:07, is still forming and is " + ("kept" if keep else "left out") in note
    assert not arranged.temporary


def test_the_second_bar_of_the_last_date_is_left_out_at_any_rate() -> None:
    arranged = arrange([*DAYS, DAYS[-1] + pd.Timedelta("16:00:01")], keep_forming=True)
    assert arranged.forming == 400


def test_daylight_saving_on_the_last_day_is_no_forming_bar() -> None:
    days = pd.date_range("2023-11-10", "2024-03-11", freq="B")
    assert arrange(at(days + pd.Timedelta(hours=9.5), "America/New_York"), "UTC").forming is None


@pytest.mark.parametrize(("days_after", "forming"), [(7, False), (8, False), (6, False), (2, True), (5, True)])
def test_a_week_that_begins_too_early_is_forming(days_after: int, forming: bool) -> None:
    weeks = pd.date_range("2023-01-02", periods=60, freq="7D")
    arranged = arrange([*weeks, weeks[-1] + pd.Timedelta(days=days_after)])
    assert arranged.forming == (60 if forming else None)


def test_a_month_that_begins_too_early_is_forming() -> None:
    months = pd.date_range("2020-01-01", periods=40, freq="MS")
    assert arrange([*months, months[-1] + pd.Timedelta(days=12)]).forming == 40
    assert arrange(months).forming is None


def test_an_intraday_bar_off_the_grid_of_the_others_is_forming() -> None:
    times = session(DAYS[:20], "5min")
    assert arrange([*times[:-1], times[-1] - pd.Timedelta("00:02:13")]).forming == len(times) - 1


@pytest.mark.parametrize(
    ("hours", "forming", "temporary"), [(14, True, True), (15.9, True, True), (17, False, True), (24, False, False)]
)
def test_a_daily_bar_of_today_is_forming_until_the_exchange_closes(
    hours: float, forming: bool, temporary: bool
) -> None:
    now = (DAYS[-1] + pd.Timedelta(hours=hours)).tz_localize("UTC-05:00")
    arranged = arrange(DAYS, "UTC-05:00", now)
    assert (arranged.forming == 399) is forming
    assert arranged.temporary is temporary


def test_a_day_of_a_market_without_weekends_is_forming_until_midnight() -> None:
    days = pd.date_range("2024-01-01", periods=100)
    assert arrange(days, "UTC", (days[-1] + pd.Timedelta(hours=23.9)).tz_localize("UTC")).forming == 99
    assert is_plain(arrange(days, "UTC", (days[-1] + pd.Timedelta(hours=24)).tz_localize("UTC")))


@pytest.mark.parametrize(("day", "forming"), [(3, True), (5.5, False), (7, False)])
def test_a_week_is_forming_until_its_friday(day: float, forming: bool) -> None:
    weeks = pd.date_range("2023-01-02", periods=60, freq="7D")
    now = (weeks[-1] + pd.Timedelta(days=day)).tz_localize("UTC")
    assert (arrange(weeks, "UTC", now).forming == 59) is forming


def test_weeks_named_after_their_friday_are_over_on_that_day() -> None:
    weeks = pd.date_range("2023-01-06", periods=60, freq="7D")
    assert is_plain(arrange(weeks, "UTC", (weeks[-1] + pd.Timedelta(days=1)).tz_localize("UTC")))


# two sizes of bars

SIZES = {
    "month": pd.date_range("2005-01-01", periods=60, freq="MS"),
    "week": pd.date_range("2010-01-04", periods=100, freq="7D"),
    "day": DAYS[:200],
    "hour": pd.DatetimeIndex(session(DAYS[200:240], "1h")),
    "15 minutes": pd.DatetimeIndex(session(DAYS[300:320], "15min")),
    "5 minutes": pd.DatetimeIndex(session(DAYS[320:340], "5min")),
}


@CASES
@example("hour", "day", 50, 54)  # the first date has one bar
@example("15 minutes", "hour", 53, 60)
@given(st.sampled_from(list(SIZES)), st.sampled_from(list(SIZES)), st.integers(20, 60), st.integers(20, 200))
def test_a_change_of_size_is_found_at_the_first_bar_of_the_other_size(
    first: str, second: str, before: int, after: int
) -> None:
    assume(first != second)
    first_stamps, second_stamps = SIZES[first], SIZES[second]
    # Coarser bars of a day are rare trades if they are few.
    assume(min(before, after) >= 26 or "day" in (first, second))
    first_stamps = first_stamps[-before:]
    gap = first_stamps[-1].normalize() + pd.offsets.BDay(1)
    second_stamps = (
        second_stamps - second_stamps[0].normalize() + gap
        if second not in ("month", "week")
        else second_stamps - second_stamps[0] + gap
    )
    second_stamps = second_stamps[:after]

    problems = arrange([*first_stamps, *second_stamps]).problems

    assert len(problems) == 1
    bar, rule = problems[0]
    assert abs(bar - len(first_stamps)) <= 1
    assert "change to" in rule


def test_two_bars_a_day_after_daily_bars_are_another_size() -> None:
    times = [*DAYS[:300], *session(DAYS[300:], "4h")]
    assert [bar for bar, _ in arrange(times).problems] == [300]
    assert is_plain(arrange(session(DAYS, "4h")))


@pytest.mark.slow
@settings(max_examples=30)
@given(
    st.integers(0, 10_000), st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.7, 0.95]), st.sampled_from(["5min", "30min", "1h"])
)
def test_rare_trades_in_early_months_are_not_another_size(seed: int, share: float, freq: str) -> None:
    rng = np.random.default_rng(seed)
    full = int(rng.integers(20, 180))
    times = [time for time in session(DAYS[:200], freq) if rng.random() < (0.98 if time >= DAYS[full] else share)]
    assert arrange(times).problems == ()


def test_holidays_half_days_and_weekends_are_not_another_size() -> None:
    rng = np.random.default_rng(0)
    weeks = pd.date_range("2014-01-06", periods=400, freq="7D") + pd.to_timedelta(
        (rng.random(400) < 0.05).astype(int), unit="D"
    )
    assert is_plain(arrange(weeks))
    assert is_plain(arrange([time for time in session(DAYS, "30min") if time.day != 24 or time.hour < 13]))
    assert is_plain(arrange(DAYS[rng.random(len(DAYS)) < 0.96]))


# moved sessions


def test_a_session_that_moves_in_mid_file_is_told_with_its_bar() -> None:
    times = [*session(DAYS[:30], "1h", "13:30", "20:00"), *session(DAYS[30:60], "1h")]
    assert arrange(times).notes == (
        (210, "the session moves from 13:30:00-19:30:00 to 09:30:00-15:30:00, as if the time zone changed"),
    )
    assert arrange(times, "UTC").notes == ()


def test_daylight_saving_is_told_as_what_it_is_without_a_zone_only() -> None:
    times = at(session(DAYS, "30min"), "America/New_York")
    [(bar, note)] = arrange(times).notes
    assert times[bar or 0].date() == pd.Timestamp("2023-03-13").date()
    assert "daylight saving" in note
    assert arrange(times, "UTC").notes == ()


def test_few_bars_are_as_they_are() -> None:
    for count in range(3):
        assert is_plain(arrange(DAYS[:count]))
