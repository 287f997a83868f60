"""Train the checkpoint or the adapters that the settings plan, each in an MLflow run of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kronos_pipeline.errors import KronosError, count, group_messages
from kronos_pipeline.training.plan import TrainingJob, plan_trainings
from kronos_pipeline.training.progress import step

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig, Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.tracking.tracked_run import TrackedRun
    from kronos_pipeline.training.publish import TrainingResult
    from kronos_pipeline.training.trainer import KronosTrainer


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        adapter: the adapter's name, or None for the checkpoint.
        windows: the window sets of the training.
        result: the result of the training.
        run: the MLflow run of the training.
    """

    adapter: str | None
    windows: tuple[WindowSet, ...]
    result: TrainingResult
    run: TrackedRun

    @property
    def run_id(self) -> str:
        """The id of the MLflow run."""
        return self.run.run_id

    @property
    def tickers(self) -> list[str]:
        """The tickers of the training."""
        return [window_set.ticker for window_set in self.windows]


def run_trainings(
    settings: Recipe,
    trainer: KronosTrainer,
    tracker: Tracker,
    windows: Iterable[WindowSet],
    on_end: Callable[[str, Trained | KronosError], None],
    tags: Callable[[str], Mapping[str, str]] | None = None,
) -> None:
    """Train what the settings plan, each training in an MLflow run and as a version of a registered model.

    Args:
        settings: the settings; each becomes a parameter of the runs.
        trainer: a trainer with these settings.
        tracker: receives the runs and the versions.
        windows: the windows of each ticker.
        on_end: receives the name of each training, an adapter's or "checkpoint", and its result or error as it ends.
        tags: returns the tags of the MLflow run of a training, by its name.
    """
    from kronos_pipeline.tracking.training_runs import TrainingRuns
    from kronos_pipeline.tracking.version_store import registered_name

    with TrainingRuns(tracker, settings) as runs:

        def start(job: TrainingJob) -> TrainingJob:
            step("opening MLflow's store")
            started = runs.start(job, tags(job.name) if tags else None)
            step("training" if job.adapter is None else "loading PEFT and training")
            return started

        def end(job: TrainingJob, outcome: TrainingResult | KronosError) -> None:
            try:
                run, result = runs.end(job, outcome)
                tracker.register_trained(result.folder, registered_name(job.adapter), run.run_id)
            except KronosError as error:
                on_end(job.name, error)
            else:
                on_end(job.name, Trained(job.adapter, tuple(job.windows), result, run))

        trainer.train(plan_trainings(settings, windows), on_start=start, on_end=end)


def train_all(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    windows: Mapping[str, WindowSet],
    skip: Callable[[str, KronosError], None] | None = None,
    verbose: bool = False,
) -> list[Trained]:
    """Train the checkpoint or the adapters, many jointly, and print the result of each.

    Args:
        config: the settings.
        trainer: a trainer with these settings.
        tracker: receives an MLflow run for each training.
        windows: window sets by ticker.
        skip: called with the name and error of each failed training; by default the first error is raised at the end.
        verbose: print losses, steps and speed of each training as it ends; by default a summary at the end.

    Returns:
        The trained models, in the order of their tickers.

    Raises:
        KronosError: every training failed, or a training failed and there is no `skip`.
    """
    trained: dict[str, Trained] = {}
    failed: dict[str, KronosError] = {}

    def on_end(name: str, result: Trained | KronosError) -> None:
        if isinstance(result, KronosError):
            failed[name] = result
            return
        if verbose:
            print(_sentence(name if result.adapter is None else f"adapter {name}", result.result))
        trained[name] = result

    start = time.perf_counter()
    run_trainings(config, trainer, tracker, windows.values(), on_end)
    if not verbose:
        print("\n".join(_summary(list(trained.values()), time.perf_counter() - start)))
    first_error = next(iter(failed), None) if skip is None or not trained else None
    for name, error in failed.items():
        if skip is not None and name != first_error:
            skip(name, error)
    if first_error is not None:
        raise failed[first_error]
    return sorted(trained.values(), key=lambda model: list(windows).index(model.tickers[0]))


def _summary(trained: Sequence[Trained], seconds: float) -> list[str]:
    """Return lines on trainings that ended: their number, the time, and those that did not help."""
    from kronos_pipeline.training.progress import duration

    if not trained:
        return []
    adapters = [model.adapter for model in trained if model.adapter]
    what = "the checkpoint" if not adapters else adapters[0] if len(adapters) == 1 else f"{len(adapters)} adapters"
    folder = trained[0].result.folder if len(trained) == 1 else trained[0].result.folder.parent
    stopped = sum(bool(model.result.summary["stopped_early"]) for model in trained)
    early = f", {stopped} of them stopped early" if stopped and len(trained) > 1 else ", stopped early" * stopped
    notes = [(model.adapter or "checkpoint", model.result.summary["note"]) for model in trained]
    unhelpful = group_messages((name, str(note)) for name, note in notes if note)
    return [f"trained {what} in {duration(seconds)}{early} -> {folder}", *unhelpful]


def _sentence(name: str, result: TrainingResult) -> str:
    summary = result.summary
    others = summary["together"] - 1
    speed = f"jointly with {count(others, 'other')}" if others else f"{summary['windows_per_second']:,.0f} windows/s"
    untouched = f", {summary['note']} ({summary['untouched_loss']:.4f} nats)" if summary["note"] else ""
    return (
        f"{name}: best selection loss {summary['selection_loss']:.4f} nats at step {summary['best_step']} of "
        f"{summary['steps']}{', stopped early' if summary['stopped_early'] else ''}{untouched}; "
        f"{summary['seconds']:.0f} s {speed} -> {result.folder}"
    )
