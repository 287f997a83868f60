"""Training of what the settings ask for, each in an MLflow run of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.publish import TrainingResult
    from kronos_pipeline.training.trainer import KronosTrainer


@dataclass(frozen=True)
class Trained:
    """One artifact that was trained.

    Attributes:
        adapter: the adapter's name, or None for the checkpoint.
        windows: what it was trained on.
        result: what the training made.
        run_id: of the MLflow run that recorded it.
    """

    adapter: str | None
    windows: tuple[WindowSet, ...]
    result: TrainingResult
    run_id: str

    @property
    def tickers(self) -> list[str]:
        """The tickers that it serves."""
        return [one.ticker for one in self.windows]


def trainings(
    config: KronosTrainingConfig, windows: Mapping[str, WindowSet]
) -> list[tuple[str | None, list[WindowSet]]]:
    """What is to be trained: an adapter's name, or None for the checkpoint, and the windows."""
    if config.adapter == "none" or config.adapter_name is not None:
        return [(config.adapter_name, list(windows.values()))]
    return [(ticker, [one]) for ticker, one in windows.items()]


def train_all(
    config: KronosTrainingConfig, trainer: KronosTrainer, tracker: Tracker, windows: Mapping[str, WindowSet]
) -> list[Trained]:
    """Train the checkpoint or the adapters, and say how each went."""
    return [train_one(config, trainer, tracker, adapter, group) for adapter, group in trainings(config, windows)]


def train_one(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    adapter: str | None,
    windows: Sequence[WindowSet],
) -> Trained:
    """Train one artifact inside one MLflow run."""
    name = "checkpoint" if adapter is None else f"adapter {adapter}"
    with tracker.training_run(name, config) as run:
        options: dict[str, Any] = {"listener": run, "mlflow_run": run.run_id}
        result = (
            trainer.train_checkpoint(windows, **options)
            if adapter is None
            else trainer.train_adapter(windows, adapter, **options)
        )
        run.finish(result.summary, result.history, result.folder)
    summary = result.summary
    print(
        f"{name}: best selection loss {summary['selection_loss']:.4f} nats at step {summary['best_step']} of "
        f"{summary['steps']}{', stopped early' if summary['stopped_early'] else ''}; {summary['seconds']:.0f} s, "
        f"{summary['windows_per_second']:,.0f} windows/s -> {result.folder}"
    )
    return Trained(adapter, tuple(windows), result, run.run_id)
