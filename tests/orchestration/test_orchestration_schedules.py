"""Schedules on holidays, over daylight saving, and after a week without power."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from code_locations import Location
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import create_test_daemon_workspace_context, freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.load_target import WorkspaceLoadTarget
from dagster._scheduler.scheduler import launch_scheduled_runs

from kronos_pipeline.orchestration.automation.jobs import AutomationSettings, make_schedules
from kronos_pipeline.orchestration.partitions import RANGE_END, RANGE_START

pytestmark = pytest.mark.slow

NEW_YORK = ZoneInfo("America/New_York")
NIGHTS = "adapters_on_weekday_nights"


def tick(tickers: list[str], calendars: list[str], *day: int, name: str = NIGHTS, hour: int = 20) -> Any:
    """Evaluate the tick of a schedule at an hour of a day in New York."""
    schedules = {schedule.name: schedule for schedule in make_schedules(tickers, AutomationSettings(), calendars)}
    at = datetime(*day, hour, tzinfo=NEW_YORK)  # type: ignore[arg-type,misc]
    return schedules[name].evaluate_tick(dg.build_schedule_context(scheduled_execution_time=at))


def requested(result: Any) -> list[tuple[str, str]]:
    return [(request.tags[RANGE_START], request.tags[RANGE_END]) for request in result.run_requests or []]


def test_a_night_without_a_session_is_skipped_with_the_reason_and_half_a_day_is_a_session() -> None:
    christmas = tick(["AAPL", "MSFT"], ["XNYS"], 2026, 12, 25)
    assert requested(christmas) == []
    assert christmas.skip_message == "AAPL, MSFT: XNYS has ended no session since 2026-12-24 20:00"
    assert requested(tick(["AAPL", "MSFT"], ["XNYS"], 2026, 12, 24)) == [("AAPL", "MSFT")]


def test_each_ticker_follows_its_own_calendar_and_one_without_follows_the_cron() -> None:
    tickers = ["AAPL", "BTC", "FUND", "SONY"]
    calendars = ["AAPL=XNYS", "BTC=24/7", "SONY=XTKS"]
    assert requested(tick(tickers, calendars, 2026, 12, 25)) == [("BTC", "SONY")]
    assert requested(tick(tickers, calendars, 2026, 12, 31)) == [("AAPL", "FUND")], "Tokyo rests before New York"
    assert requested(tick(tickers, [], 2026, 12, 25)) == [("AAPL", "SONY")]


def test_the_checkpoint_trains_on_all_tickers_if_any_exchange_had_a_session() -> None:
    weekly = tick(["AAPL", "SONY"], ["AAPL=XNYS", "SONY=XTKS"], 2026, 1, 3, name="checkpoint_weekly", hour=8)
    assert requested(weekly) == [("AAPL", "SONY")]


@pytest.mark.parametrize(("day", "utc_hour"), [((2026, 3, 6), 1), ((2026, 3, 9), 0), ((2026, 11, 2), 1)])
def test_a_night_is_at_eight_in_the_evening_of_the_market_in_winter_and_in_summer(
    day: tuple[int, ...], utc_hour: int
) -> None:
    result = tick(["AAPL"], ["XNYS"], *day)
    assert requested(result) == [("AAPL", "AAPL")]
    assert datetime.fromisoformat(result.run_requests[0].run_key.split(" ")[0]).astimezone(ZoneInfo("UTC")).hour == (
        utc_hour
    )


class OneFile(WorkspaceLoadTarget):
    """A workspace of a Python file, loaded in this process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create_origins(self) -> list[InProcessCodeLocationOrigin]:
        target = LoadableTargetOrigin(python_file=str(self._path), attribute="defs", working_directory=None)
        return [InProcessCodeLocationOrigin(target, location_name="kronos")]


@pytest.fixture
def workspace(tmp_path: Path, location: Location) -> Iterator[Any]:
    """Yield a daemon's workspace of a location with AAPL and the calendar XNYS, on an instance that queues runs."""
    location.write("AAPL")
    file = tmp_path / "scheduled.py"
    file.write_text(
        "from kronos_pipeline.definitions import build\n"
        "from kronos_pipeline.orchestration.automation.jobs import AutomationSettings\n"
        "from kronos_pipeline.orchestration.resources import PipelineSettings, with_defaults\n"
        f"settings = {{'data_dir': {str(location.data)!r}, 'calendars': ['XNYS']}}\n"
        "defs = build(with_defaults(PipelineSettings, settings), AutomationSettings())\n"
    )
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with (
        dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance,
        create_test_daemon_workspace_context(OneFile(file), instance) as context,
    ):
        yield context


def scheduled_times(workspace: Any, *now: int) -> list[str]:
    """Let the scheduler look at a time in New York, and return the scheduled times of all runs so far."""
    at = datetime(*now, tzinfo=NEW_YORK).astimezone(ZoneInfo("UTC"))  # type: ignore[arg-type,misc]
    with freeze_time(at):
        list(launch_scheduled_runs(workspace, logging.getLogger("scheduler"), at, {}))
    times = [run.tags[".dagster/scheduled_execution_time"] for run in workspace.instance.get_runs()]
    return sorted(f"{datetime.fromisoformat(time).astimezone(NEW_YORK):%m-%d %H:%M}" for time in times)


def test_a_week_of_missed_nights_is_caught_up_once_even_if_the_last_was_a_holiday(workspace: Any) -> None:
    location = next(iter(workspace.create_request_context().code_locations))
    schedule = location.get_repository("__repository__").get_schedule(NIGHTS)
    with freeze_time(datetime(2026, 12, 17, 12, tzinfo=NEW_YORK)):
        workspace.instance.start_schedule(schedule)
    assert scheduled_times(workspace, 2026, 12, 17, 21) == ["12-17 20:00"]
    # Asleep from the 18th; the last missed night is Christmas, but six sessions have ended since the last run.
    assert scheduled_times(workspace, 2026, 12, 26, 9) == ["12-17 20:00", "12-25 20:00"]
    assert scheduled_times(workspace, 2026, 12, 26, 10) == ["12-17 20:00", "12-25 20:00"]
