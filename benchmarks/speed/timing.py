"""Times of rivals taken in turns, their ratios with spread, and the memory that each one takes at its peak.

Rivals run A B A B, so what slows the machine for a while slows both, and each round gives a ratio of its own.
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


@dataclass(frozen=True)
class Sample:
    """One run.

    Attributes:
        seconds: by the wall clock, or of whatever the run says it measures.
        peak: bytes above those held before it, at most at once; None where the system does not tell.
    """

    seconds: float
    peak: int | None = None


Run = Callable[[], Sample]


@dataclass(frozen=True)
class Spread:
    """The median of some repeats and their range."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, show: Callable[[float], str]) -> str:
        """Median and range; the median alone of one repeat."""
        if self.count == 1:
            return show(self.median)
        return f"{show(self.median)} ({show(self.low)} to {show(self.high)})"


def timed(function: Callable[[], object], device: torch.device) -> Run:
    """A run of a function on a device, with its work there done."""

    def run() -> Sample:
        before = _start_peak(device)
        wait(device)
        began = time.perf_counter()
        function()
        wait(device)
        seconds = time.perf_counter() - began
        return Sample(seconds, _peak(device, before))

    return run


def alternate(runs: Mapping[str, Run], rounds: int, within: float = float("inf")) -> dict[str, list[Sample]]:
    """Run the rivals in turns.

    Args:
        runs: by name; to be warm already.
        rounds: how often each.
        within: seconds after which no further round begins; the first always runs.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    began = time.perf_counter()
    for done in range(rounds):
        if done and (time.perf_counter() - began) * (done + 1) / done > within:
            break
        for name, run in runs.items():
            samples[name].append(run())
    return samples


def time_of(samples: Sequence[Sample]) -> Spread:
    """Seconds."""
    return Spread.of([sample.seconds for sample in samples])


def ratio(slow: Sequence[Sample], fast: Sequence[Sample]) -> Spread:
    """How many times as fast, round by round."""
    return Spread.of([one.seconds / other.seconds for one, other in zip(slow, fast, strict=True)])


def times(slow: Sequence[Sample], fast: Sequence[Sample], digits: int = 1) -> str:
    """The ratio as text, 1 of a thing and itself."""
    return "1" if slow is fast else ratio(slow, fast).text(lambda value: f"{value:.{digits}f}")


def peak_of(samples: Sequence[Sample]) -> int | None:
    """The most bytes of any round, None where not measured."""
    peaks = [sample.peak for sample in samples if sample.peak is not None]
    return max(peaks) if peaks else None


def wait(device: torch.device) -> None:
    """Until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _start_peak(device: torch.device) -> int | None:
    gc.collect(1)  # what the run before has left; all of the heap would take longer than many a run
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else freed pages hide what the next run takes
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
