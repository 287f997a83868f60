"""Time rivals in turns, and compute their ratios with spread and their peak memory.

Rivals run A B A B: a slow phase of the machine slows both, and each round gives its own ratio.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from speed.cases import Repeats


@dataclass(frozen=True)
class Sample:
    """Measurement of one run.

    Attributes:
        seconds: wall-clock seconds of the run, or of the part that the run measures.
        peak: peak bytes above the bytes held before the run; None if the system does not report them.
    """

    seconds: float
    peak: int | None = None


Run = Callable[[], Sample]


@dataclass(frozen=True)
class Spread:
    """Median and range of repeats."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some values."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, show: Callable[[float], str]) -> str:
        """Format median and range; of a single repeat, its value."""
        if self.count == 1:
            return show(self.median)
        return f"{show(self.median)} ({show(self.low)} to {show(self.high)})"


def timed(function: Callable[[], object], device: torch.device) -> Run:
    """Return a run that times a function on a device and waits until the device has finished."""

    def run() -> Sample:
        before = _start_peak(device)
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        seconds = time.perf_counter() - start
        return Sample(seconds, _peak(device, before))

    return run


def alternate(runs: Mapping[str, Run], repeats: Repeats) -> dict[str, list[Sample]]:
    """Run rivals in turns.

    Args:
        runs: runs by name, warmed up.
        repeats: maximum of rounds, and of seconds.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    start = time.perf_counter()
    for number in range(repeats.rounds):
        if number and (time.perf_counter() - start) * (number + 1) / number > repeats.within:
            break
        for name, run in runs.items():
            samples[name].append(run())
    return samples


def time_of(samples: Sequence[Sample]) -> Spread:
    """Return the spread of the seconds."""
    return Spread.of([sample.seconds for sample in samples])


def ratio(slow: Sequence[Sample], fast: Sequence[Sample]) -> Spread:
    """Return the spread of the speed-up, round by round."""
    return Spread.of([slower.seconds / faster.seconds for slower, faster in zip(slow, fast, strict=True)])


def times(slow: Sequence[Sample], fast: Sequence[Sample], digits: int = 1) -> str:
    """Format the speed-up; it is 1 of a rival and itself."""
    return "1" if slow is fast else ratio(slow, fast).text(lambda value: f"{value:.{digits}f}")


def peak_of(samples: Sequence[Sample]) -> int | None:
    """Return the largest peak of all rounds in bytes; None if not measured."""
    peaks = [sample.peak for sample in samples if sample.peak is not None]
    return max(peaks) if peaks else None


def wait(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _start_peak(device: torch.device) -> int | None:
    gc.collect(1)  # garbage of the run before; a full collection would take longer than many runs
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else the next run reuses freed pages, and its peak is too low
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS: proc(5)
    except (AttributeError, OSError):
        return None
    return _status("VmRSS")


def _peak(device: torch.device, before: int | None) -> int | None:
    if before is None:
        return None
    highest = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")
    return max(0, highest - before)


def _status(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])
