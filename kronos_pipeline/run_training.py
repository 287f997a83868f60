"""The whole chain as one command: CSVs to bars, windows, a checkpoint or adapters, holdout metrics, and the verdict.

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

from pydantic_settings import SettingsConfigDict

from kronos_pipeline.command_line import CLI, FAILED, Command, run_command
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.errors import SettingsError


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
    """Train, evaluate and promote, print what came of it, and return the exit code.

    Raises:
        KronosError: nothing could be trained or evaluated.
    """
    _check_processes(config)
    if int(os.environ.get("RANK", "0")) > 0:
        return _assist(config)
    # Imported here, as below, for --help can do without what takes seconds to import.
    from kronos_pipeline.artifacts import ArtifactLayout, check_writable
    from kronos_pipeline.plain.reading import read_tickers

    layout = ArtifactLayout(Path(config.output_dir))
    check_writable(layout.root)
    tickers = read_tickers(config, layout)

    from kronos_pipeline.evaluation.leaderboard import save_leaderboard
    from kronos_pipeline.evaluation.tables import leaderboard_sheet
    from kronos_pipeline.plain.evaluating import backtest_beside, evaluate_all, log_leaderboard, print_sheets
    from kronos_pipeline.plain.promoting import promote_all
    from kronos_pipeline.plain.training import train_all
    from kronos_pipeline.tracking.runs import Tracker
    from kronos_pipeline.training.trainer import KronosTrainer

    trainer = KronosTrainer(config.recipe, layout.root)
    print(f"base model {trainer.base.source.label} on {trainer.device}, {trainer.precision}")
    tracker = Tracker(None, layout.root)
    with trainer.one_run():
        trained = train_all(config, trainer, tracker, tickers.windows, tickers.skip)
        holdout = evaluate_all(config, trainer, tracker, tickers, trained)
        found = backtest_beside(config, trainer, tickers)
        backtest = found.evaluation if found else None
        save_leaderboard(layout, holdout, backtest)
        log_leaderboard(config, tracker, holdout, found)
        print_sheets(leaderboard_sheet(backtest, "Backtest") if backtest else leaderboard_sheet(holdout))
        promote_all(config, trainer, tracker, tickers, trained)
    print(f"metrics   {layout.evaluation}\nplots     {layout.plot('X').parent}\nMLflow    {tracker.uri}")
    return FAILED if tickers.skipped else 0


def _check_processes(config: KronosTrainingConfig) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (config.backtest_origins or config.refit_all):
        raise SettingsError(
            "--backtest-origins and --refit-all need one process; leave them out here, and run `kronos backtest` "
            "afterwards."
        )


def _assist(config: KronosTrainingConfig) -> int:
    """What a process beside the first of several does: its share of each batch, and nothing else."""
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.plain.reading import read_tickers
    from kronos_pipeline.plain.training import trainings
    from kronos_pipeline.training.trainer import KronosTrainer

    root = Path(config.output_dir)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        windows = read_tickers(config, ArtifactLayout(root)).windows
        trainer = KronosTrainer(config.recipe, root, say=lambda _: None)
        with trainer.one_run():
            for adapter, group in trainings(config, windows):
                trainer.train_checkpoint(group) if adapter is None else trainer.train_adapter(group, adapter)
    return 0


if __name__ == "__main__":
    sys.exit(main())
