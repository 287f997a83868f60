"""Forecasts of the volatility rivals: no look-ahead, seeds, fall-backs."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_tickers import build, cases, recipes, tickers
from volatile_tickers import bars_of_returns, garch_returns, garch_ticker

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.evaluation.predictions import EWMA, GARCH, GJR_GARCH, HAR, VOLATILITY_RIVALS
from kronos_pipeline.evaluation.rivals import volatility_rivals
from kronos_pipeline.evaluation.rivals.ewma import choose_decay
from kronos_pipeline.evaluation.rivals.fits import MIN_RETURNS
from kronos_pipeline.evaluation.rivals.har import Har, fit_har
from kronos_pipeline.evaluation.rivals.history import History
from kronos_pipeline.evaluation.rivals.measures import log_returns
from kronos_pipeline.evaluation.rivals.volatility_rivals import (
    MIN_PATHS,
    RivalForecasts,
    forecast_rivals,
    forecast_rivals_ahead,
    forecast_rivals_between,
)

FITTED = (GARCH, GJR_GARCH, HAR)
RECIPE = Recipe(lookback=20, horizon=3, validation_bars=12, selection_bars=40)
TICKER = garch_ticker(420)


@pytest.fixture(scope="module")
def windows() -> WindowSet:
    return build_windows(TICKER, RECIPE)


@pytest.fixture(scope="module")
def origins(windows: WindowSet) -> np.ndarray:
    return windows.of_split("holdout")["origin"].to_numpy(np.int64)


@pytest.fixture(scope="module")
def forecasts(windows: WindowSet, origins: np.ndarray) -> RivalForecasts:
    return forecast_rivals(windows, origins, RECIPE)


def changed_from(bars: Bars, first: int, seed: int = 9) -> Bars:
    """Return the bars with other prices from bar `first` on."""
    values = bars.values
    values[first:, :4] *= np.exp(np.random.default_rng(seed).normal(0, 0.2, (len(bars) - first, 1)))
    frame = bars.frame.copy()
    frame[["open", "high", "low", "close"]] = values[:, :4]
    return make_bars(bars.ticker, frame, source=bars.source)


def with_closes(close: np.ndarray) -> Bars:
    return bars_of_returns(np.diff(np.log(close)), price=float(close[0]))


def with_jumps_kept(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"keep_jumps": True})


def assert_same(left: RivalForecasts, right: RivalForecasts, rows: slice = slice(None)) -> None:
    assert left.decay == right.decay
    for model in VOLATILITY_RIVALS:
        np.testing.assert_array_equal(left.closes[model][rows], right.closes[model][rows])


def test_every_rival_forecasts_every_cutoff(forecasts: RivalForecasts, origins: np.ndarray) -> None:
    assert forecasts.fallbacks == {}
    assert forecasts.notes == ()
    assert list(forecasts.closes) == list(forecasts.seconds) == list(VOLATILITY_RIVALS)
    for closes in forecasts.closes.values():
        assert closes.shape == (len(origins), MIN_PATHS, RECIPE.horizon)
        assert np.isfinite(closes).all()
        assert (closes > 0).all()


def test_the_rivals_differ_and_none_has_a_view_on_the_direction(forecasts: RivalForecasts, origins: np.ndarray) -> None:
    last = TICKER.frame["close"].to_numpy()[origins, None, None]
    spreads = {model: np.log(closes / last).std() for model, closes in forecasts.closes.items()}
    assert len(set(spreads.values())) == len(VOLATILITY_RIVALS)
    for model, closes in forecasts.closes.items():
        changes = np.log(closes / last)
        assert abs(changes.mean()) < 4 * spreads[model] / np.sqrt(MIN_PATHS * len(origins)), model


@pytest.mark.parametrize("first", [408, 414])
def test_no_path_of_the_holdout_depends_on_a_bar_after_its_cutoff(
    forecasts: RivalForecasts, origins: np.ndarray, windows: WindowSet, first: int
) -> None:
    changed = build_windows(changed_from(TICKER, first), with_jumps_kept(RECIPE))
    known = slice(0, int((origins < first).sum()))
    assert known.stop
    assert changed.holdout_start == windows.holdout_start
    assert_same(forecast_rivals(changed, origins, RECIPE), forecasts, known)


@pytest.mark.slow
@cases(5)
@given(st.integers(240, 400), st.integers(0, 1000), st.integers(1, 30))
def test_no_path_depends_on_a_bar_after_its_cutoff_on_any_garch(count: int, seed: int, after: int) -> None:
    bars = garch_ticker(count, seed)
    origins = np.arange(count - 31, count - 1)
    bounds = count - 60, count - 30
    changed = forecast_rivals_between(changed_from(bars, count - after, seed), origins, RECIPE, bounds)
    assert_same(forecast_rivals_between(bars, origins, RECIPE, bounds), changed, slice(0, 31 - after))


@pytest.mark.slow
@cases(8)
@given(tickers(), recipes, st.integers(0, 1000))
def test_no_path_depends_on_a_bar_after_its_cutoff_on_any_ticker(bars: Bars, recipe: Recipe, seed: int) -> None:
    """Tickers with holes, flat stretches, of any price level; bars without range; too few bars."""
    windows = build(bars, recipe)
    origins = windows.of_split("holdout")["origin"].to_numpy(np.int64)
    first = int(origins[seed % len(origins)]) + 1
    bounds = windows.selection_start, windows.holdout_start
    forecasts = forecast_rivals_between(bars, origins, recipe, bounds)
    changed = forecast_rivals_between(changed_from(bars, first, seed), origins, recipe, bounds)
    assert_same(forecasts, changed, slice(0, int((origins < first).sum())))
    for closes in forecasts.closes.values():
        assert np.isfinite(closes).all()


def test_no_parameter_depends_on_a_bar_from_the_holdout_on(windows: WindowSet, origins: np.ndarray) -> None:
    """The forecast from the last bar before the holdout shows the parameters."""
    before = origins[:1]
    assert before[0] == windows.holdout_start - 1
    changed = replace(windows, bars=changed_from(TICKER, windows.holdout_start))
    assert_same(forecast_rivals(windows, before, RECIPE), forecast_rivals(changed, before, RECIPE))


def test_the_decay_is_chosen_on_the_selection_block(forecasts: RivalForecasts, windows: WindowSet) -> None:
    returns = log_returns(TICKER.frame["close"].to_numpy())
    block = windows.selection_start - 1, windows.holdout_start - 1
    assert forecasts.decay == choose_decay(returns, *block, RECIPE.horizon)
    assert len({choose_decay(returns, first, first + 40, RECIPE.horizon) for first in range(100, 380, 40)}) > 1


def test_a_cutoff_does_not_depend_on_the_other_cutoffs(forecasts: RivalForecasts, origins: np.ndarray) -> None:
    bounds = 368, 408
    alone = forecast_rivals_between(TICKER, origins[2:3], RECIPE, bounds)
    for model in VOLATILITY_RIVALS:
        np.testing.assert_array_equal(alone.closes[model][0], forecasts.closes[model][2])


def test_one_rival_alone_forecasts_the_same(windows: WindowSet, origins: np.ndarray, forecasts: RivalForecasts) -> None:
    for model in FITTED:
        alone = forecast_rivals(windows, origins, RECIPE, models=[model])
        assert list(alone.closes) == [model]
        np.testing.assert_array_equal(alone.closes[model], forecasts.closes[model])


def test_the_paths_depend_on_seed_ticker_and_number_of_paths_as_a_models_do(
    windows: WindowSet, origins: np.ndarray, forecasts: RivalForecasts
) -> None:
    other_seed = forecast_rivals(windows, origins, RECIPE.model_copy(update={"seed": 1}))
    other_ticker = forecast_rivals(replace(windows, bars=replace(TICKER, ticker="OTHER")), origins, RECIPE)
    more = forecast_rivals(windows, origins, RECIPE.model_copy(update={"eval_samples": MIN_PATHS + 100}))
    for model, closes in forecasts.closes.items():
        assert not np.array_equal(closes, other_seed.closes[model])
        assert not np.array_equal(closes, other_ticker.closes[model])
        np.testing.assert_array_equal(closes, more.closes[model][:, :MIN_PATHS])
    assert_same(forecast_rivals(windows, origins, RECIPE), forecasts)


@pytest.mark.parametrize(("unit", "tolerance"), [(8.0, 0), (10.0, 1e-4)])
def test_the_unit_of_prices_does_not_matter(
    forecasts: RivalForecasts, origins: np.ndarray, unit: float, tolerance: float
) -> None:
    frame = TICKER.frame.copy()
    frame[["open", "high", "low", "close"]] *= unit
    scaled = forecast_rivals_between(make_bars("ACME", frame, source="ACME.csv"), origins, RECIPE, (368, 408))
    for model, closes in forecasts.closes.items():
        np.testing.assert_allclose(scaled.closes[model], unit * closes, rtol=tolerance)


def test_a_calm_ticker_that_turns_wild_is_forecast_to_be_wild(origins: np.ndarray) -> None:
    returns = garch_returns(419, 2)[0]
    calm = forecast_rivals_between(bars_of_returns(returns), origins, RECIPE, (368, 408))
    returns[405:] = np.where(np.arange(14) % 2, 0.09, -0.08)
    wild = forecast_rivals_between(bars_of_returns(returns), origins, RECIPE, (368, 404))
    for model in VOLATILITY_RIVALS:
        moves = {
            name: np.diff(np.log(table.closes[model]), axis=2)[-1].std()
            for name, table in (("calm", calm), ("wild", wild))
        }
        assert moves["wild"] > 2 * moves["calm"], model


@pytest.mark.parametrize(
    ("close", "reason"),
    [
        (np.full(420, 7.0), "the close does not move in 407 bars"),
        (np.where(np.arange(420) % 2, 7.0, 7.5), "the close moves by only"),
        (np.where(np.arange(420) // 7 % 2, 7.0, 7.5), "the close moves by only"),
        (garch_ticker(420).frame["close"].to_numpy()[np.arange(420) // 3 * 3], "the close does not move in"),
    ],
    ids=["constant", "two values", "two values at times", "mostly still"],
)
def test_a_series_that_no_model_fits_gets_ewma_and_a_sentence(
    origins: np.ndarray, close: np.ndarray, reason: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forecasts = forecast_rivals_between(with_closes(close), origins, RECIPE, (368, 408))
    for model in FITTED:
        np.testing.assert_array_equal(forecasts.closes[model], forecasts.closes[EWMA])
        assert reason in forecasts.fallbacks[model]
        assert f"ACME: {model} is ewma: {forecasts.fallbacks[model]}." in forecasts.notes
    assert np.isfinite(forecasts.closes[EWMA]).all()


def test_too_few_bars_say_how_many_are_needed() -> None:
    bars = garch_ticker(150)
    forecasts = forecast_rivals_between(bars, np.array([140, 143]), RECIPE, (100, 141))
    assert forecasts.fallbacks == dict.fromkeys(FITTED, f"a fit needs {MIN_RETURNS} returns, and there are 140")


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_handful_of_bars_is_enough_for_ewma(count: int) -> None:
    forecasts = forecast_rivals_ahead(garch_ticker(count), RECIPE)
    assert np.isfinite(forecasts.closes[EWMA]).all()
    assert set(forecasts.fallbacks) == set(FITTED)


def test_a_fit_that_does_not_converge_is_ewma_by_name(
    windows: WindowSet,
    origins: np.ndarray,
    forecasts: RivalForecasts,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("kronos_pipeline.evaluation.rivals.fits.MAX_ITERATIONS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped = forecast_rivals(windows, origins, RECIPE)
    assert stopped.notes[0] == "ACME: garch is ewma: the fit did not converge."
    assert set(stopped.fallbacks) == {GARCH, GJR_GARCH}
    np.testing.assert_array_equal(stopped.closes[GARCH], forecasts.closes[EWMA])
    np.testing.assert_array_equal(stopped.closes[HAR], forecasts.closes[HAR])
    assert capfd.readouterr() == ("", "")


def test_after_the_time_limit_no_fit_starts(
    windows: WindowSet, origins: np.ndarray, forecasts: RivalForecasts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volatility_rivals, "FIT_SECONDS", -1.0)
    stopped = forecast_rivals(windows, origins, RECIPE)
    assert set(stopped.fallbacks) == set(FITTED)
    assert "took more than" in stopped.notes[0]
    np.testing.assert_array_equal(stopped.closes[EWMA], forecasts.closes[EWMA])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200, 0.9])
def test_absurd_paths_are_replaced_at_their_cutoffs_alone(
    windows: WindowSet, origins: np.ndarray, forecasts: RivalForecasts, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    garch = volatility_rivals._SIMULATIONS[GARCH]

    def absurd(*arguments: object) -> np.ndarray:
        returns = garch(*arguments)  # type: ignore[arg-type]
        returns[1] = bad
        return returns

    monkeypatch.setitem(volatility_rivals._SIMULATIONS, GARCH, absurd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mended = forecast_rivals(windows, origins, RECIPE)
    assert mended.notes == (f"ACME: garch is ewma at 1 of {len(origins)} cutoffs: its paths are absurd.",)
    np.testing.assert_array_equal(mended.closes[GARCH][1], forecasts.closes[EWMA][1])
    np.testing.assert_array_equal(mended.closes[GARCH][[0, 2, 3]], forecasts.closes[GARCH][[0, 2, 3]])


def test_a_jump_like_an_unadjusted_split_is_no_volatility(origins: np.ndarray) -> None:
    frame = TICKER.frame.copy()
    frame.loc[frame.index >= 400, ["open", "high", "low", "close"]] /= 10
    split = make_bars("ACME", frame, source="ACME.csv")
    adjusted = forecast_rivals_between(split, origins, RECIPE, (368, 408))
    kept = forecast_rivals_between(split, origins, with_jumps_kept(RECIPE), (368, 408))
    whole = forecast_rivals_between(TICKER, origins, RECIPE, (368, 408))
    for model in VOLATILITY_RIVALS:
        spread = {
            name: np.diff(np.log(table.closes[model])).std()
            for name, table in (("adjusted", adjusted), ("kept", kept), ("whole", whole))
        }
        assert spread["adjusted"] == pytest.approx(spread["whole"], rel=0.1)
        assert spread["kept"] > 1.3 * spread["adjusted"], model


def test_the_forecast_of_the_bars_to_come_knows_every_bar() -> None:
    ahead = forecast_rivals_ahead(TICKER, RECIPE)
    between = forecast_rivals_between(TICKER, np.array([419]), RECIPE, (380, 420))
    assert ahead.closes[HAR].shape == (1, MIN_PATHS, RECIPE.horizon)
    assert_same(ahead, between)
    by_days = forecast_rivals_ahead(TICKER, RECIPE.model_copy(update={"selection_bars": None, "selection_days": 40}))
    assert_same(ahead, by_days)
    assert ahead.fallbacks == {}


def test_the_parameters_can_end_before_the_selection_block() -> None:
    """So the rivals can be compared on the selection block with parameters that have not seen it."""
    cutoffs = np.array([367, 380, 395])
    bounds = 328, 368
    forecasts = forecast_rivals_between(TICKER, cutoffs, RECIPE, bounds)
    changed = forecast_rivals_between(changed_from(TICKER, 381), cutoffs, RECIPE, bounds)
    assert_same(forecasts, changed, slice(0, 2))


def test_a_har_that_explodes_ahead_is_ewma_without_a_warning(
    windows: WindowSet, origins: np.ndarray, forecasts: RivalForecasts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exploding(history: History) -> Har:
        return replace(fit_har(history), weights=np.array([-9e3, 4.0, 4.0]))

    monkeypatch.setattr(volatility_rivals, "fit_har", exploding)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mended = forecast_rivals(windows, origins, RECIPE, models=[HAR])
    assert mended.notes == (f"ACME: har is ewma at {len(origins)} of {len(origins)} cutoffs: its paths are absurd.",)
    np.testing.assert_array_equal(mended.closes[HAR], forecasts.closes[EWMA])


@pytest.mark.parametrize("origins", [[], [0], [0, 7]])
def test_a_cutoff_without_a_bar_before_it_is_refused(origins: list[int]) -> None:
    with pytest.raises(ValueError, match="a bar before it"):
        forecast_rivals_between(TICKER, np.array(origins, np.int64), RECIPE, (368, 408))
