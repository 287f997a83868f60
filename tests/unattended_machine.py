"""A machine that runs the project unattended: Dagster's daemon, code server and runs, with a clock that jumps.

daemon          schedules, sensors, queue, monitoring, retries      a process, started again after a kill
code server     the project's code location                         a process, started again after a kill
runs            a process each, made by the code server             retried by the daemon after a kill
MLflow server   runs, registry, files of versions                   a process that can stop to listen

All processes load `nth_call.c`, so they share a clock, and their calls that change the output folder can fail. While no
run has a process, time passes fast: what waits for a minute waits for a second.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    SCHEDULE_NAME_TAG,
    SCHEDULED_EXECUTION_TIME_TAG,
    WILL_RETRY_TAG,
)
from dagster._core.test_utils import create_test_daemon_workspace_context, freeze_time
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._grpc.client import DagsterGrpcClient
from faulty_commands import Faults
from mlflow_servers import MlflowServer, server_environment

from kronos_pipeline.tracking.store import open_store

TESTS = Path(__file__).parent
NEW_YORK = ZoneInfo("America/New_York")
FORECASTS, ADAPTERS, SUMMARY, CLEANING = (
    "forecasts_on_weekdays",
    "adapters_on_weekday_nights",
    "summary_in_the_morning",
    "clean_weekly",
)
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_POLL = 1.0
_STEP = 31
"""Seconds by which the clock jumps while no run has a process; the daemon's threads beat every 30 s."""
_THREADS = ("SCHEDULER", "SENSOR", "QUEUED_RUN_COORDINATOR", "MONITORING", "EVENT_LOG_CONSUMER")
"""Threads of the daemon that runs wait for."""
_PATIENCE = 6 * 60 * 60
"""Seconds of the clock without a process after which runs that wait are stuck."""


class StuckError(Exception):
    """Error of a machine that does not go on: runs wait for hours without a process, or a service ends by itself."""


class UnattendedMachine:
    """A data folder, an output folder, an instance, and the processes; the machine is off at first."""

    def __init__(self, folder: Path, tickers: Sequence[str], settings: Mapping[str, Any], tickers_per_run: int) -> None:
        self.folder, self.tickers = folder, tickers
        self.data, self.output, self.home = folder / "data", folder / "out", folder / "home"
        self.store = folder / "mlflow" / "mlflow.db"
        for path in (self.data, self.output, self.home, self.store.parent):
            path.mkdir(parents=True)
        shutil.copy(TESTS.parent / "kronos_pipeline" / "orchestration" / "dagster.yaml", self.home)
        self.faults = Faults(self.output, folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.runs_per_tick = -(-len(tickers) // tickers_per_run)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KRONOS_", "DAGSTER_"))}
        self.environment = {
            **kept,
            **self.faults.environment,
            "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
            "OMP_NUM_THREADS": "1",
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_GRPC_TIMEOUT_SECONDS": "300",
            "KRONOS_DATA_DIR": str(self.data),
            "KRONOS_OUTPUT_DIR": str(self.output),
            "KRONOS_TICKERS_PER_RUN": str(tickers_per_run),
            "KRONOS_UNATTENDED_SETTINGS": json.dumps(dict(settings)),
        }
        open_store(f"sqlite:///{self.store}")
        serving = server_environment(self.store, self.store.parent / "artifacts")
        self.mlflow = MlflowServer({**self.faults.environment, **serving})
        self.environment["MLFLOW_TRACKING_URI"] = self.mlflow.uri
        self.instance = dg.DagsterInstance.from_config(str(self.home))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._jumped = 0.0

    # The clock.

    def now(self) -> datetime:
        """Return the time on the machine, in New York."""
        return datetime.fromtimestamp(time.time() + self.faults.clock_offset, NEW_YORK)

    def advance_to(self, moment: datetime) -> None:
        """Set the clock, unless it is later already."""
        offset = int(moment.timestamp() - time.time()) + 1
        self.faults.set_clock(max(offset, self.faults.clock_offset))

    # The services.

    def start_schedules(self, *names: str) -> None:
        """Switch on these schedules and no other, as a person does in the UI; the code server must run."""
        target = GrpcServerTarget(host="127.0.0.1", port=self._port, socket=None, location_name="kronos")
        with (
            create_test_daemon_workspace_context(target, self.instance) as workspace,
            freeze_time(self.now()),
        ):
            [location] = workspace.create_request_context().code_locations
            for schedule in location.get_repository("__repository__").get_schedules():
                if schedule.name in names:
                    self.instance.start_schedule(schedule)
                else:
                    self.instance.stop_schedule(schedule.get_remote_origin_id(), schedule.selector_id, schedule)

    def start(self) -> None:
        """Start the services that do not run; wait until the code server answers."""
        if not self._runs("code server"):
            location = str(TESTS / "unattended_location.py")
            command = ["-m", "dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(self._port), "-f", location]
            self._spawn("code server", [*command, "--location-name", "kronos"])
            client = DagsterGrpcClient(host="127.0.0.1", port=self._port)
            while not self._answers(client):
                time.sleep(_POLL)
        if not self._runs("daemon"):
            workspace = self.folder / "workspace.yaml"
            server = {"host": "127.0.0.1", "port": self._port, "location_name": "kronos"}
            workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}))
            daemon = str(TESTS / "unattended_daemon.py")
            self._spawn("daemon", [daemon, "run", "--log-level", "warning", "-w", str(workspace)])

    def kill(self, service: str) -> None:
        """Kill the daemon or the code server; `start` starts it again."""
        process = self._processes[service]
        process.kill()
        process.wait()

    def power_off(self) -> None:
        """Kill all processes of the machine."""
        for service in self._processes:
            self.kill(service)
        for process in self.run_processes():
            _kill(process)

    def close(self) -> None:
        """End all processes."""
        self.power_off()
        self.mlflow.close()
        self.instance.dispose()

    def _spawn(self, service: str, arguments: Sequence[str]) -> None:
        before = self._processes.get(service)
        if before is not None and before.returncode != -signal.SIGKILL:
            raise StuckError(f"the {service} ended with {before.returncode}; see {self.folder}/*.log")
        with (self.folder / f"{service}.log".replace(" ", "-")).open("ab") as log:
            self._processes[service] = subprocess.Popen(
                [sys.executable, *arguments], env=self.environment, cwd=self.folder, stdout=log, stderr=log
            )

    def _runs(self, service: str) -> bool:
        process = self._processes.get(service)
        return process is not None and process.poll() is None

    def _answers(self, client: DagsterGrpcClient) -> bool:
        if not self._runs("code server"):
            raise RuntimeError(f"the code server ended; see {self.folder}/code-server.log")
        try:
            client.ping("")
        except DagsterUserCodeUnreachableError:
            return False
        return True

    # The runs.

    def run_processes(self) -> list[int]:
        """Return the ids of the processes of runs."""
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and _is_run(entry, self.environment["KRONOS_FAULTS_STATE"])
        ]

    def runs_of(self, schedule: str, tick: datetime) -> list[dg.DagsterRun]:
        """Return the runs that a tick of a schedule requested, without their retries."""
        runs = self.instance.get_runs(dg.RunsFilter(tags={SCHEDULE_NAME_TAG: schedule}))
        return [
            run
            for run in runs
            if run.parent_run_id is None and datetime.fromisoformat(run.tags[SCHEDULED_EXECUTION_TIME_TAG]) == tick
        ]

    def unfinished(self) -> list[str]:
        """Return the runs that wait, run or are to be retried, in words."""
        runs = self.instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED))
        failed = self.instance.get_runs(
            dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags={WILL_RETRY_TAG: "true"})
        )
        retried = [run for run in failed if AUTO_RETRY_RUN_ID_TAG not in run.tags]
        return [f"{run.job_name} {run.run_id[:8]} {run.status.value}" for run in (*runs, *retried)]

    def settle(self, schedule: str, tick: datetime, watch: Callable[[], None] = lambda: None) -> None:
        """Let time pass until the runs of a schedule's tick have ended.

        Args:
            schedule: the schedule.
            tick: the time of its tick.
            watch: called at each look at the runs.

        Raises:
            StuckError: nothing works on a run, for hours of the machine's clock.
        """
        expected = self.runs_per_tick if schedule in (FORECASTS, ADAPTERS) else 1
        waited = looks = 0
        while looks < 2:  # a run that has failed gets the tag of its retry a moment later
            self.start()
            watch()
            requested = len(self.runs_of(schedule, tick)) >= expected
            waiting = self.unfinished()
            looks = looks + 1 if requested and not waiting else 0
            if looks or self.run_processes():
                waited = 0
            elif self._jump():
                waited += _STEP
            if waited > _PATIENCE:
                raise StuckError(f"{schedule} of {tick:%Y-%m-%d %H:%M}: {', '.join(waiting) or 'no run was requested'}")
            time.sleep(_POLL)

    def _jump(self) -> bool:
        """Let time pass if all threads of the daemon have worked since time passed last: a busy machine is slow."""
        beats = self.instance.get_daemon_heartbeats()
        if any(thread not in beats or beats[thread].timestamp < self._jumped for thread in _THREADS):
            return False
        self.faults.set_clock(self.faults.clock_offset + _STEP)
        self._jumped = self.now().timestamp()
        return True


def _is_run(process: Path, state: str) -> bool:
    try:
        return (
            b"spawn_main" in (process / "cmdline").read_bytes()
            and state.encode()
            in (process / "environ").read_bytes().split(b"KRONOS_FAULTS_STATE=", 1)[-1].split(b"\0", 1)[0]
        )
    except OSError:
        return False  # it has ended


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return
