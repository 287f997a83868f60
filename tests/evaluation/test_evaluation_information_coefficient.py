from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from made_predictions import made_predictions
from scipy import stats

from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.scoring.information_coefficient import information_coefficient

HORIZON = 3


def tables(
    tickers: int = 10, cutoffs: int = 6, *, skill: float = 0.0, seed: int = 0, price: float = 1.0
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return predictions, and their predicted and real returns over the last step, (cutoffs, tickers).

    The tickers' prices differ by a factor of a thousand; at steps before the last, the forecast is wrong on purpose.
    """
    rng = np.random.default_rng(seed)
    real = 0.02 * rng.normal(size=(cutoffs, tickers))
    predicted = skill * real + 0.02 * rng.normal(size=(cutoffs, tickers))
    predictions = []
    for number in range(tickers):
        last = price * 10.0 ** (number % 4)
        y, forecast = (np.repeat(last * (1 + values[:, number]), HORIZON) for values in (real, predicted))
        step = np.arange(len(y)) % HORIZON
        forecast = np.where(step < HORIZON - 1, 2 * last - y, forecast)
        predictions.append(made_predictions(y, {"base": forecast}, symbol=f"T{number}", horizon=HORIZON, last=last))
    return pd.concat(predictions, ignore_index=True), predicted, real


@pytest.mark.parametrize("skill", [-1.0, 0.0, 2.0])
def test_it_is_the_mean_over_cutoffs_of_the_correlation_over_tickers(skill: float) -> None:
    table, predicted, real = tables(skill=skill)
    coefficient = information_coefficient(table, "base")
    plain = [stats.pearsonr(*pair).statistic for pair in zip(predicted, real, strict=True)]
    ranked = [stats.spearmanr(*pair).statistic for pair in zip(predicted, real, strict=True)]
    assert (coefficient.cutoffs, coefficient.tickers, coefficient.reason) == (6, 10, "")
    assert (coefficient.ic, coefficient.rank_ic) == pytest.approx((np.mean(plain), np.mean(ranked)))
    expected = [stats.ttest_1samp(values, 0).statistic for values in (plain, ranked)]
    assert (coefficient.ic_t, coefficient.rank_ic_t) == pytest.approx(tuple(expected))


def test_the_unit_of_the_prices_does_not_matter() -> None:
    first, second = (information_coefficient(tables(skill=1.0, price=price)[0], "base") for price in (1.0, 1000.0))
    assert first.ic == pytest.approx(second.ic)


def test_fewer_than_eight_tickers_are_said_to_be_too_few() -> None:
    coefficient = information_coefficient(tables(tickers=7)[0], "base")
    assert (coefficient.ic, coefficient.rank_ic, coefficient.cutoffs) == (None, None, 0)
    assert coefficient.reason == "no cutoff is shared by 8 tickers"
    assert information_coefficient(tables(tickers=8)[0], "base").ic is not None


def test_one_cutoff_has_no_t_statistic() -> None:
    coefficient = information_coefficient(tables(cutoffs=1)[0], "base")
    assert coefficient.ic is not None
    assert (coefficient.ic_t, coefficient.rank_ic_t) == (None, None)
    assert coefficient.reason == "a t statistic needs two cutoffs that differ"


def test_a_cutoff_that_too_few_tickers_share_does_not_count() -> None:
    table, *_ = tables(tickers=8)
    first = table["cutoff"] == table["cutoff"].min()
    coefficient = information_coefficient(table[~(first & (table["unique_id"] == "T0"))], "base")
    assert (coefficient.cutoffs, coefficient.tickers) == (5, 8)


def test_a_ticker_whose_file_ends_early_is_left_out_where_its_roll_is_cut() -> None:
    table, *_ = tables(tickers=9)
    incomplete = (table["cutoff"] == table["cutoff"].max()) & (table["unique_id"] == "T0") & (table["step"] == HORIZON)
    coefficient = information_coefficient(table[~incomplete], "base")
    assert (coefficient.cutoffs, coefficient.tickers) == (6, 8)


def test_a_forecast_that_ranks_nothing_has_no_coefficient() -> None:
    table, *_ = tables()
    coefficient = information_coefficient(table.assign(model="naive", mean=table["last"]), "naive")
    assert (coefficient.ic, coefficient.ic_t) == (None, None)
    assert coefficient.reason == "the returns are the same for all tickers, so nothing is ranked"


@pytest.mark.parametrize("column", ["mean", "y", "last"])
def test_a_return_that_is_not_finite_leaves_no_coefficient(column: str) -> None:
    table, *_ = tables()
    table.loc[table["step"] == HORIZON, column] = np.nan
    coefficient = information_coefficient(table, "base")
    assert (coefficient.ic, coefficient.rank_ic) == (None, None)
    assert coefficient.reason == "a return is not finite"
    zero = information_coefficient(tables()[0].assign(last=0.0), "base")
    assert zero.reason == "a return is not finite"


def test_a_model_that_is_not_there_has_none() -> None:
    assert information_coefficient(tables()[0], "adapter").reason == "no cutoff is shared by 8 tickers"


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no column last"):
        information_coefficient(tables()[0].drop(columns="last"), "base")
