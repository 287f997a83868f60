"""Time a full fine-tune beside upstream's own loop, on the same windows and batches."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.model.loading import KronosModel
from kronos_pipeline.training.dataset import KronosMultiTickerDataset
from kronos_pipeline.training.devices import pick_precision
from kronos_pipeline.training.trainer import KronosTrainer
from speed.cases import FineTune, Repeats
from speed.machine import Machine
from speed.models import PAIRS, random_model, random_windows
from speed.table import Goal, Report, Table, megabytes, number
from speed.timing import Run, Sample, Spread, alternate, peak_of, ratio, timed, times
from speed.work import REACHED, reached, training

Tokens = dict[str, torch.Tensor]
_CLIP = 3.0
_UPSTREAM, _EXACT, _AUTO = "upstream's loop, fp32", "KronosTrainer, fp32", "KronosTrainer, auto"


def recipe(size: str, device: torch.device, batch: int, **changes: Any) -> Recipe:
    """Return settings for windows of 95 bars and one evaluation on a selection block of 31 bars."""
    settings = {
        "model_name": PAIRS[size].name,
        "device": str(device),
        "batch_size": batch,
        "epochs": 1,
        "evaluations_per_epoch": 1,
        "selection_bars": 31,
        "validation_bars": 30,
    }
    return Recipe.model_validate(settings | changes)


def batches(windows: list[WindowSet], model: KronosModel, batch: int) -> Iterator[Tokens]:
    """Yield the same batches of tokens again and again; the time of encoding them does not count for upstream."""
    data = KronosMultiTickerDataset(windows, "train", model.tokenizer, device=model.device)
    ready = [
        {name: tensor.to(model.device, torch.long) for name, tensor in data.batch(rows).items()}
        for rows in np.array_split(np.arange(len(data)), max(1, len(data) // batch))
    ]
    while True:
        yield from ready


def upstream_step(predictor: Any, optimizer: torch.optim.Optimizer, batch: Tokens) -> None:
    """Take one step as upstream's scripts do: next-token loss of every bar, mean of both heads."""
    s1, s2, stamps = batch["s1"], batch["s2"], batch["stamps"]
    core = predictor.get_base_model() if hasattr(predictor, "get_base_model") else predictor
    logits = predictor(s1[:, :-1], s2[:, :-1], stamps[:, :-1], use_teacher_forcing=True, s1_targets=s1[:, 1:])
    loss, _, _ = core.head.compute_loss(*logits, s1[:, 1:], s2[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([weight for weight in predictor.parameters() if weight.requires_grad], _CLIP)
    optimizer.step()


def upstream_loop(model: KronosModel, tokens: Iterator[Tokens], steps: int) -> Callable[[], None]:
    """Return a function that takes a number of steps of upstream's loop on a copy of the predictor."""
    predictor = copy.deepcopy(model.predictor).train()
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=1e-4)

    def run() -> None:
        for _ in range(steps):
            upstream_step(predictor, optimizer, next(tokens))

    return run


def trainer_run(model: KronosModel, windows: list[WindowSet], settings: Recipe) -> Run:
    """Return a run of a whole training by `KronosTrainer`; its seconds are of one step, by the rates that it logs."""

    def run() -> Sample:
        rates: list[float] = []

        def train() -> None:
            with tempfile.TemporaryDirectory() as folder:
                trainer = KronosTrainer(settings, folder, base=model, say=lambda _: None)
                rates.extend(trainer.train_checkpoint(windows).history["windows_per_second"].dropna())

        sample = timed(train, model.device)()
        return replace(sample, seconds=settings.batch_size / Spread.of(rates).median)

    return run


def beside_upstream(machine: Machine, run: FineTune, repeats: Repeats, *, goal: float) -> Report:
    """Measure the windows per second of a full fine-tune.

    Args:
        machine: device of the model, and its limits.
        run: size of a training by `KronosTrainer`; upstream's loop takes a third of its steps.
        repeats: repeats of each way.
        goal: promised speed-up.
    """
    size, batch = run.size, run.batch
    model = random_model(size, machine.device)
    settings = recipe(size, machine.device, batch)
    windows = random_windows(settings, ["SIM"], batch * run.steps)
    short = max(1, run.steps // 3)
    loop = upstream_loop(model, batches(windows, model, batch), short)
    loop()

    def upstream() -> Sample:
        timed_sample = timed(loop, machine.device)()
        return replace(timed_sample, seconds=timed_sample.seconds / short)

    exact = settings.model_copy(update={"precision": "fp32"})
    runs = {
        _UPSTREAM: upstream,
        _EXACT: trainer_run(model, windows, exact),
        _AUTO: trainer_run(model, windows, settings),
    }
    samples = alternate(runs, repeats)
    work = training(PAIRS[size], batch, settings.lookback + settings.horizon, settings.horizon)
    precisions = {
        _UPSTREAM: "fp32",
        _EXACT: "fp32",
        _AUTO: pick_precision(settings.precision, machine.device, model.predictor),
    }
    rows = []
    for name, timed_sample in samples.items():
        rate = Spread.of([batch / sample.seconds for sample in timed_sample])
        rows.append(
            [
                name + (f" ({precisions[name]})" if name == _AUTO else ""),
                rate.text(number),
                times(samples[_UPSTREAM], timed_sample, 2),
                *reached(work, batch / rate.median, machine, precisions[name]),
                megabytes(peak_of(timed_sample)),
            ]
        )
    columns = ("way", "windows/s", "times", *REACHED, "peak memory")
    notes = [
        "windows/s: during training, without start, evaluations and writing. Upstream's loop gets tokens that are "
        "encoded already; upstream's own script encodes every batch again. GFLOP/s and GB/s: operations and bytes that "
        "the task needs by formula (both heads over the horizon alone, each weight read once per pass), divided by the "
        "time, so a way that computes more has a lower share. Shares are of the machine's measured limits, and of the "
        "data sheet's peak if the card is known. The peak memory of KronosTrainer includes the copies that a resumable "
        "training keeps: best weights, state, result."
    ]
    title = f"Full fine-tune of Kronos-{size}, {batch} windows of 95 bars, {machine.device.type}"
    rivals = samples[_UPSTREAM], samples[_AUTO]
    what = f"full fine-tune of Kronos-{size}, {machine.device.type}"
    outcome = Goal(what, f"{goal:g} times", f"{times(*rivals, 2)} times", ratio(*rivals).median >= goal)
    return Report([Table(title, columns, rows, notes)], [outcome])
