"""Calibration: coverage overall and where it matters, its tests, the PIT, and the probability of a rise."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_predictions import FIRST, made_predictions
from numpy.polynomial import legendre
from scipy import stats
from scipy.stats import norm

from kronos_pipeline.evaluation.predictions import ADAPTER, EWMA, LEVELS
from kronos_pipeline.evaluation.scoring import calibration_tests
from kronos_pipeline.evaluation.scoring.calibration import MIN_FORECASTS, calibrations, rejections

RATE = 0.2


def simulated(
    cutoffs: int,
    horizon: int = 5,
    *,
    seed: int = 0,
    width: float = 1.0,
    knows_volatility: bool = True,
    drift: float = 0,
) -> pd.DataFrame:
    """Forecast a random walk with changing volatility by its true distribution, or one `width` times as wide."""
    rng = np.random.default_rng(seed)
    sigma = np.exp(0.7 * rng.standard_normal(cutoffs))
    moves = sigma[:, None] * rng.standard_normal((cutoffs, horizon)) + drift
    last = 1_000 + np.concatenate([[0.0], moves.sum(axis=1).cumsum()[:-1]])
    y = (last[:, None] + moves.cumsum(axis=1)).ravel()
    assumed = sigma if knows_volatility else np.full(cutoffs, (sigma**2).mean() ** 0.5)
    spread = width * np.repeat(assumed, horizon) * np.sqrt(np.tile(np.arange(1, horizon + 1), cutoffs))
    last = np.repeat(last, horizon)
    table = made_predictions(y, {ADAPTER: last, EWMA: last}, horizon=horizon, last=np.tile(last, 1))
    for side, sign in (("lo", -1), ("hi", 1)):
        for level in LEVELS:
            table[f"{side}_{level}"] = np.tile(last + sign * norm.ppf(0.5 + level / 200) * spread, 2)
    table["pit"] = np.tile(norm.cdf((y - last) / spread), 2)
    table["p_up"] = 0.5
    table["variance"] = np.tile(np.repeat(sigma**2, horizon), 2)
    return table


def calibration(table: pd.DataFrame, *, independent: bool = False) -> dict[str, Any]:
    return calibrations(table, [ADAPTER], independent=independent)[ADAPTER]


def misses(series: str) -> np.ndarray:
    return np.array([letter == "x" for letter in series])


def numbers(content: Any) -> Iterator[float]:
    if isinstance(content, dict):
        for value in content.values():
            yield from numbers(value)
    elif isinstance(content, list):
        for value in content:
            yield from numbers(value)
    elif isinstance(content, float):
        yield content


def test_a_calibrated_model_holds_overall_in_each_tercile_at_each_step_and_in_the_worst_month() -> None:
    result = calibration(simulated(400))
    assert (result["bars"], result["forecasts"]) == (2_000, 400)
    for level in LEVELS:
        entry = result["coverage"][str(level)]
        shares = [entry["overall"], *entry["by_volatility"].values(), *entry["by_step"].values(), entry["worst_month"]]
        assert [share["holds"] for share in shares] == [True] * 8
        assert all(entry[name]["p_value"] > 0.05 for name in ("kupiec", "independence", "conditional_coverage"))
    assert result["pit"]["p_value"] > 0.05
    assert result["pit"]["mean"] == pytest.approx(0.5, abs=0.03)
    assert result["pit"]["spread"] == pytest.approx(1, abs=0.1)


def test_intervals_that_are_too_narrow_fail_everywhere() -> None:
    result = calibration(simulated(200, width=0.5))
    for level in LEVELS:
        entry = result["coverage"][str(level)]
        assert entry["overall"]["percent"] < entry["overall"]["low"]
        assert [share["holds"] for share in entry["by_volatility"].values()] == [False] * 3
        assert entry["kupiec"]["p_value"] < 0.001
        assert entry["conditional_coverage"]["p_value"] < 0.001
    assert result["pit"]["p_value"] < 0.001
    assert result["pit"]["spread"] > 1.3


def test_intervals_that_do_not_follow_the_volatility_hold_overall_and_fail_in_the_terciles() -> None:
    entry = calibration(simulated(900, knows_volatility=False, width=0.72))["coverage"]["80"]
    assert entry["overall"]["holds"]
    low, middle, high = (entry["by_volatility"][name] for name in ("low", "middle", "high"))
    assert low["percent"] > low["high"]
    assert high["percent"] < high["low"]
    assert low["percent"] > middle["percent"] > high["percent"]


def test_a_forecast_that_is_too_low_shows_in_the_mean_of_its_pit() -> None:
    result = calibration(simulated(100, drift=1.0))["pit"]
    assert result["mean"] > 0.6
    assert result["p_value"] < 0.01


def test_calibrated_forecasts_are_rejected_at_most_at_the_nominal_rate_and_narrow_ones_mostly() -> None:
    """Of 300 simulated tickers with 24 forecasts: bounds of three standard errors of a share of 5 percent."""
    rejected: dict[str, list[bool]] = {}
    for seed in range(300):
        for kind, width in (("right", 1.0), ("narrow", 0.6)):
            rng = np.random.default_rng(seed)
            pit = norm.cdf(rng.standard_normal(24) / width)
            missed = np.abs(pit - 0.5) > 0.4
            tests = {
                "kupiec": calibration_tests.kupiec(missed, RATE),
                "independence": calibration_tests.independence(missed),
                "conditional": calibration_tests.conditional_coverage(missed, RATE),
                "pit": calibration_tests.uniform_pit(pit),
            }
            for name, (_, p_value) in tests.items():
                rejected.setdefault(f"{kind} {name}", []).append(p_value <= 0.05)
    shares = {name: float(np.mean(values)) for name, values in rejected.items()}
    bound = 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    assert all(shares[f"right {name}"] <= bound for name in ("kupiec", "independence", "conditional", "pit"))
    assert shares["right pit"] >= 0.02
    assert shares["narrow kupiec"] > 0.4
    assert shares["narrow pit"] > 0.5


@pytest.mark.slow
def test_a_calibrated_model_leaves_a_band_at_most_at_the_nominal_rate() -> None:
    """Of 100 simulated tickers with 9 forecasts of 3 bars: the bound is three standard errors above 5 percent."""
    left = []
    for seed in range(100):
        entry = calibration(simulated(9, 3, seed=seed))["coverage"]["80"]
        left.append([not share["holds"] for share in (entry["overall"], *entry["by_volatility"].values())])
    assert (np.mean(left, axis=0) <= 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5).all()


@given(n=st.integers(1, 40), data=st.data(), rate=st.sampled_from([0.1, 0.2, 0.5]))
def test_kupiecs_statistic_is_twice_the_ratio_of_binomial_likelihoods_and_its_p_value_exact(
    n: int, data: st.DataObject, rate: float
) -> None:
    count = data.draw(st.integers(0, n))
    statistic, p_value = calibration_tests.kupiec(np.arange(n) < count, rate)
    expected = 2 * (stats.binom.logpmf(count, n, count / n) - stats.binom.logpmf(count, n, rate))
    assert statistic == pytest.approx(expected, abs=1e-9)
    as_unlikely = [
        x
        for x in range(n + 1)
        if stats.binom.logpmf(x, n, x / n) - stats.binom.logpmf(x, n, rate) >= expected / 2 - 1e-9
    ]
    assert p_value == pytest.approx(sum(math.comb(n, x) * rate**x * (1 - rate) ** (n - x) for x in as_unlikely))


def test_for_many_forecasts_the_p_values_are_those_of_the_chi_squared_limits() -> None:
    rng = np.random.default_rng(3)
    missed = rng.random(500) < 0.24
    statistic, p_value = calibration_tests.kupiec(missed, RATE)
    assert p_value == pytest.approx(stats.chi2.sf(statistic, 1), abs=0.02)
    statistic, p_value = calibration_tests.independence(missed)
    assert p_value == pytest.approx(stats.chi2.sf(statistic, 1), abs=0.06)
    statistic, p_value = calibration_tests.conditional_coverage(missed, RATE)
    assert p_value == pytest.approx(stats.chi2.sf(statistic, 2), abs=0.06)
    statistic, p_value = calibration_tests.uniform_pit(rng.random(500))
    assert p_value == pytest.approx(stats.chi2.sf(statistic, 2), abs=0.06)


def test_independence_is_the_likelihood_ratio_of_a_table_of_changes() -> None:
    missed = misses("..xx...xxx.....x....xx..x...")
    table = np.zeros((2, 2))
    for before, after in itertools.pairwise(missed):
        table[int(before), int(after)] += 1
    expected = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
    statistic, p_value = calibration_tests.independence(missed)
    assert statistic == pytest.approx(expected.statistic)
    assert p_value == pytest.approx(expected.pvalue, abs=0.15)


def test_misses_in_a_row_are_not_independent_although_there_are_as_many_as_there_should_be() -> None:
    clustered = misses("." * 40 + "x" * 20 + "." * 40)
    assert calibration_tests.kupiec(clustered, RATE)[1] == pytest.approx(1.0)
    assert calibration_tests.independence(clustered)[1] < 0.001
    assert calibration_tests.conditional_coverage(clustered, RATE)[1] < 0.001
    assert calibration_tests.independence(misses("....x" * 20))[1] < 0.05, "misses at regular distances"


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)))
def test_neymans_statistic_is_made_of_legendre_polynomials(pit: np.ndarray) -> None:
    first, second = ((2 * order + 1) ** 0.5 * legendre.legval(2 * pit - 1, [0] * order + [1]) for order in (1, 2))
    expected = (first.sum() ** 2 + second.sum() ** 2) / len(pit)
    assert calibration_tests.uniform_pit(pit)[0] == pytest.approx(expected, abs=1e-9)


def test_the_band_is_that_of_the_forecasts_that_share_no_bar() -> None:
    table = simulated(20)
    share = calibration(table)["coverage"]["80"]["overall"]
    assert (share["bars"], share["forecasts"]) == (100, 20)
    low, high = stats.binom.interval(0.95, 20, 0.8)
    assert (share["low"], share["high"]) == (100 * low / 20, 100 * high / 20)

    cutoffs = np.sort(table["cutoff"].unique())
    overlapping = [table]
    for shift in range(1, 5):
        moved = table.copy()
        moved[["cutoff", "ds"]] += pd.Timedelta(days=shift)
        overlapping.append(moved[moved["cutoff"] < cutoffs[-1]])
    result = calibration(pd.concat(overlapping, ignore_index=True))["coverage"]["80"]
    assert (result["overall"]["bars"], result["overall"]["forecasts"]) == (100 + 4 * 95, 20)
    assert sum(share["forecasts"] for share in result["by_volatility"].values()) >= 20


def test_tickers_of_one_market_count_once_and_independent_ones_each() -> None:
    table = pd.concat([simulated(20, seed=seed).assign(unique_id=f"T{seed}") for seed in range(3)])
    together, apart = calibration(table), calibration(table, independent=True)
    assert (together["forecasts"], apart["forecasts"]) == (20, 60)
    assert together["coverage"]["80"]["kupiec"]["p_value"] is None
    assert "err together" in together["coverage"]["80"]["kupiec"]["reason"]
    assert apart["coverage"]["80"]["kupiec"]["p_value"] > 0.01
    assert together["coverage"]["80"]["overall"]["percent"] == apart["coverage"]["80"]["overall"]["percent"]


def test_terciles_are_those_of_each_tickers_own_cutoffs() -> None:
    calm, wild = simulated(30), simulated(30, seed=1).assign(unique_id="WILD")
    wild["variance"] *= 1_000
    result = calibration(pd.concat([calm, wild]))["coverage"]["80"]["by_volatility"]
    assert {name: share["bars"] for name, share in result.items()} == {"low": 100, "middle": 100, "high": 100}


def test_the_worst_month_is_the_one_with_the_lowest_coverage_and_has_a_wider_band() -> None:
    table = simulated(60)
    bad = (table["ds"] >= "2024-03-01") & (table["ds"] < "2024-04-01")
    table.loc[bad, [f"lo_{level}" for level in LEVELS]] = table.loc[bad, "y"] + 1
    entry = calibration(table)["coverage"]["80"]
    worst = entry["worst_month"]
    assert (worst["month"], worst["percent"], worst["holds"], worst["bars"]) == ("2024-03", 0.0, False, 31)
    months = len(pd.period_range(FIRST, table["ds"].max(), freq="M"))
    low, _ = stats.binom.interval(0.95 ** (1 / months), worst["forecasts"], 0.8)
    assert worst["low"] == pytest.approx(100 * low / worst["forecasts"])


def test_steps_are_grouped_into_thirds_of_the_horizon() -> None:
    groups = {
        horizon: list(calibration(simulated(9, horizon))["coverage"]["80"]["by_step"]) for horizon in (1, 2, 3, 5, 30)
    }
    assert groups == {
        1: ["1"],
        2: ["1", "2"],
        3: ["1", "2", "3"],
        5: ["1-2", "3-4", "5"],
        30: ["1-10", "11-20", "21-30"],
    }


def test_the_brier_score_and_its_skill_by_hand() -> None:
    y = np.array([101.0, 99.0, 100.0, 103.0, 98.0])
    table = made_predictions(y, {ADAPTER: y}).assign(p_up=[0.9, 0.2, 0.5, 0.6, 0.7], variance=np.nan)
    result = calibration(table)["p_up"]
    expected = np.mean([0.1**2, 0.2**2, 0.0, 0.4**2, 0.7**2])
    assert (result["bars"], result["brier"]) == (5, pytest.approx(expected))
    assert result["skill"] == pytest.approx(1 - expected / np.mean([0.25, 0.25, 0, 0.25, 0.25]))
    assert [(entry["from"], entry["p_up"], entry["percent"]) for entry in result["bins"]] == [
        (0.2, pytest.approx(20), 0.0),
        (0.5, pytest.approx(50), 50.0),
        (0.6, pytest.approx(60), 100.0),
        (0.7, pytest.approx(70), 0.0),
        (0.9, pytest.approx(90), 100.0),
    ]
    assert result["by_step"]["5"]["brier"] == pytest.approx(0.49)


def test_probabilities_that_come_true_lie_within_the_bands_of_their_bins_and_bold_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 600)
    y = 100 + np.where(rng.random(600) < p, 1.0, -1.0)
    table = made_predictions(y, {ADAPTER: y}, horizon=1).assign(variance=np.nan)
    honest = calibration(table.assign(p_up=p))["p_up"]
    bold = calibration(table.assign(p_up=np.where(p > 0.5, 0.95, 0.05)))["p_up"]
    assert len(honest["bins"]) == 10
    assert sum(bool(entry["holds"]) for entry in honest["bins"]) >= 9
    assert not any(entry["holds"] for entry in bold["bins"])
    assert honest["skill"] > 0.1 > bold["skill"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.assign(**{f"lo_{level}": np.nan for level in LEVELS}),
        lambda table: table.assign(variance=np.nan),
        lambda table: table.drop(columns=["variance", "p_up"]),
        lambda table: table.assign(y=np.nan),
        lambda table: table.assign(y=table["last"]),
        lambda table: table.assign(p_up=np.nan, pit=np.nan),
        lambda table: table.assign(variance=1.0),
        lambda table: table[table["cutoff"] == table["cutoff"].min()],
        lambda table: table[table["model"] == EWMA],
        lambda table: table[table["model"] == ADAPTER],
        lambda table: table.assign(**{f"hi_{level}": np.inf for level in LEVELS}),
    ],
    ids=[
        "no interval", "no variance", "old table", "no close", "flat", "no probability", "equal variance", "one cutoff",
        "no forecast", "no volatility model", "endless interval",
    ],
)  # fmt: skip
def test_every_number_is_finite_or_none_with_a_reason(spoil: Any) -> None:
    result = calibration(spoil(simulated(12)))
    json.dumps(result, allow_nan=False)
    assert all(math.isfinite(value) for value in numbers(result))

    def reasons(content: dict[str, Any]) -> None:
        for key in ("percent", "p_value", "brier"):
            if key in content and content[key] is None:
                assert content["reason"]
        for value in content.values():
            if isinstance(value, dict):
                reasons(value)

    reasons(result)


def test_few_forecasts_are_told_in_words() -> None:
    result = calibration(simulated(MIN_FORECASTS - 1))
    assert result["pit"]["reason"] == "7 forecasts without a shared bar, and a test needs 8"
    assert result["coverage"]["80"]["kupiec"]["reason"] == result["pit"]["reason"]
    always = simulated(20)
    always[[f"hi_{level}" for level in LEVELS]] = 1e9
    always[[f"lo_{level}" for level in LEVELS]] = -1e9
    entry = calibration(always)["coverage"]["80"]
    assert entry["independence"]["reason"] == "every close lies within its interval, so there is no order to test"
    assert entry["kupiec"]["p_value"] < 0.05


def test_the_order_of_rows_does_not_matter() -> None:
    table = pd.concat([simulated(20), simulated(20, seed=1).assign(unique_id="MSFT")])
    shuffled = table.sample(frac=1, random_state=0)
    assert calibration(shuffled, independent=True) == calibration(table, independent=True)


def test_rejections_count_the_tickers_whose_tests_reject() -> None:
    entries = [calibration(simulated(cutoffs, width=width)) for cutoffs, width in ((40, 1.0), (40, 0.4), (5, 0.4))]
    found = rejections(entries)
    assert found["kupiec_80"] == {"rejected": 1, "tested": 2}
    assert found["pit"] == {"rejected": 1, "tested": 2}
    assert set(found) == {"pit"} | {
        f"{test}_{level}" for test in ("kupiec", "independence", "conditional_coverage") for level in LEVELS
    }
