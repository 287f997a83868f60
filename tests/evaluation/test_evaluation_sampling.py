"""Temperature, top-p and widths: fitted on their halves of the selection block, stored with the model, and reused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from holdouts import CLOSE
from hypothesis import given
from random_tickers import build, cases, recipes, tickers
from small_trainings import simulated_windows, small_recipe

from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import FEATURES, Bars, make_bars
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.forecasting.batching import forecast_request, sample_requests, unwrap
from kronos_pipeline.evaluation.forecasting.distributions import describe_closes
from kronos_pipeline.evaluation.forecasting.sampling import Sampling, load_sampling, plain_sampling, save_sampling
from kronos_pipeline.evaluation.forecasting.tuning import MAX_ORIGINS, TEMPERATURES, TOP_PS, fit_sampling
from kronos_pipeline.evaluation.predictions import LEVELS, VARIANTS
from kronos_pipeline.model.loading import load_base

Fitted = tuple[Path, WindowSet, Recipe, Sampling]
MODEL: Any = SimpleNamespace(weights_hash="its hash")
WALK = Recipe(lookback=16, horizon=5, validation_days=300, selection_days=200, eval_samples=39)
DEVIATION = 0.01


def walk(recipe: Recipe = WALK, bars: int = 700, seed: int = 0) -> WindowSet:
    """Return a random walk in log price with steps of 1 percent."""
    close = 100 * np.exp(DEVIATION * np.random.default_rng(seed).standard_normal(bars).cumsum())
    return build_windows(bars_of(close), recipe)


def bars_of(close: np.ndarray) -> Bars:
    frame = pd.DataFrame(dict.fromkeys(FEATURES, close)).assign(
        timestamps=pd.date_range("2020-01-06", periods=len(close), freq="B")
    )
    return make_bars("AAPL", frame, source="AAPL.csv")


class WalkSampler:
    """Sampler of random walks from the last close, with the data's volatility times `spread` and the temperature."""

    def __init__(self, spread: float = 1.0, heated: bool = True) -> None:
        self.spread, self.heated = spread, heated
        self.calls: list[dict[str, Any]] = []

    def __call__(self, _: Any, history: np.ndarray, past: np.ndarray, ahead: np.ndarray, **settings: Any) -> np.ndarray:
        self.calls.append({"history": history, "past": past, "ahead": ahead, **settings})
        shape = (len(history), settings["paths"], ahead.shape[1])
        paths = [
            np.random.default_rng([seed, int(1e6 * last)]).standard_normal(shape[1:])
            for seed, last in zip(settings["seed"], history[:, -1, CLOSE], strict=True)
        ]
        temperature = settings["temperature"][:, None, None] if self.heated else 1
        steps, deviation = np.reshape(paths, shape), DEVIATION * self.spread * temperature
        closes = history[:, -1, CLOSE, None, None] * np.exp(deviation * steps.cumsum(axis=2))
        return np.repeat(closes[..., None], len(FEATURES), axis=-1)


def unmoved(_: Any, history: np.ndarray, __: np.ndarray, ahead: np.ndarray, **settings: Any) -> np.ndarray:
    """Sampler of paths that ignore the bars, so a fit depends on the scored closes alone."""
    temperature = settings["temperature"] + settings["top_p"] / 7
    paths = 100 + temperature[:, None] * np.linspace(-40, 60, settings["paths"])
    return np.broadcast_to(paths[:, :, None, None], (*paths.shape, ahead.shape[1], history.shape[2]))


def moved(windows: WindowSet, first: int, end: int) -> WindowSet:
    """Return the same windows over bars with other closes in [first, end)."""
    frame = windows.bars.frame.copy()
    frame.loc[first : end - 1, "close"] *= 1.4  # below a jump like an unadjusted split
    return replace(windows, bars=replace(windows.bars, frame=frame))


def middle(windows: WindowSet) -> int:
    return (windows.selection_start + windows.holdout_start) // 2


def test_plain_sampling_is_the_recipes_own_and_stretches_nothing() -> None:
    recipe = Recipe(horizon=4, temperature=0.7, top_p=0.8, s2_position="first")
    plain = plain_sampling(recipe)
    assert (plain.temperature, plain.top_p, plain.s2_position) == (0.7, 0.8, "first")
    np.testing.assert_array_equal(plain.widths_at(np.array([1, 4, 2])), np.ones((3, len(LEVELS))))
    assert (plain.residuals, plain.tuned, plain.span) == (0, None, None)


def test_widths_at_steps_are_those_of_the_steps_by_level() -> None:
    widths = {50: (1.0, 2.0), 80: (3.0, 4.0), 90: (5.0, 6.0)}
    sampling = Sampling(1.0, 0.9, "true", dict.fromkeys(VARIANTS, widths))
    np.testing.assert_array_equal(sampling.widths_at(np.array([2, 1, 2])), [[2, 4, 6], [1, 3, 5], [2, 4, 6]])


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_intervals_fitted_on_the_selection_block_cover_the_holdout_as_they_say(spread: float) -> None:
    shares: dict[str, list[list[bool]]] = {"": [], "raw_": []}
    for seed in range(12):
        windows, sampler = walk(seed=seed), WalkSampler(spread)
        fitted = fit_sampling(windows, MODEL, WALK, sampler=sampler)
        rows = windows.of_split("holdout")
        origins = rows["origin"].to_numpy()
        request = forecast_request(windows, origins, rows["end"].to_numpy(), MODEL, WALK, fitted)
        paths = unwrap(sample_requests([request], sampler)[0])
        steps = np.tile(np.arange(1, 6), len(origins))
        y = windows.bars.frame["close"].to_numpy()[(origins[:, None] + np.arange(1, 6)).ravel()]
        closes = paths.closes.swapaxes(1, 2).reshape(len(y), -1)
        columns = describe_closes(closes, y, fitted.widths_at(steps))
        for prefix, coverages in shares.items():
            inside = [(columns[f"{prefix}lo_{level}"] <= y) & (y <= columns[f"{prefix}hi_{level}"]) for level in LEVELS]
            coverages.append(np.mean(inside, axis=1).tolist())
    errors = {
        prefix: np.abs(np.mean(coverages, axis=0) - np.array(LEVELS) / 100) for prefix, coverages in shares.items()
    }
    assert errors[""].max() < 0.07
    assert errors[""].mean() < errors["raw_"].mean() / 3


def test_widths_depend_on_the_closes_of_the_newer_half_alone() -> None:
    windows = walk()
    fitted = fit_sampling(windows, MODEL, WALK, sampler=unmoved)
    assert fitted.widths != plain_sampling(WALK).widths
    before, half, end = windows.selection_start, middle(windows), windows.holdout_start
    changes = ((0, before, True), (before, half, True), (half, half + 20, False), (end - 20, end, False))
    for first, last, same in changes:
        other = fit_sampling(moved(windows, first, last), MODEL, WALK, sampler=unmoved)
        assert (other.widths["sampled"] == fitted.widths["sampled"]) is same, (first, last)
    stamps = windows.bars.frame["timestamps"]
    assert fitted.span == (stamps[half].isoformat(), stamps[end - 1].isoformat())


def test_what_rests_on_two_forecasts_worth_of_bars_is_trusted_less_than_what_rests_on_sixteen() -> None:
    factors = []
    for horizon in (30, 1):  # a newer half of 30 bars: room for 2 such forecasts that share no bar, or for 16
        recipe = Recipe(lookback=16, horizon=horizon, validation_days=30, selection_days=60, eval_samples=39)
        fits = [fit_sampling(walk(recipe, 300, seed), MODEL, recipe, sampler=WalkSampler(0.1)) for seed in range(6)]
        factors.append(np.median([fit.widths["sampled"][80][0] for fit in fits]))
    # The intervals are a tenth as wide as they should be: 10 to the power of 2 / 3, and of 16 / 17.
    assert factors[0] == pytest.approx(10 ** (2 / 3), rel=0.3)
    assert factors[1] == pytest.approx(10 ** (16 / 17), rel=0.3)


def test_temperature_and_top_p_depend_on_the_closes_of_the_older_half_alone() -> None:
    recipe = WALK.model_copy(update={"tune_sampling": True, "recalibrate": False})
    windows = walk(recipe)
    fitted = fit_sampling(windows, MODEL, recipe, sampler=unmoved)
    before, half, end = windows.selection_start, middle(windows), windows.holdout_start
    for first, last, same in (
        (0, before, True),
        (half, end, True),
        (before, before + 1, False),
        (half - 1, half, False),
    ):
        other = fit_sampling(moved(windows, first, last), MODEL, recipe, sampler=unmoved)
        assert (other.tuned == fitted.tuned) is same, (first, last)
    stamps = windows.bars.frame["timestamps"]
    assert fitted.span == (stamps[before].isoformat(), stamps[half - 1].isoformat())
    assert fitted.widths == plain_sampling(recipe).widths


@pytest.mark.slow
@cases(30)
@given(tickers(), recipes)
def test_no_holdout_bar_is_read_nor_its_time(bars: Bars, recipe: Recipe) -> None:
    recipe = recipe.model_copy(update={"tune_sampling": True, "eval_samples": 3})
    windows = build(bars, recipe)
    frame = windows.bars.frame.copy()
    frame.loc[windows.holdout_start :, list(FEATURES)] = np.nan
    frame.loc[windows.holdout_start :, "timestamps"] += pd.Timedelta(days=4000)
    stamps = windows.stamps.copy()
    stamps[windows.holdout_start :] = 59
    blind = replace(windows, bars=replace(bars, frame=frame), stamps=stamps)
    original, changed = WalkSampler(), WalkSampler()
    assert fit_sampling(blind, MODEL, recipe, sampler=changed) == fit_sampling(windows, MODEL, recipe, sampler=original)
    for call, other in zip(original.calls, changed.calls, strict=True):
        for key in ("history", "past", "ahead"):
            np.testing.assert_array_equal(call[key], other[key])


@pytest.mark.slow
@cases(30)
@given(tickers(), recipes)
def test_work_is_bounded_and_no_cutoff_has_a_flat_lookback(bars: Bars, recipe: Recipe) -> None:
    recipe = recipe.model_copy(update={"tune_sampling": True, "eval_samples": 3})
    sampler = WalkSampler()
    fitted = fit_sampling(build(bars, recipe), MODEL, recipe, sampler=sampler)
    grid = len(TEMPERATURES) * len(TOP_PS)
    assert len(sampler.calls) <= 2
    for call, limit in zip(sampler.calls, (grid * MAX_ORIGINS, MAX_ORIGINS), strict=False):
        assert 1 <= len(call["history"]) <= limit
        assert (np.ptp(call["history"][..., CLOSE], axis=1) > 0).all()
    if fitted.residuals:
        factors = np.array([list(widths.values()) for widths in fitted.widths.values()])
        assert factors.shape == (len(VARIANTS), len(LEVELS), recipe.horizon)
        assert np.isfinite(factors).all()


def test_no_lookback_and_no_scored_bar_lies_beyond_a_hole() -> None:
    frame = walk().bars.frame.copy()
    gap = walk().selection_start + 30  # in the older half
    frame.loc[gap:, "timestamps"] += pd.Timedelta(weeks=10)
    recipe = WALK.model_copy(update={"tune_sampling": True})
    windows = build_windows(make_bars("AAPL", frame, source="AAPL.csv"), recipe)
    sampler = WalkSampler()
    fit_sampling(windows, MODEL, recipe, sampler=sampler)
    close = list(windows.bars.frame["close"])
    origins = [close.index(last) for call in sampler.calls for last in call["history"][:, -1, CLOSE]]
    assert any(origin < gap for origin in origins)
    assert all(origin + 5 < gap or origin - 15 >= gap for origin in origins)


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "best"), [(1 / 0.8, 0.8), (1.0, 1.0), (1 / 1.2, 1.2)])
def test_the_temperature_that_makes_paths_as_wide_as_the_market_is_chosen(spread: float, best: float) -> None:
    recipe = Recipe(lookback=16, horizon=1, validation_days=5, selection_days=600, eval_samples=400, tune_sampling=True)
    fits = [fit_sampling(walk(recipe, 700, seed), MODEL, recipe, sampler=WalkSampler(spread)) for seed in range(12)]
    assert np.median([fit.temperature for fit in fits]) == best


def test_the_best_score_wins_and_the_recipes_own_pair_is_tried_and_wins_ties() -> None:
    recipe = WALK.model_copy(update={"tune_sampling": True, "temperature": 0.77, "top_p": 0.66})
    windows = walk(recipe)
    unheated = fit_sampling(windows, MODEL, recipe, sampler=WalkSampler(heated=False))
    assert (unheated.temperature, unheated.top_p) == (0.77, 0.66)
    fitted = fit_sampling(windows, MODEL, recipe, sampler=WalkSampler())
    assert fitted.tuned is not None
    best = min(fitted.tuned, key=lambda score: score.crps)
    assert (fitted.temperature, fitted.top_p) == (best.temperature, best.top_p)
    pairs = {(score.temperature, score.top_p) for score in fitted.tuned}
    assert pairs == {(0.77, 0.66), *((temperature, top_p) for temperature in TEMPERATURES for top_p in TOP_PS)}


def test_every_model_goes_through_the_same_search_from_the_same_cutoffs() -> None:
    recipe = WALK.model_copy(update={"tune_sampling": True})
    windows = walk(recipe)
    searches = []
    for model, spread in ((MODEL, 1.0), (SimpleNamespace(weights_hash="another"), 3.0)):
        sampler = WalkSampler(spread)
        fit_sampling(windows, model, recipe, sampler=sampler)  # type: ignore[arg-type]
        search, _ = sampler.calls
        searches.append({name: search[name].tolist() for name in ("temperature", "top_p", "history")})
    assert searches[0] == searches[1]


def test_widths_are_fitted_to_the_temperature_that_was_chosen() -> None:
    recipe = WALK.model_copy(update={"tune_sampling": True})
    sampler = WalkSampler(0.5)
    fitted = fit_sampling(walk(recipe), MODEL, recipe, sampler=sampler)
    last = sampler.calls[-1]
    assert set(last["temperature"]) == {fitted.temperature}
    assert set(last["top_p"]) == {fitted.top_p}
    assert fitted.temperature != recipe.temperature


def test_where_nothing_is_asked_for_nothing_is_sampled() -> None:
    recipe = WALK.model_copy(update={"recalibrate": False})
    sampler = WalkSampler()
    fitted = fit_sampling(walk(recipe), MODEL, recipe, sampler=sampler)
    assert sampler.calls == []
    assert fitted == replace(plain_sampling(recipe), weights_hash="its hash")


def test_a_half_that_is_flat_leaves_what_it_is_for_as_it_is() -> None:
    recipe = WALK.model_copy(update={"tune_sampling": True})
    windows = walk(recipe)
    close = windows.bars.frame["close"].to_numpy().copy()
    close[windows.selection_start - 30 : middle(windows)] = 100.0
    fitted = fit_sampling(build_windows(bars_of(close), recipe), MODEL, recipe, sampler=WalkSampler(0.3))
    assert (fitted.temperature, fitted.top_p, fitted.tuned) == (1.0, 1.0, None)
    assert fitted.residuals > 0

    close = windows.bars.frame["close"].to_numpy().copy()
    close[middle(windows) - 30 : windows.holdout_start] = 100.0
    fitted = fit_sampling(build_windows(bars_of(close), recipe), MODEL, recipe, sampler=WalkSampler(0.3))
    assert fitted.tuned is not None
    assert (fitted.residuals, fitted.widths) == (0, plain_sampling(recipe).widths)


@pytest.fixture
def fitted(tmp_path: Path) -> Fitted:
    """Return a folder with a stored sampling, and the arguments of its fit."""
    recipe = WALK.model_copy(update={"tune_sampling": True})
    windows = walk(recipe)
    sampling = fit_sampling(windows, MODEL, recipe, sampler=WalkSampler(0.5))
    save_sampling(tmp_path, windows, sampling, recipe)
    return tmp_path, windows, recipe, sampling


def test_what_is_saved_is_loaded_by_its_windows_and_by_its_ticker(fitted: Fitted) -> None:
    folder, windows, recipe, sampling = fitted
    assert load_sampling(folder, windows, MODEL, recipe) == sampling
    assert load_sampling(folder, "AAPL", MODEL, recipe) == sampling
    assert load_sampling(folder, "MSFT", MODEL, recipe) is None


def test_equal_input_gives_equal_bytes(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, windows, recipe, _ = fitted
    second_folder = tmp_path_factory.mktemp("again")
    save_sampling(second_folder, windows, fit_sampling(windows, MODEL, recipe, sampler=WalkSampler(0.5)), recipe)
    written = "sampling/AAPL.json"
    assert (second_folder / written).read_bytes() == (folder / written).read_bytes()


def test_other_weights_make_it_void(fitted: Fitted) -> None:
    folder, windows, recipe, _ = fitted
    other: Any = SimpleNamespace(weights_hash="another hash")
    assert load_sampling(folder, windows, other, recipe) is None
    assert load_sampling(folder, "AAPL", other, recipe) is None


@pytest.mark.parametrize("change", ["temperature", "recalibrate", "seed", "bars"])
def test_other_bars_or_settings_ask_for_a_new_fit_but_serve_a_forecast(fitted: Fitted, change: str) -> None:
    folder, windows, recipe, sampling = fitted
    changes: dict[str, Any] = {"temperature": 0.5, "recalibrate": False, "seed": 3}
    other = recipe.model_copy(update={change: changes[change]} if change in changes else {})
    other_windows = walk(recipe, seed=1) if change == "bars" else windows
    assert load_sampling(folder, other_windows, MODEL, other) is None
    assert load_sampling(folder, "AAPL", MODEL, other) == sampling


@pytest.mark.parametrize(
    ("changes", "serves"),
    [
        ({"horizon": 3}, True),
        ({"horizon": 6}, False),
        ({"lookback": 17}, False),
        ({"eval_samples": 19}, True),
        ({"eval_samples": 200}, True),
        ({"eval_samples": 18}, False),
    ],
)
def test_a_forecast_takes_widths_only_where_they_fit_it(fitted: Fitted, changes: dict[str, int], serves: bool) -> None:
    folder, _, recipe, _ = fitted
    loaded = load_sampling(folder, "AAPL", MODEL, recipe.model_copy(update=changes))
    assert (loaded is not None) is serves


@pytest.mark.parametrize("damage", ["not JSON", "no sampling", "no level", "a text for a number"])
def test_a_damaged_file_is_an_error_that_names_it(fitted: Fitted, damage: str) -> None:
    folder, _, recipe, _ = fitted
    path = folder / "sampling" / "AAPL.json"
    content = json.loads(path.read_text())
    if damage == "no sampling":
        del content["sampling"]
    elif damage == "no level":
        del content["sampling"]["widths"]["rescaled"]["80"]
    elif damage == "a text for a number":
        content["sampling"]["temperature"] = "warm"
    path.write_text("{" if damage == "not JSON" else json.dumps(content))
    with pytest.raises(ArtifactError, match=r"AAPL\.json"):
        load_sampling(folder, "AAPL", MODEL, recipe)


def test_the_summary_says_what_was_chosen_and_is_plain_data(fitted: Fitted) -> None:
    *_, sampling = fitted
    summary = json.loads(json.dumps(sampling.summary(), allow_nan=False))
    assert summary["temperature"] == sampling.temperature
    assert summary["residuals"] == sampling.residuals
    assert summary["widths"]["recentred"]["80"] == pytest.approx(np.mean(sampling.widths["recentred"][80]))
    assert sampling.tuned is not None
    assert len(summary["tuned"]) == len(sampling.tuned)


def test_a_real_model_is_fitted_the_same_to_the_bit_twice(tiny_base: Path) -> None:
    recipe = small_recipe(tiny_base, tune_sampling=True)
    (windows,) = simulated_windows(recipe)
    model = load_base(find_base_model(str(tiny_base)), torch.device("cpu"))
    first, second = (fit_sampling(windows, model, recipe) for _ in range(2))
    assert first == second
    assert first.weights_hash == model.weights_hash
    assert first.tuned is not None
    assert len({score.crps for score in first.tuned}) > 1
