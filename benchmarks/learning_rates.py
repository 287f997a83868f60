"""Measure learning rates by kind of training on simulated tickers: LoRA adapters, and a checkpoint over all tickers.

    python benchmarks/learning_rates.py --seeds 300-307     # the table in docs/does-training-work.md
    python benchmarks/learning_rates.py --quick             # two tickers and rates, a smoke test

Each seed is a ticker of the generator. Every training starts from the embedded base model with the default settings but
the rate; `gain` is the fall of the loss on the selection block from the untouched model to the best evaluation, in nats
per token, and MASE the scaled error over a holdout of almost a year that training never reads, see `adaptation.py`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from adaptation import BARS, interval

from kronos_pipeline.artifacts import write_json
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.data.simulate import simulate_ticker
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.evaluation.forecasting.holdout_table import predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.predictions import BASE, point_table
from kronos_pipeline.model.devices import pick_device
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.model.lora import load_trained
from kronos_pipeline.training.plan import TrainingJob
from kronos_pipeline.training.publish import TrainingResult
from kronos_pipeline.training.trainer import KronosTrainer

RATES = (1e-3, 1e-4, 3e-5, 1e-5, 3e-6)
SETTINGS: dict[str, Any] = {"model_name": "kronos-nano", "validation_days": 240}
KINDS = {"lora": "adapters", "none": "checkpoint"}


def main() -> None:
    """Run the experiment and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-9", help="generator seeds, first-last (0-9 are for development)")
    parser.add_argument("--quick", action="store_true", help="two seeds, two rates, one epoch")
    parser.add_argument("--output", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()
    first, last = (int(part) for part in f"{options.seeds}-{options.seeds}".split("-")[:2])
    seeds = list(range(first, last + 1))[: 2 if options.quick else None]
    settings = SETTINGS | ({"epochs": 1, "stride": 8} if options.quick else {})
    windows = [_windows_of(seed, Recipe.model_validate(settings)) for seed in seeds]
    base = load_base(find_base_model(SETTINGS["model_name"], None), pick_device("auto"))
    recipe = Recipe.model_validate(settings)
    untouched = [_mase(window_set, base, recipe) for window_set in windows]
    print(
        f"{len(seeds)} simulated tickers, {base.source.label}; MASE of the untouched model {interval(untouched)[0]:.3f}"
    )
    print("kind         rate    gain on selection       MASE - untouched        best step of  seconds")
    rows = []
    for kind, name in KINDS.items():
        for rate in RATES[:2] if options.quick else RATES:
            start = time.monotonic()
            recipe = Recipe.model_validate({**settings, "adapter": kind, "learning_rate": rate})
            gains, changes, steps = measure(windows, base, recipe, untouched)
            gain, change = interval(gains), interval(changes)
            print(
                f"{name:10s} {rate:7.0e}  {gain[0]:7.4f} ({gain[1]:7.4f} to {gain[2]:7.4f})"
                f"  {change[0]:+6.3f} ({change[1]:+6.3f} to {change[2]:+6.3f})  {steps[0]:4d} {steps[1]:4d}"
                f"  {time.monotonic() - start:7.0f}",
                flush=True,
            )
            rows.append({"kind": name, "rate": rate, "gain": gain, "change": change, "steps": steps})
    if options.output is not None:
        write_json(options.output, {"settings": settings, "rows": rows})


def measure(
    windows: Sequence[WindowSet], base: KronosModel, recipe: Recipe, untouched: Sequence[float]
) -> tuple[list[float], list[float], tuple[int, int]]:
    """Train at one rate; return gains on selection, changes of the MASE by ticker, and median best step and steps."""
    with tempfile.TemporaryDirectory() as folder:
        trained = _train(windows, base, recipe, Path(folder))
        gains = [
            result.summary["untouched_loss"] - result.summary["selection_loss"]
            for result in {result.folder: result for result in trained.values()}.values()
        ]
        changes = [
            _mase(window_set, load_trained(trained[window_set.ticker].folder, base), recipe) - before
            for window_set, before in zip(windows, untouched, strict=True)
        ]
        summaries = pd.DataFrame([result.summary for result in trained.values()])
    return gains, changes, (int(summaries["best_step"].median()), int(summaries["steps"].median()))


def _train(
    windows: Sequence[WindowSet], base: KronosModel, recipe: Recipe, folder: Path
) -> Mapping[str, TrainingResult]:
    trainer = KronosTrainer(recipe, folder, base=base, say=lambda _: None)
    if recipe.adapter == "none":
        return dict.fromkeys([window_set.ticker for window_set in windows], trainer.train_checkpoint(windows))
    jobs = [TrainingJob(window_set.ticker, (window_set,)) for window_set in windows]
    results = zip(jobs, trainer.train(jobs), strict=True)
    return {str(job.adapter): result for job, result in results if isinstance(result, TrainingResult)}


def _windows_of(seed: int, recipe: Recipe) -> WindowSet:
    simulated = simulate_ticker(seed, BARS)
    return build_windows(make_bars(f"SIM{seed}", simulated.frame(), source=f"simulated, seed {seed}"), recipe)


def _mase(windows: WindowSet, model: KronosModel, recipe: Recipe) -> float:
    forecasts = point_table(predict(windows, {BASE: model}, {BASE: plain_sampling(recipe)}, recipe).predictions)
    scale = windows.bars.frame["close"].iloc[: windows.holdout_start].diff().abs().mean()
    return float((forecasts[BASE] - forecasts["y"]).abs().mean() / scale)


if __name__ == "__main__":
    main()
