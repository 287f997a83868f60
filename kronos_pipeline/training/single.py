"""One training by itself: from windows to the checkpoint or adapter that it publishes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.model.devices import explain_out_of_memory
from kronos_pipeline.model.modules import limit_threads, move
from kronos_pipeline.training import preflight as plan
from kronos_pipeline.training.callback import Callback
from kronos_pipeline.training.checkpoint import ResumeState, locked
from kronos_pipeline.training.dataset import KronosMultiTickerDataset
from kronos_pipeline.training.devices import current_device, new_accelerator, process, repeatable
from kronos_pipeline.training.loop import TrainingLoop
from kronos_pipeline.training.microbatch import Microbatch
from kronos_pipeline.training.publish import (
    TrainingResult,
    publish_adapter,
    publish_checkpoint,
    training_manifest,
    training_summary,
)
from kronos_pipeline.training.trainer_state import TrainOutput

if TYPE_CHECKING:
    from kronos_pipeline.training.trainer import KronosTrainer


MORE_MEMORY = (
    "Not even one window at a time fits. Free memory there (nvidia-smi shows which programs hold some), lower "
    "--lookback, take a smaller --model-name, or train adapters, which need less."
)


@dataclass(frozen=True)
class AdapterJob:
    """One adapter that is to be trained.

    Attributes:
        name: the adapter's name; it is published as `adapters/<name>`.
        windows: those of one ticker, or of all that the adapter is to cover.
        root: folder for its artifacts and state; by default the trainer's.
        listener: told the losses as they are read.
        mlflow_run: id of the MLflow run that records this training, for the manifest.
    """

    name: str
    windows: Sequence[WindowSet]
    root: Path | None = None
    listener: Callback | None = None
    mlflow_run: str | None = None


@dataclass(frozen=True)
class PreparedTraining:
    """One training whose windows are fit.

    Attributes:
        target: the folder that it publishes.
        state: what is resumed of it.
        windows: those that it may read.
        listener, mlflow_run: as in `AdapterJob`.
    """

    target: Path
    state: ResumeState
    windows: Sequence[WindowSet]
    listener: Callback | None = None
    mlflow_run: str | None = None

    def count(self, split: str) -> int:
        """Windows of a split."""
        return sum(one.counts()[split] for one in self.windows)


def train_single(trainer: KronosTrainer, one: PreparedTraining, *, lora: bool) -> TrainingResult:
    """Train, in this process or as one of several, and publish what comes of it.

    Raises:
        ModelError, ArtifactError: see their messages.
    """
    with (
        current_device(trainer.device),
        repeatable(trainer.recipe.deterministic),
        explain_out_of_memory(f"The training of {one.state.artifact}", trainer.device, MORE_MEMORY),
    ):
        return _train(trainer, one, lora=lora)


def _train(trainer: KronosTrainer, one: PreparedTraining, *, lora: bool) -> TrainingResult:
    accelerator = new_accelerator(trainer.recipe, trainer.device, trainer.precision)
    with locked([one.state], trainer.device, trainer.say) if process() == 0 else nullcontext():
        if kept := trainer.kept(one):
            return kept
        if process() == 0:
            one.state.begin(trainer.say)
        saved = one.state.load()
        set_seed(trainer.recipe.seed)
        predictor = trainer.trainable(lora=lora)
        with limit_threads(predictor):
            outcome = _optimise(trainer, one, predictor, saved, accelerator)
        summary = training_summary(outcome, predictor, one.windows, trainer.device, trainer.precision)
        result = TrainingResult(one.target, outcome.history, summary)
        if accelerator.is_main_process:
            _publish(trainer, one, result, predictor, outcome, lora)
            trainer.finish(one)
        accelerator.wait_for_everyone()
    return result


def expected_seconds(
    trainer: KronosTrainer,
    predictor: torch.nn.Module,
    train: KronosMultiTickerDataset,
    selection: KronosMultiTickerDataset,
    microbatch: Microbatch,
) -> float:
    """Seconds that a training takes at most; see `plan.expected_seconds`. The microbatch is made to fit."""
    return microbatch.fit(
        lambda size: plan.expected_seconds(
            predictor,
            train,
            selection,
            batch_size=size,
            epochs=trainer.recipe.epochs,
            evals_per_epoch=trainer.recipe.evaluations_per_epoch,
            device=trainer.device,
            precision=trainer.precision,
        )
    )


def new_microbatch(trainer: KronosTrainer) -> Microbatch:
    """All windows of a batch at once, to begin with."""
    return Microbatch(trainer.recipe.batch_size, "windows", trainer.device, trainer.say)


def _optimise(
    trainer: KronosTrainer,
    one: PreparedTraining,
    predictor: torch.nn.Module,
    saved: dict[str, Any] | None,
    accelerator: Accelerator,
) -> TrainOutput:
    artifact, recipe = one.state.artifact, trainer.recipe
    train, selection = trainer.datasets(one.windows, one.state.folder / f"process-{process()}")
    move(predictor, trainer.device)
    microbatch = new_microbatch(trainer)
    seconds = expected_seconds(trainer, predictor, train, selection, microbatch)
    disk = plan.needed_bytes(predictor)
    plan.check_disk(trainer.layout.root, disk)
    set_seed(recipe.seed, device_specific=True)
    optimisation = TrainingLoop(predictor, train, selection, recipe, accelerator, microbatch)
    name = trainer.base.source.name
    numbers = len(train), len(selection), optimisation.steps, seconds, disk
    described = plan.describe(*numbers, name, trainer.device, compiled=recipe.torch_compile)
    trainer.say(f"{artifact}: {described}")
    if saved is not None:
        optimisation.restore(saved)
        trainer.say(f"{artifact}: resuming from step {saved['position']['step']}")

    def save(current: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            one.state.save(current)

    return optimisation.run(artifact, save, one.listener, trainer.say)


def _publish(
    trainer: KronosTrainer,
    one: PreparedTraining,
    result: TrainingResult,
    predictor: Any,
    outcome: TrainOutput,
    lora: bool,
) -> None:
    recipe, base, layout = trainer.recipe, trainer.base, trainer.layout
    manifest = training_manifest(
        one.state.artifact, one.state.key, one.windows, recipe, base, trainer.device, one.mlflow_run
    )
    predictor.eval()
    if lora:
        publish_adapter(result, predictor, outcome.best, base, manifest, with_base=not recipe.freeze_backbone)
        return
    if result.folder == layout.best_checkpoint:
        last = TrainingResult(layout.last_checkpoint, result.history, result.summary)
        publish_checkpoint(last, predictor, outcome.last, manifest)
    publish_checkpoint(result, predictor, outcome.best, manifest)
