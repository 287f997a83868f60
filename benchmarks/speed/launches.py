"""Count the launches of a training step and of a sampled bar, and measure the idle time of the device between kernels.

A GPU that runs a kernel faster than Python launches the next is idle in between. Then fewer launches save time, and
faster kernels do not. There are two counts:

- operations: PyTorch operations on the device, counted when they are called, on any device. A replayed CUDA graph
  counts as none, and an operation may start several kernels.
- kernels with their times, and the host's calls that launch them, by CUDA's profiler.

The figures of a step are the difference of a run of 2n steps and a run of n steps, so start and end do not count.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from sktime.libs.kronos import KronosPredictor as UpstreamPredictor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kronos_pipeline.model.decode import generate
from kronos_pipeline.model.decode.sample import sample_paths
from speed import adapters, training
from speed.cases import AdapterTraining, Case, FineTune
from speed.decoding import SAMPLING
from speed.machine import Machine
from speed.models import random_model, random_series, random_windows
from speed.table import NOT_MEASURED, Report, Table, number, percent, seconds
from speed.timing import wait

_PAUSE = 0.01
"""Seconds between kernels from which on a gap is a pause, for example while a file is written or a training begins."""
_LAUNCH = re.compile("Launch|Memcpy|Memset")
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
Runs = Callable[[int], Callable[[], object]]
"""Return a function that runs a number of steps."""


@dataclass(frozen=True)
class Gaps:
    """Kernels and gaps of a device.

    Attributes:
        kernels: number of kernels.
        busy: seconds with at least one kernel at work.
        idle: seconds between kernels, without pauses.
        median: median seconds from a kernel to the next.
    """

    kernels: int
    busy: float
    idle: float
    median: float


def gaps(spans: Sequence[tuple[float, float]], pause: float = _PAUSE) -> Gaps:
    """Compute the gaps between kernels.

    Args:
        spans: start and duration of each kernel in seconds, in any order; kernels that overlap have a gap of 0.
        pause: seconds from which on a gap is left out.
    """
    busy, end, between = 0.0, float("-inf"), []
    for start, duration in sorted(spans):
        if end > float("-inf"):
            between.append(max(0.0, start - end))
        busy += max(0.0, start + duration - max(start, end))
        end = max(end, start + duration)
    short = [gap for gap in between if gap < pause]
    return Gaps(len(spans), busy, sum(short), statistics.median(short) if short else 0.0)


class _Operations(TorchDispatchMode):
    """Counter of operations on tensors of a device; views and bare allocations do not count."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch annotates no dispatch mode
        self.count, self._device = 0, device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in _NO_KERNEL:
            tensors = (leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor))
            self.count += any(tensor.device == self._device for tensor in tensors)
        return result


def operations(run: Callable[[], object], device: torch.device) -> int:
    """Count the operations that a call starts on a device, backward passes included."""
    counter = _Operations(device)
    with counter:
        run()
    return counter.count


def profiled(run: Callable[[], object], device: torch.device) -> tuple[Gaps, int] | None:
    """Profile the kernels of a call and count the host's launches; None if the profiler cannot see the device."""
    if device.type != "cuda" or ProfilerActivity.CUDA not in supported_activities():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        wait(device)
    events = [event for event in profiler.events() if not event.is_user_annotation]
    spans = [
        (1e-6 * event.time_range.start, 1e-6 * event.time_range.elapsed_us())
        for event in events
        if event.device_type == DeviceType.CUDA
    ]
    launches = [event for event in events if event.device_type == DeviceType.CPU and _LAUNCH.search(event.name)]
    return (gaps(spans), len(launches)) if spans else None


def row(name: str, runs: Runs, steps: int, device: torch.device) -> list[str]:
    """Return the cells of a way: operations, kernels, launches and gaps of a step.

    Args:
        name: name of the way.
        runs: returns a run of a number of steps.
        steps: steps of the shorter run; the longer run has twice as many.
        device: device of the run.
    """
    runs(steps)()
    operations_short, operations_long = (operations(runs(count), device) for count in (steps, 2 * steps))
    cells = [name, number((operations_long - operations_short) / steps)]
    short, long = (profiled(runs(count), device) for count in (steps, 2 * steps))
    if short is None or long is None:
        return cells + [NOT_MEASURED] * 5
    (first, launches), (last, all_launches) = short, long
    return [
        *cells,
        number((last.kernels - first.kernels) / steps),
        number((all_launches - launches) / steps),
        seconds(last.median),
        seconds(max(0.0, last.idle - first.idle) / steps),
        percent(last.busy / (last.busy + last.idle)),
    ]


_COLUMNS = ("operations", "kernels", "launches", "median gap", "gaps", "device busy")
_NOTE = (
    "operations: PyTorch operations on the device. kernels: kernels and copies. launches: the host's calls that start "
    "them; the replay of a graph is one call. median gap: from the end of a kernel to the next. gaps: the sum of the "
    f"gaps below {1e3 * _PAUSE:.0f} ms. device busy: share of the time with a kernel at work; gaps are the rest. "
    "Measured by runs of {short} and {long}, under the profiler, which slows the host."
)


def reports(machine: Machine, case: Case, full: FineTune, lora: AdapterTraining) -> Iterator[Report]:
    """Measure the launches of sampling and of training, by upstream and by the project.

    Args:
        machine: device of the model.
        case: size of the sampling; its horizon is the length of the shorter run.
        full: size of the shorter run of a full fine-tune; sampling takes its model.
        lora: size of the joint training of adapters, of as many steps.
    """
    device, kind, size, steps = machine.device, machine.device.type, full.size, full.steps
    title = f"Launches of a bar: sampling {case.name}, Kronos-{size}, {kind}"
    note = _NOTE.format(short=f"{case.horizon} bars", long=2 * case.horizon)
    for name, runs in _samplings(machine, size, case).items():
        with mock.patch.object(generate, "REPLAYED", ("cuda",) if name == _GRAPHS else ()):
            cells = row(name, runs, case.horizon, device)
        yield Report([Table(title, ("way", *_COLUMNS), [cells], [note])])
    title = f"Launches of a training step: Kronos-{size}, {kind}"
    note = _NOTE.format(short=f"{steps} steps", long=2 * steps)
    for name, runs in _trainings(machine, full, lora).items():
        cells = row(name, runs, steps, device)
        yield Report([Table(title, ("way", *_COLUMNS), [cells], [note])])


_GRAPHS = "sample_paths, graphs replayed"


def _samplings(machine: Machine, size: str, case: Case) -> dict[str, Runs]:
    model = random_model(size, machine.device)
    upstream = UpstreamPredictor(model.predictor, model.tokenizer, str(model.device))

    def predict(horizon: int) -> Callable[[], object]:
        series = random_series(case.series, case.bars, horizon)
        settings: dict[str, Any] = {"T": SAMPLING["temperature"], "top_p": SAMPLING["top_p"], "verbose": False}
        return lambda: upstream.predict_batch(*series.frames, horizon, sample_count=case.paths, **settings)

    def sample(horizon: int) -> Callable[[], object]:
        series = random_series(case.series, case.bars, horizon)
        past, ahead = series.stamps
        return lambda: sample_paths(model, series.history, past, ahead, paths=case.paths, **SAMPLING)

    methods: dict[str, Runs] = {"upstream": predict, "sample_paths, no graphs": sample}
    return methods | ({_GRAPHS: sample} if machine.device.type == "cuda" else {})


def _trainings(machine: Machine, full: FineTune, lora: AdapterTraining) -> dict[str, Runs]:
    model, batch, rows = random_model(full.size, machine.device), full.batch, lora.batch
    full_recipe = training.recipe(full.size, machine.device, batch)
    lora_recipe = training.recipe(lora.size, machine.device, rows, adapter="lora")
    names = [f"SIM{number}" for number in range(lora.adapters)]

    def upstream(steps: int) -> Callable[[], object]:
        tokens = training.batches(random_windows(full_recipe, ["SIM"], batch), model, batch)
        return training.upstream_loop(model, tokens, steps)

    def ours(steps: int) -> Callable[[], object]:
        return training.trainer_run(model, random_windows(full_recipe, ["SIM"], batch * steps), full_recipe)

    def together(steps: int) -> Callable[[], object]:
        windows = random_windows(lora_recipe, names, rows * steps)
        return lambda: adapters.together(model, windows, lora_recipe)

    return {
        f"upstream's loop, {batch} windows, fp32": upstream,
        f"KronosTrainer, {batch} windows, auto": ours,
        f"train_adapters, {lora.adapters} adapters x {rows} windows": together,
    }
