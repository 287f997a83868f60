"""Train the checkpoint or the adapters that the settings ask for, each in an MLflow run of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kronos_pipeline.errors import KronosError, count

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.publish import TrainingResult
    from kronos_pipeline.training.trainer import KronosTrainer


@dataclass(frozen=True)
class Trained:
    """A trained artifact.

    Attributes:
        adapter: the adapter's name, or None for the checkpoint.
        windows: the window sets of the training.
        result: the result of the training.
        run_id: the MLflow run of the training.
    """

    adapter: str | None
    windows: tuple[WindowSet, ...]
    result: TrainingResult
    run_id: str

    @property
    def tickers(self) -> list[str]:
        """The tickers of the training."""
        return [window_set.ticker for window_set in self.windows]


def trainings(
    config: KronosTrainingConfig, windows: Mapping[str, WindowSet]
) -> list[tuple[str | None, list[WindowSet]]]:
    """List the trainings of the settings: an adapter's name, or None for the checkpoint, and the window sets."""
    if config.adapter == "none" or config.adapter_name is not None:
        return [(config.adapter_name, list(windows.values()))]
    return [(ticker, [window_set]) for ticker, window_set in windows.items()]


def train_all(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    windows: Mapping[str, WindowSet],
    skip: Callable[[str, KronosError], None] | None = None,
) -> list[Trained]:
    """Train the checkpoint or the adapters, many jointly, and print the result of each.

    Args:
        config: the settings.
        trainer: a trainer with these settings.
        tracker: receives an MLflow run for each training.
        windows: window sets by ticker.
        skip: called with the name and error of each failed adapter; by default the first error is raised at the end.

    Raises:
        KronosError: the checkpoint or every adapter failed, or an adapter failed and there is no `skip`.
    """
    if config.adapter == "none":
        return [_train_checkpoint(config, trainer, tracker, list(windows.values()))]
    return _train_adapters(config, trainer, tracker, windows, skip)


def _train_checkpoint(
    config: KronosTrainingConfig, trainer: KronosTrainer, tracker: Tracker, windows: Sequence[WindowSet]
) -> Trained:
    with tracker.training_run("checkpoint", config) as run:
        result = trainer.train_checkpoint(windows, listener=run, mlflow_run=run.run_id)
        run.finish(result.summary, result.history, result.folder)
    _tell("checkpoint", result)
    return Trained(None, tuple(windows), result, run.run_id)


def _train_adapters(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    windows: Mapping[str, WindowSet],
    skip: Callable[[str, KronosError], None] | None,
) -> list[Trained]:
    from kronos_pipeline.tracking.runs import TrainingRuns
    from kronos_pipeline.training.single import AdapterJob  # imports torch

    jobs = [AdapterJob(name or "", group) for name, group in trainings(config, windows)]
    trained: dict[str, Trained] = {}
    failed: dict[str, KronosError] = {}
    with TrainingRuns(tracker, config) as runs:

        def on_end(job: AdapterJob, ended: TrainingResult | KronosError) -> None:
            try:
                run, result = runs.end(job, ended)
            except KronosError as error:
                failed[job.name] = error
                return
            _tell(f"adapter {job.name}", result)
            trained[job.name] = Trained(job.name, tuple(job.windows), result, run.run_id)

        trainer.train_adapters(jobs, on_start=runs.start, on_end=on_end)
    raised = next(iter(failed), None) if skip is None or not trained else None
    for name, error in failed.items():
        if skip is not None and name != raised:
            skip(name, error)
    if raised is not None:
        raise failed[raised]
    return [trained[job.name] for job in jobs if job.name in trained]


def _tell(name: str, result: TrainingResult) -> None:
    summary = result.summary
    others = summary["together"] - 1
    speed = f"jointly with {count(others, 'other')}" if others else f"{summary['windows_per_second']:,.0f} windows/s"
    print(
        f"{name}: best selection loss {summary['selection_loss']:.4f} nats at step {summary['best_step']} of "
        f"{summary['steps']}{', stopped early' if summary['stopped_early'] else ''}; {summary['seconds']:.0f} s "
        f"{speed} -> {result.folder}"
    )
