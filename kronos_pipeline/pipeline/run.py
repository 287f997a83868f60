"""Run the whole pipeline: CSVs to bars, windows, a checkpoint or adapters, holdout metrics and the verdict."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.errors import KronosError, SettingsError
from kronos_pipeline.training.progress import step


def run_pipeline(config: KronosTrainingConfig, seeds: int = 1, verbose: bool = False) -> bool:
    """Train, evaluate and promote, print the results, and return whether every ticker succeeded.

    Args:
        config: the settings.
        seeds: number of seeds to compare, see `train_seeds`.
        verbose: print all tables and a line per ticker; by default the result in short.

    Raises:
        KronosError: no model could be trained or evaluated.
    """
    _check_processes(config, seeds)
    if int(os.environ.get("RANK", "0")) > 0:
        return _run_worker(config)
    # Imported here, as below, so that --help does not wait for slow imports.
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.atomic_writes import check_writable
    from kronos_pipeline.pipeline.ingest import read_tickers

    layout, processes = ArtifactLayout(Path(config.output_dir)), int(os.environ.get("WORLD_SIZE", "1"))
    check_writable(layout.root)
    if config.rivals:
        from kronos_pipeline.evaluation.rivals.optional import check_rivals

        check_rivals(config)  # before a training of hours
    step("reading CSVs")
    tickers = read_tickers(config, layout, verbose)

    step("loading PyTorch and the base model")
    from kronos_pipeline.training.trainer import KronosTrainer

    trainer = KronosTrainer(config.recipe, layout.root)
    print(f"base model {trainer.base.source.label} on {trainer.device}, {trainer.precision}")

    if processes == 1:
        step("estimating the time")
        from kronos_pipeline.pipeline.estimate import estimate_run

        with contextlib.suppress(KronosError):  # the training or the evaluation reports it, by ticker
            estimate = estimate_run([*tickers.windows.values()], config.recipe, trainer.base, seeds)
            print(f"this run takes {estimate.describe(str(trainer.device))}")

    step("loading MLflow")
    from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels
    from kronos_pipeline.evaluation.reports.tables import leaderboard_table, save_leaderboard
    from kronos_pipeline.evaluation.reports.text_table import print_tables
    from kronos_pipeline.evaluation.reports.worth import worth_table
    from kronos_pipeline.pipeline.ending import ending_lines
    from kronos_pipeline.pipeline.evaluate import backtest_if_requested, evaluate_all, log_leaderboard
    from kronos_pipeline.pipeline.promote import deliver_waiting, promote_all
    from kronos_pipeline.pipeline.seeds import compare_seeds, train_seeds
    from kronos_pipeline.pipeline.train import train_all
    from kronos_pipeline.promotion.submit import decision_lines
    from kronos_pipeline.tracking.runs import Tracker

    tracker = Tracker(None, layout.root)
    for line in deliver_waiting(tracker, layout):  # of an earlier command whose MLflow server was away
        print(line)
    with trainer.one_run() as keep_states:
        step("training")
        trained = train_all(config, trainer, tracker, tickers.windows, tickers.skip, verbose)
        of_seeds = train_seeds(config, seeds, trainer, trained)
        models = TrainedModels(layout, trainer.base, of_seeds.folders)
        step("evaluating")
        holdout = evaluate_all(config, models, tracker, tickers, trained, verbose)
        compare_seeds(config, models, of_seeds, tickers, trained)
        step("backtesting")
        backtest_result = backtest_if_requested(config, trainer, tickers, verbose)
        backtest = backtest_result.evaluation if backtest_result else None
        step("logging the leaderboard to MLflow")
        save_leaderboard(layout, holdout, backtest)
        log_leaderboard(config, tracker, holdout, backtest_result)
        submissions = promote_all(config, trainer, tracker, tickers, trained)
        names = {name for model in trained for name in (model.adapter or "checkpoint", *model.tickers)}
        if names & tickers.skipped.keys():
            keep_states()
    evaluation = backtest or holdout
    if verbose:
        what = "Backtest" if backtest else "Holdout"
        print_tables(leaderboard_table(evaluation, what), worth_table(evaluation, what))
        print("\n".join(decision_lines(submissions)))
        print(f"metrics   {layout.evaluation}\nplots     {layout.plot('X').parent}\nMLflow    {tracker.uri}")
    for line in deliver_waiting(tracker, layout):
        print(line)
    print("\n".join(ending_lines(config, layout, evaluation, submissions)))
    return not tickers.skipped


def _check_processes(config: KronosTrainingConfig, seeds: int) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (config.backtest_origins or config.refit_all or seeds > 1):
        raise SettingsError(
            "--backtest-origins, --refit-all and --seeds need one process; leave them out here, and run "
            "`kronos backtest` afterwards."
        )


def _run_worker(config: KronosTrainingConfig) -> bool:
    """Train a part of each batch, as a process of rank above 0 in distributed training; print nothing."""
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.pipeline.ingest import read_tickers
    from kronos_pipeline.training.plan import plan_trainings
    from kronos_pipeline.training.trainer import KronosTrainer

    root = Path(config.output_dir)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        windows = read_tickers(config, ArtifactLayout(root)).windows
        trainer = KronosTrainer(config.recipe, root, say=lambda _: None)
        with trainer.one_run():
            trainer.train(plan_trainings(config, windows.values()))
    return True
