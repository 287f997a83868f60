"""Train a recipe again with other seeds, and print how far its losses spread, and the losses of the ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kronos_pipeline.errors import KronosError, count

if TYPE_CHECKING:
    import pandas as pd

    from kronos_pipeline.config import KronosTrainingConfig, Recipe
    from kronos_pipeline.evaluation.forecasting.batching import ForecastJob
    from kronos_pipeline.evaluation.forecasting.candidates import Candidate, TrainedModels
    from kronos_pipeline.pipeline.ingest import Tickers
    from kronos_pipeline.pipeline.train import Trained
    from kronos_pipeline.training.trainer import KronosTrainer


def compare_seeds(
    config: KronosTrainingConfig, seeds: int, trainer: KronosTrainer, tickers: Tickers, trained: Sequence[Trained]
) -> None:
    """Train the models of the run with further seeds, below `seeds/<seed>`, and compare all seeds on the holdout.

    Written are `metrics/seeds.parquet`, the predictions of each seed's model and of the ensemble, and
    `metrics/seeds.json`, the losses over all tickers and of each ticker. A ticker without a model of each seed is left
    out, and named.

    Args:
        config: the settings.
        seeds: number of seeds, with the run's own; 1 compares nothing.
        trainer: the run's trainer.
        tickers: the run's tickers.
        trained: the run's trained models.
    """
    if seeds == 1:
        return
    import pandas as pd

    from kronos_pipeline.artifacts import ArtifactLayout, read_parquet, write_json, write_parquet
    from kronos_pipeline.evaluation.forecasting.batching import MAX_JOBS, run_jobs
    from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels
    from kronos_pipeline.evaluation.predictions import trained_model
    from kronos_pipeline.evaluation.seeds import compare_losses, seeds_of, seeds_table
    from kronos_pipeline.pipeline.evaluate import print_tables

    layout, base, recipe = trainer.layout, trainer.base, config.recipe
    own, *others = seeds_of(recipe, seeds)
    print(f"seeds: training {count(len(trained), 'model')} with {count(len(others), 'further seed')}")
    models = {own: TrainedModels(layout, base)}
    models |= {seed: TrainedModels(ArtifactLayout(layout.seed(seed)), base) for seed in others}
    failed: dict[str | None, KronosError] = {}
    for seed in others:
        failed |= _train(recipe.model_copy(update={"seed": seed}), models[seed], trained)
    jobs: dict[str, ForecastJob[pd.DataFrame]] = {}
    left_out = []
    for model in trained:
        for ticker in model.tickers:
            if error := tickers.skipped.get(ticker) or failed.get(model.adapter):
                left_out.append(f"{ticker} is not compared: {error}")
            else:
                jobs[ticker] = _job(model, ticker, models, recipe)
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
    manifest = {"seeds": [own, *others], "config": recipe.model_dump(mode="json"), "left_out": left_out}
    write_parquet(layout.seeds.with_suffix(".parquet"), predictions, manifest)
    per_symbol = {ticker: compare_losses(tables[ticker], references[ticker]) for ticker in names}
    write_json(layout.seeds, {**manifest, "aggregate": comparison, "per_symbol": per_symbol})
    print_tables(seeds_table(comparison, trained_model(config), len(names)))


def _train(recipe: Recipe, models: TrainedModels, trained: Sequence[Trained]) -> dict[str | None, KronosError]:
    """Train the models with a recipe's seed, and return the error of each that failed, by adapter."""
    from kronos_pipeline.training.plan import TrainingJob
    from kronos_pipeline.training.progress import say_nothing
    from kronos_pipeline.training.trainer import KronosTrainer

    trainer = KronosTrainer(recipe, models.layout.root, base=models.base, say=say_nothing)
    with trainer.one_run():
        results = trainer.train([TrainingJob(model.adapter, model.windows) for model in trained])
    return {
        model.adapter: result for model, result in zip(trained, results, strict=True) if isinstance(result, KronosError)
    }


def _job(model: Trained, ticker: str, models: dict[int, TrainedModels], recipe: Recipe) -> ForecastJob[pd.DataFrame]:
    """Load the model of each seed, and forecast one ticker."""
    from kronos_pipeline.evaluation.forecasting.candidates import Candidate
    from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT
    from kronos_pipeline.evaluation.seeds import forecast_seeds_job

    kind = CHECKPOINT if model.adapter is None else ADAPTER
    (windows,) = (window_set for window_set in model.windows if window_set.ticker == ticker)
    candidates: dict[int, Candidate] = {}
    for seed, of_seed in models.items():
        folder = of_seed.layout.trained(model.adapter)
        candidates[seed] = Candidate(of_seed.load(kind, folder), folder)
    return (yield from forecast_seeds_job(windows, candidates, recipe))
