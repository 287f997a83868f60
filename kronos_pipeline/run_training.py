"""The whole chain as one command: CSVs to bars, windows, a checkpoint or adapters, and holdout metrics.

    python -m kronos_pipeline.run_training --data-dir trainingdata --output-dir artifacts

The Dagster assets do the same through the same functions.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_settings import SettingsConfigDict

from kronos_pipeline.command_line import CLI, FAILED, Command, run_command
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.errors import DataError, KronosError

if TYPE_CHECKING:
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.evaluation.holdout import HoldoutResult
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.publish import TrainingResult
    from kronos_pipeline.training.trainer import KronosTrainer

Skipped = dict[str, KronosError]
"""Tickers that drop out on the way, and why."""


class Train(Command, KronosTrainingConfig):
    """Fine-tune a Kronos base model on a folder of CSVs, one per ticker, and measure it on each ticker's last days,
    which it has never seen."""

    model_config = SettingsConfigDict(cli_prog_name="python -m kronos_pipeline.run_training", extra="forbid", **CLI)

    def run(self) -> int:
        return train(self)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 where anything was wrong."""
    return run_command(Train, arguments)


def train(config: KronosTrainingConfig) -> int:
    """Train and evaluate, print what came of it, and return the exit code.

    Raises:
        KronosError: nothing could be trained or evaluated.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        return _assist(config)
    # Imported here, as below, for --help can do without what takes seconds to import.
    from kronos_pipeline.artifacts import ArtifactLayout, check_writable

    layout = ArtifactLayout(Path(config.output_dir))
    check_writable(layout.root)
    windows, skipped = _cut_windows(config, layout)

    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.trainer import KronosTrainer

    trainer = KronosTrainer(config.recipe, layout.root)
    print(f"base model {trainer.base.source.label} on {trainer.device}, {trainer.precision}")
    tracker = Tracker(None, layout.root)
    with trainer.one_run():
        runs = _train_all(config, trainer, tracker, windows)
        _evaluate_all(config, trainer, tracker, windows, runs, skipped)
    print(f"metrics   {layout.evaluation}\nplots     {layout.plot('X').parent}\nMLflow    {tracker.uri}")
    return FAILED if skipped else 0


def _cut_windows(config: KronosTrainingConfig, layout: ArtifactLayout) -> tuple[dict[str, WindowSet], Skipped]:
    """Read the CSVs and cut windows, keep both, and say what each ticker has."""
    from kronos_pipeline.data.bars import save_bars
    from kronos_pipeline.data.doctor import examine
    from kronos_pipeline.data.ingest import read_folder
    from kronos_pipeline.data.windows import save_windows

    config.recipe.used_lookback  # noqa: B018  (settings that cannot work are told before files are read)
    bars, bad = read_folder(Path(config.data_dir))
    skipped: Skipped = dict(bad)
    windows = {}
    for ticker, one in bars.items():
        report = examine(one, config.recipe)
        if report.windows is None:
            skipped[ticker] = DataError(report.problems, ticker)
            continue
        windows[ticker] = report.windows
        save_bars(layout.bars(ticker), one)
        save_windows(layout.windows(ticker), report.windows, config.recipe)
        _describe(one, report.windows)
        for doubt in report.doubts:
            print(f"{ticker}: this is little data: {doubt}")
    if not windows:
        raise DataError([problem for why in skipped.values() for problem in getattr(why, "problems", ())])
    for ticker, why in skipped.items():
        _tell(ticker, why)
    return windows, skipped


def _describe(bars: Bars, windows: WindowSet) -> None:
    counts = windows.counts()
    stamps = bars.frame["timestamps"]
    print(
        f"{bars.ticker}: {len(bars):,} bars, {stamps.iloc[0]:%Y-%m-%d} to {stamps.iloc[-1]:%Y-%m-%d}; windows: "
        + ", ".join(f"{count:,} {split}" for split, count in counts.items())
        + "".join(f"; left out {count:,}: {reason}" for reason, count in windows.excluded.items())
    )
    for note in bars.notes:
        print(f"{bars.ticker}: {note}")


def _train_all(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    windows: dict[str, WindowSet],
) -> dict[str, str]:
    """Train the checkpoint or the adapters; the id of the MLflow run that serves each ticker."""
    runs: dict[str, str] = {}
    for adapter, group in _trainings(config, windows):
        run = _train_one(config, trainer, tracker, adapter, group)
        runs |= {one.ticker: run for one in group}
    return runs


def _trainings(config: KronosTrainingConfig, windows: dict[str, WindowSet]) -> list[tuple[str | None, list[WindowSet]]]:
    """What is to be trained: an adapter's name, or None for the checkpoint, and the windows."""
    if config.adapter == "none" or config.adapter_name is not None:
        return [(config.adapter_name, list(windows.values()))]
    return [(ticker, [one]) for ticker, one in windows.items()]


def _assist(config: KronosTrainingConfig) -> int:
    """What a process beside the first of several does: its share of each batch, and nothing else."""
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.training.trainer import KronosTrainer

    root = Path(config.output_dir)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        windows, _ = _cut_windows(config, ArtifactLayout(root))
        trainer = KronosTrainer(config.recipe, root, say=lambda _: None)
        with trainer.one_run():
            for adapter, group in _trainings(config, windows):
                trainer.train_checkpoint(group) if adapter is None else trainer.train_adapter(group, adapter)
    return 0


def _train_one(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    adapter: str | None,
    windows: list[WindowSet],
) -> str:
    """Train one artifact inside one MLflow run; that run's id."""
    name = "checkpoint" if adapter is None else f"adapter {adapter}"
    with tracker.training_run(name, config) as run:
        options: dict[str, Any] = {"listener": run, "mlflow_run": run.run_id}
        result: TrainingResult = (
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
    return run.run_id


def _evaluate_all(
    config: KronosTrainingConfig,
    trainer: KronosTrainer,
    tracker: Tracker,
    windows: dict[str, WindowSet],
    runs: dict[str, str],
    skipped: Skipped,
) -> None:
    """Evaluate each ticker and all together, log it to the trainings' MLflow runs, and print the table."""
    import pandas as pd
    from rich.console import Console

    from kronos_pipeline.evaluation.holdout import evaluate_ticker
    from kronos_pipeline.evaluation.report import merge_manifests, save_evaluation
    from kronos_pipeline.evaluation.tables import evaluation_table

    trained = "checkpoint" if config.adapter == "none" else "adapter"
    results: dict[str, HoldoutResult] = {}
    for ticker, one in windows.items():
        results[ticker] = evaluate_ticker(
            trainer.layout,
            one,
            trainer.base,
            config.recipe,
            trained=trained,
            adapter_name=config.adapter_name,
            mlflow_run=runs[ticker],
        )
        for note in results[ticker].notes:
            print(note)
    evaluation = save_evaluation(
        trainer.layout,
        pd.concat([result.forecasts for result in results.values()], ignore_index=True),
        trained,
        [{"symbol": ticker, "reason": str(error)} for ticker, error in skipped.items()],
        merge_manifests([result.manifest for result in results.values()]),
    )
    _log_evaluations(tracker, runs, results, evaluation)
    console = Console()
    console.print(evaluation_table(evaluation))


def _log_evaluations(
    tracker: Tracker, runs: dict[str, str], results: dict[str, HoldoutResult], evaluation: dict[str, Any]
) -> None:
    """Add the holdout metrics to the MLflow runs: a ticker's own where it has its own run, else those of all."""
    from kronos_pipeline.evaluation.tables import evaluation_frame, holdout_metrics

    shared = len(set(runs.values())) < len(runs)
    for ticker, result in results.items():
        own = {} if shared else holdout_metrics(result.evaluation)
        tracker.log_evaluation(runs[ticker], own, result.plot, evaluation_frame(result.evaluation))
    if shared:
        tracker.log_evaluation(next(iter(runs.values())), holdout_metrics(evaluation))


def _tell(ticker: str, error: KronosError) -> None:
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    print(f"{ticker}: skipped", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
