"""No look-ahead: every value known at a bar stays the same if later bars become noise, for any ticker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_tickers import build, cases, recipes, tickers

from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.schemas import STATISTICS
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.evaluation.leakage_test import with_noise
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


@cases(30)
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
