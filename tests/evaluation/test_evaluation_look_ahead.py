"""No look-ahead: every value known at a bar stays the same if later bars become noise, for any ticker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_tickers import build, cases, recipes, tickers
from volatile_tickers import garch_ticker

from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.data.schemas import STATISTICS
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.evaluation.composed_variants import keeps_its_centre
from kronos_pipeline.evaluation.forecasting import future
from kronos_pipeline.evaluation.forecasting.batching import run_job
from kronos_pipeline.evaluation.forecasting.composition import PathModel
from kronos_pipeline.evaluation.forecasting.future import forecast_composed_job
from kronos_pipeline.evaluation.forecasting.holdout_table import predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.forecasting.tuning import fit_sampling
from kronos_pipeline.evaluation.leakage_test import with_noise
from kronos_pipeline.evaluation.predictions import (
    BASE,
    INTERVALS,
    POINT_BASELINES,
    QUANTILES,
    VARIANTS,
    VOLATILITY_RIVALS,
    variant_name,
)
from kronos_pipeline.evaluation.rivals.volatility_rivals import RivalForecasts, forecast_rivals_between
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION
from kronos_pipeline.evaluation.scoring.track_record import score_ledger
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.model.losses import token_losses
from kronos_pipeline.training.dataset import KronosMultiTickerDataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> KronosModel:
    return load_base(find_base_model(str(tiny_base)), torch.device("cpu"))


def targets(windows: WindowSet) -> np.ndarray:
    """Return the bars that each selection window predicts, (windows, horizon + 1)."""
    origins = windows.of_split("selection")["origin"].to_numpy()
    return origins[:, None] + np.arange(1, windows.horizon + 2)


def loss_terms(windows: WindowSet, base: KronosModel) -> np.ndarray:
    """Return the selection loss of each target bar of each window, (windows, horizon + 1), in nats."""
    data = KronosMultiTickerDataset([windows], "selection", base.tokenizer)
    batch = data.batch(range(len(data)))
    with torch.no_grad():
        # A loss is the mean over the targets from the first on, so that two of them give one target's own term.
        sums = [
            (data.window - first) * token_losses(base.predictor, **batch, first_target=first).double()
            for first in range(data.lookback, data.window)
        ]
    return (torch.stack(sums) - torch.stack([*sums[1:], torch.zeros_like(sums[0])])).numpy().T


# Noise has jumps like splits, which windows leave out of themselves.
RECIPES = recipes.map(lambda recipe: recipe.model_copy(update={"keep_jumps": True}))


@cases(40)
@given(tickers(), RECIPES, st.floats(0, 1), st.sampled_from(["train", "selection"]))
def test_a_windows_statistics_and_tokens_know_no_later_bar(
    base: KronosModel, bars: Bars, recipe: Recipe, fraction: float, split: str
) -> None:
    windows = build(bars, recipe)
    rows = windows.of_split(split)
    first_noise = int(rows["origin"].iloc[int(fraction * (len(rows) - 1))]) + 1
    noisy = build(with_noise(bars, first_noise, recipe.seed), recipe)

    def known(windows: WindowSet) -> tuple[np.ndarray, np.ndarray]:
        rows = windows.of_split(split)
        rows = rows[rows["origin"] < first_noise]
        data = KronosMultiTickerDataset([windows], split, base.tokenizer)
        batch = data.batch(range(len(rows)))
        bar = rows["start"].to_numpy()[:, None] + np.arange(data.window)
        tokens = np.where(bar < first_noise, np.stack([batch["s1"], batch["s2"]]), -1)
        return rows[["start", "origin", "end", *STATISTICS]].to_numpy(), tokens

    (rows_before, tokens_before), (rows_after, tokens_after) = known(windows), known(noisy)
    assert len(rows_before) > 0
    np.testing.assert_array_equal(rows_after, rows_before)
    np.testing.assert_array_equal(tokens_after, tokens_before)


@cases(10)
@given(tickers(), RECIPES, st.floats(0, 1))
def test_no_term_of_the_selection_loss_knows_a_later_bar(
    base: KronosModel, bars: Bars, recipe: Recipe, fraction: float
) -> None:
    windows = build(bars, recipe)
    scored = targets(windows)
    first_noise = int(np.unique(scored)[int(fraction * (len(np.unique(scored)) - 1))])
    noisy = build(with_noise(bars, first_noise, recipe.seed), recipe)

    before, after = loss_terms(windows, base), loss_terms(noisy, base)
    known = scored < first_noise
    np.testing.assert_allclose(after[: len(known)][known], before[known], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(loss_terms(windows, base), before)


EVALUATION = Recipe(
    lookback=20, horizon=4, validation_bars=32, selection_bars=80, eval_samples=20, tune_sampling=True, keep_jumps=True
)
"""Settings by which every parameter of an evaluation is fitted: temperature, variants, widths, and the rivals'."""
TICKER = garch_ticker(420, 5)
FIRST_HELD_OUT = 420 - 32


@pytest.mark.parametrize("first_noise", [FIRST_HELD_OUT, FIRST_HELD_OUT + 12, 416])  # each the bar after a cutoff
def test_no_forecast_of_any_rival_or_variant_knows_a_bar_after_its_cutoff(base: KronosModel, first_noise: int) -> None:
    forecasts = ["mean", "median", "variance", "p_up", *INTERVALS]

    def known(bars: Bars) -> np.ndarray:
        windows = build_windows(bars, EVALUATION)
        sampling = fit_sampling(windows, base, EVALUATION)
        table = predict(windows, {BASE: base}, {BASE: sampling}, EVALUATION).predictions
        assert set(table["model"]) == {
            *POINT_BASELINES,
            *VOLATILITY_RIVALS,
            *(variant_name(BASE, variant) for variant in VARIANTS),
        }
        rows = table[table["cutoff"] < TICKER.frame["timestamps"][first_noise]]
        values: np.ndarray = rows[["step", "last", "scale", *forecasts]].to_numpy()
        return values

    before, after = known(TICKER), known(with_noise(TICKER, first_noise, 1))
    assert len(before)
    np.testing.assert_array_equal(after, before)


def test_no_setting_of_the_sampling_knows_a_bar_of_the_holdout(base: KronosModel) -> None:
    real, noisy, changed = (
        fit_sampling(build_windows(bars, EVALUATION), base, EVALUATION)
        for bars in (TICKER, with_noise(TICKER, FIRST_HELD_OUT, 1), with_noise(TICKER, FIRST_HELD_OUT - 40, 1))
    )
    assert noisy == real
    assert set(real.variants) == {"distribution", "volatility"}
    assert any(set(factors) != {1.0} for widths in real.widths.values() for factors in widths.values())
    assert changed != real, "it knows the bars of the selection block"


SHAPES = [*VOLATILITY_RIVALS, *VARIANTS]


@pytest.mark.parametrize("by", SHAPES)
def test_no_row_of_the_ledger_knows_a_bar_after_its_cutoff(
    base: KronosModel, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    cutoff, selection_bars = FIRST_HELD_OUT + 3, EVALUATION.selection_bars
    assert selection_bars is not None
    noisy = with_noise(TICKER, cutoff + 1, 1)
    issued = (TICKER.frame["timestamps"][cutoff] + pd.Timedelta(hours=22)).to_pydatetime().replace(tzinfo=UTC)
    plain = plain_sampling(EVALUATION)
    sampling = replace(plain, variants={DISTRIBUTION: by}) if by in VARIANTS else plain
    part = PathModel(base, sampling, EVALUATION)
    centre = part if by in VARIANTS and keeps_its_centre(sampling.variant(DISTRIBUTION)) else None
    known = make_bars(TICKER.ticker, TICKER.frame.iloc[: cutoff + 1], source=TICKER.source)

    def rows(bars: Bars) -> pd.DataFrame:
        job = forecast_composed_job(known, centre, part if by in VARIANTS else by, EVALUATION, label=by)
        table, _ = run_job(job)
        return ledger.ledger_rows(bars, table, EVALUATION, version="1", issued=issued)

    before = rows(known)
    assert not before["replay"].any()

    def from_the_noisy_file(_: Bars, recipe: Recipe, *, models: Sequence[str]) -> RivalForecasts:
        bounds = cutoff + 1 - selection_bars, cutoff + 1
        return forecast_rivals_between(noisy, np.array([cutoff]), recipe, bounds, models=models)

    monkeypatch.setattr(future, "forecast_rivals_ahead", from_the_noisy_file)
    of_the_file = ["bars_hash", "replay"]
    pd.testing.assert_frame_equal(rows(noisy).drop(columns=of_the_file), before.drop(columns=of_the_file))

    real, noise = (score_ledger(before, bars).bars for bars in (TICKER, noisy))
    of_the_cutoff = [*ledger.COLUMNS, "factor", *(f"rival_{name}" for name in QUANTILES)]
    pd.testing.assert_frame_equal(noise[of_the_cutoff], real[of_the_cutoff])
    assert len(real) == EVALUATION.horizon
    assert (noise["y"] != real["y"]).all()
