"""Artifacts of the plain command in the UI: the sensor reports them, once, and Dagster goes on from them."""

from __future__ import annotations

from dataclasses import dataclass

import dagster as dg
import pytest
from code_locations import TINY, Location, failed_steps

from kronos_pipeline.orchestration.automation import disk_sensor
from kronos_pipeline.orchestration.automation.disk_sensor import make_disk_sensor
from kronos_pipeline.run_training import main

pytestmark = pytest.mark.slow


@dataclass
class Sensor:
    """The sensor of a location; each call is a tick of the daemon."""

    location: Location
    tickers: list[str]
    cursor: str | None = None

    def tick(self) -> list[str]:
        """Return the assets and partitions that a tick reports."""
        before = self.reported()
        with dg.build_sensor_context(
            instance=self.location.instance,
            cursor=self.cursor,
            definitions=self.location.definitions,
            resources={"pipeline": self.location.settings},
        ) as context:
            self.cursor = make_disk_sensor(self.tickers).evaluate_tick(context).cursor
        after = self.reported()
        return sorted(after[number] for number in after.keys() - before.keys())

    def reported(self) -> dict[int, str]:
        """Return all materialisations by their number in the event log."""
        instance = self.location.instance
        return {
            record.storage_id: f"{key.to_user_string()}[{record.partition_key or ''}]"
            for key in instance.all_asset_keys()
            for record in instance.fetch_materializations(key, limit=100).records
        }


def train(location: Location, *flags: str) -> None:
    folders = ["--data-dir", str(location.data), "--output-dir", str(location.layout.root)]
    settings = [text for name, value in TINY.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*folders, "--model-name", str(location.base), *settings, *flags]) == 0


def test_what_the_command_made_is_reported_once_and_dagster_goes_on_from_it(location: Location) -> None:
    location.write("AAPL", "MSFT")
    train(location, "--adapter", "lora", "--stride", "8")
    sensor = Sensor(location, ["AAPL", "MSFT"])
    per_ticker = ("raw_bars", "windows", "adapter", "holdout_metrics")
    expected = {f"{asset}[{ticker}]" for asset in per_ticker for ticker in ("AAPL", "MSFT")}
    expected |= {"leaderboard[]", "adapter/AAPL[]", "adapter/MSFT[]"}
    assert set(sensor.tick()) == expected
    assert sensor.tick() == []
    sensor.cursor = None
    assert sensor.tick() == [], "a sensor that was reset reports nothing again"
    adapter = location.metadata("adapter", "AAPL")
    assert adapter["last bar"].startswith(location.metadata("raw_bars", "AAPL")["last bar"])
    assert location.metadata("windows", "AAPL")["train windows"] > 0
    assert "verdicts" in location.metadata("holdout_metrics", "AAPL")

    result = location.select(["adapter"], "AAPL")
    assert result.success, failed_steps(result)
    assert sensor.tick() == ["windows[AAPL]"], "cut anew for the run's stride; the adapter is the run's own"
    event = location.instance.get_latest_materialization_event(dg.AssetKey(["adapter", "AAPL"]))
    assert event is not None
    assert event.run_id == result.run_id


def test_a_file_that_an_unfinished_run_may_report_waits_for_its_end(location: Location) -> None:
    location.write("AAPL")
    run = location.instance.create_run_for_job(
        location.definitions.resolve_job_def("ingest"), status=dg.DagsterRunStatus.STARTED
    )
    assert location.run("ingest", "AAPL").success
    location.instance.wipe_assets([dg.AssetKey("raw_bars")])
    sensor = Sensor(location, ["AAPL"])
    assert sensor.tick() == []
    location.instance.report_run_failed(run)
    assert sensor.tick() == ["raw_bars[AAPL]"]


def test_a_damaged_artifact_is_left_to_whatever_loads_it(location: Location) -> None:
    location.write("AAPL")
    location.layout.bars("AAPL").parent.mkdir(parents=True)
    location.layout.bars("AAPL").write_bytes(b"damaged")
    assert Sensor(location, ["AAPL"]).tick() == []


def test_a_tick_ends_in_time_and_the_next_ticks_report_the_rest(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickers = ["AAPL", "MSFT", "NVDA"]
    location.write(*tickers)
    assert location.run("ingest", "AAPL", "NVDA").success
    location.instance.wipe_assets([dg.AssetKey("raw_bars"), dg.AssetKey("windows")])
    monkeypatch.setattr(disk_sensor, "SECONDS_PER_TICK", 0.0)
    sensor = Sensor(location, tickers)
    reported = [sensor.tick() for _ in range(7)]
    assert [len(events) for events in reported] == [1, 1, 1, 1, 1, 1, 0]
    assert {event for events in reported for event in events} == {
        f"{asset}[{ticker}]" for asset in ("raw_bars", "windows") for ticker in tickers
    }
