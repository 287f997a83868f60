"""Thousands of tickers: what a tick reads, asks and leaves behind does not grow with them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
from code_locations import Location, failed_steps
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from PIL import Image

from kronos_pipeline.orchestration import ticker_batch
from kronos_pipeline.orchestration.automation.csv_sensor import make_csv_sensor
from kronos_pipeline.orchestration.automation.drift_sensor import make_drift_sensor
from kronos_pipeline.orchestration.automation.jobs import AutomationSettings, make_jobs
from kronos_pipeline.orchestration.instance import old_runs
from kronos_pipeline.orchestration.messages.summary import read_events
from kronos_pipeline.orchestration.metadata import DRIFTED, FINDING, KIND, inline_image
from kronos_pipeline.orchestration.partitions import ticker_partitions

pytestmark = pytest.mark.slow

FEW, MANY = 2, 40
_ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("test"), "__repository__"), "all")


@contextmanager
def counted_queries() -> Iterator[list[str]]:
    """Collect the statements that reach any database during the block."""
    statements: list[str] = []

    def collect(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", collect)
    try:
        yield statements
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "before_cursor_execute", collect)


def tickers_of(number: int) -> list[str]:
    return [f"T{index:03}" for index in range(number)]


def instance_of(number: int) -> dg.DagsterInstance:
    """Return an instance with a measurement of drift, a training and an asset of its own of each ticker."""
    instance = dg.DagsterInstance.ephemeral()
    for ticker in tickers_of(number):
        finding: dict[str, Any] = {DRIFTED: False, FINDING: "", KIND: "adapter"}
        instance.report_runless_asset_event(dg.AssetMaterialization("drift", partition=ticker, metadata=finding))
        instance.report_runless_asset_event(dg.AssetMaterialization("adapter", partition=ticker))
        instance.report_runless_asset_event(dg.AssetMaterialization(["adapter", ticker]))
    return instance


def drift_tick(instance: dg.DagsterInstance, number: int, cursor: str | None = None) -> str:
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    data = make_drift_sensor(tickers_of(number), [], AutomationSettings()).evaluate_tick(context)
    assert data.cursor is not None
    return data.cursor


def test_a_tick_of_drift_a_summary_and_a_clean_up_ask_no_query_per_ticker() -> None:
    queries: dict[int, list[int]] = {}
    for number in (FEW, MANY):
        instance, now = instance_of(number), datetime.now(UTC)
        run = dg.DagsterRun("ingest", status=dg.DagsterRunStatus.SUCCESS)
        instance.run_storage.add_run(run)
        counts = []
        with counted_queries() as statements:
            drift_tick(instance, number)
            counts.append(len(statements))
            trained = read_events(instance, tickers_of(number), now - timedelta(days=1))["trained"]
            counts.append(len(statements))
            assert old_runs(instance, now + timedelta(days=1)) == [run.run_id]
            counts.append(len(statements))
        assert len(trained) == number
        queries[number] = counts
    assert queries[FEW] == queries[MANY]


def test_the_cursor_of_a_sensor_is_as_short_for_many_tickers_and_names_what_was_seen(location: Location) -> None:
    location.write(*tickers_of(4))

    def tick(tickers: list[str], cursor: str | None) -> Any:
        sensor = make_csv_sensor(location.data, tickers, make_jobs(ticker_partitions(tickers)), AutomationSettings())
        return location.tick(sensor, cursor)

    one, four = tick(tickers_of(1), None), tick(tickers_of(4), None)
    assert len(one.cursor) == len(four.cursor) == 64
    assert (len(one.run_requests), len(four.run_requests)) == (1, 1)
    known = tick(tickers_of(4), four.cursor)
    assert (known.run_requests, known.cursor) == ([], four.cursor)
    location.add_bars("T002", 1)
    changed = tick(tickers_of(4), known.cursor)
    assert len(changed.run_requests) == 1
    assert changed.cursor != known.cursor
    again = tick(tickers_of(4), known.cursor)
    assert len(again.run_requests) == 1, "a tick that Dagster lost is repeated from the state before it"
    assert tick(tickers_of(4), again.cursor).run_requests == []
    assert len(tick(tickers_of(4), None).run_requests) == 1, "a sensor that was reset begins anew"


def test_a_cursor_of_an_earlier_version_still_holds() -> None:
    instance = instance_of(1)
    records = instance.fetch_materializations(dg.AssetKey("drift"), limit=1).records
    asked: dict[str, Any] = {DRIFTED: True, FINDING: "known", KIND: "adapter"}
    instance.report_runless_asset_event(dg.AssetMaterialization("drift", partition="T000", metadata=asked))
    context = dg.build_sensor_context(instance=instance, cursor=f'{{"T000": [{records[0].storage_id}, "known"]}}')
    data = make_drift_sensor(["T000"], [], AutomationSettings()).evaluate_tick(context)
    assert data.run_requests == []


@pytest.mark.parametrize(("most", "shown"), [(2, {"loss", "picture"}), (1, {"loss"})])
def test_beyond_a_thousand_tickers_events_hold_no_pictures(
    most: int, shown: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticker_batch, "MOST_WITH_PICTURES", most)
    encoded = io.BytesIO()
    Image.new("RGB", (2, 2)).save(encoded, "PNG")

    @dg.asset(partitions_def=ticker_partitions(["AAPL", "MSFT"]))
    def made(context) -> Any:  # type: ignore[no-untyped-def]
        batch = ticker_batch.TickerBatch(context)
        batch.add("AAPL", "made", {"loss": 1, "picture": inline_image(encoded.getvalue(), "a picture")})
        yield from batch.events()

    result = dg.materialize([made], partition_key="AAPL")
    [event] = result.asset_materializations_for_node("made")
    assert shown <= set(event.metadata)
    assert ("picture" in event.metadata) is ("picture" in shown)


def test_the_leaderboard_over_all_tickers_is_left_to_the_last_run_that_waits(location: Location) -> None:
    location.write("AAPL")
    job = location.definitions.get_implicit_global_asset_job_def()
    waiting = location.instance.create_run_for_job(job, remote_job_origin=_ORIGIN, status=dg.DagsterRunStatus.QUEUED)
    assert location.select(["leaderboard"], "AAPL").success
    assert location.instance.get_latest_materialization_event(dg.AssetKey("leaderboard")) is None
    location.instance.report_run_canceled(waiting)
    last = location.select(["leaderboard"], "AAPL")
    assert "No symbol has been evaluated" in failed_steps(last)["leaderboard"], "nothing waits, so it is made"
