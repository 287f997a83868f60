"""A model that knows the volatility becomes champion of the distribution and of the volatility, and not of the mean."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from registered_models import CPU, aliases, made_adapter
from small_trainings import small_recipe

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import build_windows
from kronos_pipeline.evaluation.forecasting.batching import run_job
from kronos_pipeline.evaluation.forecasting.candidates import Candidate, evaluate_models_job
from kronos_pipeline.evaluation.scoring.report import save_ticker_evaluation
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, MEAN, VOLATILITY
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.model.lora import adapter_hash
from kronos_pipeline.promotion.submit import Submission, TrainedModel, submit
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from known_volatility import GARCH_T, Forecaster, VolatileTicker, sample, simulate

pytestmark = pytest.mark.slow

TICKERS = ("AAPL", "MSFT")
CUTOFFS, HORIZON, SELECTION_BARS, TRAINING_BARS = 200, 2, 100, 400


@pytest.fixture(scope="module")
def recipe(tiny_base: Path) -> Recipe:
    bars = {"validation_bars": CUTOFFS * HORIZON, "selection_bars": SELECTION_BARS, "horizon": HORIZON}
    return small_recipe(tiny_base, adapter="lora", precision="fp32", eval_samples=100, max_cutoffs=CUTOFFS, **bars)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> KronosModel:
    return load_base(find_base_model(str(tiny_base)), CPU)


def garch_ticker(name: str, seed: int) -> VolatileTicker:
    """Simulate GARCH(1,1)-t returns with announced news, on which the deviation is five times as large.

    A fitted GARCH forecasts the first as well as a model that knows it, and nothing of the second.
    """
    bars = TRAINING_BARS + SELECTION_BARS + CUTOFFS * HORIZON
    return simulate(name, seed, bars, GARCH_T, factor=25.0, share=0.3)


def submitted(
    ticker: VolatileTicker, layout: ArtifactLayout, tracker: Tracker, base: KronosModel, recipe: Recipe
) -> Submission:
    """Evaluate a forecaster that stands for the ticker's adapter, and submit it."""
    name = ticker.bars.ticker
    folder = made_adapter(layout.adapter(name), small_recipe(Path(recipe.model_name)), [name])
    weights = adapter_hash(folder, read_json(folder / MANIFEST)["base_model"]["weights_hash"])
    forecaster = Forecaster(ticker, seed=1, weights_hash=weights)
    candidates = {
        "base": Candidate(base, layout.base),
        "adapter": Candidate(forecaster, folder),  # type: ignore[arg-type]
    }
    windows = build_windows(ticker.bars, recipe)
    result = run_job(evaluate_models_job(windows, candidates, recipe), sampler=sample)
    save_ticker_evaluation(layout, result.predictions, "adapter", result.manifest, len(TICKERS))
    with tracker.training_run(f"adapter {name}", recipe) as run:
        pass
    model = TrainedModel(name, [name], run.run_id)
    return submit(Registry(tracker), layout, model, recipe, tickers_tested=len(TICKERS))


def test_a_model_that_knows_the_volatility_is_champion_of_all_but_the_mean(
    tmp_path: Path, own_mlflow_store: str, base: KronosModel, recipe: Recipe
) -> None:
    layout = ArtifactLayout(tmp_path)
    tracker = Tracker(own_mlflow_store, layout.root)
    for seed, name in enumerate(TICKERS):
        submission = submitted(garch_ticker(name, seed), layout, tracker, base, recipe)
        assert submission.promoted == (DISTRIBUTION, VOLATILITY), submission.sentence()
        assert set(submission.decisions[MEAN].comparisons) == {"naive", "drift", "seasonal_naive", "base"}
        for target in (DISTRIBUTION, VOLATILITY):
            assert set(submission.decisions[target].comparisons) == {"ewma", "garch", "gjr_garch", "har", "base"}
        names = aliases(Registry(tracker), submission.name)[submission.version]
        assert {"champion", "champion-distribution", "champion-volatility"} <= set(names)
        assert "champion-mean" not in names
