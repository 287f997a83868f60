"""Estimate the time of each task for many tickers: the time per item in a large batch, times the number of items."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from kronos_pipeline.model.decode.sample import sample_paths
from kronos_pipeline.training.plan import TrainingJob
from kronos_pipeline.training.trainer import KronosTrainer
from speed.cases import AdapterTraining
from speed.decoding import SAMPLING
from speed.machine import Machine
from speed.models import PAIRS, random_model, random_series, random_windows
from speed.sheets import peaks
from speed.table import NOT_MEASURED, Table, duration, percent, seconds
from speed.timing import timed
from speed.training import recipe
from speed.work import cached_sampling, floor, total, training

_HOUR, _LOOKBACK, _HORIZON = 3600.0, 64, 30
_H100 = "NVIDIA H100 80GB HBM3"


@dataclass(frozen=True)
class Assumed:
    """Assumed workload: the pipeline's default settings on ten years of daily bars.

    Attributes:
        tickers: number of tickers.
        windows: training windows per ticker.
        epochs: passes over the windows.
        rolls: forecasts per holdout.
        models: models that forecast the holdout: base and adapter.
        paths: paths per forecast.
    """

    tickers: int = 5000
    windows: int = 2300
    epochs: int = 3
    rolls: int = 1
    models: int = 2
    paths: int = 32


def table(machine: Machine, run: AdapterTraining, *, series: int, csv: float | None) -> Table:
    """Estimate the time per task from short measurements.

    Args:
        machine: device of the models.
        run: size of the joint training that measures the time per window.
        series: number of series of the sampling that measures the time per path.
        csv: seconds from a CSV to stored windows; None if not measured.
    """
    user = Assumed()
    adapter, window = _training(machine, run)
    path = _path(machine, run.size, series, user.paths)
    trained = user.tickers * user.windows * user.epochs
    sampled = user.tickers * user.rolls * user.models * user.paths
    rows: list[tuple[str, str, float | None, int]] = [
        ("read and cut CSVs", f"{user.tickers:,} tickers", csv, user.tickers),
        ("train on windows", f"{trained:,} windows", window, trained),
        ("begin and publish adapters", f"{user.tickers:,} adapters", adapter, user.tickers),
        ("sample a holdout", f"{sampled:,} paths", path, sampled),
        ("forecast once", f"{user.tickers * user.paths:,} paths", path, user.tickers * user.paths),
    ]
    cells = [
        [task, count, NOT_MEASURED, NOT_MEASURED]
        if each_count is None
        else [task, count, seconds(each_count), duration(each_count * many)]
        for task, count, each_count, many in rows
    ]
    notes = [
        f"{user.tickers:,} tickers of 2,500 daily bars; {user.windows:,} training windows of 95 bars each, stride 1, "
        f"{user.epochs} epochs, LoRA on attention and feed-forward; {user.rolls} roll of 30 bars, {user.paths} paths, "
        f"base and adapter. Times of a window and of an adapter are from {run.adapters} adapters trained together, "
        f"{run.steps} and {2 * run.steps} steps of {run.batch} windows each; the time of a path is from {series} "
        "tickers at once. The total of a line is proportional to its number of items."
    ]
    title = f"Time for {user.tickers:,} tickers with Kronos-{run.size} on {machine.name}"
    return Table(title, ("task", "how many", "each", "all"), cells, notes)


def on_paper(size: str, *, share: float = 0.2) -> Table:
    """Compute the time of the same tasks on an H100 from operations, bytes and the limits of its data sheet.

    Args:
        size: size of the base model.
        share: assumed share of the limits that a program reaches.
    """
    user, pair, rows, adapters = Assumed(), PAIRS[size], [], 128
    sheet = peaks(_H100)
    assert sheet is not None
    card = Machine(torch.device("cuda"), _H100, sheet.bandwidth, sheet.flops)
    windows, batch = user.tickers * user.windows * user.epochs, 512
    lora = training(pair, batch, _LOOKBACK + _HORIZON, _HORIZON, frozen=True)
    sampling = cached_sampling(pair, adapters, user.paths, _LOOKBACK, _HORIZON, "bf16")
    for task, phases, repeats in (
        ("train on windows", [lora], windows / batch),
        ("sample a holdout", sampling, user.tickers * user.rolls * user.models / adapters),
        ("forecast once", sampling, user.tickers / adapters),
    ):
        work, least = total(phases), repeats * floor(phases, card, "bf16")
        rows.append(
            [
                task,
                f"{repeats * work.flop:.2g}",
                f"{repeats * work.bytes:.2g}",
                duration(least),
                duration(least / share),
                f"{least / share / _HOUR:.3f} p",
            ]
        )
    columns = ("task", "operations", "bytes", "at the limits", f"at {percent(share)} of them", "price")
    notes = [
        f"Not measured. The limits are from the data sheet: {sheet.flops['bf16'] / 1e12:.0f} TFLOP/s in bf16, "
        f"{sheet.bandwidth / 1e12:.2f} TB/s. Assumptions: programs reach {percent(share)} of the limits, a step of all "
        f"adapters has {batch} windows, and a sampling has {adapters} tickers. p is the price of an hour."
    ]
    return Table(f"Time for {user.tickers:,} tickers with Kronos-{size} on an H100, by formula", columns, rows, notes)


def _training(machine: Machine, run: AdapterTraining) -> tuple[float | None, float | None]:
    """Measure the fixed seconds of an adapter and the seconds per window, from trainings of n and 2n steps.

    Return None for both if 2n steps took no longer than n: such times are too noisy.
    """
    model = random_model(run.size, machine.device)
    settings = recipe(run.size, machine.device, run.batch, adapter="lora")

    def train(windows: int) -> float:
        tickers = random_windows(settings, [f"SIM{number}" for number in range(run.adapters)], windows)
        jobs = [TrainingJob(ticker.ticker, [ticker]) for ticker in tickers]
        with tempfile.TemporaryDirectory() as folder:
            trainer = KronosTrainer(settings, Path(folder), base=model, say=lambda _: None)
            return timed(lambda: trainer.train_adapters(jobs), machine.device)().seconds

    train(run.batch)
    each = run.batch * run.steps
    once, twice = train(each), train(2 * each)
    if twice <= once:
        return None, None
    return max(0.0, (2 * once - twice) / run.adapters), (twice - once) / (run.adapters * each)


def _path(machine: Machine, size: str, series: int, paths: int) -> float:
    model, simulated = random_model(size, machine.device), random_series(series, _LOOKBACK, _HORIZON)
    past, ahead = simulated.stamps
    run = timed(lambda: sample_paths(model, simulated.history, past, ahead, paths=paths, **SAMPLING), machine.device)
    return run().seconds / (series * paths)
