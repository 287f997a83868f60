"""Measure the time of an evaluation by part: the model's sampling, each volatility rival, scores, verdicts and plots.

    python benchmarks/evaluation.py                            # 50 tickers, 1 and 12 cutoffs
    python benchmarks/evaluation.py --tickers 2 --cutoffs 1    # a smoke test

Simulated tickers are evaluated with the embedded model as users evaluate them, on one thread. Then the parts that
judge the whole distribution are run again alone on the same tickers. Times are of the CPU, so that other programs on
the machine change them little.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.data.simulate import simulate_ticker
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.evaluation.forecasting.batching import unwrap
from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels
from kronos_pipeline.evaluation.holdout import HoldoutResult, evaluate_tickers
from kronos_pipeline.evaluation.reports.plots import save_plots
from kronos_pipeline.evaluation.rivals.fits import MIN_RETURNS
from kronos_pipeline.evaluation.rivals.volatility_rivals import forecast_rivals
from kronos_pipeline.evaluation.scoring.model_confidence import compare_all
from kronos_pipeline.evaluation.scoring.report import build_evaluation
from kronos_pipeline.evaluation.scoring.targets import TARGETS
from kronos_pipeline.model.loading import load_base

T = TypeVar("T")

SETTINGS: dict[str, Any] = {"model_name": "kronos-nano", "selection_bars": 60, "device": "cpu", "precision": "fp32"}
BARS = 1_000
"""Bars before the holdout."""


def main() -> None:
    """Measure and print a table per number of cutoffs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickers", type=int, default=50, help="simulated tickers")
    parser.add_argument("--cutoffs", type=int, nargs="+", default=[1, 12], help="cutoffs per ticker")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for cutoffs in options.cutoffs:
        parts = measure(options.tickers, cutoffs)
        total = parts["evaluation"]
        print(f"\n{options.tickers} tickers, {cutoffs} cutoffs: seconds of the CPU, and share of the evaluation")
        for part, seconds in parts.items():
            print(f"  {part:32} {seconds:8.2f} s {seconds / total:8.1%}")


def measure(tickers: int, cutoffs: int) -> dict[str, float]:
    """Return the seconds of an evaluation and of its parts, by part."""
    recipe = Recipe.model_validate(SETTINGS)
    held_out = cutoffs * recipe.horizon
    recipe = recipe.model_copy(update={"validation_bars": held_out})
    windows = {f"SIM{number}": simulated_windows(number, BARS + held_out, recipe) for number in range(tickers)}
    base = load_base(find_base_model(recipe.model_name, recipe.tokenizer_name), torch.device("cpu"))
    forecast_rivals(next(iter(windows.values())), np.array([MIN_RETURNS]), recipe)  # imports arch
    with tempfile.TemporaryDirectory() as folder:
        models = TrainedModels(ArtifactLayout(Path(folder)), base)
        results, total = timed(lambda: evaluated(models, windows, recipe))
        return {"evaluation": total, **parts_of(results, windows, recipe, models.layout)}


def simulated_windows(number: int, bars: int, recipe: Recipe) -> WindowSet:
    """Build the windows of a simulated ticker."""
    return build_windows(make_bars(f"SIM{number}", simulate_ticker(number, bars).frame(), source="simulated"), recipe)


def evaluated(models: TrainedModels, windows: Mapping[str, WindowSet], recipe: Recipe) -> dict[str, HoldoutResult]:
    """Evaluate the tickers as the command does."""
    runs = dict.fromkeys(windows)
    results: Any = evaluate_tickers(models, windows, runs, recipe, trained="base", tickers_tested=len(windows))
    return {ticker: unwrap(result) for ticker, result in results}


def parts_of(
    results: Mapping[str, HoldoutResult], windows: Mapping[str, WindowSet], recipe: Recipe, layout: ArtifactLayout
) -> dict[str, float]:
    """Return the seconds of the parts of the evaluations, each run alone."""
    parts: dict[str, float] = {}
    for ticker_windows in windows.values():
        origins = ticker_windows.of_split("holdout")["origin"].to_numpy(np.int64)
        begun = time.process_time(), time.perf_counter()
        seconds = forecast_rivals(ticker_windows, origins, recipe).seconds
        # The rivals' seconds are those of the clock; the machine may serve others meanwhile.
        share = (time.process_time() - begun[0]) / (time.perf_counter() - begun[1])
        for rival, taken in seconds.items():
            parts[f"rival {rival}"] = parts.get(f"rival {rival}", 0.0) + share * taken
    tables = [(result.predictions, result.manifest) for result in results.values()]
    parts["scores, verdicts, joint tests"] = timed(
        lambda: [build_evaluation(table, "base", [], manifest) for table, manifest in tables]
    )[1]
    parts["of which joint tests"] = timed(
        lambda: [compare_all(table, target) for table, _ in tables for target in TARGETS]
    )[1]
    parts["plots"] = timed(
        lambda: [
            save_plots(layout, windows[ticker].bars.frame, result.predictions, "base", [])
            for ticker, result in results.items()
        ]
    )[1]
    return parts


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """Run, and return the result with the seconds of the CPU."""
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


if __name__ == "__main__":
    main()
