"""Runs of a backfill whose tickers are no neighbours: the first that starts takes over the queued ones."""

from __future__ import annotations

import dagster as dg
import pytest
from code_locations import Location, checks, failed_steps, ticker_range
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

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


def test_a_run_of_one_ticker_is_found_by_its_tag(location: Location) -> None:
    location.write("AAPL", "MSFT")
    assert location.run("ingest", "AAPL").success
    (run,) = location.instance.get_runs(dg.RunsFilter(tags={TICKERS: "AAPL"}))
    assert run.status == STATUS.SUCCESS
