"""Profile a sampling and a training step by operation."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kronos_pipeline.model.decode.sample import sample_paths
from kronos_pipeline.training.devices import pick_precision
from kronos_pipeline.training.loss_module import LossModule
from speed.cases import Case
from speed.decoding import SAMPLING
from speed.models import random_model, random_series, random_windows
from speed.table import Table, percent, seconds
from speed.training import batches, recipe

_ROWS = 10


def of_sampling(device: torch.device, *, size: str, case: Case) -> Table:
    """Profile `sample_paths`: operations by their own time, without the operations that they call."""
    model, series = random_model(size, device), random_series(case.series, case.bars, case.horizon)
    past, ahead = series.stamps
    return _table(
        f"Time of a sampling by operation: Kronos-{size}, {case.name}, {device.type}",
        lambda: sample_paths(model, series.history, past, ahead, paths=case.paths, **SAMPLING),
        device,
    )


def of_training(device: torch.device, *, size: str, batch: int) -> Table:
    """Profile a forward and backward pass of the trainer's loss, in the number format of `auto`."""
    model = random_model(size, device)
    settings = recipe(size, device, batch)
    tokens = next(batches(random_windows(settings, ["SIM"], batch), model, batch))
    loss_module = LossModule(model.predictor.train(), settings.lookback)
    precision = pick_precision(settings.precision, device, model.predictor)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_module(**tokens)
        loss.backward()

    title = f"Kronos-{size}, {batch} windows of 95 bars, {device.type}, {precision}"
    return _table(f"Time of a training step by operation: {title}", step, device)


def _table(title: str, run: Callable[[], object], device: torch.device) -> Table:
    run()
    cuda = torch.profiler.ProfilerActivity.CUDA
    on_device = device.type == "cuda" and cuda in torch.profiler.supported_activities()
    kinds = [torch.profiler.ProfilerActivity.CPU, *([cuda] if on_device else [])]
    with torch.profiler.profile(activities=kinds) as profile:
        run()

    def own(event: torch.autograd.profiler_util.FunctionEventAvg) -> float:
        return 1e-6 * (event.self_device_time_total if on_device else event.self_cpu_time_total)

    events = sorted(profile.key_averages(), key=own, reverse=True)
    total_time = sum(own(event) for event in events)
    rows = [
        [event.key[:60], f"{event.count:,}", seconds(own(event)), percent(own(event) / total_time)] for event in events
    ]
    where = "on the device" if on_device else "on the processor"
    notes = [
        f"In all {seconds(total_time)} {where} under the profiler, which slows short operations; "
        f"{len(events) - _ROWS} more kinds of operations are left out."
    ]
    return Table(title, ("operation", "calls", "own time", "share"), rows[:_ROWS], notes)
