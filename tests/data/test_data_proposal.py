"""The doctor proposes settings that fit a folder: with them each ticker has windows in each split."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_files import daily_frame

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.data.proposal import Proposal, propose
from kronos_pipeline.data.windows import build_all_windows

CUTOFFS = 8


def ticker(bars: int, freq: str = "B", name: str = "ACME") -> Bars:
    frame = daily_frame(bars, freq=freq).rename(columns={"Date": "timestamps"}).rename(columns=str.lower)
    return make_bars(name, frame.assign(amount=1.0), source=f"{name}.csv")


def proposed(*bars: Bars) -> tuple[Proposal, Recipe]:
    proposal = propose(bars, Recipe(), CUTOFFS)
    assert proposal.recipe is not None
    return proposal, proposal.recipe


def test_years_of_daily_bars_get_the_cutoffs_of_a_verdict_in_days() -> None:
    proposal, recipe = proposed(ticker(2000))

    assert (recipe.lookback, recipe.horizon, recipe.validation_days) == (64, 30, CUTOFFS * 30)
    assert recipe.adapter == "lora"
    assert proposal.windows[0].counts()["holdout"] == CUTOFFS
    assert not any("a verdict needs" in reason for reason in proposal.reasons)


def test_intraday_bars_get_blocks_in_bars() -> None:
    _, recipe = proposed(ticker(5000, "5min"))

    assert recipe.validation_bars == CUTOFFS * recipe.horizon
    assert recipe.selection_bars is not None
    assert recipe.stride > 1


def test_few_bars_get_a_shorter_horizon_and_are_told_to_be_little() -> None:
    proposal, recipe = proposed(ticker(90))

    assert recipe.horizon < 30
    assert any("this is little data" in reason for reason in proposal.reasons)
    assert proposal.windows


def test_too_few_bars_get_no_proposal_but_the_number_that_is_missing() -> None:
    proposal = propose([ticker(20)], Recipe(), CUTOFFS)

    assert proposal.recipe is None
    assert "the longest ticker has 20 bars, and 33 are the least" in proposal.reasons[0]
    windows, _ = build_all_windows([ticker(33)], Recipe(lookback=16, horizon=5, validation_days=5, selection_days=6))
    assert windows


def test_no_readable_ticker_gets_no_proposal() -> None:
    assert propose([], Recipe(), CUTOFFS).recipe is None


def test_many_short_tickers_get_a_checkpoint_over_all() -> None:
    _, recipe = proposed(*(ticker(500, name=f"T{number}") for number in range(20)))

    assert recipe.adapter == "none"


def test_one_short_ticker_of_many_does_not_shorten_the_windows_of_all() -> None:
    proposal, recipe = proposed(ticker(40, name="NEW"), *(ticker(2000, name=f"T{number}") for number in range(20)))

    assert recipe.lookback == 64
    assert {windows.ticker for windows in proposal.windows} == {f"T{number}" for number in range(20)}
    assert any("20 of 21 tickers fit; without a window in each split: NEW" in reason for reason in proposal.reasons)


@pytest.mark.slow
@settings(max_examples=30)
@given(bars=st.integers(33, 3000), freq=st.sampled_from(["B", "h", "W-MON", "5min"]))
def test_a_proposal_fits_and_its_flags_say_it_all(bars: int, freq: str) -> None:
    proposal, recipe = proposed(ticker(bars, freq))

    assert all(min(windows.counts().values()) > 0 for windows in proposal.windows)
    arguments = shlex.split(proposal.flags())
    given_flags = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(arguments[::2], arguments[1::2], strict=True)
    }
    assert Recipe.model_validate(given_flags) == recipe


def test_settings_that_were_given_stay() -> None:
    proposal = propose([ticker(2000)], Recipe(model_name="kronos-nano", horizon=10), CUTOFFS)

    assert "--model-name kronos-nano" in proposal.flags()
    assert "--horizon 10" in proposal.flags()


def test_settings_with_spaces_are_quoted_in_the_command() -> None:
    proposal = propose([ticker(2000)], Recipe(columns=["close=Closing Price", "volume=Vol."]), CUTOFFS)

    arguments = shlex.split(proposal.flags())
    assert arguments[arguments.index("--columns") + 1] == "close=Closing Price,volume=Vol."
