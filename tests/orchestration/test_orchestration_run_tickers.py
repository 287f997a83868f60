"""Runs of a backfill whose tickers are no neighbours: the first that starts takes over the queued ones."""

from __future__ import annotations

import signal
from pathlib import Path

import dagster as dg
import pytest
from code_locations import Location, checks, failed_steps, ticker_range
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from kronos_pipeline.orchestration.assets import data
from kronos_pipeline.orchestration.automation.killed_runs import make_killed_runs_sensor
from kronos_pipeline.orchestration.run_tickers import TICKERS

pytestmark = pytest.mark.slow

STATUS = dg.DagsterRunStatus
_ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("test"), "__repository__"), "ingest")
"""The code location of a queued run, which Dagster demands."""


def queue(location: Location, backfill: str, *tickers: str) -> str:
    """Queue a run of the job `ingest` as the daemon does, and return its id."""
    run = location.instance.create_run_for_job(
        location.definitions.resolve_job_def("ingest"),
        tags={"dagster/backfill": backfill, **ticker_range(tickers)},
        status=STATUS.QUEUED,
        remote_job_origin=_ORIGIN,
    )
    return run.run_id


def status(location: Location, run_id: str) -> tuple[dg.DagsterRunStatus, str]:
    run = location.instance.get_run_by_id(run_id)
    assert run is not None
    return run.status, run.tags.get(TICKERS, "")


def test_chosen_tickers_are_one_run_and_each_queued_run_ends_by_its_own(location: Location) -> None:
    location.write("AAPL", "GOOG", "META", "NVDA", "XOM")
    location.write_bad("TSLA")
    good, bad, other = (
        queue(location, "b1", "META", "NVDA"),
        queue(location, "b1", "TSLA"),
        queue(location, "b2", "AAPL"),
    )
    result = location.definitions.resolve_job_def("ingest").execute_in_process(
        tags={"dagster/backfill": "b1", **ticker_range(["GOOG"])}, instance=location.instance, raise_on_error=False
    )
    assert set(failed_steps(result)) == {"raw_bars_complete"}
    assert "TSLA.csv:2: close" in failed_steps(result)["raw_bars_complete"]
    assert location.materialised("windows") == {"GOOG", "META", "NVDA"}
    assert set(checks(result)["windows", "no_leak"]) == {"GOOG", "META", "NVDA"}
    assert status(location, result.run_id) == (STATUS.FAILURE, "GOOG, META, NVDA, TSLA")
    assert status(location, good) == (STATUS.SUCCESS, "META, NVDA")
    assert status(location, bad) == (STATUS.FAILURE, "TSLA")
    assert status(location, other) == (STATUS.QUEUED, "")
    failed = location.instance.get_run_by_id(bad)
    assert failed is not None
    assert failed.tags["dagster/failure_reason"] == "STEP_FAILURE"  # bad input is not tried again


def test_no_run_is_taken_over_where_the_launcher_watches_a_process_for_each(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.write("GOOG", "META")
    launcher = type(location.instance.run_launcher)
    monkeypatch.setattr(launcher, "supports_check_run_worker_health", True)  # as Ray's and Kubernetes' launchers do
    queued = queue(location, "b1", "META")
    location.definitions.resolve_job_def("ingest").execute_in_process(
        tags={"dagster/backfill": "b1", **ticker_range(["GOOG"])}, instance=location.instance
    )
    assert location.materialised("windows") == {"GOOG"}
    assert status(location, queued) == (STATUS.QUEUED, "")


def test_the_runs_that_a_terminated_run_has_taken_over_are_canceled_and_not_retried(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.write("AAPL", "GOOG", "META", "XOM")
    instance, other, killed = location.instance, queue(location, "b1", "META"), queue(location, "b1", "XOM")

    def terminate(*_: object, **__: object) -> None:
        (run,) = instance.get_runs(dg.RunsFilter(tags={TICKERS: "GOOG, META, XOM"}))
        instance.report_run_canceling(run)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(data, "read_files_cached", terminate)
        result = location.definitions.resolve_job_def("ingest").execute_in_process(
            tags={"dagster/backfill": "b1", **ticker_range(["GOOG"])}, instance=instance, raise_on_error=False
        )
    assert status(location, result.run_id)[0] == status(location, other)[0] == STATUS.CANCELED
    # As if the process had been killed before it ended this run.
    run = instance.get_run_by_id(killed)
    assert run is not None
    instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", run.job_name), run.run_id)
    (Path(instance.storage_directory()).parent / "run_locks" / f"{killed}.lock").touch()
    make_killed_runs_sensor().evaluate_tick(dg.build_sensor_context(instance=instance))
    assert status(location, killed)[0] == STATUS.CANCELED


def test_a_run_of_one_ticker_is_found_by_its_tag(location: Location) -> None:
    location.write("AAPL", "MSFT")
    assert location.run("ingest", "AAPL").success
    (run,) = location.instance.get_runs(dg.RunsFilter(tags={TICKERS: "AAPL"}))
    assert run.status == STATUS.SUCCESS
