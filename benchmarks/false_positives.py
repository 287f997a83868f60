"""Measure the rate of false verdicts "better", on simulated random walks.

    python benchmarks/false_positives.py --tickers 400 --adapters 400    # the report in docs/false-positives.md
    python benchmarks/false_positives.py --tickers 4 --adapters 1        # a smoke test

The log price of every ticker is a random walk with stochastic volatility, so no forecast of its close is better than
the last close. Each ticker has a holdout of 8, 12, 24 or 40 cutoffs in turn. The baselines and the base model forecast
it; an adapter of the project's trainer forecasts the first tickers too. The project's verdict, without a correction for
the number of tickers, compares each model with the naive forecast, and the project's gate decides on the adapters. The
nominal rate of a verdict is 5 percent; the bound is the exact one-sided 95 percent bound of a binomial share.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from kronos_pipeline.artifacts import write_json
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.data.simulate import Dynamics, simulate_ticker
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.evaluation.forecasting.holdout_table import predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, NAIVE, models_of
from kronos_pipeline.evaluation.scoring.gate import decide
from kronos_pipeline.evaluation.scoring.significance import holm
from kronos_pipeline.evaluation.scoring.verdicts import ALPHA, BETTER, NO_BETTER, TOO_LITTLE, WORSE, judge
from kronos_pipeline.model.devices import pick_device
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.model.lora import load_adapter
from kronos_pipeline.training.trainer import KronosTrainer

RANDOM_WALK = Dynamics(walk=0.012, deviation=0.0, month_drift=0.0, day_drift=0.0)
CUTOFFS = (8, 12, 24, 40)
TRAINING_BARS, SELECTION_BARS = 360, 60
SETTINGS: dict[str, Any] = {
    "model_name": "kronos-nano",
    "adapter": "lora",
    "horizon": 5,
    "eval_samples": 16,
    "selection_bars": SELECTION_BARS,
    "epochs": 1,
    "evaluations_per_epoch": 1,
    "learning_rate": 1e-3,
    "device": "cpu",
}
FIRST_SEED = 10_000
"""Far from the seeds that served in development."""


def main() -> None:
    """Run the experiment and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickers", type=int, default=400, help="simulated random walks")
    parser.add_argument("--adapters", type=int, default=0, help="number of these tickers that get a trained adapter")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="minutes after which no new ticker begins")
    parser.add_argument("--output", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()

    recipe = Recipe.model_validate(SETTINGS)
    base = load_base(find_base_model(recipe.model_name, recipe.tokenizer_name), pick_device(recipe.device))
    ends = time.monotonic() + 60 * options.minutes
    forecasts: list[pd.DataFrame] = []
    for number in in_time(options.tickers, ends, "forecast by the base model"):
        windows = walk_windows(number, recipe)
        forecasts.append(predicted(windows, BASE, base, recipe))
    for number in in_time(min(options.adapters, len(forecasts)), ends, "forecast by an adapter"):
        windows = walk_windows(number, recipe)
        of_adapter = predicted(windows, ADAPTER, train_adapter(windows, base, recipe), recipe)
        adapter_rows = of_adapter[of_adapter["model"] == ADAPTER]
        forecasts[number] = pd.concat([forecasts[number], adapter_rows], ignore_index=True)

    verdicts = [row for predictions in forecasts for row in verdicts_on(predictions)]
    decisions = [row for predictions in forecasts for row in decisions_on(predictions)]
    shares, promoted = verdict_shares(pd.DataFrame(verdicts)), promotion_shares(pd.DataFrame(decisions))
    for title, table in (("Verdicts against naive", shares), ("Promotions", promoted)):
        print(f"\n{title}\n{table.to_string(index=False)}" if len(table) else f"\n{title}: none")
    if options.output is not None:
        rows_by_kind = {"verdicts": verdicts, "decisions": decisions}
        tables = {"shares": shares.to_dict("records"), "promotions": promoted.to_dict("records")}
        write_json(options.output, {"settings": SETTINGS, **tables, **rows_by_kind})


def in_time(count: int, ends: float, label: str) -> Iterator[int]:
    """Count from 0, print every twentieth number, and stop at `count` or when the monotonic clock shows `ends`."""
    start, number = time.monotonic(), 0
    while number < count and time.monotonic() < ends:
        yield number
        number += 1
        if number % 20 == 0 or number == count:
            print(f"{number} of {count} tickers {label}, {time.monotonic() - start:.0f} s", flush=True)
    if number < count:
        print(f"out of time: {number} of {count} tickers {label}", flush=True)


def walk_windows(number: int, recipe: Recipe) -> WindowSet:
    """Build the windows of a simulated random walk."""
    held_out = CUTOFFS[number % len(CUTOFFS)] * recipe.horizon
    bars = TRAINING_BARS + SELECTION_BARS + held_out
    simulated = simulate_ticker(FIRST_SEED + number, bars, dynamics=RANDOM_WALK)
    tested_recipe = recipe.model_copy(update={"validation_bars": held_out})
    return build_windows(make_bars(f"WALK{number}", simulated.frame(), source="simulated"), tested_recipe)


def predicted(windows: WindowSet, name: str, model: KronosModel, recipe: Recipe) -> pd.DataFrame:
    """Forecast the holdout with the baselines and with one model."""
    return predict(windows, {name: model}, {name: plain_sampling(recipe)}, recipe).predictions


def train_adapter(windows: WindowSet, base: KronosModel, recipe: Recipe) -> KronosModel:
    """Train an adapter of one ticker with the project's trainer."""
    with tempfile.TemporaryDirectory() as folder:
        result = KronosTrainer(recipe, folder, base=base, say=lambda _: None).train_adapter([windows], windows.ticker)
        return load_adapter(result.folder, base)


def verdicts_on(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Judge every model against the naive forecast, without a correction for the number of tickers."""
    models = [model for model in models_of(predictions) if model != NAIVE]
    return [judge(predictions, model, (NAIVE,)).overall[NAIVE].as_dict() for model in models]


def decisions_on(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the decision of each gate on the adapter; none without an adapter."""
    if ADAPTER not in models_of(predictions):
        return []
    decisions = [decide(predictions, ADAPTER, champion=None, gate=gate) for gate in ("strict", "lenient")]
    return [{"gate": decision.gate, "promoted": decision.promote, "reason": decision.reason} for decision in decisions]


def verdict_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Count verdicts by model, with the share of "better", its bound, and the number that Holm's correction leaves."""
    table: list[dict[str, Any]] = []
    for model, model_rows in rows.groupby("model", sort=False):
        counts = Counter(model_rows["verdict"])
        better = model_rows[model_rows["verdict"] == BETTER]
        significant = holm(better["adjusted_p"].to_numpy(), len(model_rows)) <= ALPHA
        table.append(
            {
                "model": model,
                "tickers": len(model_rows),
                **{str(verdict): counts[verdict] for verdict in (BETTER, NO_BETTER, WORSE, TOO_LITTLE)},
                **_share(counts[BETTER], len(model_rows)),
                "better by Holm": int(significant.sum()),
                "median skill": f"{model_rows['skill'].median():.1%}",
            }
        )
    return pd.DataFrame(table)


def promotion_shares(decisions: pd.DataFrame) -> pd.DataFrame:
    """Count promoted adapters by gate, with their share and its bound."""
    if decisions.empty:
        return decisions
    return pd.DataFrame(
        [
            {
                "gate": gate,
                "adapters": len(promoted),
                "promoted": int(promoted.sum()),
                **_share(int(promoted.sum()), len(promoted)),
            }
            for gate, promoted in decisions.groupby("gate", sort=False)["promoted"]
        ]
    )


def _share(count: int, total: int) -> dict[str, str]:
    bound = binomtest(count, total, alternative="less").proportion_ci(0.95).high
    return {"share": f"{count / total:.1%}", "at most": f"{bound:.1%}"}


if __name__ == "__main__":
    main()
