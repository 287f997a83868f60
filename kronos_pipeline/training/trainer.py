"""Fine-tuning: from windows to a published checkpoint or adapter that says what made it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kronos_pipeline.artifacts import ArtifactLayout, package_versions
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.code_version import WEIGHTS, layers_version
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.purge import outdated_tickers, purge_overlapping_targets
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.model.devices import explain_out_of_memory
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.model.lora import add_lora
from kronos_pipeline.model.modules import copy_sharing_weights, limit_threads, move
from kronos_pipeline.training import preflight as plan
from kronos_pipeline.training.callback import Callback
from kronos_pipeline.training.checkpoint import ResumeState, clear_state, training_settings
from kronos_pipeline.training.dataset import KronosMultiTickerDataset
from kronos_pipeline.training.devices import check_precision, pick_precision, process, processes, reserve_device
from kronos_pipeline.training.multi_lora.group import JobOutcome, train_jobs
from kronos_pipeline.training.progress import Say
from kronos_pipeline.training.publish import TrainingResult, load_result
from kronos_pipeline.training.single import (
    MORE_MEMORY,
    AdapterJob,
    PreparedTraining,
    expected_seconds,
    new_microbatch,
    train_single,
)


class KronosTrainer:
    """Fine-tunes a base model on windows: fully, to one checkpoint over all tickers, or by LoRA, to adapters.

    Weights are chosen on the selection block; the holdout is never read. A training that was killed goes on where it
    was when it is asked for again with the same data, settings and code, and ends with the same bytes on a CPU.

    Attributes:
        recipe: the settings.
        layout: where artifacts go.
        device: where it trains.
        say: takes lines for the person who runs the pipeline.
    """

    def __init__(
        self, recipe: Recipe, output_dir: Path | str, *, base: KronosModel | None = None, say: Say = print
    ) -> None:
        """Prepare.

        Args:
            recipe: the settings.
            output_dir: folder for artifacts.
            base: the base model, where it is loaded already: the trainer is on its device. By default the recipe's,
                loaded at the first training.
            say: takes lines for the person who runs the pipeline.

        Raises:
            SettingsError: the device or the precision is not to be had here.
        """
        self.recipe = recipe
        self.layout = ArtifactLayout(Path(output_dir))
        self.device, locks = reserve_device(recipe.device if base is None else str(base.device), say)
        for lock in locks:
            weakref.finalize(self, lock.release)
        check_precision(recipe.precision, self.device)
        self.say = say
        self._base = base
        self._one_run: list[ResumeState] | None = None

    @property
    def base(self) -> KronosModel:
        """The base model, on the trainer's device; it stays as it is."""
        if self._base is None:
            self._base = load_base(find_base_model(self.recipe.model_name, self.recipe.tokenizer_name), self.device)
        return self._base

    @property
    def precision(self) -> str:
        """The number format of matrix products."""
        return pick_precision(self.recipe.precision, self.device, self.base.predictor)

    @contextmanager
    def one_run(self) -> Iterator[None]:
        """Trainings inside the block are one run: killed and started again, it keeps those that had ended."""
        self._one_run = []
        try:
            yield
            if process() == 0:
                clear_state(self._one_run)
        finally:
            self._one_run = None

    def train_adapter(
        self,
        windows: Sequence[WindowSet],
        name: str,
        *,
        listener: Callback | None = None,
        mlflow_run: str | None = None,
    ) -> TrainingResult:
        """Train a LoRA adapter and publish it as `adapters/<name>`.

        Args:
            windows: those of one ticker, or of all that one adapter is to cover.
            name: the adapter's name.
            listener: told the losses as they are read.
            mlflow_run: id of the MLflow run that records this training, for the manifest.

        Raises:
            DataError: the train or the selection split is empty.
            SettingsError, ModelError, ArtifactError: see their messages.
        """
        job = AdapterJob(name, windows, listener=listener, mlflow_run=mlflow_run)
        return train_single(self, self.prepare(job), lora=True)

    def train_adapters(
        self,
        jobs: Sequence[AdapterJob],
        *,
        begin: Callable[[AdapterJob], AdapterJob] | None = None,
        done: Callable[[AdapterJob, JobOutcome], None] | None = None,
    ) -> list[JobOutcome]:
        """Train LoRA adapters, many at once, and publish each; one that fails leaves the others as they are.

        Each ends with the weights that it has when it is trained alone, to rounding, but for what dropout draws.

        Args:
            jobs: what to train; no two may publish the same folder.
            begin: gets each job as its training begins, and gives it back with a listener and an MLflow run, say.
            done: told of each job as it ends; of one whose windows are not fit before any begins.

        Returns:
            What became of each job, in their order.

        Raises:
            SettingsError: two jobs would publish the same folder.
        """
        return train_jobs(self, jobs, begin, done)

    def train_checkpoint(
        self, windows: Sequence[WindowSet], *, listener: Callback | None = None, mlflow_run: str | None = None
    ) -> TrainingResult:
        """Fine-tune the whole predictor and publish it as `checkpoints/best_model`, and the last step's beside it.

        Arguments and errors are those of `train_adapter`.
        """
        one = self._prepare("checkpoints/best_model", self.layout.best_checkpoint, self.layout, windows)
        return train_single(self, replace(one, listener=listener, mlflow_run=mlflow_run), lora=False)

    def refit(
        self,
        windows: Sequence[WindowSet],
        name: str | None,
        *,
        listener: Callback | None = None,
        mlflow_run: str | None = None,
    ) -> TrainingResult:
        """Train on windows that hold nothing out, for today's forecasts; no evaluation can measure what comes of it.

        Args:
            windows: as `build_windows` cuts them with `hold_out=False`.
            name: the adapter's name, published as `refits/<name>`; None for `checkpoints/refit_model`.
            listener, mlflow_run: as in `train_adapter`, as are the errors.
        """
        artifact, target = (
            ("checkpoints/refit_model", self.layout.refit_checkpoint)
            if name is None
            else (f"refits/{name}", self.layout.refit(name))
        )
        one = self._prepare(artifact, target, self.layout, windows)
        return train_single(self, replace(one, listener=listener, mlflow_run=mlflow_run), lora=name is not None)

    def expected_seconds(self, windows: Sequence[WindowSet], *, lora: bool) -> float:
        """Seconds that a training on these windows takes at most, by a batch that is timed; nothing is kept."""
        with explain_out_of_memory("A training", self.device, MORE_MEMORY):
            predictor = move(self.trainable(lora=lora), self.device)
            with limit_threads(predictor):
                return expected_seconds(self, predictor, *self.datasets(windows, None), new_microbatch(self))

    def prepare(self, job: AdapterJob) -> PreparedTraining:
        """What a job comes to, once its windows are fit; errors are those of `train_adapter`."""
        layout = self.layout if job.root is None else ArtifactLayout(job.root)
        one = self._prepare(f"adapters/{job.name}", layout.adapter(job.name), layout, job.windows)
        return replace(one, listener=job.listener, mlflow_run=job.mlflow_run)

    def kept(self, one: PreparedTraining) -> TrainingResult | None:
        """What this very training made, where it had ended before the run that it is part of was interrupted."""
        if self._one_run is None:
            return None
        self._one_run.append(one.state)
        result = load_result(one.target, one.state.key) if one.state.finished else None
        if result is not None:
            self.say(f"{one.state.artifact}: finished before the interruption, kept")
        return result

    def finish(self, one: PreparedTraining) -> None:
        """Drop what a training that has ended leaves for its resumption."""
        one.state.finish(keep_mark=self._one_run is not None)

    def trainable(self, *, lora: bool) -> Any:
        """A copy of the base's predictor whose parameters that are to be trained ask for gradients."""
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

    def datasets(
        self, windows: Sequence[WindowSet], folder: Path | None
    ) -> tuple[KronosMultiTickerDataset, KronosMultiTickerDataset]:
        """The windows to train on and those of the selection blocks; their tokens go to the folder where many."""
        train, selection = (
            KronosMultiTickerDataset(windows, split, self.base.tokenizer, device=self.device, folder=folder)
            for split in ("train", "selection")
        )
        return train, selection

    def _prepare(
        self, artifact: str, target: Path, layout: ArtifactLayout, windows: Sequence[WindowSet]
    ) -> PreparedTraining:
        known = purge_overlapping_targets(windows, outdated_tickers(windows))
        plan.check_windows(known)
        return PreparedTraining(target, ResumeState(layout, artifact, self._parts(known)), known)

    def _parts(self, windows: Sequence[WindowSet]) -> dict[str, Any]:
        return {
            "data": {one.ticker: one.training_hash for one in windows},
            "config": training_settings(self.recipe),
            "base": self.base.weights_hash,
            "code": layers_version(*WEIGHTS),
            "packages": package_versions(),
            "device": self.device.type,
            "precision": self.precision,
            "processes": processes(),
        }
