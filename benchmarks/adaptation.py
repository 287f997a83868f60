"""Measure the gain by training: the scaled error of naive, base model, adapter and oracle on simulated tickers.

    python benchmarks/adaptation.py --seeds 100-119        # the report in docs/does-training-work.md
    python benchmarks/adaptation.py --quick                # two tickers, a smoke test

Each seed is a ticker of the generator with a calendar pattern of its own. The project's trainer trains an adapter on
it, and the project's sampler forecasts its holdout of almost a year. The oracle is the generator's own conditional
forecast: it knows the pattern and the state, but no later shock.

MASE is the mean absolute error of the close over all of a ticker's holdout bars, divided by the mean absolute change
from one bar to the next before the holdout. Intervals are Student's t over tickers, 95 percent.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_pipeline.artifacts import write_json
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.data.simulate import simulate_ticker
from kronos_pipeline.data.windows import build_windows
from kronos_pipeline.evaluation.forecasting.holdout_table import predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.predictions import NAIVE, point_table
from kronos_pipeline.model.devices import pick_device
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.model.lora import load_adapter
from kronos_pipeline.training.trainer import KronosTrainer

BARS = 2000
ADAPTATION: dict[str, Any] = {
    "learning_rate": 1e-2,
    "epochs": 4,
    "average_decay": 0.95,
    "adapter_targets": ["month_embed", "day_embed"],
}
"""Chosen on seeds 0 to 9. LoRA adapts the embeddings of month and day alone: they can hold the calendar pattern of a
ticker, and so few parameters overfit little on a few years of overlapping windows."""
SETTINGS: dict[str, Any] = {
    "model_name": "kronos-nano",
    "adapter": "lora",
    "validation_days": 240,
    "selection_days": 60,
    **ADAPTATION,
}
QUICK: dict[str, Any] = {"epochs": 1, "eval_samples": 8}
MODELS = (NAIVE, "base", "adapter", "oracle")
# Student's t, 97.5 percent, by degrees of freedom; beyond them the quantile of the normal distribution is close.
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 14: 2.14, 19: 2.09}


def main() -> None:
    """Run the experiment and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-9", help="generator seeds, first-last (0-9 are for development)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings other than the defaults")
    parser.add_argument("--quick", action="store_true", help="two seeds, one epoch, few paths")
    parser.add_argument("--output", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()

    first, last = (int(part) for part in f"{options.seeds}-{options.seeds}".split("-")[:2])
    seeds = list(range(first, last + 1))[: 2 if options.quick else None]
    changed = {name: _value(text) for name, text in (pair.split("=", 1) for pair in options.set)}
    recipe = Recipe.model_validate(SETTINGS | (QUICK if options.quick else {}) | changed)
    base = load_base(find_base_model(recipe.model_name, recipe.tokenizer_name), pick_device(recipe.device))

    print(f"MASE on simulated tickers, {base.source.label}")
    print("seed   naive    base adapter  oracle   best step of   seconds")
    rows = []
    for seed in seeds:
        start = time.monotonic()
        row = adapt_one(seed, recipe, base)
        rows.append({"seed": seed, **row})
        scores = " ".join(f"{row[model]:7.3f}" for model in MODELS)
        steps = f"{row['best_step']:9d} {row['steps']:4d}"
        print(f"{seed:4d} {scores}  {steps} {time.monotonic() - start:9.0f}", flush=True)
    figures = summarise(pd.DataFrame(rows))
    print()
    for name, (mean, low, high) in figures.items():
        print(f"{name:22s} {mean:7.3f}   {low:7.3f} to {high:7.3f}")
    if options.output is not None:
        settings = recipe.model_dump(mode="json")
        write_json(options.output, {"settings": settings, "tickers": rows, "summary": figures})


def adapt_one(seed: int, recipe: Recipe, base: KronosModel) -> dict[str, Any]:
    """Simulate a ticker, adapt the base model to it, and score the forecasts of its holdout.

    Returns:
        MASE by model, and `best_step` and `steps` of the training.
    """
    simulated = simulate_ticker(seed, BARS)
    bars = make_bars(f"SIM{seed}", simulated.frame(), source=f"simulated, seed {seed}")
    windows = build_windows(bars, recipe)
    with tempfile.TemporaryDirectory() as folder:
        result = KronosTrainer(recipe, folder, base=base, say=lambda _: None).train_adapter([windows], bars.ticker)
        models = {"base": base, "adapter": load_adapter(result.folder, base)}
        samplings = dict.fromkeys(models, plain_sampling(recipe))
        forecasts = point_table(predict(windows, models, samplings, recipe).predictions)
    origins = pd.Index(bars.frame["timestamps"]).get_indexer(pd.Index(forecasts["cutoff"].unique()))
    lengths = forecasts.groupby("cutoff")["ds"].size()
    forecasts["oracle"] = np.concatenate(
        [simulated.conditional_close(origin, length) for origin, length in zip(origins, lengths, strict=True)]
    )
    known = bars.frame["close"].iloc[: windows.holdout_start]
    scale = known.diff().abs().mean()
    scores = {model: float((forecasts[model] - forecasts["y"]).abs().mean() / scale) for model in MODELS}
    return scores | {name: int(result.summary[name]) for name in ("best_step", "steps")}


def summarise(rows: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Compute the mean and 95 percent interval over tickers of each model's MASE and of paired differences."""
    columns = {model: rows[model] for model in MODELS}
    columns |= {f"adapter - {rival}": rows["adapter"] - rows[rival] for rival in (NAIVE, "base", "oracle")}
    gap = rows["base"] - rows["oracle"]
    columns["share of gap closed"] = (rows["base"] - rows["adapter"]) / gap
    return {name: interval(values.tolist()) for name, values in columns.items()}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the mean of values and its 95 percent interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, mean, mean
    width = _T.get(len(values) - 1, 2.1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - width, mean + width


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
