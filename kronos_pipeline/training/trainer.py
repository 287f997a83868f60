"""Fine-tuning: from windows to a published checkpoint or adapter, with a manifest of its inputs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import KronosTrainingConfig, Recipe
from kronos_pipeline.data.folder import read_windows
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import KronosError, SettingsError
from kronos_pipeline.locks import shared_time
from kronos_pipeline.model.loading import KronosModel, load_recipe_base
from kronos_pipeline.training.callback import Callback
from kronos_pipeline.training.checkpoint import ResumeState, clear_states
from kronos_pipeline.training.devices import check_precision, pick_precision, process, reserve_device
from kronos_pipeline.training.multi_lora.group import JobResult, train_jobs
from kronos_pipeline.training.plan import TrainingJob, plan_trainings
from kronos_pipeline.training.progress import Say
from kronos_pipeline.training.publish import TrainingResult
from kronos_pipeline.training.single import TrainingContext, estimate_seconds, train_single

_ELSEWHERE = {
    "fit": "KronosTrainer(config).train() trains",
    "evaluate": "kronos_pipeline.evaluate(config) scores the trained models on the holdout",
    "forecast": "kronos_pipeline.forecast(df, adapter=result.folder) forecasts with a result of train()",
    "predict": "kronos_pipeline.forecast(df, adapter=result.folder) forecasts with a result of train()",
}
"""What a user may look for on the trainer, and where it is."""


class KronosTrainer:
    """Fine-tunes a base model: fully, to one checkpoint over all tickers, or by LoRA, to adapters.

    Weights are chosen by the loss on the selection block; the holdout is never read. A killed training resumes if it
    is asked for again with the same data, settings and code; on a CPU it ends with the bytes of a training that was not
    killed.

    Examples:
        Train an adapter for each CSV of a folder; `stride=32` takes every 32nd window, to save time:

        >>> from kronos_pipeline import KronosTrainer, KronosTrainingConfig
        >>> config = KronosTrainingConfig(
        ...     data_dir="trainingdata/AAPL",
        ...     model_name="kronos-nano",
        ...     adapter="lora",
        ...     epochs=1,
        ...     stride=32,
        ...     eval_samples=8,
        ... )
        >>> (result,) = KronosTrainer(config).train()
        adapters/AAPL: ...
        >>> result.folder
        PosixPath('artifacts/adapters/AAPL')

        `kronos_pipeline.evaluate(config)` then scores the adapter on days that it has not seen, and
        `kronos_pipeline.forecast(df, adapter=result.folder)` forecasts with it.

    Attributes:
        recipe: the settings.
        layout: folders of artifacts.
        device: the device to train on.
        say: takes lines for the person who runs the pipeline.
    """

    def __init__(
        self, recipe: Recipe, output_dir: Path | str | None = None, *, base: KronosModel | None = None, say: Say = print
    ) -> None:
        """Pick the device; hold its lock if several GPUs are shared out.

        Args:
            recipe: the settings; a `KronosTrainingConfig` names the folders of CSVs and artifacts too.
            output_dir: folder for artifacts, by default that of the config.
            base: the base model, if it is loaded already; the trainer uses its device. By default the trainer loads the
                recipe's base model at the first training.
            say: takes lines for the person who runs the pipeline.

        Raises:
            SettingsError: this machine lacks the device, the device lacks the precision, or no folder is given.
        """
        self._config = recipe if isinstance(recipe, KronosTrainingConfig) else None
        if output_dir is None:
            if self._config is None:
                raise SettingsError("KronosTrainer needs a folder for its artifacts: give a KronosTrainingConfig.")
            output_dir = self._config.output_dir
        self.recipe = recipe if self._config is None else self._config.recipe
        self.layout = ArtifactLayout(Path(output_dir))
        self.device, locks = reserve_device(recipe.device if base is None else str(base.device), say)
        for lock in locks:
            weakref.finalize(self, lock.release)
        check_precision(recipe.precision, self.device)
        self.say = say
        self._base = base
        self._run_states: list[ResumeState] | None = None
        self._requested: float | None = None

    @property
    def base(self) -> KronosModel:
        """The base model, on the trainer's device; no training changes it."""
        if self._base is None:
            self._base = load_recipe_base(self.recipe, self.device)
        return self._base

    @property
    def precision(self) -> str:
        """The number format of matrix products."""
        return pick_precision(self.recipe.precision, self.device, self.base.predictor)

    @contextmanager
    def one_run(self, requested: float | None = None) -> Iterator[Callable[[], None]]:
        """Treat the trainings inside the block as one run, which keeps its finished trainings if it is resumed.

        Args:
            requested: time at which the run was asked for, in seconds since 1970, by default now, see
                `locks.shared_time`. A training that another run ended since then is kept.

        Yields:
            A function to call if work on a trained model failed: the same run, if repeated, goes on with the models.
        """
        self._run_states, self._requested = [], requested
        kept = False

        def keep_states() -> None:
            nonlocal kept
            kept = True

        try:
            yield keep_states
            if process() == 0 and not kept:
                clear_states(self._run_states)
        finally:
            self._run_states = self._requested = None

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
            windows: windows of one ticker, or of all tickers that the adapter is to cover.
            name: the adapter's name.
            listener: receives the events of the training.
            mlflow_run: id of the MLflow run that records this training, for the manifest.

        Raises:
            DataError: the train or the selection split is empty.
            SettingsError, ModelError, ArtifactError: see their messages.
        """
        return self._train_single(TrainingJob(name, windows, listener=listener, mlflow_run=mlflow_run))

    @overload
    def train(self) -> list[TrainingResult]: ...

    @overload
    def train(
        self,
        jobs: Sequence[TrainingJob],
        *,
        on_start: Callable[[TrainingJob], TrainingJob] | None = None,
        on_end: Callable[[TrainingJob, JobResult], None] | None = None,
    ) -> list[JobResult]: ...

    def train(
        self,
        jobs: Sequence[TrainingJob] | None = None,
        *,
        on_start: Callable[[TrainingJob], TrainingJob] | None = None,
        on_end: Callable[[TrainingJob, JobResult], None] | None = None,
    ) -> Sequence[JobResult]:
        """Train the jobs of a plan and publish each, adapters jointly; a failure does not affect the other jobs.

        Each adapter ends with the weights of a training by itself, up to rounding and the random numbers of dropout.
        Nothing is logged to MLflow, so that this works where MLflow is not installed; `kronos train` and the Dagster
        assets log each training, by `on_start` and `on_end`.

        Args:
            jobs: see `plan_trainings`; no two may publish the same folder. By default the CSVs of the config are read,
                and its checkpoint or adapters trained; then the first error is raised when all others have ended.
            on_start: receives each job when its training starts, and returns it, for example with a listener and an
                MLflow run.
            on_end: receives each job and its result when it ends. A job whose windows fail the checks ends before any
                job starts.

        Returns:
            The result or the error of each job, in their order.

        Raises:
            SettingsError: two jobs would publish the same folder, or there are neither jobs nor a config.
            KronosError: without `jobs`, the first error of a ticker or a training.
        """
        if jobs is not None:
            return train_jobs(self._context, jobs, on_start, on_end)
        if self._config is None:
            raise SettingsError("train() needs jobs, or a KronosTrainer made with a KronosTrainingConfig.")
        windows, unfit = read_windows(self._config)
        results = self.train(plan_trainings(self.recipe, windows.values()))
        for error in (*unfit.values(), *results):
            if isinstance(error, KronosError):
                raise error
        return results

    train_adapters = train  # the name for jobs that are adapters

    def train_checkpoint(
        self, windows: Sequence[WindowSet], *, listener: Callback | None = None, mlflow_run: str | None = None
    ) -> TrainingResult:
        """Fine-tune the whole predictor; publish its best weights as `checkpoints/best_model`, its last beside them.

        Arguments and errors are those of `train_adapter`.
        """
        return self._train_single(TrainingJob(None, windows, listener=listener, mlflow_run=mlflow_run))

    def refit(
        self,
        windows: Sequence[WindowSet],
        name: str | None,
        *,
        listener: Callback | None = None,
        mlflow_run: str | None = None,
    ) -> TrainingResult:
        """Train on windows without a holdout, for today's forecasts; no evaluation can measure the result.

        Args:
            windows: windows that `build_windows` cut with `hold_out=False`.
            name: the adapter's name, published as `refits/<name>`; None for `checkpoints/refit_model`.
            listener: as in `train_adapter`.
            mlflow_run: as in `train_adapter`.

        Raises:
            KronosError: as in `train_adapter`.
        """
        return self._train_single(TrainingJob(name, windows, listener=listener, mlflow_run=mlflow_run, refit=True))

    def expected_seconds(self, windows: Sequence[WindowSet], *, lora: bool) -> float:
        """Estimate the longest time of a training on these windows, in seconds, by timing a batch; nothing is kept."""
        return estimate_seconds(self._context, windows, lora=lora)

    def _train_single(self, job: TrainingJob) -> TrainingResult:
        context = self._context
        return train_single(context, context.prepare(job))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            hint = f": {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
            raise AttributeError(f"KronosTrainer has no {name!r}{hint}")

    @property
    def _context(self) -> TrainingContext:
        requested = shared_time() if self._requested is None else self._requested
        return TrainingContext(
            self.recipe, self.base, self.layout, self.device, self.precision, self.say, self._run_states, requested
        )
