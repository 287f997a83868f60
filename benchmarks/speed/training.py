"""A full fine-tune beside upstream's own loop: the same windows, the same batch, each step forward and back."""

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
from speed.machine import Machine
from speed.models import PAIRS, random_model, random_windows
from speed.table import Goal, Report, Table, megabytes, number
from speed.timing import Run, Sample, Spread, alternate, peak_of, ratio, timed, times
from speed.work import REACHED, reached, training

Tokens = dict[str, torch.Tensor]
_CLIP = 3.0
_UPSTREAM, _EXACT, _AUTO = "upstream's loop, fp32", "KronosTrainer, fp32", "KronosTrainer, auto"


def recipe(size: str, device: torch.device, batch: int, **changes: Any) -> Recipe:
    """Settings for windows of 95 bars, one look at the selection block, and nothing that only a long training needs."""
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
    """Batches of tokens, encoded once, over and over: what upstream's loop is given for nothing here."""
    data = KronosMultiTickerDataset(windows, "train", model.tokenizer, device=model.device)
    ready = [
        {name: tensor.to(model.device, torch.long) for name, tensor in data.batch(rows).items()}
        for rows in np.array_split(np.arange(len(data)), max(1, len(data) // batch))
    ]
    while True:
        yield from ready


def upstream_step(predictor: Any, optimizer: torch.optim.Optimizer, batch: Tokens) -> None:
    """One step as upstream's scripts take it: every bar's tokens from those before, the mean of both heads' losses."""
    s1, s2, stamps = batch["s1"], batch["s2"], batch["stamps"]
    core = predictor.get_base_model() if hasattr(predictor, "get_base_model") else predictor
    logits = predictor(s1[:, :-1], s2[:, :-1], stamps[:, :-1], use_teacher_forcing=True, s1_targets=s1[:, 1:])
    loss, _, _ = core.head.compute_loss(*logits, s1[:, 1:], s2[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([one for one in predictor.parameters() if one.requires_grad], _CLIP)
    optimizer.step()


def upstream_loop(model: KronosModel, tokens: Iterator[Tokens], steps: int) -> Callable[[], None]:
    """So many steps of upstream's loop on a copy of the predictor."""
    predictor = copy.deepcopy(model.predictor).train()
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=1e-4)

    def run() -> None:
        for _ in range(steps):
            upstream_step(predictor, optimizer, next(tokens))

    return run


def trainer_run(model: KronosModel, windows: list[WindowSet], settings: Recipe) -> Run:
    """A whole training by `KronosTrainer`; its seconds are those of a step, by the loop's own readings."""

    def run() -> Sample:
        rates: list[float] = []

        def train() -> None:
            with tempfile.TemporaryDirectory() as folder:
                trainer = KronosTrainer(settings, folder, base=model, say=lambda _: None)
                rates.extend(trainer.train_checkpoint(windows).history["windows_per_second"])

        whole = timed(train, model.device)()
        return replace(whole, seconds=settings.batch_size / Spread.of(rates).median)

    return run


def beside_upstream(
    machine: Machine, *, size: str, batch: int, steps: int, rounds: int, within: float, goal: float
) -> Report:
    """Windows per second of a full fine-tune.

    Args:
        machine: where, and its limits.
        size: of the model.
        batch: windows per step.
        steps: of one training of ours; upstream's loop takes a third of them.
        rounds: repeats, at most.
        within: seconds after which no further round begins.
        goal: how many times as fast it is meant to be.
    """
    model = random_model(size, machine.device)
    settings = recipe(size, machine.device, batch)
    windows = random_windows(settings, ["SIM"], batch * steps)
    short = max(1, steps // 3)
    loop = upstream_loop(model, batches(windows, model, batch), short)
    loop()

    def upstream() -> Sample:
        taken = timed(loop, machine.device)()
        return replace(taken, seconds=taken.seconds / short)

    exact = settings.model_copy(update={"precision": "fp32"})
    runs = {
        _UPSTREAM: upstream,
        _EXACT: trainer_run(model, windows, exact),
        _AUTO: trainer_run(model, windows, settings),
    }
    samples = alternate(runs, rounds, within)
    work = training(PAIRS[size], batch, settings.lookback + settings.horizon, settings.horizon)
    precisions = {
        _UPSTREAM: "fp32",
        _EXACT: "fp32",
        _AUTO: pick_precision(settings.precision, machine.device, model.predictor),
    }
    rows = []
    for name, taken in samples.items():
        rate = Spread.of([batch / sample.seconds for sample in taken])
        rows.append(
            [
                name + (f" ({precisions[name]})" if name == _AUTO else ""),
                rate.text(number),
                times(samples[_UPSTREAM], taken, 2),
                *reached(work, batch / rate.median, machine, precisions[name]),
                megabytes(peak_of(taken)),
            ]
        )
    columns = ("way", "windows/s", "times", *REACHED, "peak memory")
    notes = [
        "windows/s while training, without start, looks and writing. Upstream's loop is given its tokens; its own "
        "script encodes every batch anew. GFLOP/s and GB/s: what is needed by formula, both heads over the horizon "
        "alone and each weight read once per pass, in the time taken, so a way that does more has a lower share: of "
        "what this machine was measured to do, and of the data sheet's peak where the card is known. Peak memory of "
        "ours holds the copies that a resumable training keeps: best weights, state, result."
    ]
    title = f"Full fine-tune of Kronos-{size}, {batch} windows of 95 bars, {machine.device.type}"
    rivals = samples[_UPSTREAM], samples[_AUTO]
    what = f"full fine-tune of Kronos-{size}, {machine.device.type}"
    met = Goal(what, f"{goal:g} times", f"{times(*rivals, 2)} times", ratio(*rivals).median >= goal)
    return Report([Table(title, columns, rows, notes)], [met])
