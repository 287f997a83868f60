"""Device, number format and processes of a training."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from filelock import FileLock, Timeout

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ArtifactError, SettingsError
from kronos_pipeline.locks import held_by, lease_database, named_lock, trainings_per_gpu
from kronos_pipeline.model.devices import has_native_bf16, pick_device
from kronos_pipeline.model.modules import is_small
from kronos_pipeline.training.progress import Say

_DEVICE_VARIABLE = "ACCELERATE_TORCH_DEVICE"
_POLL_SECONDS = 1.0
_PEER_TIMEOUT = timedelta(days=7)
"""How long the processes of a training wait for each other: the first may wait for a lock that another training holds.
A process that dies is not waited for, as torchrun ends the others."""


def process() -> int:
    """Return the rank of this process among the processes of a training; torchrun sets it."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Return the number of processes of a training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def reserve_device(name: str, say: Say) -> tuple[torch.device, list[FileLock]]:
    """Pick the device of a training, and hold its lock if several GPUs are shared out.

    On a machine with several GPUs, `auto` takes the first GPU that no other training holds, and waits if all are held.
    Each of several processes under torchrun takes the GPU of its local rank; the first process of a machine holds the
    locks of all, in order, so that two such trainings never block each other. A GPU takes `KRONOS_TRAININGS_PER_GPU`
    trainings at a time.

    Args:
        name: the setting `device`.
        say: takes lines for the person who runs the pipeline.

    Returns:
        The device, and the held locks; the caller releases them.

    Raises:
        SettingsError: this machine has no such device, or fewer GPUs than processes.
    """
    device = pick_device(name)
    if device.type != "cuda":
        return device, []
    gpus = torch.cuda.device_count()
    if processes() > 1:
        rank, count = (int(os.environ.get(key, "0")) for key in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        if max(rank + 1, count) > gpus:
            raise SettingsError(
                f"torchrun started {max(rank + 1, count)} processes on this machine, which has {gpus} CUDA "
                f"device{'s' if gpus != 1 else ''}, and each needs its own; use --nproc_per_node {gpus}."
            )
        machine = [torch.device("cuda", index) for index in range(count)] if rank == 0 else []
        return torch.device("cuda", rank), [acquire_device(gpu, f"{gpu}", say) for gpu in machine]
    if name != "auto" or gpus == 1:
        return device, []
    return _reserve_free_gpu(gpus, say)


def _reserve_free_gpu(gpus: int, say: Say) -> tuple[torch.device, list[FileLock]]:
    devices = [torch.device("cuda", index) for index in range(gpus)]
    locks = [device_locks(device) for device in devices]
    waiting = False
    while True:
        for number in range(trainings_per_gpu()):  # a GPU takes its second training when each has its first
            for device, of_device in zip(devices, locks, strict=True):
                if lock := _first_free(of_device[number : number + 1]):
                    return device, [lock]
        if not waiting:
            say(f"other trainings hold all {gpus} GPUs; waiting for the first that is free")
            waiting = True
        time.sleep(_POLL_SECONDS)


def device_locks(device: torch.device) -> list[FileLock]:
    """Return the locks of a device, of which each training holds one: as many as it takes trainings at a time.

    A process may take a lock again while it holds it. The name is the name of the physical GPU, whatever number
    CUDA_VISIBLE_DEVICES gives it in this process, or the GPU's UUID in a lease: containers may share a GPU.

    Raises:
        SettingsError: the number of trainings is invalid.
    """
    index = device.index or 0
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    physical = visible[index] if device.type == "cuda" and index < len(visible) else str(index)
    name = f"kronos-pipeline-{os.getuid()}-{device.type}-{re.sub(r'[^A-Za-z0-9-]', '-', physical)}"
    shared, folder = f"devices/{_device_id(device, physical)}", Path(tempfile.gettempdir())
    numbers = ["", *(f"-training-{number}" for number in range(2, trainings_per_gpu() + 1))]
    return [named_lock(folder / f"{name}{number}.lock", f"{shared}{number}") for number in numbers]


def acquire_device(device: torch.device, subject: str, say: Say) -> FileLock:
    """Acquire a lock of a device, one that this process holds already or the first that is free; report the wait.

    Raises:
        ArtifactError: the file of the lock cannot be opened.
        SettingsError: the number of trainings is invalid.
    """
    locks = device_locks(device)
    if len(locks) == 1:
        return acquire(locks[0], subject, say)
    locks.sort(key=lambda lock: not lock.is_locked)
    waiting = False
    while not (lock := _first_free(locks)):
        if not waiting:
            say(f"{subject}: waiting for the first of {len(locks)} trainings on {device}")
            waiting = True
        time.sleep(_POLL_SECONDS)
    return lock


def _first_free(locks: Sequence[FileLock]) -> FileLock | None:
    """Acquire the first lock that no other process holds."""
    for lock in locks:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return lock
    return None


def _device_id(device: torch.device, physical: str) -> str:
    """Return the UUID of a GPU, for leases; the name of the machine and of the device without a UUID."""
    if lease_database() and device.type == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device)
        if uuid := getattr(properties, "uuid", None):  # younger than the oldest torch allowed
            return str(uuid)
    return f"{socket.gethostname()}-{device.type}-{physical}"


def acquire(lock: FileLock, subject: str, say: Say) -> FileLock:
    """Acquire a lock, and report the wait if another training holds it.

    Raises:
        ArtifactError: the file of the lock cannot be opened.
    """
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{subject}: waiting for another training, {held_by(lock)}")
            lock.acquire()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(f"{subject}: its lock {lock.lock_file} cannot be opened ({reason}); remove it.") from error
    return lock


def new_accelerator(recipe: Recipe, device: torch.device, precision: str) -> Accelerator:
    """Make the Accelerator of one training.

    Accelerate keeps device and precision for the life of the process, and takes the device from the environment only;
    each training has its own, and leaves the environment as it was.
    """
    AcceleratorState._reset_state(reset_partial_state=processes() == 1)
    before = os.environ.pop(_DEVICE_VARIABLE, None)
    if device.type == "cuda" and processes() == 1:
        os.environ[_DEVICE_VARIABLE] = str(device)
    try:
        return Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            gradient_accumulation_steps=recipe.grad_accum_steps,
            cpu=device.type == "cpu",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PEER_TIMEOUT)],
        )
    finally:
        os.environ.pop(_DEVICE_VARIABLE, None)
        if before is not None:
            os.environ[_DEVICE_VARIABLE] = before


@contextmanager
def current_device(device: torch.device) -> Iterator[None]:
    """Make a CUDA device the current device inside the block; Accelerate would leave it current for good."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


@contextmanager
def repeatable(enabled: bool) -> Iterator[None]:
    """Restrict torch to deterministic algorithms inside the block if `enabled`; CPU algorithms always are.

    On CUDA the backward passes of attention and of indexing otherwise add with atomics, in an order that changes.
    cuBLAS is reproducible with the workspace of the variable (NVIDIA, cuBLAS documentation, "Results reproducibility").
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # every tensor here is written before it is read
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a device can train in a number format.

    Raises:
        SettingsError: it cannot.
    """
    if precision == "fp16" and device.type == "cpu":
        raise SettingsError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")


def pick_precision(precision: str, device: torch.device, predictor: torch.nn.Module) -> str:
    """Return the number format of a training's matrix products: "fp32", "bf16" or "fp16".

    "auto" is bf16 if the device multiplies it natively: on a CPU that takes a third of the time of Kronos-small. A
    small model trains in minutes on any CPU, and there it stays fp32, so that its numbers are the same on all CPUs.

    Args:
        precision: "auto", or the format itself.
        device: the device to train on.
        predictor: the predictor to train.

    Raises:
        SettingsError: the device does not train in that format.
    """
    check_precision(precision, device)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if has_native_bf16(device) else "fp32"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() and not is_small(predictor) else "fp32"


def cpu_has_bf16() -> bool:
    """Return whether this machine's CPU multiplies bfloat16 natively, according to PyTorch."""
    capabilities: Mapping[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # younger than the oldest torch allowed
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def device_name(device: torch.device) -> str:
    """Name a device; a GPU with its model, such as "cuda:0 (NVIDIA A10)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
