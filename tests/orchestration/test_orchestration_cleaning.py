"""The scheduled clean-up: the output folder's, and Dagster's old runs without what the UI shows."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from code_locations import Location

from kronos_pipeline.orchestration.instance import delete_runs, old_runs, read_health

pytestmark = pytest.mark.slow


def test_the_job_deletes_as_the_command_does(location: Location) -> None:
    location.write("AAPL")
    stale = location.layout.root / "metrics" / ".AAPL.json.0a1b2c3d.tmp"
    stale.parent.mkdir(parents=True)
    stale.write_text("half")
    os.utime(stale, (time.time() - 3 * 86_400,) * 2)
    job = location.definitions.get_job_def("clean")
    assert job.execute_in_process(instance=location.instance).success
    assert not stale.exists()
    schedules = location.definitions.get_repository_def().schedule_defs
    assert {schedule.name: schedule.job_name for schedule in schedules}["clean_weekly"] == "clean"


def test_old_runs_go_except_those_of_the_newest_materialisations(tmp_path: Path) -> None:
    partitions = dg.StaticPartitionsDefinition(["AAPL", "MSFT"])

    @dg.asset(partitions_def=partitions)
    def bars() -> None: ...

    @dg.asset
    def board() -> None: ...

    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:

        def made(asset: dg.AssetsDefinition, ticker: str | None) -> str:
            return dg.materialize([asset], instance=instance, partition_key=ticker).run_id

        runs = [made(bars, "AAPL"), made(bars, "MSFT"), made(bars, "AAPL"), made(board, None), made(board, None)]
        later = datetime.now(UTC) + timedelta(days=1)
        assert old_runs(instance, datetime.now(UTC) - timedelta(days=1)) == []
        old = old_runs(instance, later)
        assert sorted(old) == sorted([runs[0], runs[3]])
        delete_runs(instance, old)
        assert {run.run_id for run in instance.get_runs()} == {runs[1], runs[2], runs[4]}
        assert old_runs(instance, later) == []
        assert instance.get_materialized_partitions(bars.key) == {"AAPL", "MSFT"}
        assert not instance.all_logs(runs[0])
        assert read_health(instance, datetime.now(UTC))["failed"] == 0
