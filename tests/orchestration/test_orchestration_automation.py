"""Schedules and the CSV sensor, evaluated as the daemon evaluates them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pandas as pd
import pytest
from code_locations import BARS, Location

from kronos_pipeline.data.bars import load_bars, make_bars, save_bars
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.orchestration.automation.csv_sensor import make_csv_sensor
from kronos_pipeline.orchestration.automation.jobs import AutomationSettings, make_jobs, make_schedules
from kronos_pipeline.orchestration.automation.new_symbols import make_new_symbols_sensor
from kronos_pipeline.orchestration.partitions import RANGE_END, RANGE_START, split_into_runs, ticker_partitions

pytestmark = pytest.mark.slow

NIGHT = datetime(2026, 3, 4, 20, tzinfo=ZoneInfo("America/New_York"))


def ranges(requests: list[dg.RunRequest]) -> list[tuple[str | None, str, str]]:
    return [(request.job_name, request.tags[RANGE_START], request.tags[RANGE_END]) for request in requests]


def evaluate(schedule: dg.ScheduleDefinition) -> list[dg.RunRequest]:
    return list(schedule.evaluate_tick(dg.build_schedule_context(scheduled_execution_time=NIGHT)).run_requests or [])


class Folder:
    """A data folder and its sensor; each call is a tick."""

    def __init__(self, location: Location, *tickers: str, **settings: Any) -> None:
        self.location = location
        self.tickers = list(tickers)
        jobs = make_jobs(ticker_partitions(tickers))
        self.sensor = make_csv_sensor(location.data, tickers, jobs, AutomationSettings(**settings))
        self.cursor: str | None = None

    def tick(self) -> list[tuple[str | None, str, str]]:
        return ranges(list(self.result().run_requests or []))

    def result(self) -> Any:
        definitions = self.location.definitions
        with dg.build_sensor_context(
            instance=self.location.instance,
            cursor=self.cursor,
            definitions=definitions,
            resources={"pipeline": self.location.settings},
        ) as context:
            result = self.sensor.evaluate_tick(context)
        self.cursor = result.cursor
        return result

    def path(self, ticker: str) -> Path:
        return self.location.data / ticker / f"{ticker}.csv"

    def report_adapter(self, ticker: str, last_bar: str) -> None:
        self.location.instance.report_runless_asset_event(
            dg.AssetMaterialization("adapter", partition=ticker, metadata={"last bar": last_bar})
        )


def schedules_of(tickers: list[str], settings: AutomationSettings) -> dict[str, dg.ScheduleDefinition]:
    return {schedule.job_name: schedule for schedule in make_schedules(tickers, settings)}


@pytest.mark.parametrize("job", ["watch", "retrain_adapter", "promote_adapter"])
def test_scheduled_jobs_cover_the_sorted_tickers_in_chunks(job: str) -> None:
    tickers = [f"T{number:02}" for number in range(7)]
    requests = evaluate(schedules_of(tickers, AutomationSettings(tickers_per_run=3))[job])
    assert [job_range[1:] for job_range in ranges(requests)] == [("T00", "T02"), ("T03", "T05"), ("T06", "T06")]
    assert len({request.run_key for request in requests}) == 3


def test_the_checkpoint_is_retrained_over_all_tickers_in_one_run() -> None:
    tickers = [f"T{number:02}" for number in range(7)]
    schedule = schedules_of(tickers, AutomationSettings(tickers_per_run=3))["retrain_checkpoint"]
    assert [job_range[1:] for job_range in ranges(evaluate(schedule))] == [("T00", "T06")]


def test_schedules_run_in_the_markets_time_zone_when_the_settings_say() -> None:
    for schedule in make_schedules(["AAPL"], AutomationSettings(market_time_zone="Asia/Tokyo")):
        assert schedule.execution_timezone == "Asia/Tokyo"
    by_default = schedules_of(["AAPL"], AutomationSettings())
    assert {schedule.execution_timezone for schedule in by_default.values()} == {"America/New_York"}
    # Forecasts come before the night's training, and backtests, which train at every cutoff, run at the weekend.
    assert {job: schedule.cron_schedule for job, schedule in by_default.items()} == {
        "watch": "0 18 * * 1-5",
        "retrain_adapter": "0 20 * * 1-5",
        "retrain_checkpoint": "0 8 * * 6",
        "promote_adapter": "0 8 * * 0",
    }


def test_the_environment_sets_when_the_gate_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRONOS_PROMOTE_CRON", "0 9 1 * *")
    monkeypatch.setenv("KRONOS_WATCH_CRON", "30 17 * * 1-5")
    schedules = schedules_of(["AAPL"], AutomationSettings.from_environment())
    assert schedules["promote_adapter"].cron_schedule == "0 9 1 * *"
    assert schedules["watch"].cron_schedule == "30 17 * * 1-5"


def test_a_schedule_without_tickers_says_so_and_requests_nothing() -> None:
    for schedule in make_schedules([], AutomationSettings()):
        execution = schedule.evaluate_tick(dg.build_schedule_context(scheduled_execution_time=NIGHT))
        assert not execution.run_requests
        assert "Reload" in (execution.skip_message or "") or "reload" in (execution.skip_message or "")


def test_a_scheduled_request_runs_as_it_is(location: Location) -> None:
    location.write("AAPL", "MSFT")
    repository = location.definitions.get_repository_def()
    schedule = repository.get_schedule_def("adapters_on_weekday_nights")
    with dg.build_schedule_context(scheduled_execution_time=NIGHT, repository_def=repository) as context:
        (request,) = schedule.evaluate_tick(context).run_requests or []
    result = location.definitions.resolve_job_def("ingest").execute_in_process(
        instance=location.instance, tags=dict(request.tags)
    )
    assert result.success
    assert location.materialised("windows") == {"AAPL", "MSFT"}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KRONOS_MARKET_TIME_ZONE", "Mars/Olympus"),
        ("KRONOS_TICKERS_PER_RUN", "0"),
        ("KRONOS_RETRAIN_AFTER_BARS", "many"),
        ("KRONOS_WATCH_CRON", "at six"),
    ],
)
def test_a_setting_that_cannot_be_names_its_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable):
        AutomationSettings.from_environment()


def test_runs_cover_the_wanted_tickers_and_no_other() -> None:
    tickers = list("ABCDEFG")
    runs = split_into_runs({"A", "B", "D", "E", "F", "X"}, tickers, 2)
    assert [(tags[RANGE_START], tags[RANGE_END]) for tags in runs] == [("A", "B"), ("D", "E"), ("F", "F")]


def test_the_sensor_ingests_what_changed_and_only_that(location: Location) -> None:
    location.write("AAPL", "MSFT", "NVDA")
    folder = Folder(location, "AAPL", "MSFT", "NVDA")
    assert folder.tick() == [("ingest", "AAPL", "NVDA")]
    assert folder.tick() == []
    folder.path("MSFT").write_text(folder.path("MSFT").read_text() + "\n")
    assert folder.tick() == [("ingest", "MSFT", "MSFT")]


def test_a_change_of_any_file_of_a_ticker_is_ingested(location: Location) -> None:
    location.write("AAPL")
    file = location.data / "AAPL" / "AAPL.csv"
    header, *bars = file.read_text().splitlines(keepends=True)
    file.unlink()
    for year, part in ((2023, bars[:100]), (2024, bars[100:])):
        (location.data / f"AAPL_{year}.csv").write_text(header + "".join(part))
    folder = Folder(location, "AAPL")
    assert folder.tick() == [("ingest", "AAPL", "AAPL")]
    assert folder.tick() == []
    (location.data / "AAPL_2024.csv").write_text(header + "".join(bars[100:-1]))
    assert folder.tick() == [("ingest", "AAPL", "AAPL")]


def test_a_file_that_was_touched_and_not_changed_is_not_ingested(location: Location) -> None:
    location.write("AAPL")
    folder = Folder(location, "AAPL")
    folder.tick()
    before = folder.cursor
    os.utime(folder.path("AAPL"), (1_700_000_000, 1_700_000_000))
    assert folder.tick() == []
    assert folder.cursor != before, "its new time is kept, so that the next tick does not hash it again"


def test_enough_new_bars_ask_for_retraining_and_fewer_for_ingestion(location: Location) -> None:
    location.write("AAPL", "MSFT")
    folder = Folder(location, "AAPL", "MSFT", retrain_after_bars=5)
    stamps = pd.read_csv(folder.path("AAPL"))["timestamp"]
    folder.report_adapter("AAPL", stamps.iloc[-6])
    folder.report_adapter("MSFT", stamps.iloc[-5])
    assert folder.tick() == [("ingest", "MSFT", "MSFT"), ("retrain_adapter", "AAPL", "AAPL")]


def test_the_sensor_counts_in_the_stored_bars_where_a_file_has_not_changed_since(location: Location) -> None:
    location.write("AAPL")
    assert location.run("ingest", "AAPL").success
    stored = load_bars(location.layout.bars("AAPL"))
    folder = Folder(location, "AAPL", retrain_after_bars=5)
    folder.report_adapter("AAPL", stored.frame["timestamps"].iloc[-6].isoformat())
    save_bars(location.layout.bars("AAPL"), replace(stored, frame=stored.frame.assign(volume=1.0)))
    assert folder.tick() == [("retrain_adapter", "AAPL", "AAPL")]  # damaged bars do not keep it from counting
    known = make_bars("AAPL", stored.frame.head(-1), source=stored.source, csv_key=stored.csv_key)
    save_bars(location.layout.bars("AAPL"), known)
    folder.cursor = None
    assert folder.tick() == [("ingest", "AAPL", "AAPL")]


def test_a_run_says_which_of_its_csvs_have_not_changed(location: Location) -> None:
    location.write("AAPL", "MSFT", "NVDA")
    assert location.run("ingest", "AAPL", "NVDA").success
    location.add_bars("MSFT", 20)
    assert location.run("ingest", "AAPL", "NVDA").success
    unchanged = {ticker: location.metadata("raw_bars", ticker)["CSV unchanged"] for ticker in ("AAPL", "MSFT", "NVDA")}
    assert unchanged == {"AAPL": True, "MSFT": False, "NVDA": True}
    assert location.metadata("windows", "MSFT")["dagster/row_count"] > 0
    assert len(load_bars(location.layout.bars("MSFT"))) == BARS + 20


def test_a_ticker_without_an_adapter_is_ingested_and_not_trained(location: Location) -> None:
    location.write("AAPL")
    assert Folder(location, "AAPL", retrain_after_bars=1).tick() == [("ingest", "AAPL", "AAPL")]


def test_a_changed_file_that_is_bad_is_ingested_so_that_its_failure_is_seen(location: Location) -> None:
    location.write("AAPL")
    folder = Folder(location, "AAPL", retrain_after_bars=1)
    folder.report_adapter("AAPL", "2021-01-04")
    location.write_bad("AAPL")
    assert folder.tick() == [("ingest", "AAPL", "AAPL")]


def test_the_sensor_names_symbols_that_need_a_reload_and_files_that_make_none(location: Location) -> None:
    location.write("AAPL", "GONE")
    folder = Folder(location, "AAPL", "GONE")
    folder.tick()
    location.write("NEW")
    folder.path("GONE").unlink()
    (location.data / "a b.csv").write_text("x")
    message = folder.result().skip_message or ""
    assert "New in the folder: NEW. Reload" in message
    assert "No longer in the folder: GONE" in message
    assert "a b.csv" in message


def test_a_folder_that_is_away_is_skipped_and_what_was_seen_is_kept(location: Location) -> None:
    location.write("AAPL")
    folder = Folder(location, "AAPL")
    folder.tick()
    cursor = folder.cursor
    location.data.rename(location.root / "elsewhere")
    assert "no such folder" in (folder.result().skip_message or "")
    (location.root / "elsewhere").rename(location.data)
    folder.cursor = cursor
    assert folder.tick() == []


def new_symbols(location: Location, tickers: list[str], cursor: str | None = None, ui: str | None = None) -> Any:
    """Evaluate a tick of the sensor of new symbols, in a code location that was loaded with some tickers."""
    automation = AutomationSettings.model_validate({"dagster_ui": ui})
    sensor = make_new_symbols_sensor(location.data, tickers, make_jobs(ticker_partitions(tickers)), automation)
    return location.tick(sensor, cursor)


def test_a_new_symbol_is_ingested_as_soon_as_the_reloaded_code_location_knows_it(location: Location) -> None:
    location.write("AAPL", "NEW")
    assert "is a partition" in (new_symbols(location, ["AAPL", "NEW"]).skip_message or "")
    before = new_symbols(location, ["AAPL"], json.dumps({"asked": ["NEW"]}))
    assert "NEW: no partition even after a reload" in (before.skip_message or ""), "it is not reloaded for ever"
    after = new_symbols(location, ["AAPL", "NEW"], json.dumps({"asked": ["NEW"]}))
    assert ranges(list(after.run_requests)) == [("ingest", "NEW", "NEW")]
    assert "is a partition" in (new_symbols(location, ["AAPL", "NEW"], after.cursor).skip_message or "")


@pytest.mark.parametrize(
    ("ui", "message"),
    [
        (None, "set KRONOS_DAGSTER_UI to the address of Dagster's UI"),
        ("localhost", "KRONOS_DAGSTER_UI is 'localhost', which is no address such as"),
        ("http://127.0.0.1:9", "The UI at http://127.0.0.1:9 did not reload it"),
    ],
)
def test_without_a_ui_that_can_reload_a_line_says_what_to_do(location: Location, ui: str | None, message: str) -> None:
    location.write("AAPL", "NEW")
    result = new_symbols(location, ["AAPL"], ui=ui)
    assert "New in the data folder: NEW" in (result.skip_message or "")
    assert message in (result.skip_message or "")
    assert "reload the code location (Deployment, Code locations, Reload)" in (result.skip_message or "")
    assert not result.cursor, "the next tick tries again"
