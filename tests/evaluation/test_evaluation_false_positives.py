"""False positives: if no model is better, at most 5 in 100 verdicts say "better".

Simulated loss series with equal expected losses are the hardest case, because on a random walk every forecast except
the last close is truly worse. `benchmarks/false_positives.py` is the long form, on whole simulated tickers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.data.simulate import Dynamics, simulate_ticker
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.evaluation.forecasting.holdout_table import paths_table, predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.scoring.significance import diebold_mariano
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target, target_losses
from kronos_pipeline.evaluation.scoring.verdicts import ALPHA, BETTER, NO_BETTER, WORSE, compare, correct, judge

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from known_volatility import CONSTANT, GARCH_T, Forecaster, simulate

pytestmark = pytest.mark.slow

SERIES = 400
CUTOFFS = (8, 12, 16, 24, 40)

Draw = Callable[[np.random.Generator, int], np.ndarray]


def _follow(values: np.ndarray, decay: float) -> np.ndarray:
    """Return a stationary autoregression of order 1 with the variance of its shocks."""
    series = values.copy()
    for number in range(1, len(values)):
        series[number] = decay * series[number - 1] + (1 - decay**2) ** 0.5 * values[number]
    return series


# Differences of two losses, with expected value 0.
KINDS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(3, size=n),
    "calm and stormy weeks": lambda rng, n: rng.normal(size=n) * np.exp(_follow(rng.normal(size=n), 0.8)),
    "rare large losses of the model": lambda rng, n: rng.exponential(size=n) - 1,
    "rare large losses of the rival": lambda rng, n: 1 - rng.exponential(size=n),
    "neighbours alike": lambda rng, n: _follow(rng.normal(size=n), 0.3),
}


def _bound(count: int, total: int, side: str) -> float:
    """Return the exact one-sided 95 percent bound of a share: "less" is the upper bound, "greater" the lower."""
    interval = binomtest(count, total, alternative=side).proportion_ci(0.95)
    return float(interval.high if side == "less" else interval.low)


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list[str]]:
    """Return the verdicts on 400 pairs of loss series with equal expected losses, by kind."""
    verdicts_by_kind: dict[str, list[str]] = {}
    for seed, (kind, draw) in enumerate(KINDS.items()):
        rng = np.random.default_rng(seed)
        verdicts_by_kind[kind] = []
        for number in range(SERIES):
            cutoffs = CUTOFFS[number % len(CUTOFFS)]
            rival = 10 + np.abs(rng.normal(size=cutoffs))
            pair = (pd.Series(values) for values in (rival + draw(rng, cutoffs), rival))
            verdicts_by_kind[kind] += [
                comparison.verdict for comparison in correct([compare(*pair, model="a", rival="b")], 1)
            ]
    return verdicts_by_kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verdict", [BETTER, WORSE])
def test_no_kind_of_loss_makes_false_verdicts_above_the_nominal_rate(
    verdicts: dict[str, list[str]], kind: str, verdict: str
) -> None:
    assert _bound(verdicts[kind].count(verdict), SERIES, "greater") <= ALPHA


def test_over_all_kinds_false_verdicts_are_shown_to_stay_below_the_nominal_rate(
    verdicts: dict[str, list[str]],
) -> None:
    pooled = [verdict for verdicts_of_kind in verdicts.values() for verdict in verdicts_of_kind]
    assert _bound(pooled.count(BETTER), len(pooled), "less") <= ALPHA
    assert _bound(pooled.count(WORSE), len(pooled), "less") <= ALPHA
    assert pooled.count(NO_BETTER) + pooled.count(BETTER) + pooled.count(WORSE) == len(pooled)


@pytest.mark.parametrize("kind", ["rare large losses of the model", "neighbours alike"])
def test_one_test_alone_would_say_better_too_often(kind: str, verdicts: dict[str, list[str]]) -> None:
    rng = np.random.default_rng(99)
    false_verdicts = 0
    for number in range(SERIES):
        statistic, p_value = diebold_mariano(KINDS[kind](rng, CUTOFFS[number % len(CUTOFFS)]))
        false_verdicts += statistic < 0 and p_value <= ALPHA
    assert _bound(false_verdicts, SERIES, "greater") > verdicts[kind].count(BETTER) / SERIES


def test_over_many_tickers_hardly_any_family_holds_one_false_better() -> None:
    rng = np.random.default_rng(7)
    families = 0
    for _ in range(40):
        pairs = [(10 + rng.exponential(size=16), 10 + rng.exponential(size=16)) for _ in range(25)]
        compared = [
            compare(pd.Series(model), pd.Series(rival), model="a", rival="b", tickers_tested=25)
            for model, rival in pairs
        ]
        families += any(comparison.verdict == BETTER for comparison in correct(compared, 25))
    assert _bound(families, 40, "greater") <= ALPHA


@pytest.fixture(scope="module")
def equal_forecasts() -> list[pd.DataFrame]:
    """Return forecasts of simulated tickers by two models that misjudge the variance equally often."""
    tables = []
    for number in range(60):
        cutoffs, process = CUTOFFS[number % len(CUTOFFS)], (CONSTANT, GARCH_T)[number % 2]
        recipe = Recipe(lookback=20, horizon=4, validation_bars=4 * cutoffs, selection_bars=30)
        ticker = simulate(f"EQUAL{number}", number, 90 + 4 * cutoffs, process)
        windows = build_windows(ticker.bars, recipe)
        bars = ticker.bars.values[windows.of_split("holdout")["origin"]]
        models = {
            name: Forecaster(ticker, seed, error=0.5) for seed, name in enumerate(("base", "adapter"), 2 * number)
        }
        closes = {name: np.stack([model.closes(bar, 64, 4) for bar in bars]) for name, model in models.items()}
        tables.append(paths_table(windows, closes))
    return tables


@pytest.mark.parametrize("target", TARGETS)
def test_of_two_equal_models_none_is_better_on_any_target(equal_forecasts: list[pd.DataFrame], target: Target) -> None:
    verdicts = []
    for table in equal_forecasts:
        losses = (target_losses(table, model, target).droplevel("unique_id") for model in ("adapter", "base"))
        verdicts += [comparison.verdict for comparison in correct([compare(*losses, model="adapter", rival="base")], 1)]
    assert set(verdicts) <= {BETTER, NO_BETTER, WORSE}
    assert _bound(verdicts.count(BETTER), len(verdicts), "greater") <= ALPHA
    assert _bound(verdicts.count(WORSE), len(verdicts), "greater") <= ALPHA


def _random_walk(seed: int, recipe: Recipe) -> WindowSet:
    dynamics = Dynamics(walk=0.012, deviation=0.0, month_drift=0.0, day_drift=0.0)
    simulated = simulate_ticker(seed, 260, dynamics=dynamics)
    return build_windows(make_bars(f"WALK{seed}", simulated.frame(), source="simulated"), recipe)


def _oracle(windows: WindowSet) -> Callable[..., np.ndarray]:
    """Sampler that knows three quarters of the bars to come; the last known bar identifies the forecast."""
    values = windows.bars.values

    def sample(_: Any, history: np.ndarray, *stamps: np.ndarray, paths: int, **__: Any) -> np.ndarray:
        steps = np.arange(1, stamps[-1].shape[1] + 1)
        origins = [int(np.flatnonzero((values == bars[-1]).all(axis=1))[0]) for bars in history]
        truth = [
            0.75 * values[np.minimum(origin + steps, len(values) - 1)] + 0.25 * values[origin] for origin in origins
        ]
        return np.repeat(np.stack(truth)[:, None], paths, axis=1)

    return sample


def test_end_to_end_no_model_is_better_on_random_walks_and_one_that_knows_is() -> None:
    from kronos_pipeline.model.devices import pick_device
    from kronos_pipeline.model.loading import load_base

    base = load_base(find_base_model("kronos-nano", None), pick_device("cpu"))
    recipe = Recipe(
        model_name="kronos-nano", lookback=32, horizon=5, validation_bars=50, selection_bars=40, eval_samples=8
    )
    for seed in range(4):
        windows = _random_walk(700 + seed, recipe)
        samplings = {"base": plain_sampling(recipe)}
        predictions = predict(windows, {"base": base}, samplings, recipe).predictions
        for model in ("base", "drift", "ewma"):
            assert judge(predictions, model, ("naive",)).overall["naive"].verdict in (NO_BETTER, WORSE)
        informed = predict(windows, {"base": None}, samplings, recipe, sampler=_oracle(windows)).predictions
        assert judge(informed, "base", ("naive",)).overall["naive"].verdict == BETTER
