"""The run launcher of a Ray cluster: each run is a Ray job on a node that has room for it.

    run of the pool gpu     num_cpus, memory, and num_gpus of the settings: 0.25 is a quarter of a GPU
    other run               num_cpus and memory alone
    run of a command        no Ray job: a process of the command, which Ray does not know

Ray shows each run its GPU in CUDA_VISIBLE_DEVICES, and the launcher tells it with how many trainings it shares the GPU.
The launcher adds to dagster-ray's own that only trainings take GPUs, and that Dagster's monitoring resumes a run only
when no process holds the run's lock.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from typing import Any

from dagster import DagsterRun
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster_ray import RayRunLauncher
from dagster_ray.configs import USER_DEFINED_RAY_KEY

from kronos_pipeline.locks import TRAININGS_PER_GPU
from kronos_pipeline.orchestration.automation.killed_runs import GPU, has_process, is_watched


class KronosRayRunLauncher(RayRunLauncher):
    """dagster-ray's launcher, with GPUs for trainings only, and never two processes for a run."""

    def __init__(self, address: str, num_gpus: float | None = None, **settings: Any) -> None:
        """Take the launcher's settings.

        Args:
            address: the address of the Ray dashboard, which takes jobs.
            num_gpus: the share of a GPU, or the number of GPUs, of a run that trains or forecasts; None without GPUs.
            settings: the other settings of dagster-ray's launcher.
        """
        self._gpus = num_gpus
        if num_gpus and num_gpus < 1:
            environment = dict(settings.get("runtime_env") or {})
            trainings = {TRAININGS_PER_GPU: str(int(1 / num_gpus))}
            environment["env_vars"] = {**environment.get("env_vars", {}), **trainings}
            settings["runtime_env"] = environment
        super().__init__(address, **settings)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Submit a run as a Ray job; its tag `dagster-ray/config` holds the share of a GPU, unless it has that tag."""
        run = context.dagster_run
        if self._gpus and USER_DEFINED_RAY_KEY not in run.tags and GPU in _pools(run):
            share = {USER_DEFINED_RAY_KEY: json.dumps({"num_gpus": self._gpus})}
            self._instance.add_run_tags(run.run_id, share)
            context = context._replace(dagster_run=run.with_tags({**run.tags, **share}))
        super().launch_run(context)

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return the state of a run's Ray job; a run that a process still works on is running, whatever Ray says.

        After a lost connection or a restart of the head, Ray does not know jobs whose processes may go on.
        """
        if not is_watched(self._instance, run):
            return CheckRunHealthResult(WorkerStatus.RUNNING, "The run is a process of a command.")
        health: CheckRunHealthResult = super().check_run_worker_health(run)
        if health.status in (WorkerStatus.FAILED, WorkerStatus.UNKNOWN) and has_process(self._instance, run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"A process holds the run's lock. {health.msg}")
        return health


def _pools(run: DagsterRun) -> AbstractSet[str]:
    concurrency = run.run_op_concurrency
    return (concurrency.all_pools if concurrency else None) or frozenset()
