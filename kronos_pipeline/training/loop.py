"""The optimisation: AdamW on token windows, looks at the selection block, early stopping, a state that can be resumed.

Everything random is drawn from generators whose state is saved, and the order of an epoch is a permutation that its
seed and number give, so a training that was killed ends with the bytes of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.losses import token_losses
from kronos_pipeline.training.callback import Callback
from kronos_pipeline.training.checkpoint import random_state, restore_random_state
from kronos_pipeline.training.dataset import KronosMultiTickerDataset
from kronos_pipeline.training.microbatch import Microbatch
from kronos_pipeline.training.objective import Objective
from kronos_pipeline.training.progress import Say, TrainingProgress
from kronos_pipeline.training.replayed_calls import ReplayedCalls
from kronos_pipeline.training.trainer_state import Tensors, TrainerState, TrainOutput, check_finite

LOG_STEPS = 10
"""Steps between two readings of the training loss: reading it waits for the device."""


class TrainingLoop:
    """One training of the trainable parameters of a predictor."""

    def __init__(
        self,
        predictor: torch.nn.Module,
        train: KronosMultiTickerDataset,
        selection: KronosMultiTickerDataset,
        recipe: Recipe,
        accelerator: Accelerator,
        microbatch: Microbatch,
    ) -> None:
        """Prepare.

        Args:
            predictor: what is trained, on its device; its parameters that ask for gradients are.
            train: the training windows.
            selection: the windows of the selection block.
            recipe: the settings.
            accelerator: made for this training.
            microbatch: how many windows the device takes at once.
        """
        self._train, self._selection, self._microbatch = train, selection, microbatch
        self._recipe, self._accelerator = recipe, accelerator
        self._objective = Objective(predictor, train.lookback)
        named = [(name, tensor) for name, tensor in predictor.named_parameters() if tensor.requires_grad]
        self._trained: Tensors = dict(named)
        decayed = [tensor for _, tensor in named if tensor.ndim >= 2]
        plain = [tensor for _, tensor in named if tensor.ndim < 2]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=recipe.learning_rate,
            fused=accelerator.scaler is None,  # fused, it would not say which steps a float16 training leaves out
        )
        replays = recipe.cuda_graphs and not recipe.torch_compile and accelerator.num_processes == 1
        self._replayed = ReplayedCalls(accelerator.device, wanted=replays)
        windows_per_step = recipe.batch_size * recipe.grad_accum_steps * accelerator.num_processes
        self._steps_per_epoch = math.ceil(len(train) / windows_per_step)
        self._windows_per_step = windows_per_step
        self.steps = recipe.epochs * self._steps_per_epoch
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(recipe, self.steps))
        if recipe.torch_compile:
            self._objective.compile()
        self._module, self._optimizer = accelerator.prepare(self._objective, optimizer)
        self._average = {name: tensor.detach().clone() for name, tensor in self._trained.items()}
        self._best: Tensors = {}
        self._position = TrainerState()
        self._unread, self._unread_batches = torch.zeros((), device=accelerator.device), 0
        self._look_at = eval_steps(recipe, self._steps_per_epoch)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on from here, as tensors and plain values; every process has to ask for it."""
        scaler = self._accelerator.scaler
        return {
            "trained": {name: tensor.detach() for name, tensor in self._trained.items()},
            "average": self._average,
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": {} if scaler is None else scaler.state_dict(),
            "random": gather_object([random_state(self._accelerator.device)]),
            "position": vars(self._position),
            "unread": (self._unread, self._unread_batches),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

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
            self._position = TrainerState(**state["position"])
            unread, self._unread_batches = state["unread"]
            self._unread = unread.to(device)
            restore_random_state(state["random"][self._accelerator.process_index], device)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"The saved state of the interrupted training does not fit ({error}); remove it to start anew."
            ) from error

    def run(
        self, what: str, save: Callable[[dict[str, Any]], None], listener: Callback | None, say: Say
    ) -> TrainOutput:
        """Train until the epochs are done or the selection loss has stopped falling.

        Args:
            what: the training's name, for the progress.
            save: gets the state every `save_steps` steps and at each epoch's end.
            listener: told the losses as they are read.
            say: takes plain lines for people.

        Raises:
            ModelError: a loss is not finite.
        """
        resumed_from = self._position.step
        began, before = time.monotonic(), self._position.seconds
        with TrainingProgress(what, self.steps, resumed_from, say) as progress:
            while self._position.step < self.steps and not self._position.stopped:
                self._run_epoch(save, listener, progress, began - before)
        self._position.seconds = before + time.monotonic() - began
        return self._position.outcome(
            self._best,
            self._current(),
            steps=self.steps,
            windows_per_step=self._windows_per_step,
            resumed_from=resumed_from,
        )

    def _run_epoch(
        self,
        save: Callable[[dict[str, Any]], None],
        listener: Callback | None,
        progress: TrainingProgress,
        began: float,
    ) -> None:
        position, recipe = self._position, self._recipe
        epoch, done = divmod(position.step, self._steps_per_epoch)
        self._module.train()
        read_at, read_step = time.monotonic(), position.step
        for batches in self._steps_of(epoch, done):
            self._step(batches)
            position.step += 1
            done += 1
            learning_rate = float(self._schedule.get_last_lr()[0])
            if not self._accelerator.optimizer_step_was_skipped:
                self._schedule.step()
            self._update_average()
            if listener is not None:
                listener.on_step_end(position.step)
            look = done in self._look_at
            if look or position.step % LOG_STEPS == 0:
                train_loss = self._read_loss()
                seconds = max(time.monotonic() - read_at, 1e-9)
                values = position.record(
                    epoch=epoch + 1,
                    train_loss=train_loss,
                    selection_loss=self._look() if look else math.nan,
                    learning_rate=learning_rate,
                    windows_per_second=(position.step - read_step) * self._windows_per_step / seconds,
                )
                if listener is not None and self._accelerator.is_main_process:
                    listener.on_log(position.step, values)
                speed = values["windows_per_second"]
                progress.update(position.step, loss=train_loss, learning_rate=learning_rate, windows_per_second=speed)
                read_at, read_step = time.monotonic(), position.step
            if position.step % recipe.save_steps == 0 or done == self._steps_per_epoch or position.stopped:
                position.seconds = time.monotonic() - began
                save(self.state())
            if position.stopped:
                return

    def _steps_of(self, epoch: int, done: int) -> Iterator[list[torch.Tensor]]:
        """This process's batches of each step of an epoch from its step `done` on: windows by number."""
        accelerator, size = self._accelerator, self._recipe.batch_size
        order = epoch_order(self._recipe.seed, epoch, len(self._train))[done * self._windows_per_step :]
        for step in order.split(self._windows_per_step):
            yield batches_of(step, size, accelerator.process_index, accelerator.num_processes)

    def _step(self, batches: Sequence[torch.Tensor]) -> None:
        """Take one optimiser step; nothing in it waits for the device."""
        if self._accelerator.num_processes > 1:
            # A process that ran out of memory cannot begin anew while the others wait for its gradients.
            losses = self._backward(batches, self._microbatch.size)
        else:
            losses = self._microbatch.fit(lambda size: self._backward(batches, size), self._replayed.release)
        for loss in losses:
            self._unread = self._unread + loss
        self._unread_batches += len(batches)
        self._accelerator.clip_grad_norm_(list(self._trained.values()), self._recipe.max_grad_norm)
        self._optimizer.step()

    def _backward(self, batches: Sequence[torch.Tensor], size: int) -> list[torch.Tensor]:
        """Set the gradients to those of some batches, by at most `size` windows at once; return the losses."""
        parts = [(part, len(part) / len(windows)) for windows in batches for part in windows.split(size)]
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
        """The losses of some parts of batches, and the sum of their gradients for each trained tensor.

        Args:
            shares: of each part in its batch, by which its loss counts.
            tokens: s1, s2 and stamps of each part, one after the other.
        """
        accelerator, losses = self._accelerator, []
        self._optimizer.zero_grad()
        parts = list(zip(shares, tokens[::3], tokens[1::3], tokens[2::3], strict=True))
        for number, (share, *part) in enumerate(parts, start=1):
            with accelerator.no_sync(self._module) if number < len(parts) else nullcontext():
                loss = self._module(*part)
                if share < 1:
                    loss = loss * share
                accelerator.backward(loss)
            losses.append(loss.detach())
        return losses, [tensor.grad for tensor in self._trained.values()]

    def _read_loss(self) -> float:
        """The mean training loss since it was last read; this waits for the device."""
        loss = check_finite(self._unread.item() / self._unread_batches, self._position.step)
        self._unread, self._unread_batches = torch.zeros_like(self._unread), 0
        return loss

    def _look(self) -> float:
        """The loss on the selection block; keeps the weights if they are the best so far, stops if none were lately."""
        loss = self._selection_loss()
        if self._position.look(loss, self._recipe.patience):
            self._best = {name: tensor.detach().clone() for name, tensor in self._current().items()}
        return loss

    @torch.no_grad()
    def _selection_loss(self) -> float:
        accelerator, predictor = self._accelerator, self._objective.predictor
        plain = {name: tensor.detach().clone() for name, tensor in self._trained.items()} if self._averaging else {}
        self._put(self._current())
        predictor.eval()
        mine = torch.arange(len(self._selection))[accelerator.process_index :: accelerator.num_processes]
        with accelerator.autocast():
            found = self._microbatch.fit(lambda size: self._losses(mine.split(2 * size)), self._replayed.release)
        predictor.train()
        self._put(plain)
        total = torch.cat(found).cpu().double().sum()  # Apple's GPUs have no float64
        if accelerator.num_processes > 1:
            total = accelerator.gather(total.to(accelerator.device, torch.float32)).sum()
        return float(total) / len(self._selection)

    def _losses(self, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The losses of some windows of the selection block, batch by batch."""
        predictor, lookback = self._objective.predictor, self._selection.lookback
        return [token_losses(predictor, **self._selection.batch(batch), first_target=lookback) for batch in batches]

    @property
    def _averaging(self) -> bool:
        return self._recipe.average_decay > 0

    def _current(self) -> Tensors:
        """The weights that count: the running average where there is one."""
        return self._average if self._averaging else dict(self._trained)

    @torch.no_grad()
    def _put(self, tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if tensor is not self._trained[name]:
                self._trained[name].copy_(tensor)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self._averaging:
            decay = average_decay(self._recipe, self._position.step)
            trained = [tensor.detach() for tensor in self._trained.values()]
            get_ema_multi_avg_fn(decay)(list(self._average.values()), trained, None)


def epoch_order(seed: int, epoch: int, windows: int) -> torch.Tensor:
    """The order of the windows in an epoch, (windows,) int64: a permutation that seed and epoch (from 0) give."""
    return torch.randperm(windows, generator=torch.Generator().manual_seed((seed << 20) + epoch))


def batches_of(step: torch.Tensor, batch_size: int, place: int = 0, processes: int = 1) -> list[torch.Tensor]:
    """One process's batches of an optimiser step, at most `batch_size` windows each.

    Each process has as many batches as the others, or they would wait for each other for ever; where the windows do not
    suffice, one is in the batches of two.

    Args:
        step: the windows of the step, by number.
        batch_size: windows per batch and process.
        place: the process, from 0.
        processes: how many train together.
    """
    return [some[place % len(some) :: processes] for some in step.split(batch_size * processes)]


def eval_steps(recipe: Recipe, steps_per_epoch: int) -> frozenset[int]:
    """The steps of an epoch, from 1, after which the selection block is looked at; its last is one."""
    looks = recipe.evaluations_per_epoch
    return frozenset(math.ceil(steps_per_epoch * look / looks) for look in range(1, looks + 1))


def warmup_then_cosine(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """The factor on the learning rate: up in a line over the warm-up, then down half a cosine to 0 at the last step."""
    warmup = max(1, round(recipe.warmup_fraction * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor


def average_decay(recipe: Recipe, step: int) -> float:
    """The decay of the averaged weights at a step; a young average would lean on the untouched weights, so it grows."""
    return min(recipe.average_decay, (1 + step) / (10 + step))
