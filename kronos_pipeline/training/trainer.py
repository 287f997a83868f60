"""Fine-tuning: from windows to a published checkpoint or adapter that says what made it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from kronos_pipeline.artifacts import ArtifactLayout, code_version, package_versions
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.together import known_together, outdated
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import KronosError
from kronos_pipeline.model.loading import KronosModel, load_base, pick_device
from kronos_pipeline.model.lora import add_lora
from kronos_pipeline.model.modules import fitting_threads, move
from kronos_pipeline.training import plan
from kronos_pipeline.training.adapters import AdapterJob
from kronos_pipeline.training.dataset import KronosMultiTickerDataset
from kronos_pipeline.training.devices import (
    device_name,
    new_accelerator,
    own_device,
    pick_precision,
    process,
    processes,
)
from kronos_pipeline.training.loop import Listener, Optimisation, Outcome
from kronos_pipeline.training.progress import Say
from kronos_pipeline.training.publish import (
    TrainingResult,
    load_result,
    publish_adapter,
    publish_checkpoint,
    training_manifest,
)
from kronos_pipeline.training.state import TrainingState, training_settings


class KronosTrainer:
    """Fine-tunes a base model on windows: fully, to one checkpoint over all tickers, or by LoRA, to an adapter.

    Weights are chosen on the selection block; the holdout is never read. A training that was killed goes on where it
    was when it is asked for again with the same data, settings and code, and ends with the same bytes on a CPU.
    """

    def __init__(
        self, recipe: Recipe, output_dir: Path | str, *, base: KronosModel | None = None, say: Say = print
    ) -> None:
        """Prepare.

        Args:
            recipe: the settings.
            output_dir: folder for artifacts.
            base: the base model, where it is loaded already; by default the recipe's, loaded at the first training.
            say: takes lines for the person who runs the pipeline.

        Raises:
            SettingsError: the device or the precision is not to be had here.
        """
        self.recipe = recipe
        self.layout = ArtifactLayout(Path(output_dir))
        self.device = own_device(pick_device(recipe.device))
        self.precision = pick_precision(recipe.precision, self.device)
        self._base = base
        self._say = say
        self._one_run: list[TrainingState] | None = None

    @property
    def base(self) -> KronosModel:
        """The base model, on the trainer's device; it stays as it is."""
        if self._base is None:
            self._base = load_base(find_base_model(self.recipe.model_name, self.recipe.tokenizer_name), self.device)
        return self._base

    @contextmanager
    def one_run(self) -> Iterator[None]:
        """Trainings inside the block are one run: killed and started again, it keeps those that had ended."""
        self._one_run = []
        yield
        for state in self._one_run:
            if process() == 0:
                state.forget()
        self._one_run = None

    def train_adapter(
        self,
        windows: Sequence[WindowSet],
        name: str,
        *,
        listener: Listener | None = None,
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
        return self._train_adapter(AdapterJob(name, windows, listener=listener, mlflow_run=mlflow_run))

    def train_adapters(
        self,
        jobs: Sequence[AdapterJob],
        *,
        done: Callable[[AdapterJob, TrainingResult | KronosError], None] | None = None,
    ) -> list[TrainingResult | KronosError]:
        """Train LoRA adapters and publish each; one that fails leaves the others as they are.

        Args:
            jobs: what to train.
            done: told of each adapter as it ends.

        Returns:
            What became of each job, in their order.
        """
        results: list[TrainingResult | KronosError] = []
        for job in jobs:
            try:
                results.append(self._train_adapter(job))
            except KronosError as error:
                results.append(error)
            if done is not None:
                done(job, results[-1])
        return results

    def _train_adapter(self, job: AdapterJob) -> TrainingResult:
        layout = self.layout if job.root is None else ArtifactLayout(job.root)
        target = layout.adapter(job.name)
        return self._train(f"adapters/{job.name}", target, True, job.windows, job.listener, job.mlflow_run, layout)

    def train_checkpoint(
        self, windows: Sequence[WindowSet], *, listener: Listener | None = None, mlflow_run: str | None = None
    ) -> TrainingResult:
        """Fine-tune the whole predictor and publish it as `checkpoints/best_model`, and the last step's beside it.

        Arguments and errors are those of `train_adapter`.
        """
        return self._train("checkpoints/best_model", self.layout.best_checkpoint, False, windows, listener, mlflow_run)

    def refit(
        self,
        windows: Sequence[WindowSet],
        name: str | None,
        *,
        listener: Listener | None = None,
        mlflow_run: str | None = None,
    ) -> TrainingResult:
        """Train on windows that hold nothing out, for today's forecasts; no evaluation can measure what comes of it.

        Args:
            windows: as `build_windows` cuts them with `hold_out=False`.
            name: the adapter's name, published as `refits/<name>`; None for `checkpoints/refit_model`.
            listener, mlflow_run: as in `train_adapter`, as are the errors.
        """
        if name is None:
            target = self.layout.refit_checkpoint
            return self._train("checkpoints/refit_model", target, False, windows, listener, mlflow_run)
        return self._train(f"refits/{name}", self.layout.refit(name), True, windows, listener, mlflow_run)

    def expected_seconds(self, windows: Sequence[WindowSet], *, lora: bool) -> float:
        """Seconds that a training on these windows takes at most, by a batch that is timed; nothing is kept."""
        predictor = move(self._trainable(lora), self.device)
        with fitting_threads(predictor):
            return self._expected_seconds(predictor, *self._datasets(windows, None))

    def _train(
        self,
        artifact: str,
        target: Path,
        lora: bool,
        windows: Sequence[WindowSet],
        listener: Listener | None,
        mlflow_run: str | None,
        layout: ArtifactLayout | None = None,
    ) -> TrainingResult:
        windows = known_together(windows, outdated(windows))
        plan.check_windows(windows)
        state = TrainingState(layout or self.layout, artifact, self._parts(windows))
        accelerator = new_accelerator(self.recipe, self.device, self.precision)
        with state.locked(self.device, self._say) if process() == 0 else nullcontext():
            if self._one_run is not None:
                self._one_run.append(state)
                if state.finished and (kept := load_result(target, state.key)):
                    self._say(f"{artifact}: finished before the interruption, kept")
                    return kept
            if process() == 0:
                state.begin(self._say)
            saved = state.load()
            set_seed(self.recipe.seed)
            predictor = self._trainable(lora)
            with fitting_threads(predictor):
                outcome = self._optimise(artifact, predictor, windows, state, saved, accelerator, listener)
            result = TrainingResult(target, outcome.history, self._summary(outcome, predictor, windows))
            if accelerator.is_main_process:
                manifest = training_manifest(
                    artifact, state.key, windows, self.recipe, self.base, self.device, mlflow_run
                )
                self._publish(result, predictor, outcome, manifest, lora)
                state.finish(keep_mark=self._one_run is not None)
            accelerator.wait_for_everyone()
        return result

    def _parts(self, windows: Sequence[WindowSet]) -> dict[str, Any]:
        return {
            "data": {one.ticker: one.training_hash for one in windows},
            "config": training_settings(self.recipe),
            "base": self.base.weights_hash,
            "code": code_version(),
            "packages": package_versions(),
            "device": self.device.type,
            "precision": self.precision,
            "processes": processes(),
        }

    def _trainable(self, lora: bool) -> Any:
        """A copy of the base's predictor whose parameters that are to be trained ask for gradients."""
        recipe = self.recipe
        predictor = copy.deepcopy(self.base.predictor)
        if not lora:
            return predictor
        thawed = {} if recipe.freeze_backbone else {id(p): p for p in predictor.parameters() if p.requires_grad}
        adapted = add_lora(
            predictor,
            r=recipe.adapter_r,
            alpha=recipe.adapter_alpha,
            dropout=recipe.adapter_dropout,
            targets=recipe.adapter_targets,
        )
        for parameter in thawed.values():
            parameter.requires_grad_(True)
        return adapted

    def _optimise(
        self,
        artifact: str,
        predictor: torch.nn.Module,
        windows: Sequence[WindowSet],
        state: TrainingState,
        saved: dict[str, Any] | None,
        accelerator: Accelerator,
        listener: Listener | None,
    ) -> Outcome:
        recipe = self.recipe
        train, selection = self._datasets(windows, state.folder / f"process-{process()}")
        move(predictor, self.device)
        seconds = self._expected_seconds(predictor, train, selection)
        disk = plan.needed_bytes(predictor)
        plan.check_disk(self.layout.root, disk)
        set_seed(recipe.seed, device_specific=True)
        optimisation = Optimisation(predictor, train, selection, recipe, accelerator)
        described = plan.describe(
            len(train), len(selection), optimisation.steps, seconds, disk, self.base.source.name, self.device
        )
        self._say(f"{artifact}: {described}")
        if saved is not None:
            optimisation.restore(saved)
            self._say(f"{artifact}: resuming from step {saved['position']['step']}")

        def save(current: dict[str, Any]) -> None:
            if accelerator.is_main_process:
                state.save(current)

        return optimisation.run(artifact, save, listener, self._say)

    def _datasets(
        self, windows: Sequence[WindowSet], folder: Path | None
    ) -> tuple[KronosMultiTickerDataset, KronosMultiTickerDataset]:
        train, selection = (
            KronosMultiTickerDataset(windows, split, self.base.tokenizer, device=self.device, folder=folder)
            for split in ("train", "selection")
        )
        return train, selection

    def _expected_seconds(
        self, predictor: torch.nn.Module, train: KronosMultiTickerDataset, selection: KronosMultiTickerDataset
    ) -> float:
        return plan.expected_seconds(
            predictor,
            train,
            selection,
            batch_size=self.recipe.batch_size,
            epochs=self.recipe.epochs,
            looks_per_epoch=self.recipe.evaluations_per_epoch,
            device=self.device,
        )

    def _publish(
        self, result: TrainingResult, predictor: Any, outcome: Outcome, manifest: dict[str, Any], lora: bool
    ) -> None:
        move(predictor, torch.device("cpu")).eval()
        if lora:
            with_base = not self.recipe.freeze_backbone
            publish_adapter(result, predictor, outcome.best, self.base, manifest, with_base=with_base)
            return
        if result.folder == self.layout.best_checkpoint:
            last = TrainingResult(self.layout.last_checkpoint, result.history, result.summary)
            publish_checkpoint(last, predictor, outcome.last, manifest)
        publish_checkpoint(result, predictor, outcome.best, manifest)

    def _summary(self, outcome: Outcome, predictor: Any, windows: Sequence[WindowSet]) -> dict[str, Any]:
        return {
            **outcome.summary,
            "device": device_name(self.device),
            "precision": self.precision,
            "trained_parameters": sum(p.numel() for p in predictor.parameters() if p.requires_grad),
            "total_parameters": sum(p.numel() for p in predictor.parameters()),
            "windows_train": sum(one.counts()["train"] for one in windows),
            "windows_selection": sum(one.counts()["selection"] for one in windows),
        }
