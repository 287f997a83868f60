"""Train a recipe again with other seeds, and print how far its losses spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kronos_pipeline.errors import KronosError, count

if TYPE_CHECKING:
    import pandas as pd

    from kronos_pipeline.config import KronosTrainingConfig, Recipe
    from kronos_pipeline.evaluation.forecasting.batching import ForecastJob
    from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels
    from kronos_pipeline.pipeline.ingest import Tickers
    from kronos_pipeline.pipeline.train import Trained
    from kronos_pipeline.training.trainer import KronosTrainer


@dataclass(frozen=True)
class SeedModels:
    """Models of a run that were trained with several seeds.

    Attributes:
        seeds: the seeds, the run's own first.
        folders: by ticker, the folder of the model of each seed; a ticker without all of them is missing.
        failed: by ticker, the reason that it has no model of each seed.
    """

    seeds: Sequence[int] = ()
    folders: dict[str, dict[int, Path]] = field(default_factory=dict)
    failed: dict[str, KronosError] = field(default_factory=dict)


def train_seeds(
    config: KronosTrainingConfig, seeds: int, trainer: KronosTrainer, trained: Sequence[Trained]
) -> SeedModels:
    """Train the models of the run with further seeds, below `seeds/<seed>`.

    Args:
        config: the settings.
        seeds: number of seeds, with the run's own; 1 trains nothing.
        trainer: the run's trainer.
        trained: the run's trained models.
    """
    if seeds == 1:
        return SeedModels()
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.evaluation.seeds import seeds_of

    own, *others = seeds_of(config.recipe, seeds)
    print(f"seeds: training {count(len(trained), 'model')} with {count(len(others), 'further seed')}")
    layouts = {own: trainer.layout} | {seed: ArtifactLayout(trainer.layout.seed(seed)) for seed in others}
    failed: dict[str | None, KronosError] = {}
    for seed in others:
        failed |= _train(config.recipe.model_copy(update={"seed": seed}), trainer, layouts[seed].root, trained)
    models = SeedModels([own, *others])
    for model in trained:
        for ticker in model.tickers:
            if error := failed.get(model.adapter):
                models.failed[ticker] = error
            else:
                models.folders[ticker] = {seed: layout.trained(model.adapter) for seed, layout in layouts.items()}
    return models


def compare_seeds(
    config: KronosTrainingConfig,
    models: TrainedModels,
    seeds: SeedModels,
    tickers: Tickers,
    trained: Sequence[Trained],
) -> None:
    """Forecast the holdout with the model of each seed, and print the spread of the losses beside the ensemble's.

    Written are `metrics/seeds.parquet`, the predictions of each seed's model, and `metrics/seeds.json`, the losses over
    all tickers and of each ticker. A ticker without a model of each seed is left out, and named.

    Args:
        config: the settings.
        models: the models of the run.
        seeds: the models by seed; nothing is compared without further seeds.
        tickers: the run's tickers, evaluated.
        trained: the run's trained models.
    """
    if not seeds.seeds:
        return
    import pandas as pd

    from kronos_pipeline.artifacts import read_parquet, write_json, write_parquet
    from kronos_pipeline.evaluation.forecasting.batching import MAX_JOBS, run_jobs
    from kronos_pipeline.evaluation.predictions import trained_model
    from kronos_pipeline.evaluation.reports.text_table import print_tables
    from kronos_pipeline.evaluation.seeds import compare_losses, seeds_table

    layout, recipe = models.layout, config.recipe
    jobs: dict[str, ForecastJob[pd.DataFrame]] = {}
    left_out = []
    for model in trained:
        for ticker in model.tickers:
            if error := tickers.skipped.get(ticker) or seeds.failed.get(ticker):
                left_out.append(f"{ticker} is not compared: {error}")
            else:
                jobs[ticker] = _job(model, ticker, models, seeds, recipe)
    whole_models = trained_model(config) != "adapter" or not recipe.freeze_backbone
    tables = {}
    for ticker, result in run_jobs(jobs, max_jobs=1 if whole_models else MAX_JOBS):
        if isinstance(result, KronosError):
            left_out.append(f"{ticker} is not compared: {result}")
        else:
            tables[ticker] = result
    for sentence in left_out:
        print(f"seeds: {sentence}")
    if not tables:
        return
    names = sorted(tables)
    predictions = pd.concat([tables[ticker] for ticker in names], ignore_index=True)
    references = {ticker: read_parquet(layout.ticker_forecasts(ticker))[0] for ticker in names}
    comparison = compare_losses(predictions, pd.concat(references.values(), ignore_index=True))
    manifest = {"seeds": list(seeds.seeds), "config": recipe.model_dump(mode="json"), "left_out": left_out}
    write_parquet(layout.seeds.with_suffix(".parquet"), predictions, manifest)
    per_symbol = {ticker: compare_losses(tables[ticker], references[ticker]) for ticker in names}
    write_json(layout.seeds, {**manifest, "aggregate": comparison, "per_symbol": per_symbol})
    print_tables(seeds_table(comparison, trained_model(config), len(names)))


def _train(
    recipe: Recipe, trainer: KronosTrainer, root: Path, trained: Sequence[Trained]
) -> dict[str | None, KronosError]:
    """Train the models with a recipe's seed, and return the error of each that failed, by adapter."""
    from kronos_pipeline.training.plan import TrainingJob
    from kronos_pipeline.training.progress import say_nothing
    from kronos_pipeline.training.trainer import KronosTrainer

    of_seed = KronosTrainer(recipe, root, base=trainer.base, say=say_nothing)
    with of_seed.one_run():
        results = of_seed.train([TrainingJob(model.adapter, model.windows) for model in trained])
    return {
        model.adapter: result for model, result in zip(trained, results, strict=True) if isinstance(result, KronosError)
    }


def _job(
    model: Trained, ticker: str, models: TrainedModels, seeds: SeedModels, recipe: Recipe
) -> ForecastJob[pd.DataFrame]:
    """Load the model of each seed, and forecast one ticker."""
    from kronos_pipeline.evaluation.forecasting.candidates import Candidate
    from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT
    from kronos_pipeline.evaluation.seeds import forecast_seeds_job

    kind = CHECKPOINT if model.adapter is None else ADAPTER
    (windows,) = (window_set for window_set in model.windows if window_set.ticker == ticker)
    candidates = {seed: Candidate(models.load(kind, folder), folder) for seed, folder in seeds.folders[ticker].items()}
    return (yield from forecast_seeds_job(windows, candidates, recipe))
