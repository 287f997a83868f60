"""Scores of the composed forecast that is served: those of its paths, from the table of predictions alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_pipeline.evaluation.forecasting.composition import compose
from kronos_pipeline.evaluation.forecasting.distributions import describe_closes, path_statistics
from kronos_pipeline.evaluation.forecasting.variants import variants_of
from kronos_pipeline.evaluation.predictions import COLUMNS, QUANTILES, Variant, variant_name
from kronos_pipeline.evaluation.scoring.metrics import quantile_score
from kronos_pipeline.evaluation.scoring.served import BAR, score_served

CUTOFFS, PATHS, HORIZON = 12, 40, 3
WIDTHS: dict[str, float] = {"sampled": 1.3, "recentred": 0.8, "rescaled": 1.1}
RNG = np.random.default_rng(3)
CLOSES = 100 * np.exp(np.cumsum(RNG.normal(0, 0.01, 1 + CUTOFFS * HORIZON)))
LAST, Y = CLOSES[:-1:HORIZON], CLOSES[1:].reshape(CUTOFFS, HORIZON)


def walks(drift: float, deviation: float) -> np.ndarray:
    """Return closes of paths, (cutoffs, paths, horizon)."""
    returns = RNG.normal(drift, deviation, (CUTOFFS, PATHS, HORIZON))
    closes: np.ndarray = LAST[:, None, None] * np.exp(np.cumsum(returns, axis=2))
    return closes


def variants_by_name(closes: np.ndarray) -> dict[Variant, np.ndarray]:
    return variants_of(closes, LAST, np.full(CUTOFFS, 0.01**2))


def rows_of(model: str, closes: np.ndarray, width: float = 1.0) -> pd.DataFrame:
    """Return the rows of a model in a table of predictions."""
    step = np.tile(np.arange(1, HORIZON + 1), CUTOFFS)
    cutoff = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.repeat(np.arange(CUTOFFS), HORIZON) * HORIZON, unit="D")
    statistics = path_statistics(closes, LAST)
    return pd.DataFrame(
        {
            **{"unique_id": "AAPL", "cutoff": cutoff, "ds": cutoff + pd.to_timedelta(step, unit="D"), "step": step},
            **{"y": Y.ravel(), "last": np.repeat(LAST, HORIZON), "scale": 1.0, "model": model},
            **{"squared_return": 1e-4, "range_variance": 1e-4},
            **describe_closes(closes.transpose(0, 2, 1).reshape(-1, PATHS), Y.ravel(), np.full((len(step), 3), width)),
            **{name: values.ravel() for name, values in statistics.items()},
        }
    )[list(COLUMNS)]


ADAPTER, BASE, RIVAL = walks(0.004, 0.008), walks(-0.002, 0.02), walks(0.0, 0.015)
TABLE = pd.concat(
    [
        rows_of("naive", np.broadcast_to(LAST[:, None, None], ADAPTER.shape)),
        rows_of("ewma", RIVAL),
        rows_of("har", walks(0.0, 0.03)),
        *(
            rows_of(variant_name(model, variant), closes, WIDTHS[variant])
            for model, paths in (("base", BASE), ("adapter", ADAPTER))
            for variant, closes in variants_by_name(paths).items()
        ),
    ],
    ignore_index=True,
)
ANOTHER_MEAN = pd.Series(
    (1.01 * Y).ravel(), index=pd.MultiIndex.from_frame(TABLE[TABLE["model"] == "ewma"][BAR]), name="mean"
)


def loss_of(closes: np.ndarray, width: float) -> float:
    """Return the loss of served paths: twice the mean pinball loss of their quantiles."""
    rows = rows_of("served", closes, width)
    return float(quantile_score(rows[list(QUANTILES)].to_numpy(), rows["y"].to_numpy()).mean())


def recentred_on(centre: np.ndarray, closes: np.ndarray) -> np.ndarray:
    return np.stack([compose(mean, paths) for mean, paths in zip(centre, closes, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "centre", "used"),
    [
        ("sampled", None, "sampled"),  # paths that were judged as sampled keep their own centre
        ("recentred", None, "recentred"),
        ("rescaled", None, "rescaled"),
        ("sampled", "adapter", "sampled"),
        ("recentred", "adapter", "sampled"),
        ("rescaled", "adapter", "rescaled"),
        ("sampled", "another version", "recentred"),
        ("rescaled", "another version", "rescaled"),
    ],
)
def test_the_composition_is_scored_as_its_paths_are_whichever_centre_they_have(
    variant: Variant, centre: str | None, used: Variant
) -> None:
    given = ANOTHER_MEAN if centre == "another version" else centre
    score = score_served(TABLE, {"AAPL": {"adapter": {"distribution": variant}}}, shape="adapter", centre=given)
    assert score is not None
    own = centre == "adapter" or (centre is None and variant == "sampled")
    means = ADAPTER.mean(axis=1) if own else 1.01 * Y if centre else np.repeat(LAST[:, None], HORIZON, axis=1)
    served = recentred_on(means, variants_by_name(ADAPTER)[used])
    assert score.distribution.rival == "ewma"
    assert score.distribution.skill == pytest.approx(1 - loss_of(served, WIDTHS[used]) / loss_of(RIVAL, 1.0))
    naive = np.abs(LAST[:, None] - Y).mean()
    assert score.mean.skill == pytest.approx(1 - np.abs(means - Y).mean() / naive, abs=1e-12)
    assert str(score).startswith(f"as served: distribution skill {score.distribution.skill:.1%} against ewma, the best")


def test_without_a_champion_of_the_distribution_the_best_rival_gives_the_shape() -> None:
    score = score_served(TABLE, {}, centre="adapter")
    assert score is not None
    served = recentred_on(ADAPTER.mean(axis=1), RIVAL)
    assert score.distribution.skill == pytest.approx(1 - loss_of(served, 1.0) / loss_of(RIVAL, 1.0))


def test_without_a_champion_base_gives_the_parts_on_which_it_is_better_than_every_rival() -> None:
    good = rows_of("base", recentred_on(Y, variants_by_name(RIVAL)["recentred"] * 1.0))
    table = pd.concat([TABLE[TABLE["model"] != "base"], good], ignore_index=True)
    score = score_served(table, {"AAPL": {"adapter": {"distribution": "recentred"}}}, shape="adapter")
    assert score is not None
    assert score.mean.skill == pytest.approx(1.0)


def test_a_composition_that_the_table_does_not_have_is_not_scored() -> None:
    without = TABLE[TABLE["model"] != "adapter_recentred"]
    assert score_served(without, {"AAPL": {"adapter": {"distribution": "recentred"}}}, shape="adapter") is None
    few = TABLE[TABLE["cutoff"] <= TABLE["cutoff"].unique()[6]]
    assert score_served(few, {}, shape="adapter", centre="adapter") is None
    elsewhere = ANOTHER_MEAN.rename(index={"AAPL": "MSFT"}, level="unique_id")
    assert score_served(TABLE, {}, shape="adapter", centre=elsewhere) is None
