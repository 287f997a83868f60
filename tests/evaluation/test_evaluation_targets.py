"""The loss of each target, the variant that is judged, the rivals, and the verdict over all rivals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from made_predictions import made_predictions

from kronos_pipeline.evaluation.predictions import VOLATILITY_RIVALS
from kronos_pipeline.evaluation.scoring.targets import (
    RIVALS,
    TARGETS,
    ChosenVariants,
    Target,
    judged_rows,
    loss_table,
    rivals_in,
    target_losses,
)
from kronos_pipeline.evaluation.scoring.verdicts import BETTER, NO_BETTER, TOO_LITTLE, WORSE, Verdict, combined_verdict

MODELS = ("ewma", "base", "adapter")


def random_table(seed: int, symbol: str = "AAPL", bars: int = 8, scale: float = 2.0) -> pd.DataFrame:
    """Return forecasts of three bars each, the last cut, with random values in every column that a loss reads."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(90, 110, bars)
    models = {model: rng.uniform(90, 110, bars) for model in MODELS}
    table = made_predictions(y, models, symbol=symbol, horizon=3, scale=scale)
    table["squared_return"] = np.tile(rng.lognormal(-9, 1, bars), len(models))
    return table.assign(crps=rng.uniform(0, 5, len(table)), variance=rng.lognormal(-9, 1, len(table)))


def loss_by_hand(rows: pd.DataFrame, target: Target) -> float:
    """Return the loss of the bars of one forecast."""
    bars = rows.to_dict("records")
    if target == "mean":
        return float(sum(abs(bar["y"] - bar["mean"]) / bar["scale"] for bar in bars)) / len(bars)
    if target == "distribution":
        return float(sum(bar["crps"] / bar["scale"] for bar in bars)) / len(bars)
    realised, forecast = (sum(bar[name] for bar in bars) for name in ("squared_return", "variance"))
    return float(realised / forecast - (math.log(realised) - math.log(forecast)) - 1)


def losses(table: pd.DataFrame, target: Target, model: str = "adapter") -> list[float]:
    return [float(loss) for loss in target_losses(table, model, target)]


# The loss of each target


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_loss_is_the_formula_over_the_bars_of_one_forecast(target: Target, seed: int) -> None:
    table = pd.concat([random_table(seed), random_table(seed + 1, "MSFT", scale=0.5)], ignore_index=True)
    together = loss_table(table, target)
    assert set(together) == set(MODELS)
    for model in MODELS:
        found = target_losses(table, model, target)
        forecasts = table[table["model"] == model].groupby(["unique_id", "cutoff"])
        expected = {key: loss_by_hand(rows, target) for key, rows in forecasts}
        assert found.to_dict() == pytest.approx(expected)
        assert together[model].to_dict() == pytest.approx(expected)


@pytest.mark.parametrize("target", TARGETS)
def test_a_loss_does_not_depend_on_the_order_of_the_rows(target: Target) -> None:
    table = random_table(0)
    assert losses(table.sample(frac=1, random_state=0), target) == pytest.approx(losses(table, target))


@pytest.mark.parametrize(
    ("target", "column"),
    [
        ("mean", "mean"),
        ("mean", "y"),
        ("mean", "scale"),
        ("distribution", "crps"),
        ("distribution", "scale"),
        ("volatility", "variance"),
        ("volatility", "squared_return"),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_is_undefined_at_the_cutoff_of_a_value_that_is_not_finite(
    target: Target, column: str, bad: float
) -> None:
    table = random_table(0)
    whole = losses(table, target)
    table.loc[(table["model"] == "adapter") & (table.groupby("model").cumcount() == 4), column] = bad
    found = losses(table, target)
    assert math.isnan(found[1])
    assert [found[0], found[2]] == pytest.approx([whole[0], whole[2]])
    assert loss_table(table, target)["adapter"].iloc[1] == np.inf


@pytest.mark.parametrize("target", ["mean", "distribution"])
@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_errors_without_a_scale_above_zero_are_undefined(target: Target, scale: float) -> None:
    assert np.isnan(losses(random_table(0).assign(scale=scale), target)).all()


@pytest.mark.parametrize("column", ["variance", "squared_return"])
def test_a_close_that_does_not_move_over_a_forecast_has_no_loss_of_volatility(column: str) -> None:
    table = random_table(0)
    table.loc[table.groupby("model").cumcount() < 3, column] = 0.0
    found = losses(table, "volatility")
    assert np.isnan(found).tolist() == [True, False, False]


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_without_a_forecast_has_no_loss(target: Target) -> None:
    table = random_table(0)
    assert target_losses(table, "checkpoint", target).empty
    table = table[(table["model"] != "adapter") | (table["cutoff"] > table["cutoff"].min())]
    assert len(target_losses(table, "adapter", target)) == 2
    assert loss_table(table, target)["adapter"].isna().tolist() == [True, False, False]


# The variant that is judged


def table_with_variants(symbol: str) -> pd.DataFrame:
    """Return a table in which each row's mean tells its model and variant."""
    numbers = {"naive": 1, "base": 2, "adapter": 3, "base_recentred": 4, "adapter_recentred": 5, "adapter_rescaled": 6}
    y = np.full(4, 100.0)
    return made_predictions(y, {name: np.full(4, float(number)) for name, number in numbers.items()}, symbol=symbol)


def judged_models(rows: pd.DataFrame) -> dict[str, int]:
    """Return the number of the rows that stand for each model."""
    assert not rows.duplicated(["unique_id", "model", "ds"]).any()
    return {row["model"]: int(row["mean"]) for row in rows.to_dict("records")}


def test_each_model_is_judged_by_the_variant_that_was_chosen_for_the_ticker_and_the_target() -> None:
    table = pd.concat([table_with_variants("AAPL"), table_with_variants("MSFT"), table_with_variants("NVDA")])
    variants: ChosenVariants = {
        "AAPL": {"base": {"distribution": "recentred"}, "adapter": {"distribution": "rescaled"}},
        "MSFT": {"adapter": {"distribution": "recentred", "volatility": "sampled"}},
    }
    judged = judged_rows(table, "distribution", variants)
    assert {str(symbol): judged_models(rows) for symbol, rows in judged.groupby("unique_id")} == {
        "AAPL": {"naive": 1, "base": 4, "adapter": 6},
        "MSFT": {"naive": 1, "base": 2, "adapter": 5},
        "NVDA": {"naive": 1, "base": 2, "adapter": 3},
    }
    assert len(judged) == 3 * 3 * 4
    as_sampled = judged_rows(table, "volatility", variants)
    assert judged_models(as_sampled) == {"naive": 1, "base": 2, "adapter": 3}


def test_a_table_without_variants_is_judged_as_it_is() -> None:
    table = random_table(0)
    pd.testing.assert_frame_equal(judged_rows(table, "mean", {}), table)


# Rivals


def test_each_target_has_base_and_the_baselines_that_forecast_it_as_rivals() -> None:
    assert RIVALS["mean"] == ("naive", "drift", "seasonal_naive", "lightgbm", "chronos", "base")
    for target in ("distribution", "volatility"):
        assert RIVALS[target] == (*VOLATILITY_RIVALS, "lightgbm", "chronos", "base")


def test_rivals_that_a_table_lacks_are_left_out_unless_there_is_no_verdict_without_them() -> None:
    table = random_table(0)
    assert rivals_in(table, "mean") == ("naive", "base")  # without naive the verdict says that it is missing
    assert rivals_in(table, "distribution") == rivals_in(table, "volatility") == ("ewma", "base")
    more = pd.concat([table, *(table.assign(model=name) for name in ("chronos", "har", "drift"))])
    assert rivals_in(more, "mean") == ("naive", "drift", "chronos", "base")
    assert rivals_in(more, "volatility") == ("ewma", "har", "chronos", "base")


# The verdict over all rivals


@pytest.mark.parametrize("verdicts", itertools.product((BETTER, NO_BETTER, WORSE, TOO_LITTLE), repeat=3))
def test_a_model_is_better_only_if_better_than_every_rival_and_worse_if_worse_than_any(
    verdicts: tuple[Verdict, ...],
) -> None:
    combined = combined_verdict(verdicts)
    assert (combined == BETTER) == all(verdict == BETTER for verdict in verdicts)
    assert (combined == WORSE) == any(verdict == WORSE for verdict in verdicts)
    if combined == NO_BETTER:
        assert TOO_LITTLE not in verdicts


def test_without_a_rival_there_is_too_little_evidence() -> None:
    assert combined_verdict([]) == TOO_LITTLE
