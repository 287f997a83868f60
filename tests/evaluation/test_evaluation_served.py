"""Scores of the composed forecast that a champion serves, from the table of predictions alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from made_predictions import predictions_of_losses

from kronos_pipeline.evaluation.predictions import Variant
from kronos_pipeline.evaluation.scoring.served import score_served
from kronos_pipeline.evaluation.scoring.targets import ChosenVariants

LEVELS = {
    "naive": 1.0,
    "ewma": 1.0,
    "garch": 0.8,
    "base": 1.2,
    "base_recentred": 0.9,
    "adapter": 0.5,
    "adapter_recentred": 0.6,
    "adapter_rescaled": 0.4,
}


@pytest.fixture(scope="module")
def predictions() -> pd.DataFrame:
    noise = np.random.default_rng(0).uniform(0.9, 1.1, 16)
    return predictions_of_losses({model: level * noise for model, level in LEVELS.items()})


@pytest.mark.parametrize(
    ("variant", "own_centre", "loss"),
    [
        ("sampled", True, 0.5),
        ("recentred", True, 0.5),
        ("sampled", False, 0.5),
        ("recentred", False, 0.6),
        ("rescaled", False, 0.4),
    ],
)
def test_the_composition_is_scored_against_the_best_rival(
    predictions: pd.DataFrame, variant: Variant, own_centre: bool, loss: float
) -> None:
    chosen: ChosenVariants = {"AAPL": {"adapter": {"distribution": variant}, "base": {"distribution": "recentred"}}}
    score = score_served(predictions, "adapter", chosen, own_centre=own_centre)
    assert score is not None
    assert score.distribution.rival == "garch"
    assert score.distribution.skill == pytest.approx(1 - loss / 0.8)
    assert score.mean.skill == pytest.approx(1 - loss)  # of this table, in which a model has one loss
    assert str(score).startswith(f"as served: distribution skill {1 - loss / 0.8:.1%} against garch, the best rival; ")


def test_a_composition_that_the_table_does_not_have_is_not_scored(predictions: pd.DataFrame) -> None:
    rescaled: ChosenVariants = {"AAPL": {"adapter": {"distribution": "rescaled"}}}
    assert score_served(predictions, "adapter", rescaled, own_centre=True) is None
    without = predictions[predictions["model"] != "adapter_recentred"]
    recentred: ChosenVariants = {"AAPL": {"adapter": {"distribution": "recentred"}}}
    assert score_served(without, "adapter", recentred, own_centre=False) is None
    few = predictions[predictions["cutoff"] <= predictions["cutoff"].unique()[6]]
    assert score_served(few, "adapter", {}, own_centre=False) is None
