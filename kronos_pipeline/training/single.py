"""One training: from windows to the checkpoint or adapter that it publishes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from kronos_pipeline.artifacts import ArtifactLayout, package_versions
from kronos_pipeline.code_version import WEIGHTS, layers_version
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.purge import outdated_tickers, purge_overlapping_targets
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.locks import fence, shared_time
from kronos_pipeline.model.devices import explain_out_of_memory
from kronos_pipeline.model.loading import KronosModel
from kronos_pipeline.model.lora import add_lora
from kronos_pipeline.model.modules import copy_sharing_weights, limit_threads, move
from kronos_pipeline.training import preflight
from kronos_pipeline.training.callback import Callback
from kronos_pipeline.training.checkpoint import ResumeState, locked, training_settings
from kronos_pipeline.training.dataset import KronosMultiTickerDataset, TrainingData
from kronos_pipeline.training.devices import current_device, new_accelerator, process, processes, repeatable
from kronos_pipeline.training.loop import TrainingLoop
from kronos_pipeline.training.microbatch import Microbatch
from kronos_pipeline.training.plan import TrainingJob
from kronos_pipeline.training.progress import Say
from kronos_pipeline.training.publish import (
    TrainingResult,
    load_result,
    publish_adapter,
    publish_checkpoint,
    published_at,
    training_manifest,
    training_summary,
)
from kronos_pipeline.training.trainer_state import TrainOutput

MORE_MEMORY = (
    "Not even one window at a time fits. Free memory there (nvidia-smi shows which programs hold some), lower "
    "--lookback, take a smaller --model-name, or train adapters, which need less."
)


@dataclass(frozen=True)
class PreparedTraining:
    """Training whose windows are checked.

    Attributes:
        lora: whether it trains an adapter; a checkpoint otherwise.
        target: folder to publish.
        state: its resumable state on disk.
        windows: the windows that it may read.
        listener, mlflow_run: as in `TrainingJob`.
    """

    lora: bool
    target: Path
    state: ResumeState
    windows: Sequence[WindowSet]
    listener: Callback | None = None
    mlflow_run: str | None = None

    def count(self, split: str) -> int:
        """Count the windows of a split."""
        return sum(windows.counts()[split] for windows in self.windows)


@dataclass(frozen=True)
class TrainingContext:
    """Settings, device and base model that the trainings of a trainer share.

    Attributes:
        recipe: the settings.
        base: the base model, on the device; no training changes it.
        layout: folders of artifacts.
        device: the device to train on.
        precision: number format of matrix products, "fp32", "bf16" or "fp16".
        say: takes lines for the person who runs the pipeline.
        run_states: states of the trainings of a run of several, as they start; None outside such a run.
        requested: time at which the trainings were asked for, in seconds since 1970, see `locks.shared_time`.
    """

    recipe: Recipe
    base: KronosModel
    layout: ArtifactLayout
    device: torch.device
    precision: str
    say: Say
    run_states: list[ResumeState] | None = None
    requested: float = field(default_factory=shared_time)

    def prepare(self, job: TrainingJob) -> PreparedTraining:
        """Check the windows of a training and name its state.

        Raises:
            DataError: the train or the selection split is empty.
            SettingsError: there is no ticker, or a checkpoint would mix bars of different intervals.
        """
        windows = purge_overlapping_targets(job.windows, outdated_tickers(job.windows))
        preflight.check_windows(windows)
        if job.adapter is None and not self.recipe.mix_intervals:
            preflight.check_intervals(windows)
        parts = {
            "data": {ticker.ticker: ticker.training_hash for ticker in windows},
            "config": training_settings(self.recipe),
            "base": self.base.weights_hash,
            "code": layers_version(*WEIGHTS),
            "packages": package_versions(),
            "device": self.device.type,
            "precision": self.precision,
            "processes": processes(),
        }
        layout = self.layout if job.root is None else ArtifactLayout(job.root)
        target = layout.refit_of(job.adapter) if job.refit else layout.trained(job.adapter)
        state = ResumeState(layout, target.relative_to(layout.root).as_posix(), parts)
        return PreparedTraining(job.adapter is not None, target, state, windows, job.listener, job.mlflow_run)

    def finished_result(self, training: PreparedTraining) -> TrainingResult | None:
        """Return the published result of this very training, or None if it has to run.

        It is kept if it finished before its run was interrupted, or if another process ended it after this training was
        asked for: two requests at once train once.
        """
        if self.run_states is not None:
            self.run_states.append(training.state)
        if self.run_states is not None and training.state.finished:
            return self._published(training, "finished before the interruption")
        return self.kept_result(training)

    def kept_result(self, training: PreparedTraining) -> TrainingResult | None:
        """Return the published result of this very training if another run ended it since it was asked for."""
        if training.target.exists() and published_at(training.target) > self.requested:
            return self._published(training, "another run trained it since it was asked for")
        return None

    def _published(self, training: PreparedTraining, why: str) -> TrainingResult | None:
        result = load_result(training.target, training.state.key)
        if result is not None:
            self.say(f"{training.state.artifact}: {why}, kept")
        return result

    def clear_state(self, training: PreparedTraining) -> None:
        """Remove the saved state of a finished training."""
        training.state.finish(keep_mark=self.run_states is not None)

    def trainable(self, *, lora: bool) -> Any:
        """Copy the base's predictor, with gradients on for the parameters to train."""
        recipe, predictor = self.recipe, self.base.predictor
        if not lora:
            return copy.deepcopy(predictor)
        predictor = copy_sharing_weights(predictor) if recipe.freeze_backbone else copy.deepcopy(predictor)
        thawed = [parameter for parameter in predictor.parameters() if parameter.requires_grad]
        adapted = add_lora(
            predictor,
            r=recipe.adapter_r,
            alpha=recipe.adapter_alpha,
            dropout=recipe.adapter_dropout,
            targets=recipe.adapter_targets,
        )
        for parameter in thawed:
            parameter.requires_grad_(True)
        return adapted

    def datasets(self, windows: Sequence[WindowSet], folder: Path | None) -> TrainingData:
        """Encode the training windows and the selection windows; many tokens go to files in the folder."""
        return TrainingData(
            *(
                KronosMultiTickerDataset(windows, split, self.base.tokenizer, device=self.device, folder=folder)
                for split in ("train", "selection")
            )
        )


def train_single(context: TrainingContext, training: PreparedTraining) -> TrainingResult:
    """Train in this process, or in this process and its peers, and publish the result.

    Args:
        context: settings, device and base model.
        training: the windows and the folder to publish.

    Raises:
        ModelError, ArtifactError: see their messages.
    """
    with (
        current_device(context.device),
        repeatable(context.recipe.deterministic),
        explain_out_of_memory(f"The training of {training.state.artifact}", context.device, MORE_MEMORY),
    ):
        return _train(context, training)


def estimate_seconds(context: TrainingContext, windows: Sequence[WindowSet], *, lora: bool) -> float:
    """Estimate the longest time of a training on these windows, in seconds, by timing a batch; nothing is kept."""
    with explain_out_of_memory("A training", context.device, MORE_MEMORY):
        predictor = move(context.trainable(lora=lora), context.device)
        with limit_threads(predictor):
            return _expected_seconds(context, predictor, context.datasets(windows, None), _whole_batch(context))


def _train(context: TrainingContext, training: PreparedTraining) -> TrainingResult:
    accelerator = new_accelerator(context.recipe, context.device, context.precision)
    with locked([training.state], context.device, context.say) if process() == 0 else nullcontext():
        finished = context.finished_result(training) if process() == 0 else None
        # The other processes start from what the first sees while it holds the lock.
        key, ended = broadcast_object_list([training.state.key, finished])
        if key != training.state.key:
            raise ArtifactError(
                f"{training.state.artifact}: the processes of the training have read different data or settings, as "
                "a file changed meanwhile; start it again."
            )
        if ended is not None:
            return cast(TrainingResult, ended)
        if process() == 0:
            training.state.begin(context.say)
        saved = training.state.load(context.say)
        set_seed(context.recipe.seed)
        predictor = context.trainable(lora=training.lora)
        with limit_threads(predictor):
            output = _optimise(context, training, predictor, saved, accelerator)
        summary = training_summary(output, predictor, training.windows, context.device, context.precision)
        result = TrainingResult(training.target, output.history, summary)
        if accelerator.is_main_process:
            with fence(training.state.lock):
                _publish(context, training, result, predictor, output)
                context.clear_state(training)
        accelerator.wait_for_everyone()
    return result


def _expected_seconds(
    context: TrainingContext, predictor: torch.nn.Module, data: TrainingData, microbatch: Microbatch
) -> float:
    """See `preflight.expected_seconds`; halves the microbatch until it fits."""
    return microbatch.fit(
        lambda size: preflight.expected_seconds(
            predictor, data, context.recipe, batch_size=size, device=context.device, precision=context.precision
        )
    )


def _whole_batch(context: TrainingContext) -> Microbatch:
    """Make a microbatch of all windows of a batch, the size to begin with."""
    return Microbatch(context.recipe.batch_size, "windows", context.device, context.say)


def _optimise(
    context: TrainingContext,
    training: PreparedTraining,
    predictor: torch.nn.Module,
    saved: dict[str, Any] | None,
    accelerator: Accelerator,
) -> TrainOutput:
    artifact, recipe = training.state.artifact, context.recipe
    data = context.datasets(training.windows, training.state.folder / f"process-{process()}")
    move(predictor, context.device)
    microbatch = _whole_batch(context)
    seconds = _expected_seconds(context, predictor, data, microbatch)
    disk = preflight.needed_bytes(predictor)
    preflight.check_disk(context.layout.root, disk)
    set_seed(recipe.seed, device_specific=True)
    loop = TrainingLoop(predictor, data, recipe, accelerator, microbatch)
    estimate = preflight.Estimate(len(data.train), len(data.selection), loop.steps, seconds, disk)
    name = context.base.source.name
    context.say(f"{artifact}: {estimate.describe(name, context.device, compiled=recipe.torch_compile)}")
    if saved is not None:
        loop.restore(saved)
        context.say(f"{artifact}: resuming from step {saved['state']['step']}")

    def save(current: dict[str, Any]) -> bool:
        return not accelerator.is_main_process or training.state.save(current, context.say)

    return loop.run(artifact, save, training.listener, context.say)


def _publish(
    context: TrainingContext,
    training: PreparedTraining,
    result: TrainingResult,
    predictor: Any,
    output: TrainOutput,
) -> None:
    recipe, base, layout = context.recipe, context.base, context.layout
    manifest = training_manifest(training.state, training.windows, recipe, base, training.mlflow_run)
    predictor.eval()
    if training.lora:
        publish_adapter(result, predictor, output.best, base, manifest, with_base=not recipe.freeze_backbone)
        return
    if result.folder == layout.best_checkpoint:
        last = TrainingResult(layout.last_checkpoint, result.history, result.summary)
        publish_checkpoint(last, predictor, output.last, manifest)
    publish_checkpoint(result, predictor, output.best, manifest)
