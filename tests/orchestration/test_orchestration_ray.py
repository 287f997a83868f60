"""Fan-out on a Ray cluster of two nodes: chunks of tickers as Ray jobs, and a worker that is killed on the way.

Each node has temporary files of its own, so that file locks do not meet: the leases in PostgreSQL hold.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pytest
import yaml
from code_locations import TINY, Location, launchpad
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from postgres_server import USER, PostgresServer
from ray_cluster import RayCluster

from kronos_pipeline.orchestration.automation.jobs import RETRAIN_ADAPTER, AutomationSettings, make_schedules
from kronos_pipeline.orchestration.automation.killed_runs import make_killed_runs_sensor

pytest.importorskip("dagster_ray", reason="the extra `ray` is missing")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TICKERS = ("AAPL", "AMD", "AMZN", "GOOG", "META", "MSFT", "NFLX", "XOM")
LONG = {**TINY, "epochs": 15, "stride": 1, "patience": 1000, "save_steps": 1}
ASSETS = frozenset(map(dg.AssetKey, ("raw_bars", "windows", "adapter")))
"""What the runs make: their evaluation would take most of the time of this test."""
STARTED, ENDED = dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_SUCCESS
Found = TypeVar("Found")
STATUS = dg.DagsterRunStatus
NIGHT = datetime.fromisoformat("2026-11-24T20:00:00-05:00")


class Cluster:
    """A Ray cluster, an instance that launches its runs there, and the daemon's loops."""

    def __init__(self, location: Location, ray: RayCluster) -> None:
        self.location, self.instance, self.ray = location, location.instance, ray

    def enqueue(self, per_run: int) -> list[str]:
        """Put the runs of a night's schedule into the queue, and return their ids."""
        schedules = make_schedules(TICKERS, AutomationSettings(tickers_per_run=per_run))
        (schedule,) = (schedule for schedule in schedules if schedule.job_name == RETRAIN_ADAPTER)
        context = dg.build_schedule_context(scheduled_execution_time=NIGHT)
        requests = schedule.evaluate_tick(context).run_requests or []
        return [self.enqueue_run(request.tags) for request in requests]

    def enqueue_run(self, tags: Mapping[str, str], program: str = "dagster") -> str:
        """Put a run into the queue, whose job calls a program."""
        pointer = ModuleCodePointer("kronos_pipeline.definitions", "defs", str(ROOT))
        repository = RepositoryPythonOrigin(sys.executable, pointer, entry_point=[program])
        module = LoadableTargetOrigin(module_name="kronos_pipeline.definitions")
        remote = RemoteRepositoryOrigin(ManagedGrpcPythonEnvCodeLocationOrigin(module), "__repository__")
        job = self.location.definitions.resolve_job_def(RETRAIN_ADAPTER)
        run = self.instance.create_run_for_job(
            job.get_subset(asset_selection=ASSETS),
            asset_selection=ASSETS,
            run_config=launchpad(LONG),
            tags=dict(tags),
            remote_job_origin=remote.get_job_origin(RETRAIN_ADAPTER),
            job_code_origin=JobPythonOrigin(RETRAIN_ADAPTER, repository),
        )
        self.instance.report_dagster_event(dg.DagsterEvent.job_enqueue(run), run.run_id)
        return run.run_id

    def launch(self) -> None:
        with create_test_daemon_workspace_context(EmptyWorkspaceTarget(), self.instance) as workspace:
            list(QueuedRunCoordinatorDaemon(interval_seconds=5).run_iteration(workspace))

    def monitor(self) -> None:
        with create_test_daemon_workspace_context(EmptyWorkspaceTarget(), self.instance) as workspace:
            assert not any(execute_run_monitoring_iteration(workspace, logging.getLogger("monitoring")))

    def run(self, run_id: str) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def job(self, run_id: str, attempt: str = "") -> Any:
        return self.launcher.client.get_job_info(f"dagster-run-{run_id}{attempt}")

    @property
    def launcher(self) -> Any:
        return self.instance.run_launcher

    def process(self, run_id: str) -> int:
        """Return the process that trains."""
        (process,) = self.ray.processes("dagster\0api\0execute_run", run_id)
        return process

    def steps(self, run_id: str, kind: dg.DagsterEventType) -> int:
        """Return the number of events of a kind of the step that trains."""
        events = self.instance.get_records_for_run(run_id, of_type=kind).records
        return sum(record.event_log_entry.step_key == "adapter" for record in events)

    def wait_until(self, condition: Callable[[], Found], runs: Sequence[str]) -> Found:
        """Wait until a condition is met, and return its value; fail if a job ended before its run began."""
        while not (found := condition()):
            for run in map(self.run, runs):
                never_started = run.status == STATUS.STARTING and self.job(run.run_id).status == "FAILED"
                assert not never_started, self.job(run.run_id).message[-1000:]
            time.sleep(0.5)
        return found

    def said(self, runs: Sequence[str]) -> str:
        """Return the messages of runs, a line each."""
        entries = [entry for run in runs for entry in self.instance.all_logs(run)]
        return "\n".join(str(entry.user_message or entry.get_dagster_event().message) for entry in entries)


@pytest.fixture
def cluster(
    postgres: PostgresServer, tmp_path: Path, tiny_base: Path, mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """Start a cluster, with the settings of deploy/ray, for two nodes of one CPU each."""
    home, location = tmp_path / "home", Location(tmp_path, tiny_base)
    location.write(*TICKERS)
    home.mkdir()
    settings = yaml.safe_load((ROOT / "deploy" / "ray" / "dagster.yaml").read_text())
    settings["run_launcher"]["config"]["ray"].update(num_cpus=1)
    settings["storage"]["postgres"]["postgres_db"]["port"] = postgres.port
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    variables = {
        **{"PGHOST": "127.0.0.1", "PGUSER": USER, "PGPASSWORD": postgres.password},
        "KRONOS_DAGSTER_DATABASE": postgres.new_database(),
        "MLFLOW_TRACKING_URI": mlflow_database,
        **{"KRONOS_DATA_DIR": str(location.data), "KRONOS_OUTPUT_DIR": str(location.layout.root)},
        **{"KRONOS_BASE_MODEL": str(tiny_base), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ray = RayCluster(variables)
    try:
        for name, value in {**variables, **ray.environment}.items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            location.instance = instance
            yield Cluster(location, ray)
    finally:
        ray.close()


def test_a_killed_worker_of_a_cluster_is_resumed_and_no_ticker_is_trained_twice(
    cluster: Cluster, postgres: PostgresServer, mlflow_database: str
) -> None:
    database, layout = mlflow_database.rpartition("/")[2], cluster.location.layout
    runs = cluster.enqueue(per_run=4)
    cluster.launch()

    def training() -> list[str]:
        """Return the runs that train, if each has a saved state."""
        found = [run for run in runs if cluster.steps(run, STARTED) > cluster.steps(run, ENDED)]
        return found if len(list(layout.root.glob("state/*/state.pt"))) == len(found) else []

    victim = cluster.wait_until(training, runs)[0]
    process = cluster.process(victim)
    variables = Path(f"/proc/{process}/environ").read_text().split("\0")
    assert {"CUDA_VISIBLE_DEVICES=0", "KRONOS_TRAININGS_PER_GPU=4"} <= set(variables)
    assert cluster.run(victim).tags["dagster-ray/config"] == '{"num_gpus": 0.25}'
    os.kill(process, signal.SIGKILL)
    cluster.wait_until(lambda: cluster.job(victim).status == "FAILED", runs)

    cluster.monitor()
    assert cluster.instance.count_resume_run_attempts(victim) == 0, "another node may hold the lease for its lifetime"
    lease = f"FROM kronos_leases WHERE owner LIKE '%process {process}'"
    assert ("runs/" + victim,) in postgres.execute(f"SELECT name {lease}", database)
    expired = "UPDATE kronos_leases SET expires = now() - interval '1 s' WHERE owner LIKE"
    postgres.execute(f"{expired} '%process {process}'", database)
    cluster.monitor()
    assert cluster.instance.count_resume_run_attempts(victim) == 1

    def ended() -> bool:
        cluster.monitor()
        return all(cluster.run(run).is_finished for run in runs)

    cluster.wait_until(ended, runs)
    assert {cluster.run(run).status for run in runs} == {STATUS.SUCCESS}, cluster.said(runs)
    assert cluster.instance.count_resume_run_attempts(victim) == 1
    assert len({cluster.job(run).driver_node_id for run in runs}) == 2
    assert cluster.location.materialised("adapter") == set(TICKERS)
    of_run = {run: cluster.run(run).tags["kronos/tickers"].split(", ") for run in runs}
    assert sorted(itertools.chain(*of_run.values())) == sorted(TICKERS)
    for run, tickers in of_run.items():
        resumed = {cluster.location.metadata("adapter", ticker)["resumed from step"] for ticker in tickers}
        assert (resumed == {0}) == (run != victim)

    trained = postgres.execute(
        "SELECT split_part(name, ' ', 2), status FROM runs WHERE name LIKE 'adapter %'", database
    )
    assert sorted(trained) == [(ticker, "FINISHED") for ticker in TICKERS]
    assert len(list(layout.root.glob("adapters/.versions/*"))) == len(TICKERS)
    assert not list(layout.root.glob("state/*/state.pt"))

    broken = cluster.enqueue_run({"dagster/partition": "AAPL"}, "no-such-program")
    cluster.launch()
    cluster.wait_until(lambda: cluster.job(broken).status == "FAILED", runs)
    make_killed_runs_sensor().evaluate_tick(dg.build_sensor_context(instance=cluster.instance))
    assert cluster.run(broken).status == STATUS.FAILURE
    assert re.search("ended before the run began: .* exit code 127", cluster.said([broken]))
