"""Adapters of many tickers: by a plain PEFT loop, by the trainer one after the other, and in one training."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import KronosError
from kronos_pipeline.model.loading import KronosModel
from kronos_pipeline.training.devices import pick_precision
from kronos_pipeline.training.single import AdapterJob
from kronos_pipeline.training.trainer import KronosTrainer
from speed.machine import Machine
from speed.models import random_model, random_windows
from speed.table import Goal, Report, Table, megabytes, number, seconds
from speed.timing import Run, Sample, Spread, alternate, peak_of, ratio, time_of, timed, times
from speed.training import batches, recipe, upstream_step

_PEFT, _ALONE, _MAX_PREDICTORS = "plain PEFT loop, one by one", "train_adapter, one by one", "train_adapters, together"
_IMPORTS = "import kronos_pipeline.training.trainer"


def beside_peft(
    machine: Machine,
    *,
    size: str,
    adapters: int,
    alone: int,
    batch: int,
    steps: int,
    rounds: int,
    within: float,
    goal: float | None,
    start: float | None = None,
) -> Report:
    """Adapters per minute, each trained, chosen by one look, and written.

    Args:
        machine: where.
        size: of the base model.
        adapters: how many are trained together.
        alone: how many of them are trained one by one, which tells as much.
        batch: windows per step of one adapter.
        steps: of each.
        rounds: repeats, at most.
        within: seconds after which no further round begins.
        goal: how many times as fast as the plain loop it is meant to be; None where nothing is promised.
        start: seconds that a process takes to start, from `start_up`; None where that is not looked at.
    """
    model = random_model(size, machine.device)
    settings = recipe(size, machine.device, batch, adapter="lora")
    windows = random_windows(settings, [f"SIM{number}" for number in range(adapters)], batch * steps)
    few = windows[:alone]

    def each(train: Callable[[], None], count: int) -> Run:
        def run() -> Sample:
            taken = timed(train, machine.device)()
            return replace(taken, seconds=taken.seconds / count)

        return run

    ways = {
        _PEFT: each(lambda: plain_peft(model, few, settings, steps), alone),
        _ALONE: each(lambda: one_by_one(model, few, settings), alone),
        _MAX_PREDICTORS: each(lambda: together(model, windows, settings), adapters),
    }
    short = random_windows(settings, ["WARM", "UP"], batch)
    plain_peft(model, short, settings, 1)
    together(model, short, settings)
    samples = alternate(ways, rounds, within)
    rows = [
        [
            name,
            time_of(taken).text(seconds),
            Spread.of([60 / sample.seconds for sample in taken]).text(number),
            times(samples[_PEFT], taken, 2),
            megabytes(peak_of(taken)),
        ]
        for name, taken in samples.items()
    ]
    precision = pick_precision(settings.precision, machine.device, model.predictor)
    notes = [
        f"{steps} steps of {batch} windows of 95 bars each, LoRA of rank {settings.adapter_r} on the attention and "
        f"feed-forward maps. The plain loop is in float32, takes no looks, keeps no state and checks nothing; "
        f"the trainer takes {precision}, as `auto` does.",
    ]
    if start is not None:
        apart = adapters * (start + time_of(samples[_PEFT]).median)
        in_one = start + adapters * time_of(samples[_MAX_PREDICTORS]).median
        notes.append(
            f"A process that imports the trainer takes {seconds(start)} to start. A command per ticker waits for that "
            f"{adapters} times: {seconds(apart)} with plain loops, {seconds(in_one)} in one training, "
            f"{apart / in_one:.1f} times."
        )
    columns = ("way", "each", "adapters/min", "times", "peak memory")
    what = f"{adapters} adapters of Kronos-{size}, {machine.device.type}"
    rivals = samples[_PEFT], samples[_MAX_PREDICTORS]
    found = f"{times(*rivals, 2)} times"
    goals = [] if goal is None else [Goal(what, f"{goal:g} times", found, ratio(*rivals).median >= goal)]
    return Report([Table(what, columns, rows, notes)], goals)


def plain_peft(model: KronosModel, windows: list[WindowSet], settings: Recipe, steps: int) -> None:
    """What a user of PEFT would write: adapter by adapter, upstream's loss, AdamW, the adapter saved."""
    config = LoraConfig(
        r=settings.adapter_r,
        lora_alpha=int(settings.adapter_alpha),
        lora_dropout=settings.adapter_dropout,
        target_modules=settings.adapter_targets,
    )
    for one in windows:
        tokens = batches([one], model, settings.batch_size)
        predictor = get_peft_model(copy.deepcopy(model.predictor), config).train()
        trained = [tensor for tensor in predictor.parameters() if tensor.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate)
        for _ in range(steps):
            upstream_step(predictor, optimizer, next(tokens))
        with tempfile.TemporaryDirectory() as folder:
            predictor.save_pretrained(folder)


def one_by_one(model: KronosModel, windows: list[WindowSet], settings: Recipe) -> None:
    """The project's trainer, a training per ticker."""
    _in_folder(lambda folder: [_trainer(model, settings, folder).train_adapter([one], one.ticker) for one in windows])


def together(model: KronosModel, windows: list[WindowSet], settings: Recipe) -> None:
    """The project's trainer, one training for all."""
    jobs = [AdapterJob(name=one.ticker, windows=[one]) for one in windows]

    def train(folder: Path) -> None:
        failed = [end for end in _trainer(model, settings, folder).train_adapters(jobs) if isinstance(end, KronosError)]
        if failed:
            raise failed[0]

    _in_folder(train)


def start_up() -> float:
    """Seconds until a new process has imported the trainer."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
    return time.perf_counter() - began


def _trainer(model: KronosModel, settings: Recipe, folder: Path) -> KronosTrainer:
    return KronosTrainer(settings, folder, base=model, say=lambda _: None)


def _in_folder(train: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder))
