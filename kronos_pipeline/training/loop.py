"""Training loop: AdamW on token windows, evaluations on the selection block, early stopping, a resumable state.

The state holds the states of all random generators, and seed and number of an epoch determine the order of its windows,
so a killed and resumed training ends with the bytes of an uninterrupted training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.losses import token_losses
from kronos_pipeline.signals import Signals, hold_signals
from kronos_pipeline.training.callback import Callback
from kronos_pipeline.training.checkpoint import random_state, restore_random_state
from kronos_pipeline.training.dataset import TrainingData
from kronos_pipeline.training.loss_module import LossModule
from kronos_pipeline.training.microbatch import Microbatch
from kronos_pipeline.training.progress import Say, TrainingProgress
from kronos_pipeline.training.replayed_calls import ReplayedCalls
from kronos_pipeline.training.trainer_state import (
    Save,
    Tensors,
    TrainerState,
    TrainOutput,
    check_finite,
    describe_save,
)

LOG_STEPS = 10
"""Steps between two logs of the training loss; reading the loss waits for the device."""


class BatchPart(NamedTuple):
    """A process's part of a batch: its windows by number, and the weight of their mean loss."""

    windows: torch.Tensor
    weight: float


class TrainingLoop:
    """Training of the trainable parameters of a predictor."""

    def __init__(
        self,
        predictor: torch.nn.Module,
        data: TrainingData,
        recipe: Recipe,
        accelerator: Accelerator,
        microbatch: Microbatch,
    ) -> None:
        """Make optimiser and schedule.

        Args:
            predictor: the predictor, on its device; its parameters with gradients on are trained.
            data: the windows to train on and to select by.
            recipe: the settings.
            accelerator: an Accelerator of its own.
            microbatch: windows that the device takes at once.
        """
        (train, self._selection), self._microbatch = data, microbatch
        self._train = train
        self._recipe, self._accelerator = recipe, accelerator
        self._loss_module = LossModule(predictor, train.lookback)
        named = [(name, tensor) for name, tensor in predictor.named_parameters() if tensor.requires_grad]
        self._trained: Tensors = dict(named)
        decayed = [tensor for _, tensor in named if tensor.ndim >= 2]
        plain = [tensor for _, tensor in named if tensor.ndim < 2]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=recipe.peak_learning_rate,
            fused=accelerator.scaler is None,  # a fused step does not report the steps that a float16 training skips
        )
        replays = recipe.cuda_graphs and not recipe.torch_compile and accelerator.num_processes == 1
        self._replayed = ReplayedCalls(accelerator.device, wanted=replays)
        windows_per_step = recipe.batch_size * recipe.grad_accum_steps * accelerator.num_processes
        self._steps_per_epoch = math.ceil(len(train) / windows_per_step)
        self._windows_per_step = windows_per_step
        self.steps = recipe.epochs * self._steps_per_epoch
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(recipe, self.steps))
        if recipe.torch_compile:
            self._loss_module.compile()
        self._module, self._optimizer = accelerator.prepare(self._loss_module, optimizer)
        self._average = {name: tensor.detach().clone() for name, tensor in self._trained.items()}
        self._best: Tensors = {}
        self._state = TrainerState()
        self._unlogged_loss, self._unlogged_batches = torch.zeros((), device=accelerator.device), 0
        self._eval_steps = eval_steps(recipe, self._steps_per_epoch)

    def state(self) -> dict[str, Any]:
        """Return the state for `restore`, as tensors and plain values; every process has to call it."""
        scaler = self._accelerator.scaler
        return {
            "trained": {name: tensor.detach() for name, tensor in self._trained.items()},
            "average": self._average,
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": {} if scaler is None else scaler.state_dict(),
            "random": gather_object([random_state(self._accelerator.device)]),
            "state": vars(self._state),
            "unlogged": (self._unlogged_loss, self._unlogged_batches),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a saved state.

        Raises:
            ModelError: the state is of another model.
        """
        device = self._accelerator.device
        try:
            with torch.no_grad():
                for name, tensor in self._trained.items():
                    tensor.copy_(state["trained"][name])
            self._average = {name: tensor.to(device) for name, tensor in state["average"].items()}
            self._best = {name: tensor.to(device) for name, tensor in state["best"].items()}
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
            if self._accelerator.scaler is not None:
                self._accelerator.scaler.load_state_dict(state["scaler"])
            self._state = TrainerState(**state["state"])
            loss, self._unlogged_batches = state["unlogged"]
            self._unlogged_loss = loss.to(device)
            restore_random_state(state["random"][self._accelerator.process_index], device)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"The saved state of the interrupted training does not fit ({error}); remove it to start anew."
            ) from error

    def run(self, name: str, save: Save, listener: Callback | None, say: Say) -> TrainOutput:
        """Train until the epochs are done, early stopping ends the training, or a signal interrupts it after a step.

        Args:
            name: name of the training, for the progress.
            save: receives the state every `save_steps` steps, at the end of each epoch, and before an interrupt.
            listener: receives the events of the training.
            say: takes lines for the person who runs the pipeline.

        Raises:
            ModelError: a loss is not finite.
        """
        resumed_from = self._state.step
        start, before = time.monotonic(), self._state.seconds
        if not self._state.rows:
            values = self._state.start(self._selection_loss())
            if listener is not None and self._accelerator.is_main_process:
                listener.on_log(0, values)
        with hold_signals() as signals, TrainingProgress(name, self.steps, start=resumed_from, say=say) as progress:

            def save_here(interrupted: bool) -> None:
                self._state.seconds = before + time.monotonic() - start
                saved = save(self.state())
                if interrupted:
                    signals.let_go(describe_save(name, self._state.step, self.steps, saved=saved))

            while self._state.step < self.steps and not self._state.stopped:
                self._run_epoch(save_here, listener, progress, signals)
        self._state.seconds = before + time.monotonic() - start
        return self._state.output(
            self._best,
            self._current(),
            steps=self.steps,
            windows_per_step=self._windows_per_step,
            resumed_from=resumed_from,
        )

    def _run_epoch(
        self,
        save: Callable[[bool], None],
        listener: Callback | None,
        progress: TrainingProgress,
        signals: Signals,
    ) -> None:
        state, recipe = self._state, self._recipe
        epoch, done = divmod(state.step, self._steps_per_epoch)
        self._module.train()
        log_time, log_step = time.monotonic(), state.step
        for batches in self._steps_of(epoch, done):
            self._step(batches)
            state.step += 1
            done += 1
            learning_rate = float(self._schedule.get_last_lr()[0])
            if not self._accelerator.optimizer_step_was_skipped:
                self._schedule.step()
            self._update_average()
            if listener is not None:
                listener.on_step_end(state.step)
            should_evaluate = done in self._eval_steps
            should_log = should_evaluate or state.step % LOG_STEPS == 0
            if should_log:
                train_loss = self._read_loss()
                seconds = max(time.monotonic() - log_time, 1e-9)
                values = state.log(
                    epoch=epoch + 1,
                    train_loss=train_loss,
                    selection_loss=self._evaluate() if should_evaluate else math.nan,
                    learning_rate=learning_rate,
                    windows_per_second=(state.step - log_step) * self._windows_per_step / seconds,
                )
                if listener is not None and self._accelerator.is_main_process:
                    listener.on_log(state.step, values)
                speed = values["windows_per_second"]
                progress.update_step(state.step, loss=train_loss, learning_rate=learning_rate, windows_per_second=speed)
                log_time, log_step = time.monotonic(), state.step
            interrupted = self._interrupted(signals, should_log)
            if interrupted or state.step % recipe.save_steps == 0 or done == self._steps_per_epoch or state.stopped:
                save(interrupted)
            if state.stopped:
                return

    def _interrupted(self, signals: Signals, should_log: bool) -> bool:
        """Return whether a signal ends the training after this step; several processes agree on it at each log."""
        if self._accelerator.num_processes > 1:
            if not should_log:
                return False
            received = torch.tensor([signals.received or 0], device=self._accelerator.device)
            agreed = int(self._accelerator.gather(received).max())
            if agreed == 0:
                return False
            signals.received = agreed
        return signals.received is not None

    def _steps_of(self, epoch: int, done: int) -> Iterator[list[BatchPart]]:
        """Yield this process's batches of each step of an epoch, from step `done` on."""
        size, process = self._recipe.batch_size, (self._accelerator.process_index, self._accelerator.num_processes)
        order = epoch_order(self._recipe.seed, epoch, len(self._train))[done * self._windows_per_step :]
        for step in torch.split(order, self._windows_per_step):
            weights = (batch_weight(len(batch), *process) for batch in torch.split(step, size * process[1]))
            yield list(map(BatchPart, batches_of(step, size, *process), weights))

    def _step(self, batches: Sequence[BatchPart]) -> None:
        """Take one optimiser step; it never waits for the device."""
        if self._accelerator.num_processes > 1:
            # A process that runs out of memory cannot repeat its pass: the others wait for its gradients.
            losses = self._backward(batches, self._microbatch.size)
        else:
            losses = self._microbatch.fit(lambda size: self._backward(batches, size), self._replayed.release)
        for loss in losses:
            self._unlogged_loss = self._unlogged_loss + loss
        self._unlogged_batches += len(batches)
        self._accelerator.clip_grad_norm_(list(self._trained.values()), self._recipe.max_grad_norm)
        self._optimizer.step()

    def _backward(self, batches: Sequence[BatchPart], size: int) -> list[torch.Tensor]:
        """Set the gradients to the sum over some batches, at most `size` windows at once; return the losses."""
        parts = [
            (part, weight * len(part) / len(windows))
            for windows, weight in batches
            for part in torch.split(windows, size)
        ]
        shares = tuple(share for _, share in parts)
        tokens = [tensor for part, _ in parts for tensor in self._train.batch(part).values()]
        key = tuple(len(part) for part, _ in parts), shares
        losses, gradients = self._replayed(key, partial(self._gradients, shares), tokens)
        for tensor, gradient in zip(self._trained.values(), gradients, strict=True):
            tensor.grad = gradient
        return losses

    def _gradients(
        self, shares: Sequence[float], tokens: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Compute the losses of parts of batches, and the sum of their gradients for each trained tensor.

        Args:
            shares: weight of each part's loss: the part's share of its batch, times the batch's weight.
            tokens: s1, s2 and stamps of each part, part after part.
        """
        accelerator, losses = self._accelerator, []
        self._optimizer.zero_grad()
        parts = list(zip(shares, tokens[::3], tokens[1::3], tokens[2::3], strict=True))
        for number, (share, *part) in enumerate(parts, start=1):
            with accelerator.no_sync(self._module) if number < len(parts) else nullcontext():
                loss = self._module(*part)
                if share != 1:
                    loss = loss * share
                accelerator.backward(loss)
            losses.append(loss.detach())
        return losses, [tensor.grad for tensor in self._trained.values()]

    def _read_loss(self) -> float:
        """Return the mean training loss of all processes since the last log; this waits for the device."""
        total = self._unlogged_loss
        if self._accelerator.num_processes > 1:
            total = self._accelerator.reduce(total, "mean")
        loss = check_finite(total.item() / self._unlogged_batches, self._state.step)
        self._unlogged_loss, self._unlogged_batches = torch.zeros_like(self._unlogged_loss), 0
        return loss

    def _evaluate(self) -> float:
        """Return the selection loss; keep the weights if they are the best so far, and decide about early stopping."""
        loss = self._selection_loss()
        if self._state.evaluate(loss, self._recipe.patience):
            self._best = {name: tensor.detach().clone() for name, tensor in self._current().items()}
        return loss

    @torch.no_grad()
    def _selection_loss(self) -> float:
        accelerator, predictor = self._accelerator, self._loss_module.predictor
        plain = {name: tensor.detach().clone() for name, tensor in self._trained.items()} if self._averaging else {}
        self._put(self._current())
        predictor.eval()
        windows = torch.arange(len(self._selection))[accelerator.process_index :: accelerator.num_processes]
        with accelerator.autocast():
            losses = self._microbatch.fit(
                lambda size: self._losses(torch.split(windows, 2 * size)), self._replayed.release
            )
        predictor.train()
        self._put(plain)
        total = torch.cat(losses).cpu().double().sum()  # Apple's GPUs have no float64
        if accelerator.num_processes > 1:
            total = accelerator.gather(total.to(accelerator.device, torch.float32)).sum()
        return float(total) / len(self._selection)

    def _losses(self, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the losses of windows of the selection block, batch by batch."""
        predictor, lookback = self._loss_module.predictor, self._selection.lookback
        return [token_losses(predictor, **self._selection.batch(batch), first_target=lookback) for batch in batches]

    @property
    def _averaging(self) -> bool:
        return self._recipe.average_decay > 0

    def _current(self) -> Tensors:
        """Return the weights to evaluate and publish: the running average if there is one."""
        return self._average if self._averaging else dict(self._trained)

    @torch.no_grad()
    def _put(self, tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if tensor is not self._trained[name]:
                self._trained[name].copy_(tensor)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self._averaging:
            decay = average_decay(self._recipe, self._state.step)
            trained = [tensor.detach() for tensor in self._trained.values()]
            update: Any = get_ema_multi_avg_fn  # torch does not type it
            update(decay)(list(self._average.values()), trained, None)


def epoch_order(seed: int, epoch: int, windows: int) -> torch.Tensor:
    """Return the order of the windows in an epoch, (windows,) int64, a permutation drawn by seed and epoch (from 0)."""
    return torch.randperm(windows, generator=torch.Generator().manual_seed((seed << 20) + epoch))


def batches_of(step: torch.Tensor, batch_size: int, process: int = 0, processes: int = 1) -> list[torch.Tensor]:
    """Return one process's batches of an optimiser step, at most `batch_size` windows each.

    All processes have the same number of batches, as each waits for the others; if the windows do not suffice, two
    processes share a window.

    Args:
        step: the windows of the step, by number.
        batch_size: windows per batch and process.
        process: rank of the process, from 0.
        processes: number of processes.
    """
    return [windows[process % len(windows) :: processes] for windows in torch.split(step, batch_size * processes)]


def batch_weight(windows: int, process: int, processes: int) -> float:
    """Return the weight of the mean loss of a process's part of a batch; the mean over processes is the batch's mean.

    It is 1 if the windows divide evenly, as they do in all but the last batch of an epoch.

    Args:
        windows: windows of the batch, of all processes.
        process: rank of the process, from 0.
        processes: number of processes.
    """
    first = process % windows
    own, sharers = len(range(first, windows, processes)), len(range(first, processes, windows))
    return own * processes / (windows * sharers)


def eval_steps(recipe: Recipe, steps_per_epoch: int) -> frozenset[int]:
    """Return the steps of an epoch, from 1, that an evaluation follows; the last step is among them."""
    count = recipe.evaluations_per_epoch
    return frozenset(math.ceil(steps_per_epoch * number / count) for number in range(1, count + 1))


def warmup_then_cosine(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate by step: a linear warm-up, then a half cosine to 0 at the last step."""
    warmup = max(1, round(recipe.warmup_fraction * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor


def average_decay(recipe: Recipe, step: int) -> float:
    """Return the decay of the weight average at a step; it grows, as early weights are untrained."""
    return min(recipe.average_decay, (1 + step) / (10 + step))
