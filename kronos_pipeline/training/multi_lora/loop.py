"""The optimisation of many adapters at once: the course of each is that of a lone training.

An optimiser step of all is one pass, or a few, over the next batch of each adapter, and then an operation on the rows
of one matrix. One that has ended leaves the batch; what becomes of another's rows does not touch its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ModelError
from kronos_pipeline.training.checkpoint import random_state, restore_random_state
from kronos_pipeline.training.dataset import KronosMultiTickerDataset, to_device
from kronos_pipeline.training.loop import average_decay
from kronos_pipeline.training.multi_lora.forward import AdapterIndices, BatchedForward
from kronos_pipeline.training.multi_lora.member import Member, MemberTraining
from kronos_pipeline.training.progress import Say, TrainingProgress
from kronos_pipeline.training.replayed_calls import ReplayedCalls
from kronos_pipeline.training.trainer_state import TrainerState, TrainOutput

Save = Callable[[dict[str, Any]], None]


_SHAPES = 16
"""Shapes of passes that are kept: a step's passes, and those of an epoch's last step."""


@dataclass(frozen=True)
class _Shape:
    """Of the batches of some members: what is the same each time these members have as many windows.

    Attributes:
        rows: the members, (members,) int64.
        owners: the place among them of each window's member.
        row_of_each: each window's member, (windows,) int64.
        shares: of each window in its member's batch, (windows,).
    """

    rows: Tensor
    owners: AdapterIndices
    row_of_each: Tensor
    shares: Tensor


class MultiLoraLoop:
    """One training of several adapters on one frozen predictor."""

    def __init__(
        self,
        passes: BatchedForward,
        start: Tensor,
        members: Sequence[Member],
        train: KronosMultiTickerDataset,
        selection: KronosMultiTickerDataset,
        recipe: Recipe,
        say: Say,
    ) -> None:
        """Prepare.

        Args:
            passes: through the predictor that all share.
            start: the numbers that each adapter starts with, (width,).
            members: the adapters.
            train: the training windows of all.
            selection: the windows of all selection blocks.
            recipe: the settings.
            say: takes plain lines for people.
        """
        self._passes, self._train, self._selection = passes, train, selection
        self._recipe, self._device, self._say = recipe, passes.device, say
        self._courses = [MemberTraining(member, recipe) for member in members]
        self._open = list(range(len(members)))
        self._weights = torch.nn.Parameter(start.to(self._device).repeat(len(members), 1))
        self._weights.grad = torch.zeros_like(self._weights)
        # Each adapter has a rate of its own: AdamW steps at rate 1, and each then goes its own share of that way.
        self._optimizer = torch.optim.AdamW([self._weights], lr=1.0, weight_decay=recipe.weight_decay)
        self._average = self._weights.detach().clone() if recipe.average_decay else self._weights.detach()
        self._best = torch.zeros_like(self._average)
        self._losses = torch.zeros(len(members), device=self._device)
        self._replayed = ReplayedCalls(self._device, wanted=recipe.cuda_graphs)
        self._shape = lru_cache(_SHAPES)(self._new_shape)

    @property
    def steps(self) -> int:
        """The optimiser steps of the longest training."""
        return max(course.steps for course in self._courses)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on from here, of the members that have not been given or that failed."""
        moments = self._optimizer.state[self._weights]
        rows = {
            "weights": self._weights.detach(),
            "average": self._average,
            "best": self._best,
            "losses": self._losses,
            "exp_avg": moments["exp_avg"],
            "exp_avg_sq": moments["exp_avg_sq"],
        }
        kept = [n for n, course in enumerate(self._courses) if n in self._open or course.error is not None]
        courses = [self._courses[number] for number in kept]
        return {
            "members": [course.member.key for course in courses],
            "courses": [(vars(course.position), course.error, course.batches_read) for course in courses],
            "rows": {name: tensor[kept] for name, tensor in rows.items()},
            "steps": moments["step"],
            "random": random_state(self._device),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state of the same members, or of more of which only these are still wanted.

        Raises:
            ModelError: the state is of another model.
        """
        try:
            numbers = {course.member.key: number for number, course in enumerate(self._courses)}
            saved = [place for place, key in enumerate(state["members"]) if key in numbers]
            self._open = [numbers[state["members"][place]] for place in saved]
            for number, place in zip(self._open, saved, strict=True):
                course, (position, error, read) = self._courses[number], state["courses"][place]
                course.position, course.error, course.batches_read = TrainerState(**position), error, read
                course.resumed_from = course.position.step
            moments = {name: torch.zeros_like(self._weights) for name in ("exp_avg", "exp_avg_sq")}
            rows = {"weights": self._weights.data, "best": self._best, "losses": self._losses, **moments}
            if self._recipe.average_decay:
                rows["average"] = self._average
            for name, tensor in rows.items():
                tensor[self._open] = state["rows"][name][saved].to(self._device)
            self._optimizer.state[self._weights] = {"step": state["steps"], **moments}
            restore_random_state(state["random"], self._device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"The saved state of the interrupted trainings does not fit ({error}); remove it to start anew."
            ) from error

    def run(self, what: str, save: Save) -> Iterator[tuple[int, TrainOutput | ModelError]]:
        """Train until the last member has ended, and give what became of each as it ends.

        Args:
            what: the training's name, for the progress.
            save: gets the state every `save_steps` steps, at each epoch's end, and before an outcome is given.

        Yields:
            A member's number, and its outcome or the error that ended it.

        Raises:
            torch.OutOfMemoryError: the device lacks the memory for a batch of one adapter.
        """
        resumed_from = max(self._courses[number].position.step for number in self._open)
        self._began = time.monotonic()
        self._before = max(self._courses[number].position.seconds for number in self._open)
        for course in self._courses:
            course.read = resumed_from, self._began
        epochs = {course.steps_per_epoch for course in self._courses}
        yield from self._given()
        with TrainingProgress(what, self.steps, resumed_from, self._say) as progress:
            while self._open:
                self._step(progress)
                courses = [self._courses[number] for number in self._open]
                step = max(course.position.step for course in courses)
                ended = any(course.ended for course in courses)
                if ended or step % self._recipe.save_steps == 0 or step % max(epochs) == 0:
                    save(self.state())
                yield from self._given()

    def _given(self) -> Iterator[tuple[int, TrainOutput | ModelError]]:
        """The outcomes of those that have ended and are still open."""
        for number in [number for number in self._open if self._courses[number].ended]:
            self._open.remove(number)
            course = self._courses[number]
            if course.error is not None:
                yield number, ModelError(course.error)
                continue
            yield (
                number,
                course.position.outcome(
                    self._passes.stacked.unpack(self._best[number].cpu()),
                    self._passes.stacked.unpack(self._average[number].cpu()),
                    steps=course.steps,
                    windows_per_step=course.windows_per_step,
                    resumed_from=course.resumed_from,
                ),
            )

    def _step(self, progress: TrainingProgress) -> None:
        """One optimiser step of each open member, and the looks and readings that are due after it."""
        gradient = self._weights.grad
        assert gradient is not None
        gradient.zero_()
        self._passes.stacked.predictor.train()
        batches = {number: self._courses[number].batches() for number in self._open}
        for turn in range(self._recipe.grad_accum_steps):
            have = {number: some[turn] for number, some in batches.items() if turn < len(some)}
            sizes = {number: len(batch) for number, batch in have.items()}
            self._passes.each(have, partial(self._backward, sizes), self._replayed.release)
        rates = [self._courses[number].learning_rate() for number in self._open]
        self._update(rates)
        for number in self._open:
            course = self._courses[number]
            course.position.step += 1
            course.position.seconds = self._before + time.monotonic() - self._began
            course.batches_read += len(batches[number])
            if course.member.listener is not None:
                course.member.listener.on_step_end(course.position.step)
        self._read_losses(dict(zip(self._open, rates, strict=True)), progress)

    def _backward(self, sizes: Mapping[int, int], batches: Mapping[int, Tensor]) -> None:
        """Add the gradients of a batch of each of some members, or of a part of it.

        Args:
            sizes: windows of each member's batch.
            batches: the windows that are read now.
        """
        key = tuple((number, len(part), sizes[number]) for number, part in batches.items())
        shape, batch = self._shape(key), self._train.batch(torch.cat(list(batches.values())))
        gradient, losses = self._replayed(key, partial(self._gradients, shape), list(batch.values()))
        assert self._weights.grad is not None
        self._weights.grad.index_add_(0, shape.rows, gradient)
        self._losses.index_add_(0, shape.row_of_each, losses)

    def _gradients(self, shape: _Shape, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The gradients of a batch of each of some members, (members, width), and the losses' shares, (windows,)."""
        part = self._weights.detach()[shape.rows].requires_grad_()
        batch = dict(zip(("s1", "s2", "stamps"), tokens, strict=True))
        losses = self._passes.losses(part, shape.owners, batch, self._train.lookback)
        (gradient,) = torch.autograd.grad((losses * shape.shares).sum() / self._recipe.grad_accum_steps, part)
        return gradient, losses.detach() * shape.shares

    def _new_shape(self, key: tuple[tuple[int, int, int], ...]) -> _Shape:
        """Of the members' numbers, their windows in the pass, and those in their batches."""
        rows, owners = self._rows([number for number, *_ in key]), self._passes.owners([count for _, count, _ in key])
        sizes = to_device(torch.tensor([size for *_, size in key]), self._device)
        return _Shape(rows, owners, rows[owners.which], sizes[owners.which].reciprocal())

    @torch.no_grad()
    def _update(self, rates: Sequence[float]) -> None:
        """Clip each member by its own norm, step by its own rate, and average; those that have ended stay."""
        gradient = self._weights.grad
        assert gradient is not None
        norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        gradient.mul_((self._recipe.max_grad_norm / (norms + 1e-6)).clamp(max=1.0))
        before = self._weights.detach().clone()
        self._optimizer.step()
        torch.lerp(before, self._weights, self._column(rates), out=self._weights.data)
        if self._recipe.average_decay:
            decay = average_decay(self._recipe, self._courses[self._open[0]].position.step + 1)
            self._average.lerp_(self._weights, self._column([1 - decay] * len(self._open)))

    def _read_losses(self, rates: dict[int, float], progress: TrainingProgress) -> None:
        """Read the losses of the members for which that is due, and look at their selection blocks."""
        courses = {number: self._courses[number] for number in self._open}
        due = [number for number, course in courses.items() if course.is_due]
        if not due:
            return
        totals = self._losses.tolist()
        self._losses[self._rows(due)] = 0.0
        looks = self._selection_losses([number for number in due if courses[number].looks])
        now, shown = time.monotonic(), []
        for number in due:
            course = courses[number]
            values = course.take_in(totals[number], looks.get(number, math.nan), rates[number], now)
            if values is None:
                continue
            if course.position.best_step == course.position.step:
                self._best[number] = self._average[number]
            shown.append(values)
        if shown:
            mean = {name: sum(values[name] for values in shown) / len(shown) for name in shown[0]}
            progress.update(
                max(course.position.step for course in courses.values()),
                loss=mean["train_loss"],
                learning_rate=mean["learning_rate"],
                windows_per_second=mean["windows_per_second"] * len(courses),
            )

    @torch.no_grad()
    def _selection_losses(self, numbers: Sequence[int]) -> dict[int, float]:
        """The mean loss of some members on their selection blocks, in nats per token."""
        totals = dict.fromkeys(numbers, 0.0)
        size = 2 * self._recipe.batch_size
        blocks = {number: torch.tensor(self._courses[number].member.selection).split(size) for number in numbers}

        def look(batches: Mapping[int, Tensor]) -> None:
            adapters = self._average[self._rows(list(batches))]
            owners = self._passes.owners([len(part) for part in batches.values()])
            batch = self._selection.batch(torch.cat(list(batches.values())))
            losses = self._passes.losses(adapters, owners, batch, self._selection.lookback)
            sums = np.bincount(owners.which.cpu().numpy(), losses.float().cpu().numpy(), len(batches))
            totals.update({number: totals[number] + float(total) for number, total in zip(batches, sums, strict=True)})

        self._passes.stacked.predictor.eval()
        for turn in range(max((len(some) for some in blocks.values()), default=0)):
            have = {number: some[turn] for number, some in blocks.items() if turn < len(some)}
            self._passes.each(have, look, self._replayed.release)
        return {number: total / len(self._courses[number].member.selection) for number, total in totals.items()}

    def _rows(self, numbers: Sequence[int]) -> Tensor:
        return to_device(torch.tensor(list(numbers)), self._device)

    def _column(self, of_open: Sequence[float]) -> Tensor:
        """A number for each member, (members, 1): those given for the open ones, 0 for the others."""
        column = torch.zeros(len(self._courses), 1)
        column[self._open, 0] = torch.tensor(of_open)
        return to_device(column, self._device)
