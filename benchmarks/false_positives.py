"""How often does a verdict say "better" where nothing can be better? Verdicts on simulated random walks.

    python benchmarks/false_positives.py --tickers 400 --adapters 400    # the report in docs/false-positives.md
    python benchmarks/false_positives.py --tickers 4 --adapters 1        # a smoke test

The log price of every ticker is a random walk with stochastic volatility, and no forecast of its close is better than
the last one. Each ticker has a holdout of 8, 12, 24 or 40 cutoffs in turn. It is forecast by the baselines and by the
base model, and the first tickers by an adapter of the project's own trainer too. The project's own verdict, corrected
for nothing, compares each with the naive forecast, and its own gate decides on the adapters. A verdict's nominal rate
is 5 percent; the bound is the exact one-sided 95 percent bound of a binomial share.
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
"""Far from the seeds that anything was developed on."""


def main() -> None:
    """Run the experiment and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickers", type=int, default=400, help="simulated random walks")
    parser.add_argument("--adapters", type=int, default=0, help="of these, how many get a trained adapter")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing more after that long")
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
        own = of_adapter[of_adapter["model"] == ADAPTER]
        forecasts[number] = pd.concat([forecasts[number], own], ignore_index=True)

    verdicts = [row for predictions in forecasts for row in verdicts_on(predictions)]
    decisions = [row for predictions in forecasts for row in decisions_on(predictions)]
    shares, promoted = verdict_shares(pd.DataFrame(verdicts)), promotion_shares(pd.DataFrame(decisions))
    for title, table in (("Verdicts against naive", shares), ("Promotions", promoted)):
        print(f"\n{title}\n{table.to_string(index=False)}" if len(table) else f"\n{title}: none was decided on")
    if options.output is not None:
        every = {"verdicts": verdicts, "decisions": decisions}
        tables = {"shares": shares.to_dict("records"), "promotions": promoted.to_dict("records")}
        write_json(options.output, {"settings": SETTINGS, **tables, **every})


def in_time(count: int, ends: float, what: str) -> Iterator[int]:
    """Count from 0, report every twentieth, and stop at `count` or when the monotonic clock shows `ends`."""
    started, number = time.monotonic(), 0
    while number < count and time.monotonic() < ends:
        yield number
        number += 1
        if number % 20 == 0 or number == count:
            print(f"{number} of {count} tickers {what}, {time.monotonic() - started:.0f} s", flush=True)
    if number < count:
        print(f"out of time: {number} of {count} tickers {what}", flush=True)


def walk_windows(number: int, recipe: Recipe) -> WindowSet:
    """The windows of one simulated random walk."""
    held_out = CUTOFFS[number % len(CUTOFFS)] * recipe.horizon
    bars = TRAINING_BARS + SELECTION_BARS + held_out
    simulated = simulate_ticker(FIRST_SEED + number, bars, dynamics=RANDOM_WALK)
    own = recipe.model_copy(update={"validation_bars": held_out})
    return build_windows(make_bars(f"WALK{number}", simulated.frame(), source="simulated"), own)


def predicted(windows: WindowSet, name: str, model: KronosModel, recipe: Recipe) -> pd.DataFrame:
    """The holdout, forecast by the baselines and by one model."""
    return predict(windows, {name: model}, {name: plain_sampling(recipe)}, recipe).predictions


def train_adapter(windows: WindowSet, base: KronosModel, recipe: Recipe) -> KronosModel:
    """Train an adapter on one ticker as the project does."""
    with tempfile.TemporaryDirectory() as folder:
        result = KronosTrainer(recipe, folder, base=base, say=lambda _: None).train_adapter([windows], windows.ticker)
        return load_adapter(result.folder, base)


def verdicts_on(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Every model's verdict against the naive forecast, corrected for nothing."""
    models = [model for model in models_of(predictions) if model != NAIVE]
    return [judge(predictions, model, (NAIVE,)).overall[NAIVE].as_dict() for model in models]


def decisions_on(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """What each gate decides on the adapter, where there is one."""
    if ADAPTER not in models_of(predictions):
        return []
    found = [decide(predictions, ADAPTER, champion=None, gate=gate) for gate in ("strict", "lenient")]
    return [{"gate": one.gate, "promoted": one.promote, "reason": one.reason} for one in found]


def verdict_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """By model: how often each verdict came up, the share and bound of "better", and how many are left by Holm."""
    table: list[dict[str, Any]] = []
    for model, own in rows.groupby("model", sort=False):
        counts = Counter(own["verdict"])
        better = own[own["verdict"] == BETTER]
        left = holm(better["adjusted_p"].to_numpy(), len(own)) <= ALPHA
        table.append(
            {
                "model": model,
                "tickers": len(own),
                **{str(verdict): counts[verdict] for verdict in (BETTER, NO_BETTER, WORSE, TOO_LITTLE)},
                **_share(counts[BETTER], len(own)),
                "better by Holm": int(left.sum()),
                "median skill": f"{own['skill'].median():.1%}",
            }
        )
    return pd.DataFrame(table)


def promotion_shares(decisions: pd.DataFrame) -> pd.DataFrame:
    """By gate: how many adapters were promoted, the share and its bound."""
    if decisions.empty:
        return decisions
    return pd.DataFrame(
        [
            {"gate": gate, "adapters": len(own), "promoted": int(own.sum()), **_share(int(own.sum()), len(own))}
            for gate, own in decisions.groupby("gate", sort=False)["promoted"]
        ]
    )


def _share(count: int, total: int) -> dict[str, str]:
    bound = binomtest(count, total, alternative="less").proportion_ci(0.95).high
    return {"share": f"{count / total:.1%}", "at most": f"{bound:.1%}"}


if __name__ == "__main__":
    main()
