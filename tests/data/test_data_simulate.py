"""The generator: reproducible, valid bars, and a pattern that is a ticker's own."""

from __future__ import annotations

import filecmp
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_pipeline.data.ingest import read_folder
from kronos_pipeline.data.simulate import (
    SHIPPED_TICKERS,
    Calendar,
    Dynamics,
    simulate_ticker,
    write_simulated,
)
from kronos_pipeline.errors import SettingsError

SHIPPED = Path(__file__).resolve().parents[2] / "trainingdata"


def test_the_command_s_defaults_reproduce_the_shipped_files_byte_for_byte(tmp_path: Path) -> None:
    paths = write_simulated(tmp_path, seed=2026)
    assert len(paths) == len(SHIPPED_TICKERS) == 12
    for path in paths:
        assert filecmp.cmp(path, SHIPPED / path.relative_to(tmp_path), shallow=False), path.name


def test_a_ticker_does_not_change_with_its_neighbours_but_does_with_the_seed(tmp_path: Path) -> None:
    single, other = (tmp_path / name for name in ("alone", "other"))
    (path,) = write_simulated(single, tickers=["NVDA"], seed=2026)
    assert path.read_bytes() == (SHIPPED / "NVDA" / "NVDA.csv").read_bytes()
    (changed,) = write_simulated(other, tickers=["NVDA"], seed=2027)
    assert changed.read_bytes() != path.read_bytes()


def test_the_shipped_files_pass_the_pipeline_s_own_checks() -> None:
    good, bad = read_folder(SHIPPED)
    assert sorted(good) == sorted(SHIPPED_TICKERS)
    assert bad == {}
    assert {len(bars) for bars in good.values()} == {1000}
    assert set(good["BTCUSD"].frame["timestamps"].dt.weekday) == set(range(7))
    assert set(good["AAPL"].frame["timestamps"].dt.weekday) == set(range(5))
    assert (good["EURUSD"].frame["volume"] == 0).all()
    assert (good["MSFT"].frame["volume"] > 0).all()


@pytest.mark.parametrize(("frequency", "start"), [("B", "2021-01-04"), ("D", "2000-02-28"), ("h", "2023-12-30 05:00")])
def test_bars_are_valid_at_every_interval(frequency: str, start: str) -> None:
    frame = simulate_ticker(3, 500, frequency=frequency, start=start).frame()
    assert frame["timestamps"].is_monotonic_increasing
    assert frame["timestamps"].is_unique
    assert np.isfinite(frame.drop(columns="timestamps")).all(axis=None)
    assert (frame["low"] > 0).all()
    assert (frame["low"] <= frame[["open", "close"]].min(axis=1)).all()
    assert (frame["high"] >= frame[["open", "close"]].max(axis=1)).all()
    gaps = (frame["open"] / frame["close"].shift()).iloc[1:]
    assert (gaps != 1).all()


def test_volume_moves_with_volatility() -> None:
    correlations = []
    for seed in range(5):
        frame = simulate_ticker(seed, 1000).frame()
        ranges = pd.Series(np.log(frame["high"] / frame["low"])).rolling(10).mean()
        correlations.append(ranges.corr(np.log(frame["volume"]).rolling(10).mean()))
    assert min(correlations) > 0.4


def test_the_calendar_pattern_differs_between_tickers_and_repeats_every_year() -> None:
    patterns = [simulate_ticker(seed, 1000, frequency="D", start="2021-01-01").pattern for seed in range(8)]
    assert abs(np.corrcoef(patterns) - np.eye(8)).mean() < 0.45
    simulated = simulate_ticker(1, 1000, frequency="D", start="2021-01-01")
    assert np.array_equal(simulated.pattern[:59], simulated.pattern[365 : 365 + 59])
    assert simulated.pattern.std() > 2 * Dynamics().step


def test_hours_and_weekdays_carry_a_pattern_where_they_are_told_to() -> None:
    dynamics = Dynamics(month_drift=0, day_drift=0, weekday_level=0.01, hour_level=0.02)
    simulated = simulate_ticker(5, 24 * 21, frequency="h", dynamics=dynamics)
    assert np.allclose(simulated.pattern[:168], simulated.pattern[168:336])
    assert simulated.pattern.std() > 0.01
    assert (simulate_ticker(5, 48, frequency="h", start="2021-03-10").pattern[:24].std()) < 1e-12


def test_a_given_calendar_replaces_the_ticker_s_own() -> None:
    calendar = Calendar.draw(np.random.default_rng(0), Dynamics())
    first, second = (simulate_ticker(seed, 300, calendar=calendar) for seed in (1, 2))
    assert np.array_equal(first.pattern, second.pattern)
    assert np.allclose(simulate_ticker(1, 300, calendar=calendar.scaled(-2)).pattern, -2 * first.pattern)


def test_the_conditional_close_is_the_median_of_the_futures_that_the_generator_draws() -> None:
    # Many short futures of one known state: the recursion is written out anew, from the docstring's words.
    simulated, origin, horizon = simulate_ticker(11, 200), 120, 20
    dynamics = simulated.dynamics
    rng = np.random.default_rng(0)
    walk = np.full(20_000, simulated.walk[origin])
    deviation = np.full(20_000, simulated.deviation[origin])
    medians = []
    for step in range(1, horizon + 1):
        walk = walk + dynamics.walk * rng.standard_normal(walk.shape)
        deviation = dynamics.decay * deviation + dynamics.deviation * rng.standard_normal(walk.shape)
        medians.append(np.median(np.exp(walk + deviation + simulated.pattern[origin + step])))
    assert np.allclose(simulated.conditional_close(origin, horizon), medians, rtol=2e-3)
    # The state that it starts from is the bar's own.
    close = simulated.frame()["close"].iloc[origin]
    assert np.isclose(np.exp(simulated.walk + simulated.deviation + simulated.pattern)[origin], close)


def test_the_conditional_close_beats_repeating_the_last_close() -> None:
    errors: dict[str, list[float]] = {"oracle": [], "naive": []}
    for seed in range(20):
        simulated = simulate_ticker(seed, 400)
        close = simulated.values[:, 3]
        for origin in range(100, 360, 30):
            real = close[origin + 1 : origin + 31]
            errors["oracle"].append(float(np.abs(np.log(simulated.conditional_close(origin, 30) / real)).mean()))
            errors["naive"].append(float(np.abs(np.log(close[origin] / real)).mean()))
    assert np.mean(errors["oracle"]) < 0.6 * np.mean(errors["naive"])


def test_a_ticker_starts_where_and_when_it_is_told() -> None:
    simulated = simulate_ticker([1, 2], 10, start=pd.Timestamp("2024-05-06 10:30"), frequency="15min")
    assert simulated.timestamps[1] == pd.Timestamp("2024-05-06 10:45")
    assert np.array_equal(
        simulated.values, simulate_ticker([1, 2], 10, start="2024-05-06 10:30", frequency="15min").values
    )


@pytest.mark.parametrize(("tickers", "bars"), [([], 10), (["AAPL"], 1)])
def test_nothing_to_simulate_is_an_error(tmp_path: Path, tickers: list[str], bars: int) -> None:
    with pytest.raises(SettingsError, match="at least one ticker and two bars"):
        write_simulated(tmp_path, tickers=tickers, bars=bars)
    assert list(tmp_path.iterdir()) == []
