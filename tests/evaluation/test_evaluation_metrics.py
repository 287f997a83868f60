from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.metrics import METRICS, better, mean_scores, score, undefined_scores

PRICES = st.floats(1e-3, 1e6)


def table(y: np.ndarray, horizon: int = 5, symbol: str = "AAPL", **models: np.ndarray) -> pd.DataFrame:
    days = pd.date_range("2024-01-01", periods=len(y))
    cutoffs = pd.Timestamp("2023-12-31") + pd.to_timedelta(np.arange(len(y)) // horizon * horizon, unit="D")
    return pd.DataFrame({"unique_id": symbol, "ds": days, "cutoff": cutoffs, "y": y, **models})


def by_hand(y: np.ndarray, forecast: np.ndarray) -> dict[str, float]:
    error = y - forecast
    return {
        "mae": np.abs(error).sum() / len(y),
        "rmse": np.sqrt((error**2).sum() / len(y)),
        "mape": 100 * np.abs(error / y).sum() / len(y),
    }


@given(st.data(), st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 12))
def test_scores_are_the_textbook_formulas(data: st.DataObject, lengths: list[int], horizon: int) -> None:
    tables = []
    for number, length in enumerate(lengths):
        y, naive, base = (data.draw(arrays.arrays(np.float64, length, elements=PRICES)) for _ in range(3))
        tables.append(table(y, horizon, f"T{number}", naive=naive, base=base))
    scores = score(pd.concat(tables, ignore_index=True))
    assert list(scores) == [f"T{number}" for number in range(len(lengths))]
    for number, one in enumerate(tables):
        for model in ("naive", "base"):
            expected = by_hand(one["y"].to_numpy(), one[model].to_numpy())
            assert scores[f"T{number}"][model] == pytest.approx(expected, rel=1e-9)


def test_mape_is_in_percent() -> None:
    assert score(table(np.array([100.0, 200.0]), naive=np.array([110.0, 220.0])))["AAPL"]["naive"][
        "mape"
    ] == pytest.approx(10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_forecast_that_is_not_finite_leaves_no_metric_and_says_why(bad: float) -> None:
    y = np.arange(1.0, 6.0)
    scores = score(table(y, naive=y + 1, base=np.array([1, 2, bad, 4, 5])))["AAPL"]
    assert scores["base"] == undefined_scores("no finite forecast or close at 1 of 5 bars")
    assert scores["naive"]["mae"] == 1
    assert "undefined" not in scores["naive"]


def test_a_close_of_zero_leaves_mape_alone_undefined() -> None:
    scores = score(table(np.array([0.0, 2.0]), naive=np.array([1.0, 1.0])))["AAPL"]["naive"]
    assert scores == {"mae": 1, "rmse": 1, "mape": None, "undefined": {"mape": "the close is 0 at 1 of 2 bars"}}


def test_errors_too_large_to_square_leave_rmse_undefined() -> None:
    scores = score(table(np.array([1.0, 1.0]), naive=np.array([1e200, 1e200])))["AAPL"]["naive"]
    assert scores["rmse"] is None
    assert scores["undefined"] == {"rmse": "the errors are too large for a number"}


def test_a_symbol_without_a_model_has_no_entry_for_it() -> None:
    y = np.arange(1.0, 4.0)
    both = pd.concat([table(y, symbol="A", naive=y, checkpoint=y), table(y, symbol="B", naive=y)])
    scores = score(both)
    assert set(scores["A"]) == {"naive", "checkpoint"}
    assert set(scores["B"]) == {"naive"}


def test_two_rows_for_one_bar_are_refused() -> None:
    y = np.arange(1.0, 4.0)
    with pytest.raises(ArtifactError, match="AAPL at 2024-01-01 00:00:00 twice, and 3 such rows"):
        score(pd.concat([table(y, naive=y)] * 2))


def test_a_missing_column_is_named() -> None:
    y = np.arange(1.0, 4.0)
    with pytest.raises(ArtifactError, match="no column cutoff"):
        score(table(y, naive=y).drop(columns="cutoff"))


def test_the_lower_mae_is_better_a_tie_is_not_and_nothing_beats_the_undefined() -> None:
    low, high = ({"mae": mae, "rmse": 1.0, "mape": 1.0} for mae in (1.0, 2.0))
    assert better(low, high) is True
    assert better(high, low) is False
    assert better(low, low) is False
    assert better(low, undefined_scores("why")) is None
    assert better(undefined_scores("why"), low) is None
    assert better(low, None) is None


def test_the_mean_over_symbols_is_undefined_where_one_of_them_is() -> None:
    one, two = ({"mae": mae, "rmse": 2 * mae, "mape": 3 * mae} for mae in (1.0, 2.0))
    assert mean_scores([one, two]) == {"mae": 1.5, "rmse": 3.0, "mape": 4.5}
    means = mean_scores([one, undefined_scores("why")])
    assert [means[metric] for metric in METRICS] == [None] * 3
    assert means["undefined"]["mae"] == "undefined for 1 of 2 symbols"
