"""`kronos backtest`: train and score the recipe at past cutoffs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from kronos_pipeline.cli.command import FAILED, Command, verbose_flag
from kronos_pipeline.cli.tickers import folder_groups
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.training.progress import step


class Backtest(Command, KronosTrainingConfig):
    """Train the recipe before each of several cutoffs, and score it on the horizon after the cutoff.

    Report whether it is better than repeating the last close and than the base model. 12 cutoffs, unless
    --backtest-origins is given.
    """

    verbose: bool = verbose_flag("print all tables, and a line per ticker; `kronos report` prints the tables later")
    shares: ClassVar[bool] = True

    def groups(self) -> list[str]:
        """Return the symbols of the data folder, and the name of the adapter."""
        return folder_groups(Path(self.data_dir), self.reading, self.adapter_name)

    def run(self) -> int:
        """Backtest every ticker, and print the verdicts."""
        step("loading PyTorch")
        # Imported here, so that --help does not wait for slow imports.
        from kronos_pipeline.artifacts import ArtifactLayout
        from kronos_pipeline.atomic_writes import check_writable
        from kronos_pipeline.evaluation.reports.tables import leaderboard_table, save_leaderboard
        from kronos_pipeline.evaluation.reports.text_table import print_tables
        from kronos_pipeline.evaluation.reports.worth import worth_table
        from kronos_pipeline.evaluation.scoring.report import load_evaluation
        from kronos_pipeline.pipeline.ending import ending_lines
        from kronos_pipeline.pipeline.evaluate import backtest_all
        from kronos_pipeline.pipeline.ingest import read_tickers
        from kronos_pipeline.pipeline.promote import count_recipes
        from kronos_pipeline.tracking.runs import Tracker
        from kronos_pipeline.training.trainer import KronosTrainer

        layout = ArtifactLayout(Path(self.output_dir))
        check_writable(layout.root)
        step("reading CSVs")
        tickers = read_tickers(self, layout, self.verbose)
        step("loading the base model")
        trainer = KronosTrainer(self.recipe, layout.root)
        print(f"base model {trainer.base.source.label} on {trainer.device}, {trainer.precision}")
        step("backtesting")
        backtest = backtest_all(self, trainer, tickers, self.verbose)
        evaluation = backtest.evaluation
        if self.verbose:
            print_tables(leaderboard_table(evaluation, "Backtest"), worth_table(evaluation, "Backtest"))
        step("counting the recipe in MLflow's registry")
        count_recipes(self, Tracker(None, layout.root), backtest.predictions)
        if (holdout := load_evaluation(layout, print)) is not None:
            save_leaderboard(layout, holdout, evaluation)
        plots = next(iter(backtest.plots.values()), {})
        print("\n".join(ending_lines(self, layout, evaluation, picture=next(iter(plots.values()), None))))
        return FAILED if tickers.skipped else 0
