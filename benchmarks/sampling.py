"""Measure the effect of sampling settings and the coverage of intervals, on simulated tickers.

    python benchmarks/sampling.py --seeds 320-339          # the figures in docs/sampling.md
    python benchmarks/sampling.py --seeds 320-339 --adapt  # the same for adapters, which are trained first
    python benchmarks/sampling.py --seeds 320-339 --selection-days 240
    python benchmarks/sampling.py --quick                  # two tickers, a smoke test

Each seed is a ticker of the generator. The project's own code forecasts its last 240 trading days in three ways: with
s2 predicted at its true position; with s2 predicted at the first position, as upstream does; and with s2 at its true
position and temperature and top-p tuned on the selection block. Intervals are scored before and after recalibration on
the newer half of the selection block.

The two positions are also compared by likelihood, which has no sampling noise: the mean cross-entropy of the holdout's
true fine tokens, in nats, given all earlier tokens.

CRPS, MASE and the interval score are divided by the mean absolute change from one close to the next before the holdout.
The interval score is the mean over the three levels (Gneiting and Raftery, 2007). Intervals of the means are Student's
t over tickers, 95 percent.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scoringrules
import torch
from adaptation import ADAPTATION, BARS
from scipy import stats

from kronos_pipeline.artifacts import write_json
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.data.normalisation import lookback_statistics, normalise
from kronos_pipeline.data.simulate import simulate_ticker
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.evaluation.forecasting.holdout_table import predict
from kronos_pipeline.evaluation.forecasting.tuning import fit_sampling
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, EWMA, LEVELS
from kronos_pipeline.evaluation.scoring.metrics import score
from kronos_pipeline.model.devices import pick_device
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.model.lora import load_adapter
from kronos_pipeline.model.losses import teacher_forced_logits
from kronos_pipeline.model.modules import unwrap_peft
from kronos_pipeline.training.trainer import KronosTrainer

SETTINGS: dict[str, Any] = {
    "model_name": "kronos-nano",
    "adapter": "lora",
    "validation_days": 240,
    "selection_days": 60,
    **ADAPTATION,
}
QUICK: dict[str, Any] = {"epochs": 1, "eval_samples": 19}
WAYS: dict[str, dict[str, Any]] = {"true": {}, "first": {"s2_position": "first"}, "tuned": {"tune_sampling": True}}
COVERED = [f"{raw}coverage_{level}" for raw in ("raw_", "") for level in LEVELS]
FIGURES = ("scaled_crps", "mase", *COVERED, "raw_interval_score", "interval_score")


def main() -> None:
    """Run the experiment and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-9", help="generator seeds, first-last (0-9 are for development)")
    parser.add_argument("--adapt", action="store_true", help="train an adapter per ticker, and sample it")
    parser.add_argument("--selection-days", type=int, default=SETTINGS["selection_days"], help="as in kronos train")
    parser.add_argument("--quick", action="store_true", help="two seeds, few paths, one epoch")
    parser.add_argument("--output", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()

    first, last = (int(part) for part in f"{options.seeds}-{options.seeds}".split("-")[:2])
    seeds = list(range(first, last + 1))[: 2 if options.quick else None]
    changed = {"selection_days": options.selection_days} | (QUICK if options.quick else {})
    recipe = Recipe.model_validate(SETTINGS | changed)
    base = load_base(find_base_model(recipe.model_name, recipe.tokenizer_name), pick_device(recipe.device))

    training = "one adapter per ticker" if options.adapt else "untouched"
    print(f"Scaled CRPS on simulated tickers, {base.source.label}, {training}")
    print("seed    walk " + " ".join(f"{way:>7}" for way in WAYS) + "   tuned to   mended   seconds")
    rows = []
    for seed in seeds:
        start = time.monotonic()
        row = measure(seed, recipe, base, adapt=options.adapt)
        rows.append(row)
        crps = " ".join(f"{row[f'{way} scaled_crps']:7.3f}" for way in (EWMA, *WAYS))
        tuned = f"{row['temperature']:.1f}, {row['top_p']:.1f}"
        print(f"{seed:4d} {crps} {tuned:>10} {row['mended']:7.0%} {time.monotonic() - start:9.0f}", flush=True)
    summary = summarise(pd.DataFrame(rows))
    for name, (mean, low, high) in summary.items():
        print(f"{name:42s} {mean:8.3f}   {low:8.3f} to {high:8.3f}")
    if options.output is not None:
        write_json(options.output, {"settings": recipe.model_dump(mode="json"), "tickers": rows, "summary": summary})


def measure(seed: int, recipe: Recipe, base: KronosModel, *, adapt: bool) -> dict[str, Any]:
    """Simulate a ticker and forecast its holdout in each way.

    Returns:
        `FIGURES` and the fine loss by way, as "true scaled_crps"; `FIGURES` of the random walk; the share of repaired
        bars, `mended`; the tuned temperature and top-p.
    """
    bars = make_bars(f"SIM{seed}", simulate_ticker(seed, BARS).frame(), source=f"simulated, seed {seed}")
    windows = build_windows(bars, recipe)
    model = trained(windows, recipe, base) if adapt else base
    name = ADAPTER if adapt else BASE
    row: dict[str, Any] = {"seed": seed}
    for way, changes in WAYS.items():
        changed_recipe = recipe.model_copy(update=changes)
        sampling = fit_sampling(windows, model, changed_recipe)
        forecasts = predict(windows, {name: model}, {name: sampling}, changed_recipe)
        for label, model_name in ((way, name), (EWMA, EWMA)):
            row |= {f"{label} {figure}": value for figure, value in figures(forecasts.predictions, model_name).items()}
        if way == "true":
            row["mended"] = forecasts.mended[name]
        row[f"{way} fine loss"] = fine_loss(windows, model, changed_recipe.s2_position)
        row |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    return row


def trained(windows: WindowSet, recipe: Recipe, base: KronosModel) -> KronosModel:
    """Train an adapter of the ticker."""
    with tempfile.TemporaryDirectory() as folder:
        result = KronosTrainer(recipe, folder, base=base, say=lambda _: None).train_adapter([windows], windows.ticker)
        return load_adapter(result.folder, base)


def fine_loss(windows: WindowSet, model: KronosModel, s2_position: str) -> float:
    """Compute the mean cross-entropy of the holdout's fine tokens at a position of s2, in nats, over whole horizons."""
    rows = windows.of_split("holdout")
    rows = rows[rows["end"] - rows["origin"] == windows.horizon + 1]
    bars = rows["start"].to_numpy()[:, None] + np.arange(windows.lookback + windows.horizon)
    values = windows.bars.values[bars]
    statistics = lookback_statistics(values[:, : windows.lookback])
    rotary = unwrap_peft(model.predictor).dep_layer.cross_attn.rotary
    with torch.no_grad():
        s1, s2 = model.tokenizer.encode(torch.from_numpy(normalise(values, *statistics)), half=True)
        if s2_position == "first":
            rotary.forward = lambda query, key: (query, key)
        try:
            _, logits = teacher_forced_logits(model.predictor, s1, s2, torch.from_numpy(windows.stamps[bars]))
        finally:
            vars(rotary).pop("forward", None)
    ahead = slice(windows.lookback - 1, None)
    return float(torch.nn.functional.cross_entropy(logits[:, ahead].flatten(0, 1), s2[:, 1:][:, ahead].flatten()))


def figures(predictions: pd.DataFrame, model: str) -> dict[str, float]:
    """Return `FIGURES` of one model."""
    rows = predictions[predictions["model"] == model]
    ((_, scores),) = ((symbol, scores_of_symbol[model]) for symbol, scores_of_symbol in score(rows).items())
    values: dict[str, Any] = {**scores}
    for raw in ("raw_", ""):
        values[f"{raw}interval_score"] = np.mean(
            [
                scoringrules.interval_score(
                    rows["y"], rows[f"{raw}lo_{level}"], rows[f"{raw}hi_{level}"], 1 - level / 100
                )
                / rows["scale"]
                for level in LEVELS
            ]
        )
    return {figure: float(values[figure]) for figure in FIGURES}


def summarise(rows: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Compute the mean and 95 percent interval over tickers of each figure by way, and of paired differences."""
    columns = {f"{EWMA} {figure}": rows[f"{EWMA} {figure}"] for figure in FIGURES if "raw" not in figure}
    for way in WAYS:
        columns |= {f"{way} {figure}": rows[f"{way} {figure}"] for figure in (*FIGURES, "fine loss")}
        errors = [
            pd.concat([(rows[f"{way} {raw}coverage_{level}"] - level).abs() for level in LEVELS], axis=1).mean(axis=1)
            for raw in ("", "raw_")
        ]
        columns |= {f"{way} coverage error": errors[0], f"{way} raw coverage error": errors[1]}
        columns[f"{way} recalibrated - raw coverage error"] = errors[0] - errors[1]
        change = rows[f"{way} interval_score"] - rows[f"{way} raw_interval_score"]
        columns[f"{way} recalibrated - raw interval_score"] = change
    for way in ("first", "tuned"):
        for figure in ("scaled_crps", "mase", "raw_interval_score", "interval_score"):
            columns[f"{way} - true {figure}"] = rows[f"{way} {figure}"] - rows[f"true {figure}"]
    columns["first - true fine loss"] = rows["first fine loss"] - rows["true fine loss"]
    columns["mended, percent"] = 100 * rows["mended"]
    return {name: _interval(values.to_numpy(np.float64)) for name, values in columns.items()}


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    mean = float(values.mean())
    if len(values) < 2:
        return mean, mean, mean
    width = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - width, mean + width


if __name__ == "__main__":
    main()
