"""What a machine can do at most, measured, and what it is."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from speed.table import Table, number
from speed.timing import wait

_PACKAGES = ("torch", "sktime", "peft", "accelerate", "pyarrow", "pandas")


@dataclass(frozen=True)
class Machine:
    """A device and its limits.

    Attributes:
        device: where the models are.
        name: of the processor, no host's.
        bandwidth: bytes a second that it reads from its memory.
        flops: floating-point operations a second in large matrix products, by number format; a multiply-add is two.
    """

    device: torch.device
    name: str
    bandwidth: float
    flops: dict[str, float]


def measure(device: torch.device, *, quick: bool = False) -> Machine:
    """Measure a device: the best of several tries, as a limit should be."""
    large = device.type == "cuda"
    elements, size = (2**28, 8192) if large else (2**26, 2048)
    if quick:
        elements, size = elements // 2, size // 4  # still more than a processor's cache
    numbers = torch.ones(elements, device=device)
    bandwidth = 4 * elements / _best(lambda: numbers.sum(), device)
    flops = {}
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        square = torch.randn(size, size, device=device).to(kind)
        ways = [lambda square=square: square @ square]
        if device.type == "cpu" and kind is torch.float32 and (packed := _packed_product(square)):
            ways.append(packed)
        flops[name] = 2 * size**3 / min(_best(way, device) for way in ways)
    return Machine(device, processor(device), bandwidth, flops)


def limits(machine: Machine) -> Table:
    """The measured limits, and what they were measured on."""
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in _PACKAGES)
    rows = [
        ["memory, read", f"{number(machine.bandwidth / 1e9)} GB/s"],
        *([f"matrix products, {kind}", f"{number(value / 1e9)} GFLOP/s"] for kind, value in machine.flops.items()),
    ]
    on = f"{machine.name}; {time.strftime('%Y-%m-%d')}; Python {platform.python_version()}, {versions}."
    load = f" Load when the run began: {os.getloadavg()[0]:.1f}." if hasattr(os, "getloadavg") else ""
    return Table("What the machine can do, measured in this run", ("limit", "best of 7"), rows, [on + load])


def processor(device: torch.device) -> str:
    """The processor's name and how much of it is used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, {capability}"


def _best(function: Callable[[], object], device: torch.device, tries: int = 7) -> float:
    function()
    times = []
    for _ in range(tries):
        wait(device)
        began = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - began)
    return min(times)


def _packed_product(square: torch.Tensor) -> Callable[[], object] | None:
    """The product by oneDNN on packed weights, which can be twice as fast as the default one; None without it."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(square, len(square))
        torch.ops.mkldnn._linear_pointwise(square, packed, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return lambda: torch.ops.mkldnn._linear_pointwise(square, packed, None, "none", [], "")
