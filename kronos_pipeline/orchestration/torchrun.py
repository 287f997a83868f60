"""One training by several processes on this machine, such as one per GPU, started from a run by Dagster's Pipes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import SettingsError, enumerate_some
from kronos_pipeline.orchestration.training_process import MODULE, Ending, Job, read_endings

EVERY_GPU = "gpu"
"""The value of the setting for a process per CUDA device, as torchrun has it."""
_MOST = 64
"""The largest number of processes; beyond, the number is a mistake."""
_SAVING_SECONDS = 240
"""How long the processes may take to save the state of an interrupted training, before torchrun kills them."""
_CANCEL_SECONDS = 290
"""How long Pipes wait for that; the instance's `cancel_timeout_seconds` is 300."""
_ENVIRONMENT = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_SAVING_SECONDS)}


def count_processes(setting: str, recipe: Recipe) -> int:
    """Return the number of processes of a training.

    Args:
        setting: a number, or "gpu" for a process per CUDA device; without CUDA, "gpu" is one process.
        recipe: the settings of the training.

    Raises:
        SettingsError: the setting is neither, this machine has no such device, or the recipe needs one process.
    """
    if setting == EVERY_GPU:
        import torch

        from kronos_pipeline.model.devices import pick_device

        processes = torch.cuda.device_count() if pick_device(recipe.device).type == "cuda" else 1
    elif setting.isascii() and setting.isdecimal() and 1 <= int(setting) <= _MOST:
        processes = int(setting)
    else:
        raise SettingsError(f"nproc_per_node is {setting!r}, and must be a number from 1 to {_MOST}, or {EVERY_GPU}.")
    if processes > 1 and recipe.refit_all:
        raise SettingsError("A refit trains in one process; leave out --refit-all, or set nproc_per_node to 1.")
    return processes


def run_by_torchrun(context: dg.AssetExecutionContext, job: Job, processes: int) -> Mapping[str, Any]:
    """Train in several processes; return the key of the published training, its MLflow run and the run's page.

    Lines of the first process are the run's. An interrupt ends all processes, which save the state first.

    Args:
        context: the context of the asset.
        job: the training.
        processes: the number of processes.

    Raises:
        KronosError: the error that ended a process.
        dagster.Failure: a process was killed, or ended by an unexpected error; another attempt may succeed.
    """
    client = dg.PipesSubprocessClient(env=_ENVIRONMENT, termination_timeout_seconds=_CANCEL_SECONDS)
    with tempfile.TemporaryDirectory(prefix="kronos-torchrun-") as endings:
        extras = {**asdict(job), "tickers": list(job.tickers), "endings": endings}
        try:
            ended = client.run(context=context, command=_command(processes), extras=extras)
        except DagsterPipesExecutionError as error:
            raise explain(read_endings(Path(endings)), processes, str(error)) from None
        except subprocess.TimeoutExpired:
            raise dg.DagsterExecutionInterruptedError from None  # torchrun ends with this process
    [trained] = ended.get_custom_messages()
    result: Mapping[str, Any] = trained
    return result


def _command(processes: int) -> Sequence[str]:
    return [sys.executable, "-m", MODULE, "--nproc-per-node", str(processes), "-m", MODULE]


def explain(endings: Mapping[int, Ending], processes: int, otherwise: str) -> Exception:
    """Return the error of a training whose processes did not all end well.

    Args:
        endings: how processes ended, by rank.
        processes: the number of processes.
        otherwise: the error if no process has begun.
    """
    for ending in endings.values():
        if error := ending.error():
            return error
    unexpected = [
        f"Process {rank} of {processes} ended by {ending.kind}: {ending.text}."
        for rank, ending in endings.items()
        if ending.kind and not ending.expected
    ]
    if killed := [rank for rank, ending in endings.items() if not ending.kind]:
        which = f"{enumerate_some(killed)} of {processes}"
        unexpected.insert(0, f"Killed, as the system does if memory runs out: process {which}.")
    if not unexpected:
        unexpected = [f"torchrun did not train: {otherwise}. The captured stderr of the run has its messages."]
    go_on = "The next attempt goes on from the saved state."
    return dg.Failure(description=" ".join(["checkpoint failed:", *unexpected, go_on]))
