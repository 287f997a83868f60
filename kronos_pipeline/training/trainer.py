"""Fine-tuning: from windows to a published checkpoint or adapter that says what made it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from kronos_pipeline.artifacts import (
    MANIFEST,
    ArtifactLayout,
    code_version,
    package_versions,
    publish_folder,
    read_json,
    write_manifest,
)
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.model.loading import KronosModel, base_identity, load_base, pick_device, save_checkpoint
from kronos_pipeline.model.lora import add_lora, save_adapter
from kronos_pipeline.model.modules import fitting_threads, move
from kronos_pipeline.training import plan
from kronos_pipeline.training.dataset import KronosMultiTickerDataset
from kronos_pipeline.training.loop import Listener, Optimisation, Outcome, Tensors
from kronos_pipeline.training.progress import Say
from kronos_pipeline.training.state import TrainingState, training_settings

HISTORY_FILE = "history.csv"


@dataclass(frozen=True)
class TrainingResult:
    """What a training made.

    Attributes:
        folder: the published adapter or checkpoint.
        history: losses (nats per token), learning rate and speed by step; see `loop.HISTORY`.
        summary: numbers of the whole: steps, best_step, selection_loss, seconds, windows_per_second, device, precision,
            trained_parameters, total_parameters, windows_train, windows_selection, stopped_early, resumed_from_step.
    """

    folder: Path
    history: pd.DataFrame
    summary: dict[str, Any]


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
        self.device = _own_device(pick_device(recipe.device))
        self.precision = _pick_precision(recipe.precision, self.device)
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
            if _process() == 0:
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
        return self._train(f"adapters/{name}", self.layout.adapter(name), windows, listener, mlflow_run)

    def train_checkpoint(
        self, windows: Sequence[WindowSet], *, listener: Listener | None = None, mlflow_run: str | None = None
    ) -> TrainingResult:
        """Fine-tune the whole predictor and publish it as `checkpoints/best_model`, and the last step's beside it.

        Arguments and errors are those of `train_adapter`.
        """
        return self._train("checkpoints/best_model", self.layout.best_checkpoint, windows, listener, mlflow_run)

    def _train(
        self,
        artifact: str,
        target: Path,
        windows: Sequence[WindowSet],
        listener: Listener | None,
        mlflow_run: str | None,
    ) -> TrainingResult:
        plan.check_windows(windows)
        lora = artifact.startswith("adapters/")
        state = TrainingState(self.layout, artifact, self._parts(windows))
        accelerator = _new_accelerator(self.recipe, self.device, self.precision)
        with state.locked(self.device, self._say) if _process() == 0 else nullcontext():
            if self._one_run is not None:
                self._one_run.append(state)
                if state.finished and (kept := load_result(target)) and _manifest(target).get("key") == state.key:
                    self._say(f"{artifact}: finished before the interruption, kept")
                    return kept
            if _process() == 0:
                state.begin(self._say)
            saved = state.load()
            set_seed(self.recipe.seed)
            predictor = self._trainable(lora)
            with fitting_threads(predictor):
                outcome = self._optimise(artifact, predictor, windows, state, saved, accelerator, listener)
            manifest = self._manifest(artifact, windows, state, outcome, predictor, mlflow_run)
            if accelerator.is_main_process:
                self._publish(target, predictor, outcome, manifest, lora)
                state.finish(keep_mark=self._one_run is not None)
            accelerator.wait_for_everyone()
        return TrainingResult(target, outcome.history, manifest["training"])

    def _parts(self, windows: Sequence[WindowSet]) -> dict[str, Any]:
        return {
            "data": {one.ticker: one.training_hash for one in windows},
            "config": training_settings(self.recipe),
            "base": self.base.weights_hash,
            "code": code_version(),
            "packages": package_versions(),
            "device": self.device.type,
            "precision": self.precision,
            "processes": _processes(),
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
        train, selection = (
            KronosMultiTickerDataset(
                windows, split, self.base.tokenizer, device=self.device, folder=state.folder / f"process-{_process()}"
            )
            for split in ("train", "selection")
        )
        move(predictor, self.device)
        seconds = plan.expected_seconds(
            predictor,
            train,
            selection,
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            looks_per_epoch=recipe.evaluations_per_epoch,
            device=self.device,
        )
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

    def _publish(self, target: Path, predictor: Any, outcome: Outcome, manifest: dict[str, Any], lora: bool) -> None:
        move(predictor, torch.device("cpu")).eval()
        if not lora:
            self._publish_one(self.layout.last_checkpoint, predictor, outcome.last, outcome, manifest, lora)
        self._publish_one(target, predictor, outcome.best, outcome, manifest, lora)

    def _publish_one(
        self,
        target: Path,
        predictor: Any,
        tensors: Tensors,
        outcome: Outcome,
        manifest: dict[str, Any],
        lora: bool,
    ) -> None:
        _put(predictor, tensors)
        with publish_folder(target) as folder:
            if lora:
                save_adapter(folder, predictor, self.base, with_base=not self.recipe.freeze_backbone)
            else:
                save_checkpoint(folder, predictor)
            outcome.history.to_csv(folder / HISTORY_FILE, index=False)
            write_manifest(folder, manifest)

    def _manifest(
        self,
        artifact: str,
        windows: Sequence[WindowSet],
        state: TrainingState,
        outcome: Outcome,
        predictor: torch.nn.Module,
        mlflow_run: str | None,
    ) -> dict[str, Any]:
        return {
            "artifact": artifact,
            "key": state.key,
            "base_model": base_identity(self.base),
            "demo": self.base.source.demo,
            "context": self.base.source.context,
            "data": {one.ticker: one.bars.content_hash for one in windows},
            "seen_until": {one.ticker: _last_seen(one) for one in windows},
            "config": self.recipe.model_dump(mode="json"),
            "seed": self.recipe.seed,
            "code_version": code_version(),
            "packages": package_versions(),
            "device": str(self.device),
            "mlflow_run": mlflow_run,
            "training": {
                **outcome.summary,
                "device": _device_name(self.device),
                "precision": self.precision,
                "trained_parameters": sum(p.numel() for p in predictor.parameters() if p.requires_grad),
                "total_parameters": sum(p.numel() for p in predictor.parameters()),
                "windows_train": sum(one.counts()["train"] for one in windows),
                "windows_selection": sum(one.counts()["selection"] for one in windows),
            },
        }


def load_result(folder: Path) -> TrainingResult | None:
    """The result of the training that published a folder, or None where there is none.

    Raises:
        ArtifactError: its manifest is damaged.
    """
    if not (folder / MANIFEST).is_file() or not (folder / HISTORY_FILE).is_file():
        return None
    return TrainingResult(folder, pd.read_csv(folder / HISTORY_FILE), _manifest(folder)["training"])


def _manifest(folder: Path) -> Mapping[str, Any]:
    return read_json(folder / MANIFEST)


def _last_seen(windows: WindowSet) -> str | None:
    """The time of the last bar that a training may have read, ISO 8601 in the file's own time."""
    read = pd.concat([windows.of_split("train"), windows.of_split("selection")])
    if read.empty:
        return None
    return windows.bars.frame["timestamps"].iloc[int(read["end"].max()) - 1].isoformat()


@torch.no_grad()
def _put(predictor: torch.nn.Module, tensors: Tensors) -> None:
    for name, parameter in predictor.named_parameters():
        if name in tensors:
            parameter.copy_(tensors[name])


def _process() -> int:
    """The number of this process among those that train together, which torchrun sets."""
    return int(os.environ.get("RANK", "0"))


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _own_device(device: torch.device) -> torch.device:
    """Of several processes, each has a GPU of its own."""
    if _processes() == 1 or device.type != "cuda":
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _new_accelerator(recipe: Recipe, device: torch.device, precision: str) -> Accelerator:
    # Accelerate keeps device and precision for the life of the process; each training has its own.
    AcceleratorState._reset_state(reset_partial_state=_processes() == 1)
    if device.index is not None and _processes() == 1:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=recipe.grad_accum_steps,
        cpu=device.type == "cpu",
    )


def _pick_precision(precision: str, device: torch.device) -> str:
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise SettingsError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
    return precision


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
