from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from made_predictions import made_predictions

from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.predictions import INTERVALS
from kronos_pipeline.evaluation.scoring.metrics import METRICS, UNITS, Scores, mean_scores, score, undefined_scores

PRICES = st.floats(1e-3, 1e6)


def pinball(y: np.ndarray, quantile: np.ndarray, share: float) -> float:
    """Return the loss that is least, in expectation, at the quantile that a share of the closes lies below."""
    losses = [
        (value - q) * share if value >= q else (q - value) * (1 - share) for value, q in zip(y, quantile, strict=True)
    ]
    return float(sum(losses)) / len(losses)


def variance_scores(rows: pd.DataFrame) -> dict[str, float]:
    """Score the variance over each forecast's bars, the mean over the cutoffs."""
    forecasts = [forecast.sum() for _, forecast in rows.groupby("cutoff")["variance"]]
    realised, ranges = (
        [forecast.sum() for _, forecast in rows.groupby("cutoff")[name]]
        for name in ("squared_return", "range_variance")
    )
    ratios, range_ratios = np.divide(realised, forecasts), np.divide(ranges, forecasts)
    return {
        "qlike": float(np.mean([ratio - math.log(ratio) - 1 for ratio in ratios])),
        "range_qlike": float(np.mean([ratio - math.log(ratio) - 1 for ratio in range_ratios])),
        "log_variance_error": float(np.mean([abs(math.log(ratio)) for ratio in ratios])),
    }


def by_hand(y: np.ndarray, forecast: np.ndarray, last: float, scale: float, half: float) -> dict[str, float | None]:
    error = forecast - y
    forecast_sign, real_sign = np.sign(forecast - last), np.sign(y - last)
    counted = (forecast_sign != 0) & (real_sign != 0)
    hits = [100.0 * (a == b) for a, b, counts in zip(forecast_sign, real_sign, counted, strict=True) if counts]
    scores: dict[str, float | None] = {
        "mae": np.abs(error).sum() / len(y),
        "rmse": np.sqrt((error**2).sum() / len(y)),
        "mape": 100 * np.abs(error / y).sum() / len(y),
        "mase": np.abs(error).sum() / len(y) / scale,
        "bias": error.sum() / len(y),
        "directional_accuracy": sum(hits) / len(hits) if hits else None,
        "crps": np.abs(error).sum() / len(y),
        "scaled_crps": np.abs(error).sum() / len(y) / scale,
        "brier": sum(0.25 for close in y if close != last) / len(y),  # of a probability of a half
    }
    for percent, widths in ((5, -3), (10, -2), (25, -1), (75, 1), (90, 2), (95, 3)):
        scores[f"pinball_{percent}"] = pinball(y, forecast + widths * half, percent / 100) / scale
    for prefix, wider in (("", 1), ("raw_", 2)):
        for level, factor in ((50, 1), (80, 2), (90, 3)):
            low, high = forecast - half * factor * wider, forecast + half * factor * wider
            scores[f"{prefix}coverage_{level}"] = 100 * sum((low <= y) & (y <= high)) / len(y)
            scores[f"{prefix}width_{level}"] = 100 * sum(high - low) / last / len(y)
    return scores


@pytest.mark.slow
@settings(max_examples=15)
@given(st.data(), st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 12))
def test_scores_are_the_textbook_formulas(data: st.DataObject, lengths: list[int], horizon: int) -> None:
    tables, expected = [], {}
    for number, length in enumerate(lengths):
        y, *forecasts = (data.draw(arrays.arrays(np.float64, length, elements=PRICES)) for _ in range(3))
        last, scale, half = (data.draw(st.floats(0.1, 1e4)) for _ in range(3))
        models = dict(zip(("ewma", "base"), forecasts, strict=True))
        halves = dict.fromkeys(models, half)
        symbol = f"T{number}"
        table = made_predictions(y, models, symbol=symbol, horizon=horizon, last=last, scale=scale, half_widths=halves)
        variances = np.random.default_rng(number).lognormal(-9, 1, (4, length))
        table["squared_return"], table["range_variance"] = (np.tile(values, 2) for values in variances[:2])
        table["variance"] = variances[2:].ravel()
        tables.append(table)
        for model, forecast in models.items():
            rows = table[table["model"] == model]
            expected[symbol, model] = {**by_hand(y, forecast, last, scale, half), **variance_scores(rows)}
    scores = score(pd.concat(tables, ignore_index=True))
    assert list(scores) == [f"T{number}" for number in range(len(lengths))]
    for (symbol, model), values in expected.items():
        scores_of_model: Mapping[str, object] = scores[symbol][model]
        assert set(scores_of_model) - {"undefined"} == set(values)
        for metric, value in values.items():
            assert scores_of_model[metric] == (value if value is None else pytest.approx(value, rel=1e-9, abs=1e-9))


def test_every_score_has_a_unit() -> None:
    y = np.arange(1.0, 11.0)
    scores = score(made_predictions(y, {"base": y + 1}, half_widths={"base": 1.0}))["AAPL"]["base"]
    assert tuple(scores) == METRICS == tuple(UNITS)
    assert set(UNITS.values()) == {
        "price",
        "percent",
        "scaled",
        "percent of the close",
        "log ratio",
        "squared probability",
    }
    assert set(Scores.__annotations__) == {*METRICS, "undefined"}


def test_the_brier_score_is_the_mean_squared_error_of_p_up_and_a_close_without_a_move_counts_half() -> None:
    y = np.array([101.0, 99.0, 100.0])
    table = made_predictions(y, {"base": y}).assign(p_up=[0.9, 0.4, 0.6])
    assert score(table)["AAPL"]["base"]["brier"] == pytest.approx((0.1**2 + 0.4**2 + 0.1**2) / 3)
    scores = score(table.assign(p_up=np.nan))["AAPL"]["base"]
    assert scores["brier"] is None
    assert scores["undefined"]["brier"] == "no probability of a close above the last at 3 of 3 bars"


def test_shares_are_in_percent() -> None:
    y = np.array([110.0, 90.0, 120.0, 80.0])
    scores_by_symbol = score(
        made_predictions(y, {"base": np.array([121.0, 99.0, 132.0, 104.0])}, half_widths={"base": 10.0})
    )
    scores = scores_by_symbol["AAPL"]["base"]
    assert scores["mape"] == pytest.approx((10 + 10 + 10 + 30) / 4)
    assert scores["directional_accuracy"] == 75  # the last rises in the forecast and falls in truth
    assert (scores["coverage_50"], scores["coverage_80"], scores["coverage_90"]) == (25, 75, 100)
    assert (scores["width_50"], scores["raw_width_50"]) == (20, 40)


def test_bias_is_above_zero_where_forecasts_are_too_high() -> None:
    y = np.array([10.0, 20.0])
    assert score(made_predictions(y, {"base": y + 3}))["AAPL"]["base"]["bias"] == 3
    assert score(made_predictions(y, {"base": y - 3}))["AAPL"]["base"]["bias"] == -3


@pytest.mark.parametrize("factor", [0.001, 7.3, 1000.0])
def test_a_price_in_another_unit_changes_price_metrics_alone(factor: float) -> None:
    rng = np.random.default_rng(3)
    y, forecast = 100 + rng.normal(size=(2, 20))
    plain = made_predictions(y, {"base": forecast}, scale=0.7, half_widths={"base": 0.5})
    prices = ["y", "last", "scale", "mean", "median", "crps", *INTERVALS]
    tables = (plain, plain.assign(**plain[prices] * factor))
    scores, scaled = (dict[str, Any](score(table)["AAPL"]["base"]) for table in tables)
    for metric, unit in UNITS.items():
        expected = scores[metric] * (factor if unit == "price" else 1)
        assert scaled[metric] == pytest.approx(expected, rel=1e-9)


def test_the_naive_forecast_has_no_direction_and_no_interval_and_that_is_said() -> None:
    y = np.array([101.0, 99.0, 103.0])
    scores = score(made_predictions(y, {"naive": np.full(3, 100.0)}))["AAPL"]["naive"]
    assert scores["mae"] == pytest.approx(5 / 3)
    assert scores["directional_accuracy"] is None
    assert "both differ from the close at the cutoff" in scores["undefined"]["directional_accuracy"]
    for metric in ("coverage_50", "width_90", "raw_coverage_80", "raw_width_80"):
        assert scores[metric] is None
        assert scores["undefined"][metric] == "no interval at 3 of 3 bars"


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf, -1.0])
def test_no_scale_leaves_the_scaled_metrics_alone_undefined(scale: float) -> None:
    y = np.array([101.0, 99.0])
    scores = score(made_predictions(y, {"base": y + 1}, scale=scale, half_widths={"base": 1.0}))["AAPL"]["base"]
    reason = "no scale (the close never changed before the evaluation) at 2 of 2 bars"
    scaled = [metric for metric, unit in UNITS.items() if unit == "scaled"]
    assert {"mase", "scaled_crps", "pinball_5", "pinball_95"} < set(scaled)
    assert scores["undefined"] == dict.fromkeys(scaled, reason)
    assert scores["mase"] is None
    assert scores["crps"] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_forecast_that_is_not_finite_leaves_no_score_of_points_and_says_why(bad: float) -> None:
    y = np.arange(1.0, 6.0)
    scores = score(made_predictions(y, {"naive": y + 1, "base": np.array([1, 2, bad, 4, 5])}))["AAPL"]
    for metric in ("mae", "rmse", "mape", "mase", "bias", "directional_accuracy"):
        assert scores["base"][metric] is None
        assert scores["base"]["undefined"][metric] == "no finite forecast or close at 1 of 5 bars"
    assert scores["base"]["undefined"]["crps"] == "no finite CRPS at 1 of 5 bars"
    assert scores["naive"]["mae"] == 1


def test_a_close_of_zero_leaves_mape_alone_undefined() -> None:
    y = np.array([0.0, 2.0])
    scores = score(made_predictions(y, {"base": np.array([1.0, 1.0])}, half_widths={"base": 1.0}))["AAPL"]["base"]
    assert scores["mae"] == 1
    assert scores["undefined"] == {"mape": "the close is 0 at 1 of 2 bars"}


def test_a_close_of_zero_at_the_cutoff_leaves_widths_undefined() -> None:
    y = np.array([1.0, 2.0])
    scores = score(made_predictions(y, {"base": y}, last=0.0, half_widths={"base": 1.0}))["AAPL"]["base"]
    assert scores["undefined"]["width_80"] == "the close at the cutoff is 0 at 2 of 2 bars"
    assert scores["coverage_80"] == 100


def test_errors_too_large_to_square_leave_rmse_undefined() -> None:
    table = made_predictions(np.array([1.0, 1.0]), {"base": np.full(2, 1e200)}, half_widths={"base": 1.0})
    scores = score(table)["AAPL"]["base"]
    assert scores["rmse"] is None
    assert scores["undefined"] == {"rmse": "the errors are too large for a number"}


def test_qlike_is_zero_for_the_right_variance_and_larger_for_one_too_low_than_for_one_too_high() -> None:
    y = np.full(6, 100.0)
    table = made_predictions(y, dict.fromkeys(("ewma", "garch", "adapter"), y), horizon=3)
    table["variance"] = table["squared_return"] * table["model"].map({"ewma": 1.0, "garch": 0.5, "adapter": 2.0})
    scores = score(table)["AAPL"]
    assert scores["ewma"]["qlike"] == scores["ewma"]["log_variance_error"] == 0
    assert scores["garch"]["qlike"] == pytest.approx(2 - math.log(2) - 1)
    assert scores["adapter"]["qlike"] == pytest.approx(0.5 + math.log(2) - 1)
    assert scores["garch"]["log_variance_error"] == pytest.approx(scores["adapter"]["log_variance_error"])


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"variance": np.nan, "p_up": np.nan}, "no forecast of the variance at 1 of 6 bars"),
        ({"variance": np.nan}, "a sampled close is not above 0 at 1 of 6 bars"),
    ],
)
def test_a_variance_that_is_missing_at_one_bar_leaves_its_scores_undefined(
    columns: dict[str, float], reason: str
) -> None:
    table = made_predictions(np.full(6, 102.0), {"adapter": np.full(6, 101.0)}, horizon=3, half_widths={"adapter": 1.0})
    table.loc[4, list(columns)] = list(columns.values())
    scores = score(table)["AAPL"]["adapter"]
    assert scores["qlike"] is None
    undefined = {metric: why for metric, why in scores["undefined"].items() if metric != "brier"}
    assert undefined == dict.fromkeys(("qlike", "range_qlike", "log_variance_error"), reason)


def test_a_close_that_does_not_move_over_a_forecast_leaves_its_variance_scores_undefined() -> None:
    table = made_predictions(np.full(6, 102.0), {"adapter": np.full(6, 101.0)}, horizon=3, half_widths={"adapter": 1.0})
    table.loc[:2, "squared_return"] = 0.0
    scores = score(table)["AAPL"]["adapter"]
    reason = "the close, or its range, does not move over the bars of a forecast"
    assert scores["undefined"] == dict.fromkeys(("qlike", "log_variance_error"), reason)
    assert scores["range_qlike"] == 0


def test_a_symbol_without_a_model_has_no_entry_for_it() -> None:
    y = np.arange(1.0, 4.0)
    tables = [
        made_predictions(y, {"naive": y, "checkpoint": y}, symbol="A"),
        made_predictions(y, {"naive": y}, symbol="B"),
    ]
    scores = score(pd.concat(tables))
    assert set(scores["A"]) == {"naive", "checkpoint"}
    assert set(scores["B"]) == {"naive"}
    assert score(tables[0].iloc[:0]) == {}


def test_a_bar_that_is_forecast_from_two_cutoffs_counts_twice() -> None:
    near = made_predictions(np.array([100.0]), {"base": np.array([101.0])})
    far = near.assign(cutoff=near["cutoff"] - pd.Timedelta(days=5), mean=103.0)
    assert score(pd.concat([near, far]))["AAPL"]["base"]["mae"] == 2


def test_two_rows_for_one_bar_and_cutoff_are_refused() -> None:
    y = np.arange(1.0, 4.0)
    with pytest.raises(ArtifactError, match=r"AAPL at 2024-01-01 00:00:00 from .* twice, and 3 such rows"):
        score(pd.concat([made_predictions(y, {"naive": y})] * 2))


def test_a_missing_column_is_named() -> None:
    y = np.arange(1.0, 4.0)
    with pytest.raises(ArtifactError, match="no column cutoff"):
        score(made_predictions(y, {"naive": y}).drop(columns="cutoff"))


def scores_of(**values: float) -> Scores:
    return cast(Scores, {**dict.fromkeys(METRICS, 1.0), **values})


def test_the_mean_over_symbols_is_undefined_where_one_of_them_is() -> None:
    means = mean_scores([scores_of(mae=1.0, coverage_80=70.0), scores_of(mae=3.0, coverage_80=90.0)])
    assert (means["mae"], means["coverage_80"], means["rmse"]) == (2.0, 80.0, 1.0)
    assert "undefined" not in means
    means = mean_scores([scores_of(), undefined_scores("why")])
    assert all(dict(means)[metric] is None for metric in METRICS)
    assert means["undefined"]["mae"] == "undefined for 1 of 2 symbols"
