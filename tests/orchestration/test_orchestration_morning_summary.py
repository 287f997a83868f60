"""Being told: the morning summary and failed runs, sent to a real HTTP server and shown in the UI."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest
from code_locations import Location

from kronos_pipeline.definitions import build
from kronos_pipeline.orchestration.automation.jobs import AutomationSettings
from kronos_pipeline.orchestration.messages.failure_sensor import make_failure_sensor
from kronos_pipeline.orchestration.messages.notifications import notify
from kronos_pipeline.orchestration.messages.summary import Entry, markdown_of, read_events, run_link, title_of

pytestmark = pytest.mark.slow

HIDDEN = "T0PSECRET"


class Service(HTTPServer):
    """A service that takes messages, or refuses them while it is away."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.away = False
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"json://user:{HIDDEN}@127.0.0.1:{self.server_port}/{HIDDEN}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:  # the name is http.server's
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Service)
        if not self.server.away:
            self.server.messages.append(json.loads(body))
        self.send_response(500 if self.server.away else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def settings(urls: str = "") -> AutomationSettings:
    return AutomationSettings.model_validate({"notify_urls": urls, "dagster_ui": "http://dagster.example"})


def sum_up(location: Location, urls: str = "") -> tuple[dg.ExecuteInProcessResult, dict[str, Any]]:
    job = build(location.settings, settings(urls)).resolve_job_def("sum_up")
    result = job.execute_in_process(instance=location.instance)
    return result, location.metadata("morning_summary")


def warnings_of(location: Location, result: dg.ExecuteInProcessResult) -> list[str]:
    return [entry.user_message for entry in location.instance.all_logs(result.run_id) if entry.level == 30]


def test_the_summary_names_what_failed_with_its_reason_and_a_link_and_is_sent(
    location: Location, service: Service
) -> None:
    location.write("AAPL")
    location.write_bad("MSFT")
    failed = location.run("ingest", "AAPL", "MSFT")
    trained = dg.AssetMaterialization("adapter", partition="AAPL")
    location.instance.report_runless_asset_event(trained)
    result, metadata = sum_up(location, service.url)
    assert result.success
    [message] = service.messages
    assert message["title"].endswith("1 trained, 1 failed")
    assert "MSFT.csv:2: close: must be a number" in message["message"]
    assert f"(http://dagster.example/runs/{failed.run_id})" in message["message"]
    assert "AAPL: by the command line" in message["message"]
    assert f"(/runs/{failed.run_id})" in metadata["text"], "a link inside the UI"
    assert metadata["sent to"] == "1 service"
    _, again = sum_up(location, service.url)
    assert again["summary"].endswith("nothing happened"), "each summary begins where the last ended"


def test_a_service_that_is_away_is_a_warning_and_the_next_summary_tells_it_again(
    location: Location, service: Service
) -> None:
    location.write_bad("MSFT")
    location.run("ingest", "MSFT")
    service.away = True
    result, _ = sum_up(location, service.url)
    assert result.success
    [warning] = [text for text in warnings_of(location, result) if "delivered" in text]
    assert "address 1 of KRONOS_NOTIFY_URLS (JSON) did not take the message" in warning
    service.away = False
    sum_up(location, service.url)
    assert service.messages[0]["title"].endswith("1 failed")


def test_an_address_is_shown_nowhere(
    location: Location, service: Service, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    location.write("AAPL")
    service.away = True
    result, metadata = sum_up(location, f"{service.url}, nonsense://{HIDDEN}")
    delivery = notify(f"{service.url}, nonsense://{HIDDEN}", "a", "b")
    events = "".join(
        f"{entry.user_message}{entry.dagster_event}" for entry in location.instance.all_logs(result.run_id)
    )
    tags = str(location.instance.get_runs()[0].tags)
    written = "".join(capfd.readouterr())
    assert HIDDEN not in f"{delivery}{events}{tags}{metadata}{caplog.text}{written}{settings(service.url)!r}"
    assert [problem.startswith(f"address {number} of") for number, problem in enumerate(delivery.problems, 1)] == [
        True,
        True,
    ]


def test_without_an_address_nothing_is_sent_and_the_summary_is_in_the_ui(location: Location) -> None:
    location.write("AAPL")
    result, metadata = sum_up(location)
    assert result.success
    assert metadata["text"] == "Nothing was trained, and nothing failed."
    assert "KRONOS_NOTIFY_URLS is not set" in metadata["sent to"]
    assert not [text for text in warnings_of(location, result) if "delivered" in text]


def test_the_gates_decisions_and_drift_are_told_with_their_reasons(location: Location) -> None:
    instance, tickers = location.instance, ["AAPL", "AMD", "META", "MSFT"]
    for ticker in tickers:
        promoted = ticker == "META"
        decision: dict[str, Any] = {
            "promoted": promoted,
            "champion of": "mean",
            "why not": "mean: 1 cutoff, and a verdict needs 8",
        }
        instance.report_runless_asset_event(dg.AssetMaterialization("champion", partition=ticker, metadata=decision))
    drift: dict[str, Any] = {"drifted": True, "summary": "kronos-META version 3: drifted in mean"}
    instance.report_runless_asset_event(dg.AssetMaterialization("drift", partition="META", metadata=drift))
    summary = read_events(instance, tickers, datetime.now(UTC) - timedelta(hours=1))
    assert title_of(summary) == "1 promoted, 3 skipped, 1 drifting"
    text = markdown_of(summary, run_link(None))
    assert "- META: champion of mean" in text
    assert "- AAPL, AMD, MSFT: not promoted; mean: 1 cutoff, and a verdict needs 8" in text
    assert "- META: kronos-META version 3: drifted in mean" in text
    assert read_events(instance, tickers, datetime.now(UTC) + timedelta(hours=1))["promoted"] == []


def test_many_failures_of_one_cause_are_one_short_line() -> None:
    entries = [Entry(f"T{number:03}", f"port {number} refused", f"run{number}") for number in range(300)]
    text = markdown_of({"failed": entries}, run_link(None))
    assert "300 tickers, T000, T001, T002 and 297 more: port 0 refused (T000; the others likewise)" in text
    assert "(run run0 and 299 more runs)" in text
    assert len(text) < 200


def test_failed_runs_are_told_once_by_cause_and_again_if_nobody_was_there(location: Location, service: Service) -> None:
    location.write("AAPL")
    sensor, cursor = make_failure_sensor(settings(service.url)), None
    job = location.definitions.resolve_job_def("ingest")

    def fails(reason: str, **tags: str) -> None:
        run = location.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
        location.instance.report_run_failed(run, reason)

    def ticks() -> list[str]:
        nonlocal cursor
        with dg.build_sensor_context(instance=location.instance, cursor=cursor) as context:
            cursor = sensor.evaluate_tick(context).cursor
        told = [message["message"] for message in service.messages]
        service.messages.clear()
        return told

    fails("before the sensor was on")
    assert ticks() == []
    fails("The store on port 1 is away.", **{"dagster/partition": "AAPL"})
    fails("The store on port 2 is away.", **{"dagster/partition": "MSFT"})
    fails("Started once more.", **{"dagster/will_retry": "true"})
    service.away = True
    assert ticks() == []
    service.away = False
    [message] = ticks()
    assert "ingest of MSFT, ingest of AAPL: The store on port 2 is away." in message
    assert "Started once more" not in message
    fails("The store on port 3 is away.")
    assert ticks() == [], "a cause is told once in twelve hours"
    assert ticks() == []


def test_what_each_session_brings_has_a_freshness_policy(location: Location) -> None:
    location.write("AAPL")
    graph = location.definitions.resolve_asset_graph()
    policies = {key: graph.get(dg.AssetKey(key)).freshness_policy for key in ("raw_bars", "adapter", "forecast")}
    for policy in policies.values():
        assert isinstance(policy, type(dg.FreshnessPolicy.time_window(fail_window=timedelta(days=1))))
        assert policy.fail_window.to_timedelta() >= timedelta(days=5), "a weekend and a holiday fail nothing"
