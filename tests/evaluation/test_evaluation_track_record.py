"""The scores of issued forecasts: what counts, against which rivals, and what is not scored."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_trainings import simulated_bars, small_recipe

from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.evaluation.ledger import ledger_rows
from kronos_pipeline.evaluation.predictions import BOUNDS, QUANTILES
from kronos_pipeline.evaluation.reports.record import record_plot, record_sentence, record_table
from kronos_pipeline.evaluation.rivals.ewma import RISKMETRICS_DECAY
from kronos_pipeline.evaluation.scoring.metrics import quantile_score
from kronos_pipeline.evaluation.scoring.track_record import (
    ewma_quantiles,
    ewma_variances,
    score_ledger,
    summarise,
)

HORIZON = 3
RECIPE = small_recipe(Path("none"), horizon=HORIZON)
BARS = simulated_bars(bars=120)
CLOSES = BARS.frame["close"].to_numpy()
PRICES = ["open", "high", "low", "close"]


def issue(
    origin: int, bars: Bars = BARS, *, spread: float = 0.02, version: str = "1", hours: float = 22, **changes: Any
) -> pd.DataFrame:
    """Return the rows of a forecast from a bar on: a centre at the close, and quantiles that spread by step."""
    known = make_bars(bars.ticker, bars.frame.iloc[: origin + 1], source="AAPL.csv")
    last, step = known.frame["close"].iloc[-1], np.arange(1, HORIZON + 1)
    columns = {name: last * np.exp(4 * spread * (level - 0.5) * np.sqrt(step)) for name, level in QUANTILES.items()}
    table = pd.DataFrame(
        {
            "unique_id": bars.ticker,
            "cutoff": known.frame["timestamps"].iloc[-1],
            "ds": bars.frame["timestamps"].iloc[origin + 1 : origin + 1 + HORIZON].to_numpy(),
            "step": step,
            "model": "adapter",
            "mean": last * 1.001,
            "p_up": 0.6,
            **columns,
        }
    ).assign(**changes)
    day = pd.Timestamp(known.frame["timestamps"].iloc[-1]).normalize() + pd.Timedelta(hours=hours)
    return ledger_rows(known, table, RECIPE, version=version, issued=datetime.fromtimestamp(day.timestamp(), UTC))


def nights(first: int = 30, last: int = 110, **settings: Any) -> pd.DataFrame:
    return pd.concat([issue(origin, **settings) for origin in range(first, last)], ignore_index=True)


def until(count: int, bars: Bars = BARS) -> Bars:
    return make_bars(bars.ticker, bars.frame.iloc[:count], source="AAPL.csv")


def changed(factor: Any) -> Bars:
    frame = BARS.frame.copy()
    frame[PRICES] = frame[PRICES].mul(factor, axis=0)
    return make_bars("AAPL", frame, source="AAPL.csv")


def test_scores_are_those_of_a_computation_by_hand() -> None:
    rows = issue(40)
    scored = score_ledger(rows, BARS)
    total = weight = 0.0
    for bar in range(1, 41):
        total = 0.94 * total + math.log(CLOSES[bar] / CLOSES[bar - 1]) ** 2
        weight = 0.94 * weight + 1
    losses, rivals, means, naives = [], [], [], []
    normal = {0.05: -1.6448536, 0.1: -1.2815516, 0.25: -0.6744898, 0.5: 0.0, 0.75: 0.6744898, 0.9: 1.2815516}
    normal[0.95] = 1.6448536
    for step in range(1, HORIZON + 1):
        y, last = CLOSES[40 + step], CLOSES[40]
        loss = rival = 0.0
        for name, level in QUANTILES.items():
            for q, sums in ((rows[name].iloc[step - 1], "model"), (None, "rival")):
                q = last * math.exp(normal[round(level, 2)] * math.sqrt(total / weight * step)) if q is None else q
                pinball = (y - q) * level if y >= q else (q - y) * (1 - level)
                loss, rival = (loss + pinball, rival) if sums == "model" else (loss, rival + pinball)
        losses.append(2 * loss / 7 / last)
        rivals.append(2 * rival / 7 / last)
        means.append(abs(1.001 * last - y) / last)
        naives.append(abs(last - y) / last)
    record = summarise(scored, "AAPL")
    assert record.crps_skill == pytest.approx(1 - sum(losses) / sum(rivals), rel=1e-5)
    assert record.mean_skill == pytest.approx(1 - sum(means) / sum(naives))
    assert record.brier == pytest.approx(np.mean([(0.6 - (CLOSES[40 + step] > CLOSES[40])) ** 2 for step in (1, 2, 3)]))
    assert (record.forecasts, record.bars, record.waiting, record.replays) == (1, 3, 0, 0)


def test_the_quantiles_of_the_true_distribution_have_the_lowest_score() -> None:
    y = np.random.default_rng(0).standard_normal(20_000)
    normal = np.array([-1.6449, -1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449])
    scores = {width: quantile_score(np.tile(width * normal, (len(y), 1)), y).mean() for width in (0.7, 1.0, 1.4)}
    assert scores[1.0] < min(scores[0.7], scores[1.4])
    assert quantile_score(np.tile(normal + 0.3, (len(y), 1)), y).mean() > scores[1.0]


def test_the_rivals_volatility_is_the_weighted_mean_of_the_squared_returns_up_to_the_cutoff() -> None:
    squared, no_jump = np.diff(np.log(CLOSES)) ** 2, np.zeros(120, np.bool_)
    weights = RISKMETRICS_DECAY ** np.arange(50)
    expected = (weights * squared[:50][::-1]).sum() / weights.sum()
    assert ewma_variances(CLOSES, no_jump)[50] == pytest.approx(expected)
    at = np.array([50])
    later = np.where(np.arange(len(CLOSES)) > 50, CLOSES * 7, CLOSES)
    before, after = (ewma_quantiles(closes, at, np.array([2]), no_jump) for closes in (CLOSES, later))
    np.testing.assert_array_equal(before, after)


def test_bars_after_the_target_change_no_score_and_targets_change_only_their_own() -> None:
    rows = nights(30, 60)
    bars, cut = score_ledger(rows, BARS).bars, score_ledger(rows, until(70)).bars
    pd.testing.assert_frame_equal(bars, cut)
    other = score_ledger(rows, changed(np.where(np.arange(120) >= 50, 1.2, 1.0))).bars
    break_ = BARS.frame["timestamps"].iloc[50]
    pd.testing.assert_frame_equal(bars[bars["ds"] < break_], other[other["ds"] < break_])


def test_a_forecast_counts_once_its_last_bar_has_come() -> None:
    rows = nights(30, 40)
    record = summarise(score_ledger(rows, until(40)), "AAPL")
    assert (record.forecasts, record.waiting) == (7, 3)
    assert summarise(score_ledger(rows, BARS), "AAPL").forecasts == 10


def test_a_bar_that_never_comes_is_left_out_of_both_sides_once_a_later_bar_has_come() -> None:
    rows = issue(40)
    without = make_bars("AAPL", BARS.frame.drop(index=42).reset_index(drop=True), source="AAPL.csv")
    record = summarise(score_ledger(rows, without), "AAPL")
    assert (record.forecasts, record.bars) == (1, 2)
    gone = make_bars("AAPL", BARS.frame.drop(index=[41, 42, 43]).reset_index(drop=True), source="AAPL.csv")
    record = summarise(score_ledger(rows, gone), "AAPL")
    assert record.forecasts == 0
    assert record.notes == ("AAPL: 1 forecast could not be scored: the file has no bar at their times.",)


def test_replays_and_repeats_never_count_and_the_first_of_a_cutoff_does() -> None:
    first, second = issue(40), issue(40, hours=23, spread=0.001)
    other = issue(40, hours=23.5, version="2")
    replay = issue(41, hours=2000)
    assert replay["replay"].all()
    scored = score_ledger(pd.concat([second, first, other, replay], ignore_index=True), BARS)
    total = summarise(scored, "AAPL")
    assert (total.forecasts, total.replays, total.repeats, total.bars) == (1, 1, 1, 3)
    alone = summarise(score_ledger(first, BARS), "AAPL")
    assert total.crps_skill == alone.crps_skill
    by_model = summarise(scored, "AAPL", "adapter", "2")
    assert (by_model.forecasts, by_model.repeats, by_model.model) == (1, 0, "adapter 2")


def test_bars_of_a_forecast_that_are_replays_are_left_out() -> None:
    rows = issue(40)
    rows.loc[0, "replay"] = True
    scored = score_ledger(rows, BARS)
    assert scored.bars["step"].tolist() == [2, 3]
    assert scored.forecasts["state"].tolist() == ["scored"]


def test_prices_restated_by_one_factor_change_no_score() -> None:
    rows = nights(30, 60)
    split = changed(0.25)
    before, after = summarise(score_ledger(rows, BARS), "AAPL"), summarise(score_ledger(rows, split), "AAPL")
    assert after.crps_skill == pytest.approx(before.crps_skill)
    assert after.mean_skill == pytest.approx(before.mean_skill)
    assert after.crps_evidence == pytest.approx(before.crps_evidence)
    assert after.coverage == before.coverage
    np.testing.assert_allclose(score_ledger(rows, split).bars["factor"], 0.25)


def test_prices_that_differ_by_more_than_one_factor_are_not_scored_and_a_note_says_so() -> None:
    rows = nights(30, 60)
    half = changed(np.where(np.arange(120) < 50, 0.5, 1.0))
    record = summarise(score_ledger(rows, half), "AAPL")
    assert record.forecasts == 17  # those that end before the break
    assert "10 forecasts could not be scored: the closes before their cutoff differ" in record.notes[0]
    assert "3 forecasts could not be scored: the close jumps within their bars" in record.notes[1]


def test_an_unadjusted_split_in_the_file_does_not_widen_the_rival() -> None:
    fallen = changed(np.where(np.arange(120) < 50, 1.0, 0.5))
    rows = nights(55, 60, bars=fallen)
    jumped = score_ledger(rows, fallen).bars["rival_lo_90"] / score_ledger(rows, fallen).bars["last"]
    usual = score_ledger(nights(55, 60), BARS).bars
    np.testing.assert_allclose(jumped, usual["rival_lo_90"] / usual["last"], rtol=0.02)


def test_a_forecast_with_a_number_that_is_not_finite_and_one_of_an_unknown_cutoff_are_not_scored() -> None:
    bad, foreign = issue(40, median=np.nan), issue(41)
    foreign["cutoff"] += pd.Timedelta(minutes=1)
    record = summarise(score_ledger(pd.concat([bad, foreign], ignore_index=True), BARS), "AAPL")
    assert record.forecasts == 0
    assert record.mean_verdict == record.crps_verdict == "open"
    assert record.crps_skill is None
    assert len(record.notes) == 2


def test_without_a_probability_of_a_rise_there_is_no_brier_score() -> None:
    assert summarise(score_ledger(issue(40, p_up=np.nan), BARS), "AAPL").brier is None


def test_closes_that_never_move_give_no_skill_and_no_verdict() -> None:
    flat = make_bars("AAPL", BARS.frame.assign(open=5.0, high=5.0, low=5.0, close=5.0), source="AAPL.csv")
    record = summarise(score_ledger(nights(30, 60, bars=flat, mean=5.0), flat), "AAPL")
    assert record.mean_skill is None
    assert record.mean_verdict == "open"
    assert record.crps_skill is None


def test_an_empty_ledger_has_a_record_without_figures() -> None:
    record = summarise(score_ledger(nights(30, 31).iloc[:0], BARS), "AAPL")
    assert (record.forecasts, record.waiting, record.crps_verdict) == (0, 0, "open")
    assert record_sentence(record) == "AAPL: no forecast of the ledger has been scored yet."
    replayed = dataclasses.replace(record, replays=2)
    assert record_sentence(replayed) == (
        "AAPL: no forecast of the ledger has been scored yet, "
        "2 forecasts of bars that existed already, which never count."
    )


@pytest.mark.slow
def test_a_model_that_knows_the_close_gets_the_verdict_better_and_its_opposite_worse() -> None:
    def knowing(origin: int, weight: float) -> pd.DataFrame:
        rows = issue(origin, spread=0.006)
        ahead = CLOSES[origin + 1 : origin + 1 + HORIZON]
        shift = weight * (ahead - rows["last"].to_numpy())
        return rows.assign(**{name: rows[name] + shift for name in ("mean", "median", *BOUNDS)})

    for weight, verdict in ((0.8, "better"), (-2.0, "worse")):
        rows = pd.concat([knowing(origin, weight) for origin in range(30, 115)], ignore_index=True)
        record = summarise(score_ledger(rows, BARS), "AAPL")
        assert record.mean_verdict == verdict, record
        assert record.crps_verdict == verdict, record


@pytest.mark.slow
def test_the_record_is_shown_as_a_table_a_sentence_and_a_plot() -> None:
    scored = score_ledger(nights(30, 115), until(110))
    record = summarise(scored, "AAPL")
    table = record_table([record]).markdown()
    assert "| AAPL | all | 77 +8 |" in table
    assert "skill of 77 forecasts: mean " in record_sentence(record)
    assert record_plot(scored, record).startswith(b"\x89PNG")
