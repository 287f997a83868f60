"""Time the training of many adapters: by a plain PEFT loop, by the trainer one by one, and jointly."""

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
from kronos_pipeline.training.plan import TrainingJob
from kronos_pipeline.training.trainer import KronosTrainer
from speed.cases import AdapterTraining, Repeats
from speed.machine import Machine
from speed.models import random_model, random_windows
from speed.table import Goal, Report, Table, megabytes, number, seconds
from speed.timing import Run, Sample, Spread, alternate, peak_of, ratio, time_of, timed, times
from speed.training import batches, recipe, upstream_step

_PEFT, _ALONE, _TOGETHER = "plain PEFT loop, one by one", "train_adapter, one by one", "train_adapters, together"
_IMPORTS = "import kronos_pipeline.training.trainer"


def beside_peft(
    machine: Machine,
    run: AdapterTraining,
    repeats: Repeats,
    *,
    alone: int,
    goal: float | None,
    start: float | None = None,
) -> Report:
    """Measure adapters per minute; each adapter is trained, evaluated once and written.

    Args:
        machine: device of the models.
        run: size of the joint training.
        repeats: repeats of each way.
        alone: number of adapters that train one by one.
        goal: promised speed-up over the plain loop; None without a promise.
        start: seconds to start a process, from `start_up`; None to leave the start out.
    """
    model = random_model(run.size, machine.device)
    settings = recipe(run.size, machine.device, run.batch, adapter="lora")
    windows = random_windows(settings, [f"SIM{number}" for number in range(run.adapters)], run.batch * run.steps)
    single_windows = windows[:alone]

    def each(train: Callable[[], None], count: int) -> Run:
        def sample() -> Sample:
            timed_sample = timed(train, machine.device)()
            return replace(timed_sample, seconds=timed_sample.seconds / count)

        return sample

    methods = {
        _PEFT: each(lambda: plain_peft(model, single_windows, settings, run.steps), alone),
        _ALONE: each(lambda: one_by_one(model, single_windows, settings), alone),
        _TOGETHER: each(lambda: together(model, windows, settings), run.adapters),
    }
    short = random_windows(settings, ["WARM", "UP"], run.batch)
    plain_peft(model, short, settings, 1)
    together(model, short, settings)
    samples = alternate(methods, repeats)
    rows = [
        [
            name,
            time_of(timed_sample).text(seconds),
            Spread.of([60 / sample.seconds for sample in timed_sample]).text(number),
            times(samples[_PEFT], timed_sample, 2),
            megabytes(peak_of(timed_sample)),
        ]
        for name, timed_sample in samples.items()
    ]
    precision = pick_precision(settings.precision, machine.device, model.predictor)
    notes = [
        f"{run.steps} steps of {run.batch} windows of 95 bars each, LoRA of rank {settings.adapter_r} on the attention "
        f"and feed-forward maps. The plain loop computes in float32, evaluates nothing, keeps no state and checks "
        f"nothing; the trainer computes in {precision}, as `auto` does.",
    ]
    if start is not None:
        apart = run.adapters * (start + time_of(samples[_PEFT]).median)
        in_one = start + run.adapters * time_of(samples[_TOGETHER]).median
        notes.append(
            f"A process that imports the trainer takes {seconds(start)} to start. A command per ticker starts "
            f"{run.adapters} times: {seconds(apart)} with plain loops, {seconds(in_one)} in one joint training, "
            f"{apart / in_one:.1f} times."
        )
    columns = ("way", "each", "adapters/min", "times", "peak memory")
    title = f"{run.adapters} adapters of Kronos-{run.size}, {machine.device.type}"
    rivals = samples[_PEFT], samples[_TOGETHER]
    speedup = f"{times(*rivals, 2)} times"
    goals = [] if goal is None else [Goal(title, f"{goal:g} times", speedup, ratio(*rivals).median >= goal)]
    return Report([Table(title, columns, rows, notes)], goals)


def plain_peft(model: KronosModel, windows: list[WindowSet], settings: Recipe, steps: int) -> None:
    """Train adapters one by one with PEFT, upstream's loss and AdamW, as a user of PEFT would, and save each."""
    config = LoraConfig(
        r=settings.adapter_r,
        lora_alpha=int(settings.adapter_alpha),
        lora_dropout=settings.adapter_dropout,
        target_modules=settings.adapter_targets,
    )
    for ticker in windows:
        tokens = batches([ticker], model, settings.batch_size)
        predictor = get_peft_model(copy.deepcopy(model.predictor), config).train()
        trained = [tensor for tensor in predictor.parameters() if tensor.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.peak_learning_rate)
        for _ in range(steps):
            upstream_step(predictor, optimizer, next(tokens))
        with tempfile.TemporaryDirectory() as folder:
            predictor.save_pretrained(folder)


def one_by_one(model: KronosModel, windows: list[WindowSet], settings: Recipe) -> None:
    """Train adapters with the project's trainer, one training per ticker."""

    def train(folder: Path) -> None:
        for ticker in windows:
            _trainer(model, settings, folder).train_adapter([ticker], ticker.ticker)

    _in_folder(train)


def together(model: KronosModel, windows: list[WindowSet], settings: Recipe) -> None:
    """Train adapters with the project's trainer, one joint training of all tickers."""
    jobs = [TrainingJob(ticker.ticker, [ticker]) for ticker in windows]

    def train(folder: Path) -> None:
        errors = [end for end in _trainer(model, settings, folder).train_adapters(jobs) if isinstance(end, KronosError)]
        if errors:
            raise errors[0]

    _in_folder(train)


def start_up() -> float:
    """Measure the seconds in which a new process imports the trainer."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
    return time.perf_counter() - start


def _trainer(model: KronosModel, settings: Recipe, folder: Path) -> KronosTrainer:
    return KronosTrainer(settings, folder, base=model, say=lambda _: None)


def _in_folder(train: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder))
