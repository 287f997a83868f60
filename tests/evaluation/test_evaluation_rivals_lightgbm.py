"""The LightGBM rival: it finds what is there to find, finds nothing in noise, and knows no later bar."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from price_walks import FIVE_DAYS, cutoffs, random_walk, walk_bars

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.errors import DataError, SettingsError
from kronos_pipeline.evaluation.leakage_test import with_noise
from kronos_pipeline.evaluation.rivals.lightgbm import LightgbmModel, fit_lightgbm, sample_lightgbm


def sample(model: LightgbmModel, windows: WindowSet, recipe: Recipe = FIVE_DAYS) -> np.ndarray:
    return sample_lightgbm(model, windows, *cutoffs(windows), recipe)


def log_moves(closes: np.ndarray, windows: WindowSet) -> np.ndarray:
    """Return the log changes of paths since the cutoff, (cutoffs, paths, horizon)."""
    last = windows.bars.frame["close"].to_numpy()[cutoffs(windows)[0]]
    moves: np.ndarray = np.log(closes / last[:, None, None])
    return moves


@pytest.fixture(scope="module")
def walks() -> list[WindowSet]:
    return [random_walk(seed, symbol=f"T{seed}") for seed in range(3)]


@pytest.fixture(scope="module")
def fitted(walks: list[WindowSet]) -> LightgbmModel:
    return fit_lightgbm(walks, FIVE_DAYS)


def test_on_random_walks_its_paths_are_random_walks(walks: list[WindowSet], fitted: LightgbmModel) -> None:
    moves = np.concatenate([log_moves(sample(fitted, windows), windows) for windows in walks])
    steps = np.sqrt(np.arange(1, 6))
    np.testing.assert_allclose(moves.std(axis=(0, 1)) / steps, 0.01, rtol=0.15)
    assert abs(moves.mean(axis=(0, 1)) / steps).max() < 0.002


@pytest.mark.slow
def test_it_finds_a_planted_pattern_of_weekdays() -> None:
    stamps = pd.date_range("2021-01-04", periods=500, freq="B")[1:]
    noise = 0.005 * np.random.default_rng(3).standard_normal(499)
    pattern = np.where(stamps.weekday == 2, 0.02, -0.005)
    windows = build_windows(walk_bars(noise + pattern), FIVE_DAYS)
    moves = log_moves(sample(fit_lightgbm([windows], FIVE_DAYS), windows), windows).mean(axis=1)
    ahead = windows.stamps[cutoffs(windows)[0][:, None] + np.arange(1, 6), 2]
    returns = np.diff(moves, axis=1, prepend=0.0)
    assert returns[ahead == 2].mean() > 0.012
    assert returns[ahead != 2].mean() < 0


def test_its_width_follows_the_volatility_of_the_last_bars(walks: list[WindowSet], fitted: LightgbmModel) -> None:
    windows = walks[0]
    close = windows.bars.frame["close"].to_numpy()
    returns = np.diff(np.log(close))
    returns[-90:-60] *= 4  # the month before the first cutoff
    wild = build_windows(walk_bars(returns, windows.ticker), FIVE_DAYS)
    first = slice(0, 1)
    calm_width = log_moves(sample(fitted, windows), windows)[first].std()
    assert log_moves(sample(fitted, wild), wild)[first].std() > 2 * calm_width


@pytest.mark.slow
def test_equal_input_gives_equal_paths(walks: list[WindowSet], fitted: LightgbmModel) -> None:
    second_model = fit_lightgbm(walks, FIVE_DAYS)
    np.testing.assert_array_equal(sample(second_model, walks[1]), sample(fitted, walks[1]))


def test_the_paths_of_a_ticker_depend_on_the_seed(walks: list[WindowSet], fitted: LightgbmModel) -> None:
    other = FIVE_DAYS.model_copy(update={"seed": 1})
    assert not np.array_equal(sample(fitted, walks[1], other), sample(fitted, walks[1]))


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 5, 11])
def test_no_path_knows_a_bar_after_its_cutoff(walks: list[WindowSet], place: int) -> None:
    origins, _ = cutoffs(walks[0])
    first_noise = int(origins[place]) + 1
    noisy = build_windows(
        with_noise(walks[0].bars, first_noise, seed=5), FIVE_DAYS.model_copy(update={"keep_jumps": True})
    )
    before = sample(fit_lightgbm(walks, FIVE_DAYS), walks[0])
    after = sample(fit_lightgbm([noisy, *walks[1:]], FIVE_DAYS), noisy)
    np.testing.assert_array_equal(after[: place + 1], before[: place + 1])


@pytest.mark.slow
def test_a_training_reads_no_bar_after_the_targets_that_a_purge_leaves(walks: list[WindowSet]) -> None:
    windows = walks[0]
    limit = windows.holdout_start - 100
    purged = replace(windows, rows=windows.rows[windows.rows["end"] <= limit].reset_index(drop=True))
    noisy = build_windows(with_noise(windows.bars, limit, seed=5), FIVE_DAYS.model_copy(update={"keep_jumps": True}))
    noisy = replace(noisy, rows=purged.rows)
    before, after = fit_lightgbm([purged], FIVE_DAYS), fit_lightgbm([noisy], FIVE_DAYS)
    np.testing.assert_array_equal(sample(after, walks[1]), sample(before, walks[1]))
    assert before.rows == limit - 41


def test_one_ticker_is_enough_and_a_short_series_is_an_error_with_both_numbers(walks: list[WindowSet]) -> None:
    assert np.isfinite(sample(fit_lightgbm(walks[:1], FIVE_DAYS), walks[0])).all()
    short = FIVE_DAYS.model_copy(update={"validation_bars": 10, "selection_bars": 10})
    with pytest.raises(DataError, match=r"it needs 50 training bars.*and there are 34"):
        fit_lightgbm([random_walk(0, bars=95, recipe=short)], FIVE_DAYS)


def test_a_short_ticker_beside_long_tickers_is_forecast_by_their_trees(walks: list[WindowSet]) -> None:
    short_recipe = FIVE_DAYS.model_copy(update={"validation_bars": 10, "selection_bars": 10})
    short = random_walk(9, bars=70, symbol="SHORT", recipe=short_recipe)
    closes = sample(fit_lightgbm([*walks, short], FIVE_DAYS), short, short_recipe)
    assert closes.shape == (2, 500, 5)
    assert np.isfinite(closes).all()


def test_a_cutoff_with_too_few_bars_before_it_is_an_error_with_both_numbers(fitted: LightgbmModel) -> None:
    recipe = FIVE_DAYS.model_copy(update={"lookback": 8, "validation_bars": 5, "selection_bars": 10})
    with pytest.raises(DataError, match="needs 41 bars before a forecast, and the first cutoff has 35"):
        sample(fitted, random_walk(0, bars=40, recipe=recipe), recipe)


def test_a_nearly_constant_series_gives_finite_paths() -> None:
    returns = np.zeros(499)
    returns[::16] = 0.01 * (-1) ** np.arange(len(returns[::16]))
    windows = build_windows(walk_bars(returns), FIVE_DAYS)
    closes = sample(fit_lightgbm([windows], FIVE_DAYS), windows)
    assert np.isfinite(closes).all()
    assert abs(np.log(closes / 100)).max() < 0.5


def test_it_writes_no_file(walks: list[WindowSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sample(fit_lightgbm(walks[:1], FIVE_DAYS), walks[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["lightgbm", "mlforecast"])
def test_a_missing_extra_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=rf"--rivals lightgbm needs .*{package}.*pip install -e '\.\[gbm\]'"):
        fit_lightgbm([random_walk(0)], FIVE_DAYS)
