"""Measure the rates of false and of right verdicts "better" by target, on simulated tickers whose volatility is known.

    python benchmarks/false_positives.py --tickers 400    # the report in docs/false-positives.md
    python benchmarks/false_positives.py --tickers 4      # a smoke test

The log price of every ticker is a random walk: with constant volatility, with GARCH(1,1) volatility and t innovations,
or with such a GARCH and announced news, bars whose variance is sixteen times as large and known in advance. Each ticker
has a holdout of 8, 12, 24 or 40 cutoffs in turn. It is forecast by the rivals, by the embedded Kronos model, and by
forecasters that know the process and the variance at each cutoff (`known_volatility.py`):

    truth_1, truth_2      independent paths of the true distribution, so that neither is better
    wrong_1 to wrong_4    the same, but each misjudges the variance at each cutoff by a random factor of its own, of
                          one distribution, so that none is better

Verdicts are not corrected for the number of tickers. The nominal rate of a verdict "better" is 5 percent; the bound is
the exact one-sided 95 percent bound of a binomial share.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from known_volatility import CONSTANT, GARCH_T, Forecaster, VolatileTicker, simulate
from scipy.stats import binomtest

from kronos_pipeline.artifacts import write_json
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import build_windows
from kronos_pipeline.evaluation.forecasting.holdout_table import paths_table, predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, EWMA, GARCH, HAR, KRONOS, NAIVE
from kronos_pipeline.evaluation.scoring.model_confidence import compare_all
from kronos_pipeline.evaluation.scoring.targets import MEAN, RIVALS, TARGETS, VOLATILITY, target_losses
from kronos_pipeline.evaluation.scoring.verdicts import BETTER, WORSE, combined_verdict, compare, correct, overlap
from kronos_pipeline.model.devices import pick_device
from kronos_pipeline.model.loading import KronosModel, load_base

TICKERS: Mapping[str, Mapping[str, Any]] = {
    "constant": {"process": CONSTANT},
    "GARCH-t": {"process": GARCH_T},
    "news": {"process": GARCH_T, "factor": 16.0, "share": 0.15},
}
"""Kinds of tickers, with the arguments of `simulate`."""
CUTOFFS = (8, 12, 24, 40)
TRAINING_BARS, SELECTION_BARS = 360, 60
SETTINGS: dict[str, Any] = {
    "model_name": "kronos-nano",
    "horizon": 5,
    "eval_samples": 32,
    "top_p": 0.9,
    "selection_bars": SELECTION_BARS,
    "device": "cpu",
    "precision": "fp32",
}
KNOWING_PATHS = 500
"""Paths of a forecaster; as many as those of a volatility rival."""
ERROR = 0.5
"""Standard deviation of the log of a wrong forecaster's factor of the variance."""
FIRST_SEED = 10_000
"""Far from the seeds that served in development."""
TRUTH = ("truth_1", "truth_2")
WRONG = ("wrong_1", "wrong_2", "wrong_3", "wrong_4")
ALL_RIVALS, ALL_AND_EQUAL = "all rivals", "all rivals and an equal"
SAME_LAW = ((TRUTH[0], TRUTH[1]), (WRONG[0], WRONG[1]), (TRUTH[0], ALL_AND_EQUAL))
"""Pairs of equal models: neither can be better, and both are wrong equally often."""
NO_BETTER_THAN = ((BASE, TRUTH[0]), (WRONG[0], TRUTH[0]), (BASE, NAIVE))
"""Pairs whose first model cannot be better, as the second knows the distribution, or is the best mean path."""
SPA_LEVEL = 0.05
JOINT_TESTS_EVERY = 5
"""The joint tests are slow, and run on every fifth ticker."""


def main() -> None:
    """Run the experiment and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickers", type=int, default=400, help="simulated tickers of each kind")
    parser.add_argument("--kinds", nargs="+", choices=TICKERS, default=list(TICKERS), help="kinds of tickers")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="minutes after which no new ticker begins")
    parser.add_argument("--output", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()

    recipe = Recipe.model_validate(SETTINGS)
    base = load_base(find_base_model(recipe.model_name, recipe.tokenizer_name), pick_device(recipe.device))
    ends = time.monotonic() + 60 * options.minutes
    verdicts: list[dict[str, Any]] = []
    joint: list[dict[str, Any]] = []
    for number in in_time(options.tickers, ends):
        for kind in options.kinds:
            predictions = forecast_ticker(kind, number, base, recipe)
            described = {"kind": kind, "cutoffs": CUTOFFS[number % len(CUTOFFS)]}
            verdicts += [described | row for row in verdicts_on(predictions)]
            if number % JOINT_TESTS_EVERY == 0:
                joint += [described | row for row in joint_tests_on(predictions)]
    rows = pd.DataFrame(verdicts)
    tables = {
        "Equal models": shares_of(_pairs(rows, SAME_LAW)),
        "Models that cannot be better": shares_of(_pairs(rows, NO_BETTER_THAN)),
        "The embedded model against rivals": shares_of(rows[rows["model"] == BASE]),
        "A model that knows the volatility, by cutoffs": shares_of(_pairs(rows, _power_pairs()), by=["cutoffs"]),
        "Joint tests": joint_shares(pd.DataFrame(joint)),
    }
    for title, table in tables.items():
        print(f"\n{title}\n{table.to_string(index=False)}")
    if options.output is not None:
        records = {title: table.to_dict("records") for title, table in tables.items()}
        write_json(options.output, {"settings": SETTINGS, "tables": records, "verdicts": verdicts, "joint": joint})


def in_time(count: int, ends: float) -> Iterator[int]:
    """Count from 0, print every twentieth number, and stop at `count` or when the monotonic clock shows `ends`."""
    start, number = time.monotonic(), 0
    while number < count and time.monotonic() < ends:
        yield number
        number += 1
        if number % 20 == 0 or number == count:
            print(f"{number} of {count} tickers of each kind, {time.monotonic() - start:.0f} s", flush=True)
    if number < count:
        print(f"out of time: {number} of {count} tickers of each kind", flush=True)


def forecast_ticker(kind: str, number: int, base: KronosModel | None, recipe: Recipe) -> pd.DataFrame:
    """Simulate a ticker, and forecast its holdout with the rivals, the forecasters and, if given, a base model."""
    held_out = CUTOFFS[number % len(CUTOFFS)] * recipe.horizon
    bars = TRAINING_BARS + SELECTION_BARS + held_out
    ticker = simulate(f"{kind.upper()}{number}", FIRST_SEED + number, bars, **TICKERS[kind])
    windows = build_windows(ticker.bars, recipe.model_copy(update={"validation_bars": held_out}))
    models = {} if base is None else {BASE: base}
    table = predict(windows, models, dict.fromkeys(models, plain_sampling(recipe)), recipe).predictions
    known_bars = windows.bars.values[windows.of_split("holdout")["origin"]]
    closes = {
        name: np.stack([forecaster.closes(bar, KNOWING_PATHS, recipe.horizon) for bar in known_bars])
        for name, forecaster in forecasters(ticker, number).items()
    }
    return pd.concat([table, paths_table(windows, closes)], ignore_index=True)


def forecasters(ticker: VolatileTicker, number: int) -> dict[str, Forecaster]:
    """Return the forecasters of a ticker by name, with seeds of their own."""
    names = (*TRUTH, *WRONG)
    seeds = range(len(names) * number, len(names) * (number + 1))
    return {
        name: Forecaster(ticker, seed, ERROR if name in WRONG else 0.0) for name, seed in zip(names, seeds, strict=True)
    }


def verdicts_on(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Judge pairs of models on every target, without a correction for the number of tickers."""
    models = set(predictions["model"])
    ahead = overlap(predictions)
    rows = []
    for target in TARGETS:
        rivals = [rival for rival in RIVALS[target] if rival in models and rival not in KRONOS]
        judged = [(TRUTH[0], rival) for rival in (*rivals, TRUTH[1])] + [(BASE, rival) for rival in (*rivals, TRUTH[0])]
        pairs = [pair for pair in (*judged, WRONG[:2], (WRONG[0], TRUTH[0])) if set(pair) <= models]
        names = {name for pair in pairs for name in pair}
        losses = {name: target_losses(predictions, name, target).droplevel("unique_id") for name in names}
        verdicts, skills = {}, {}
        for model, rival in pairs:
            compared = compare(losses[model], losses[rival], model=model, rival=rival, overlap=ahead)
            (decided,) = correct([compared], 1)
            verdicts[model, rival], skills[model, rival] = decided.verdict, decided.skill
        for model in {TRUTH[0], BASE} & models:
            equal = [TRUTH[1]] if model == TRUTH[0] else []
            for name, beside in ((ALL_RIVALS, []), *([(ALL_AND_EQUAL, equal)] if equal else [])):
                verdicts[model, name] = combined_verdict(verdicts[model, rival] for rival in (*rivals, *beside))
        rows += [
            {"target": target, "model": pair[0], "rival": pair[1], "verdict": verdict, "skill": skills.get(pair)}
            for pair, verdict in verdicts.items()
        ]
    return rows


def joint_tests_on(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Run the joint tests on equal models, and on the rivals with a model that knows the volatility.

    Returns:
        For each target and set of models: `rejected`, whether superior predictive ability says that a model is better
        than the benchmark, and `left_out`, whether the model confidence set lacks a given best model.
    """
    equal = dict(zip(WRONG, (EWMA, GARCH, HAR, BASE), strict=True))
    rows = []
    for target in TARGETS:
        sets = {"rivals and truth": (_renamed(predictions, {TRUTH[0]: ADAPTER}, keep=True), ADAPTER)}
        if target != MEAN:
            sets["equal models"] = (_renamed(predictions, equal, keep=False), EWMA)
        for name, (table, best) in sets.items():
            tested = compare_all(table, target)
            best = NAIVE if target == MEAN else best
            rows.append(
                {
                    "target": target,
                    "models": name,
                    "rejected": bool(tested.spa_p is not None and tested.spa_p <= SPA_LEVEL),
                    "left_out": bool(tested.models) and best not in tested.confidence_set,
                }
            )
    return rows


def shares_of(rows: pd.DataFrame, by: list[str] | None = None) -> pd.DataFrame:
    """Count verdicts by pair of models, kind of ticker and target, with the share of "better" and its bound."""
    table: list[dict[str, Any]] = []
    keys = ["model", "rival", "kind", "target", *(by or [])]
    for values, group in rows.groupby(keys, sort=False):
        better, total = int((group["verdict"] == BETTER).sum()), len(group)
        table.append(
            {
                **dict(zip(keys, values, strict=True)),
                "tickers": total,
                "better": better,
                "worse": int((group["verdict"] == WORSE).sum()),
                "undefined": int(group["skill"].isna().sum()) if values[1] not in (ALL_RIVALS, ALL_AND_EQUAL) else 0,
                **_share(better, total),
                "median skill": f"{group['skill'].astype(float).median():.1%}",
            }
        )
    return pd.DataFrame(table)


def joint_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Count rejections by superior predictive ability, and model confidence sets without the best model."""
    table: list[dict[str, Any]] = []
    for values, group in rows.groupby(["models", "kind", "target"], sort=False):
        rejected, left_out, total = int(group["rejected"].sum()), int(group["left_out"].sum()), len(group)
        named = dict(zip(("models", "kind", "target"), values, strict=True)) | {"tickers": total}
        left = {f"left out {name}": text for name, text in _share(left_out, total).items()}
        table.append(named | {"rejected": rejected, **_share(rejected, total), "left out": left_out, **left})
    return pd.DataFrame(table)


def _renamed(predictions: pd.DataFrame, names: Mapping[str, str], *, keep: bool) -> pd.DataFrame:
    """Rename models, and keep the rivals, or the renamed models alone."""
    kept = set(names) | ({rival for rivals in RIVALS.values() for rival in rivals} - {BASE} if keep else set())
    rows = predictions[predictions["model"].isin(kept)]
    return rows.assign(model=rows["model"].replace(dict(names)))


def _pairs(rows: pd.DataFrame, pairs: Any) -> pd.DataFrame:
    wanted = {*pairs}
    return rows[[pair in wanted for pair in zip(rows["model"], rows["rival"], strict=True)]]


def _power_pairs() -> list[tuple[str, str]]:
    return list(product([TRUTH[0]], [*RIVALS[MEAN], *RIVALS[VOLATILITY], ALL_RIVALS]))


def _share(count: int, total: int) -> dict[str, str]:
    bound = binomtest(count, total, alternative="less").proportion_ci(0.95).high
    return {"share": f"{count / total:.1%}", "at most": f"{bound:.1%}"}


if __name__ == "__main__":
    main()
