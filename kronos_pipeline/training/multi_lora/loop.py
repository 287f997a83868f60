"""Train many LoRA adapters jointly on one frozen base.

Adapters are rows of a matrix (adapters, width). Each step runs forward and backward over one batch per active adapter,
in one pass or a few, then a row-wise AdamW update. A finished adapter drops out, and no row affects another, so each
adapter ends like a single training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ModelError
from kronos_pipeline.signals import hold_signals
from kronos_pipeline.training.checkpoint import random_state, restore_random_state
from kronos_pipeline.training.dataset import TrainingData, to_device
from kronos_pipeline.training.loop import average_decay
from kronos_pipeline.training.multi_lora.forward import AdapterIndices, BatchedForward
from kronos_pipeline.training.multi_lora.member import Member, MemberTraining
from kronos_pipeline.training.progress import Say, TrainingProgress
from kronos_pipeline.training.replayed_calls import ReplayedCalls
from kronos_pipeline.training.trainer_state import Save, TrainerState, TrainOutput, describe_save

_SHAPES = 16
"""Cached pass shapes: the passes of a step, and of the last step of an epoch."""


@dataclass(frozen=True)
class _PassShape:
    """Index tensors of a pass; passes of the same members with the same numbers of windows share them.

    Attributes:
        rows: the members, (members,) int64.
        indices: the place among them of each window's member.
        window_rows: the member of each window, (windows,) int64.
        weights: 1 / the windows of the member's batch, for each window, (windows,).
    """

    rows: Tensor
    indices: AdapterIndices
    window_rows: Tensor
    weights: Tensor


class MultiLoraLoop:
    """Joint training of several adapters on one frozen predictor."""

    def __init__(
        self,
        forward: BatchedForward,
        start: Tensor,
        members: Sequence[Member],
        data: TrainingData,
        recipe: Recipe,
        say: Say,
    ) -> None:
        """Make the matrix of adapters and its optimiser.

        Args:
            forward: passes through the shared predictor.
            start: initial numbers of every adapter, (width,).
            members: the adapters.
            data: windows of all members.
            recipe: the settings.
            say: takes lines for the person who runs the pipeline.
        """
        self._forward, (self._train, self._selection) = forward, data
        self._recipe, self._device, self._say = recipe, forward.device, say
        self._trainings = [MemberTraining(member, recipe) for member in members]
        self._active = list(range(len(members)))
        self._weights = torch.nn.Parameter(start.to(self._device).repeat(len(members), 1))
        self._weights.grad = torch.zeros_like(self._weights)
        # Each adapter has its own learning rate: AdamW steps at rate 1, and each row then goes its share of the step.
        self._optimizer = torch.optim.AdamW([self._weights], lr=1.0, weight_decay=recipe.weight_decay)
        self._average = self._weights.detach().clone() if recipe.average_decay else self._weights.detach()
        self._best = torch.zeros_like(self._average)
        self._losses = torch.zeros(len(members), device=self._device)
        self._replayed = ReplayedCalls(self._device, wanted=recipe.cuda_graphs)
        self._shape = lru_cache(_SHAPES)(self._new_shape)

    @property
    def steps(self) -> int:
        """Optimiser steps of the longest training."""
        return max(training.steps for training in self._trainings)

    def state(self) -> dict[str, Any]:
        """Return the state for `restore`, of the members that are active or failed."""
        moments = self._optimizer.state[self._weights]
        rows = {
            "weights": self._weights.detach(),
            "average": self._average,
            "best": self._best,
            "losses": self._losses,
            "exp_avg": moments["exp_avg"],
            "exp_avg_sq": moments["exp_avg_sq"],
        }
        numbers = [
            number
            for number, training in enumerate(self._trainings)
            if number in self._active or training.error is not None
        ]
        trainings = [self._trainings[number] for number in numbers]
        return {
            "members": [training.member.key for training in trainings],
            "states": [(vars(training.state), training.error, training.unlogged_batches) for training in trainings],
            "rows": {name: tensor[numbers] for name, tensor in rows.items()},
            "steps": moments["step"],
            "random": random_state(self._device),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a saved state of these members; members of the state that are not among them are ignored.

        Raises:
            ModelError: the state is of another model.
        """
        try:
            numbers = {training.member.key: number for number, training in enumerate(self._trainings)}
            indices = [index for index, key in enumerate(state["members"]) if key in numbers]
            self._active = [numbers[state["members"][index]] for index in indices]
            for number, index in zip(self._active, indices, strict=True):
                training, (member_state, error, batches) = self._trainings[number], state["states"][index]
                training.state, training.error = TrainerState(**member_state), error
                training.unlogged_batches, training.resumed_from = batches, training.state.step
            moments = {name: torch.zeros_like(self._weights) for name in ("exp_avg", "exp_avg_sq")}
            rows = {"weights": self._weights.data, "best": self._best, "losses": self._losses, **moments}
            if self._recipe.average_decay:
                rows["average"] = self._average
            for name, tensor in rows.items():
                tensor[self._active] = state["rows"][name][indices].to(self._device)
            self._optimizer.state[self._weights] = {"step": state["steps"], **moments}
            restore_random_state(state["random"], self._device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"The saved state of the interrupted trainings does not fit ({error}); remove it to start anew."
            ) from error

    def run(self, name: str, save: Save) -> Iterator[tuple[int, TrainOutput | ModelError]]:
        """Train until the last member has ended, and yield the output of each as it ends.

        A signal that ends the process does so after a step, whose state is saved.

        Args:
            name: name of the training, for the progress.
            save: receives the state every `save_steps` steps, at the end of each epoch, before an output is yielded,
                and before an interrupt.

        Yields:
            A member's number, and its output or the error that ended it.

        Raises:
            torch.OutOfMemoryError: the device lacks the memory for a batch of one adapter.
        """
        states = [self._trainings[number].state for number in self._active]
        resumed_from = max(state.step for state in states)
        self._started = time.monotonic()
        self._seconds_before = max(state.seconds for state in states)
        for training in self._trainings:
            training.last_log = resumed_from, self._started
        epochs = {training.steps_per_epoch for training in self._trainings}
        new = [number for number in self._active if not self._trainings[number].state.rows]
        for number, loss in self._selection_losses(new).items():
            self._trainings[number].start(loss)
        yield from self._ended()
        progress_of = TrainingProgress(name, self.steps, start=resumed_from, say=self._say)
        with hold_signals() as signals, progress_of as progress:
            while self._active:
                self._step(progress)
                trainings = [self._trainings[number] for number in self._active]
                step = max(training.state.step for training in trainings)
                ended = any(training.ended for training in trainings)
                interrupted = signals.received is not None
                if interrupted or ended or step % self._recipe.save_steps == 0 or step % max(epochs) == 0:
                    saved = save(self.state())
                    if interrupted:
                        signals.let_go(describe_save(name, step, self.steps, saved=saved))
                yield from self._ended()

    def _ended(self) -> Iterator[tuple[int, TrainOutput | ModelError]]:
        """Yield the outputs of the active members that have ended, and make them inactive."""
        for number in [number for number in self._active if self._trainings[number].ended]:
            self._active.remove(number)
            training = self._trainings[number]
            if training.error is not None:
                yield number, ModelError(training.error)
                continue
            yield (
                number,
                training.state.output(
                    self._forward.multi_lora.unpack(self._best[number].cpu()),
                    self._forward.multi_lora.unpack(self._average[number].cpu()),
                    steps=training.steps,
                    windows_per_step=training.windows_per_step,
                    resumed_from=training.resumed_from,
                ),
            )

    @property
    def _gradient(self) -> Tensor:
        return cast(Tensor, self._weights.grad)  # made with the weights, and zeroed instead of freed

    def _step(self, progress: TrainingProgress) -> None:
        """Take one optimiser step of each active member, then log and evaluate the members that are due."""
        self._gradient.zero_()
        self._forward.multi_lora.predictor.train()
        batches = {number: self._trainings[number].batches() for number in self._active}
        for microstep in range(self._recipe.grad_accum_steps):
            current = {number: parts[microstep] for number, parts in batches.items() if microstep < len(parts)}
            sizes = {number: len(batch) for number, batch in current.items()}
            self._forward.run_in_parts(current, partial(self._backward, sizes), self._replayed.release)
        rates = [self._trainings[number].learning_rate() for number in self._active]
        self._update(rates)
        seconds = self._seconds_before + time.monotonic() - self._started
        for number in self._active:
            self._trainings[number].end_step(len(batches[number]), seconds)
        self._log(dict(zip(self._active, rates, strict=True)), progress)

    def _backward(self, sizes: Mapping[int, int], batches: Mapping[int, Tensor]) -> None:
        """Add the gradients of a batch, or of a part of it, of each of some members.

        Args:
            sizes: windows of each member's batch.
            batches: windows of this call, by member.
        """
        key = tuple((number, len(part), sizes[number]) for number, part in batches.items())
        shape, batch = self._shape(key), self._train.batch(torch.cat(list(batches.values())))
        gradient, losses = self._replayed(key, partial(self._gradients, shape), list(batch.values()))
        self._gradient.index_add_(0, shape.rows, gradient)
        self._losses.index_add_(0, shape.window_rows, losses)

    def _gradients(self, shape: _PassShape, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the members of a pass, (members, width), and the weighted losses, (windows,)."""
        adapters = self._weights.detach()[shape.rows].requires_grad_()
        batch = dict(zip(("s1", "s2", "stamps"), tokens, strict=True))
        losses = self._forward.losses(adapters, shape.indices, batch, self._train.lookback)
        (gradient,) = torch.autograd.grad((losses * shape.weights).sum() / self._recipe.grad_accum_steps, adapters)
        return gradient, losses.detach() * shape.weights

    def _new_shape(self, key: tuple[tuple[int, int, int], ...]) -> _PassShape:
        """Make the index tensors of a pass.

        Args:
            key: of each member its number, its windows in the pass, and the windows of its batch.
        """
        rows = self._rows([number for number, *_ in key])
        indices = self._forward.adapter_indices([count for _, count, _ in key])
        sizes = to_device(torch.tensor([size for *_, size in key]), self._device)
        return _PassShape(rows, indices, rows[indices.indices], sizes[indices.indices].reciprocal())

    @torch.no_grad()
    def _update(self, rates: Sequence[float]) -> None:
        """Clip each member by its own norm, step by its own rate, and average; inactive members stay unchanged."""
        norms = torch.linalg.vector_norm(self._gradient, dim=1, keepdim=True)
        self._gradient.mul_((self._recipe.max_grad_norm / (norms + 1e-6)).clamp(max=1.0))
        before = self._weights.detach().clone()
        self._optimizer.step()
        torch.lerp(before, self._weights, self._column(rates), out=self._weights.data)
        if self._recipe.average_decay:
            decay = average_decay(self._recipe, self._trainings[self._active[0]].state.step + 1)
            self._average.lerp_(self._weights, self._column([1 - decay] * len(self._active)))

    def _log(self, rates: dict[int, float], progress: TrainingProgress) -> None:
        """Read the losses of the members that are due, evaluate their selection blocks, and log both."""
        trainings = {number: self._trainings[number] for number in self._active}
        to_log = [number for number, training in trainings.items() if training.should_log]
        if not to_log:
            return
        totals = self._losses.tolist()
        self._losses[self._rows(to_log)] = 0.0
        selection_losses = self._selection_losses([number for number in to_log if trainings[number].should_evaluate])
        now, logged = time.monotonic(), []
        for number in to_log:
            training = trainings[number]
            values = training.log(totals[number], selection_losses.get(number, math.nan), rates[number], now)
            if values is None:
                continue
            if training.state.best_step == training.state.step:
                self._best[number] = self._average[number]
            logged.append(values)
        if logged:
            mean = {name: sum(values[name] for values in logged) / len(logged) for name in logged[0]}
            progress.update_step(
                max(training.state.step for training in trainings.values()),
                loss=mean["train_loss"],
                learning_rate=mean["learning_rate"],
                windows_per_second=mean["windows_per_second"] * len(trainings),
            )

    @torch.no_grad()
    def _selection_losses(self, numbers: Sequence[int]) -> dict[int, float]:
        """Compute the mean loss of some members on their selection blocks, in nats per token."""
        totals = dict.fromkeys(numbers, 0.0)
        evaluated: list[tuple[dict[int, int], Tensor]] = []
        size = 2 * self._recipe.batch_size
        blocks = {
            number: torch.split(torch.tensor(self._trainings[number].member.selection), size) for number in numbers
        }

        def evaluate(batches: Mapping[int, Tensor]) -> None:
            adapters = self._average[self._rows(list(batches))]
            indices = self._forward.adapter_indices([len(part) for part in batches.values()])
            batch = self._selection.batch(torch.cat(list(batches.values())))
            losses = self._forward.losses(adapters, indices, batch, self._selection.lookback)
            evaluated.append(({number: len(part) for number, part in batches.items()}, losses.float()))

        self._forward.multi_lora.predictor.eval()
        for block_number in range(max((len(parts) for parts in blocks.values()), default=0)):
            current = {number: parts[block_number] for number, parts in blocks.items() if block_number < len(parts)}
            self._forward.run_in_parts(current, evaluate, self._replayed.release)
        # The device is read once: a read waits for it.
        losses = torch.cat([part for _, part in evaluated]).cpu().numpy() if evaluated else np.empty(0)
        parts = np.split(losses, np.cumsum([len(part) for _, part in evaluated])[:-1])
        for (windows, _), part in zip(evaluated, parts, strict=False):
            sums = np.bincount(np.repeat(np.arange(len(windows)), list(windows.values())), part, len(windows))
            totals.update({number: totals[number] + float(total) for number, total in zip(windows, sums, strict=True)})
        return {number: total / len(self._trainings[number].member.selection) for number, total in totals.items()}

    def _rows(self, numbers: Sequence[int]) -> Tensor:
        return to_device(torch.tensor(list(numbers)), self._device)

    def _column(self, of_active: Sequence[float]) -> Tensor:
        """Return a number for each member, (members, 1): the given numbers for active members, 0 for the others."""
        column = torch.zeros(len(self._trainings), 1)
        column[self._active, 0] = torch.tensor(of_active)
        return to_device(column, self._device)
