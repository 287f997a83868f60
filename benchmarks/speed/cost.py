"""What many tickers take on a machine: what one of each task takes when many are done at once, times their number."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from kronos_pipeline.model.decode.sample import sample_paths
from kronos_pipeline.training.single import AdapterJob
from kronos_pipeline.training.trainer import KronosTrainer
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
    """A user and the settings that cost: the pipeline's defaults for daily bars of ten years.

    Attributes:
        tickers: how many.
        windows: training windows of each.
        epochs: passes over them.
        rolls: forecasts that cover a holdout.
        models: that are sampled on it: base and adapter.
        paths: of a forecast.
    """

    tickers: int = 5000
    windows: int = 2300
    epochs: int = 3
    rolls: int = 1
    models: int = 2
    paths: int = 32


def table(
    machine: Machine, *, size: str, adapters: int, batch: int, steps: int, series: int, csv: float | None
) -> Table:
    """Hours per task.

    Args:
        machine: where.
        size: of the base model.
        adapters: that are trained together to see what a window takes.
        batch: windows per step of each.
        steps: of each.
        series: that are sampled at once to see what a path takes.
        csv: seconds from a CSV to stored windows; None where not measured.
    """
    user = Assumed()
    adapter, window = _training(machine, size, adapters, batch, steps)
    path = _path(machine, size, series, user.paths)
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
        if each is None
        else [task, count, seconds(each), duration(each * many)]
        for task, count, each, many in rows
    ]
    notes = [
        f"{user.tickers:,} tickers of 2,500 daily bars; {user.windows:,} training windows of 95 bars each, stride 1, "
        f"{user.epochs} epochs, LoRA on attention and feed-forward; {user.rolls} roll of 30 bars, {user.paths} paths, "
        f"base and adapter. Times of a window and of an adapter are from {adapters} adapters trained together, {steps} "
        f"and {2 * steps} steps of {batch} windows each; a path's is from {series} tickers at once. Every line is "
        "proportional to how many."
    ]
    title = f"What {user.tickers:,} tickers take with Kronos-{size} on {machine.name}"
    return Table(title, ("task", "how many", "each", "all"), cells, notes)


def on_paper(size: str, *, share: float = 0.2) -> Table:
    """The same tasks on a GPU that nobody ran: operations and bytes by formula, at the limits of its data sheet.

    Args:
        size: of the base model.
        share: of those limits that is assumed to be reached.
    """
    user, pair, rows, together = Assumed(), PAIRS[size], [], 128
    sheet = peaks(_H100)
    assert sheet is not None
    card = Machine(torch.device("cuda"), _H100, sheet.bandwidth, sheet.flops)
    windows, batch = user.tickers * user.windows * user.epochs, 512
    lora = training(pair, batch, _LOOKBACK + _HORIZON, _HORIZON, frozen=True)
    sampling = cached_sampling(pair, together, user.paths, _LOOKBACK, _HORIZON, "bf16")
    for task, phases, repeats in (
        ("train on windows", [lora], windows / batch),
        ("sample a holdout", sampling, user.tickers * user.rolls * user.models / together),
        ("forecast once", sampling, user.tickers / together),
    ):
        whole, least = total(phases), repeats * floor(phases, card, "bf16")
        rows.append(
            [
                task,
                f"{repeats * whole.flop:.2g}",
                f"{repeats * whole.bytes:.2g}",
                duration(least),
                duration(least / share),
                f"{least / share / _HOUR:.3f} p",
            ]
        )
    columns = ("task", "operations", "bytes", "at the limits", f"at {percent(share)} of them", "price")
    notes = [
        f"Not measured. The limits are a data sheet's: {sheet.flops['bf16'] / 1e12:.0f} TFLOP/s in bf16, "
        f"{sheet.bandwidth / 1e12:.2f} TB/s. That {percent(share)} of them is reached is an assumption; so are "
        f"{batch} windows to a step of all adapters together, and {together} tickers to a sampling. p is the price of "
        "an hour."
    ]
    return Table(
        f"What {user.tickers:,} tickers would take with Kronos-{size} on an H100, by formula", columns, rows, notes
    )


def _training(machine: Machine, size: str, adapters: int, batch: int, steps: int) -> tuple[float | None, float | None]:
    """Seconds of an adapter whatever its windows, and of a window: from so many steps and twice as many.

    None for both where twice the steps took no longer: then the times say nothing.
    """
    model = random_model(size, machine.device)
    settings = recipe(size, machine.device, batch, adapter="lora")

    def train(windows: int) -> float:
        tickers = random_windows(settings, [f"SIM{number}" for number in range(adapters)], windows)
        jobs = [AdapterJob(name=one.ticker, windows=[one]) for one in tickers]
        with tempfile.TemporaryDirectory() as folder:
            trainer = KronosTrainer(settings, Path(folder), base=model, say=lambda _: None)
            return timed(lambda: trainer.train_adapters(jobs), machine.device)().seconds

    train(batch)
    once, twice = train(batch * steps), train(2 * batch * steps)
    if twice <= once:
        return None, None
    return max(0.0, (2 * once - twice) / adapters), (twice - once) / (adapters * batch * steps)


def _path(machine: Machine, size: str, series: int, paths: int) -> float:
    model, some = random_model(size, machine.device), random_series(series, _LOOKBACK, _HORIZON)
    past, ahead = some.stamps
    run = timed(lambda: sample_paths(model, some.history, past, ahead, paths=paths, **SAMPLING), machine.device)
    return run().seconds / (series * paths)
