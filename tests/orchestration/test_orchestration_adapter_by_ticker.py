"""`dagster asset materialize --select adapter/AAPL` in real processes; tests kill some of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from code_locations import TINY, Location, launchpad

from kronos_pipeline.artifacts import MANIFEST, read_json
from kronos_pipeline.orchestration.automation.killed_runs import make_killed_runs_sensor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@dataclass
class Shell:
    """Return the environment of a fresh clone: a new instance with the project's settings, and an empty store."""

    location: Location

    @property
    def home(self) -> Path:
        return self.location.root / "home"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_MODULE_NAME": "kronos_pipeline.definitions",
            "KRONOS_DATA_DIR": str(self.location.data),
            "KRONOS_OUTPUT_DIR": str(self.location.layout.root),
            "KRONOS_BASE_MODEL": str(self.location.base),
        }

    def start(self, select: str, *arguments: str, **settings: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dagster", "asset", "materialize", "--select", select, *arguments]
        config = json.dumps(launchpad({**TINY, **settings}))
        return subprocess.Popen(
            [*command, "--config-json", config],
            env=self.environment,
            cwd=self.location.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, select: str, *arguments: str) -> tuple[int, str]:
        process = self.start(select, *arguments)
        output, _ = process.communicate()
        return process.returncode, output

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home))


@pytest.fixture
def shell(location: Location) -> Shell:
    shell = Shell(location)
    shell.home.mkdir()
    settings = ROOT / "kronos_pipeline" / "orchestration" / "dagster.yaml"
    (shell.home / "dagster.yaml").write_text(settings.read_text())
    return shell


def test_a_tickers_asset_works_on_an_empty_store_after_its_predecessor_was_killed(shell: Shell) -> None:
    shell.location.write("AAPL", "MSFT")
    killed = shell.start("adapter/AAPL", epochs=100_000)
    assert killed.stdout is not None
    for line in killed.stdout:
        if "adapters/AAPL: step" in line or "optimiser" in line or "training and" in line:
            break
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not shell.location.layout.adapter("AAPL").exists()

    with shell.instance() as instance:
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.STARTED}
        make_killed_runs_sensor().evaluate_tick(dg.build_sensor_context(instance=instance))
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.FAILURE}

    code, output = shell.run("adapter/AAPL")
    assert code == 0, output[-3000:]
    assert read_json(shell.location.layout.adapter("AAPL") / MANIFEST)["config"]["lookback"] == TINY["lookback"]
    with shell.instance() as instance:
        for asset in ("raw_bars", "windows", "adapter", "holdout_metrics"):
            assert instance.get_materialized_partitions(dg.AssetKey(asset)) == {"AAPL"}
        event = instance.get_latest_materialization_event(dg.AssetKey(["adapter", "AAPL"]))
        assert event is not None
        assert event.asset_materialization is not None
        run = instance.get_run_by_id(str(event.asset_materialization.metadata["run"].value))
        assert run is not None
        assert (run.job_name, run.tags["dagster/partition"], run.status) == (
            "retrain_adapter",
            "AAPL",
            dg.DagsterRunStatus.SUCCESS,
        )


def test_ctrl_c_ends_a_tickers_asset_and_the_run_that_it_started(shell: Shell) -> None:
    shell.location.write("AAPL")
    interrupted = shell.start("adapter/AAPL", epochs=100_000)
    assert interrupted.stdout is not None
    for line in interrupted.stdout:
        if "adapters/AAPL: step" in line:
            break
    interrupted.send_signal(signal.SIGINT)
    output, _ = interrupted.communicate()
    assert interrupted.returncode != 0
    assert "Interrupted: the state of adapters/AAPL at step" in output
    with shell.instance() as instance:
        outer, started = sorted(instance.get_runs(), key=lambda run: "kronos/door" in run.tags)
    assert (started.status, outer.status) == (dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE)
    assert len(list((shell.location.layout.root / "state").glob("*/state.pt"))) == 1


def test_a_tickers_asset_fails_with_the_problems_of_its_file(shell: Shell) -> None:
    shell.location.write_bad("^GSPC")
    code, output = shell.run('key:"adapter/^GSPC"')
    assert code != 0
    assert "^GSPC.csv:2: close: must be a number (found 'text')" in output
    with shell.instance() as instance:
        (run,) = [run for run in instance.get_runs() if run.job_name == "__ASSET_JOB"]
        (failed,) = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        cause = failed.get_dagster_event().step_failure_data.user_failure_data
        assert cause is not None
        assert {"problems", "run"} <= set(cause.metadata)
