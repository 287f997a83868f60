"""Measure the limits of a machine, and describe it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from speed.sheets import peaks
from speed.table import Table, number, percent
from speed.timing import wait

_PACKAGES = ("torch", "sktime", "peft", "accelerate", "pyarrow", "pandas")
_FORMATS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CPU_FORMATS, _CUDA_FORMATS = ("fp32", "bf16"), tuple(_FORMATS)


@dataclass(frozen=True)
class Machine:
    """A device and its limits.

    Attributes:
        device: device of the models.
        name: name of the processor, without the host's name.
        bandwidth: bytes per second that the device reads from its memory.
        flops: floating-point operations per second in large matrix products, by number format; a multiply-add is two.

    A limit that was not measured is NaN.
    """

    device: torch.device
    name: str
    bandwidth: float
    flops: dict[str, float]


def measure(device: torch.device, *, quick: bool = False) -> Machine:
    """Measure the limits of a device, each as the best of several tries."""
    large = device.type == "cuda"
    elements, size = (2**28, 8192) if large else (2**26, 2048)
    if quick:
        elements, size = 2**25, 512  # still larger than a processor's cache
    numbers = torch.ones(elements, device=device)
    bandwidth = 4 * elements / _best(lambda: numbers.sum(), device)
    flops = {}
    for name in _CUDA_FORMATS if large else _CPU_FORMATS:
        square = torch.randn(size, size, device=device).to(_FORMATS[name])
        products: list[Callable[[], object]] = [partial(torch.matmul, square, square)]
        if device.type == "cpu" and name == "fp32" and (packed := _packed_product(square)):
            products.append(packed)
        with _tensor_cores("high" if name == "tf32" else "highest"):
            flops[name] = 2 * size**3 / min(_best(way, device) for way in products)
    return Machine(device, processor(device), bandwidth, flops)


def save(machine: Machine, file: Path) -> None:
    """Write the limits as JSON."""
    file.write_text(json.dumps({"name": machine.name, "bandwidth": machine.bandwidth, "flops": machine.flops}))


def load(file: Path, device: torch.device) -> Machine:
    """Read the limits that `save` wrote; without the file they are NaN, since they could not be measured."""
    if file.exists():
        return Machine(device, **json.loads(file.read_text()))
    return Machine(device, processor(device), float("nan"), dict.fromkeys(_FORMATS, float("nan")))


def limits(machine: Machine) -> Table:
    """Return a table of the measured limits, beside the data sheet's if the card is known; the note is the machine."""
    sheet = peaks(machine.name)
    limits = [("memory, read", machine.bandwidth, "GB/s", None if sheet is None else sheet.bandwidth)]
    for kind, value in machine.flops.items():
        limits.append((f"matrix products, {kind}", value, "GFLOP/s", None if sheet is None else sheet.flops.get(kind)))
    rows = [[name, f"{number(value / 1e9)} {unit}"] for name, value, unit, _ in limits]
    columns = ["limit", "best of 7"]
    if sheet is not None:
        columns += ["data sheet", "share"]
        for row, (_, value, unit, sheet_value) in zip(rows, limits, strict=True):
            row += (
                ["none", "none"]
                if sheet_value is None
                else [f"{number(sheet_value / 1e9)} {unit}", percent(value / sheet_value)]
            )
    versions = [f"{package} {version}" for package in _PACKAGES if (version := _version(package))]
    on = f"{machine.name}; {time.strftime('%Y-%m-%d')}; Python {platform.python_version()}, {', '.join(versions)}."
    load = f" Load when the run began: {os.getloadavg()[0]:.1f}." if hasattr(os, "getloadavg") else ""
    notes = [on + load]
    if machine.device.type == "cuda":
        notes.append(f"{', '.join(_cuda(machine.device))}.")
    return Table("Limits of the machine, measured in this run", columns, rows, notes)


def processor(device: torch.device) -> str:
    """Return the processor's name, and the number of threads and cores of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, {capability}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cuda(device: torch.device) -> Iterator[str]:
    """Describe a GPU: CUDA version, memory, multiprocessors, and driver, power limit and clock from nvidia-smi."""
    card = torch.cuda.get_device_properties(device)
    yield f"CUDA {torch.version.cuda}"
    yield f"{card.total_memory / 2**30:.0f} GiB"
    yield f"{card.multi_processor_count} multiprocessors"
    fields = {
        "driver_version": "driver {}",
        "power.limit": "power limit {} W",
        "clocks.max.sm": "SM clock up to {} MHz",
    }
    identity = f"GPU-{card.uuid}" if getattr(card, "uuid", None) else str(device.index or 0)
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id={identity}"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return
    for text, value in zip(fields.values(), output.strip().split(", "), strict=False):
        if value and not value.startswith("["):  # "[N/A]", "[Not Supported]"
            yield text.format(value)


@contextmanager
def _tensor_cores(precision: str) -> Iterator[None]:
    """Set the precision of float32 matrix products inside the block: "highest", or "high" for TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _best(function: Callable[[], object], device: torch.device, tries: int = 7) -> float:
    function()
    times = []
    for _ in range(tries):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _packed_product(square: torch.Tensor) -> Callable[[], object] | None:
    """Return oneDNN's product on packed weights, up to twice as fast as the default product; None without oneDNN."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(square, len(square))
        torch.ops.mkldnn._linear_pointwise(square, packed, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return lambda: torch.ops.mkldnn._linear_pointwise(square, packed, None, "none", [], "")
