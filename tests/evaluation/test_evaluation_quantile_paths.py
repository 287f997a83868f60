"""Paths from quantiles: the forecast's distribution at each bar, and the variance of the returns between the bars."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from kronos_pipeline.evaluation.rivals.quantile_paths import paths_of_quantiles, quantiles_at

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


def normal_quantiles(deviations: np.ndarray) -> np.ndarray:
    """Return the quantiles of centred normals, (1, horizon, levels)."""
    quantiles: np.ndarray = deviations[None, :, None] * ndtri(LEVELS)
    return quantiles


def draws(paths: int, horizon: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, paths, horizon))


def test_the_quantiles_of_a_normal_distribution_give_that_distribution_beyond_the_outermost_levels_too() -> None:
    scores = np.linspace(-4, 4, 33)
    values = quantiles_at(np.broadcast_to(3 + 2 * ndtri(LEVELS), (33, 7)), LEVELS, scores)
    np.testing.assert_allclose(values, 3 + 2 * scores)


def test_crossed_quantiles_are_sorted() -> None:
    crossed = np.array([[1.0, 0.0, 2.0]])
    assert quantiles_at(crossed, (0.25, 0.5, 0.75), np.array([0.0])) == pytest.approx(1.0)


def test_paths_have_the_forecasts_quantiles_at_every_bar() -> None:
    quantiles = np.stack([np.array([-3.0, -2, -1, 0, 2, 4, 6]) * step for step in (1.0, 1.5, 4.0)])[None]
    paths = paths_of_quantiles(quantiles, LEVELS, draws(40_000, 3))
    sample_quantiles = np.quantile(paths[0], LEVELS, axis=0).T
    np.testing.assert_allclose(sample_quantiles, quantiles[0], atol=0.4)


def test_the_returns_of_paths_have_the_variance_by_which_the_forecasts_variance_grows() -> None:
    variances = np.array([1.0, 2.0, 5.0, 5.5])
    paths = paths_of_quantiles(normal_quantiles(np.sqrt(variances)), LEVELS, draws(40_000, 4))
    returns = np.diff(paths[0], axis=-1, prepend=0.0)
    np.testing.assert_allclose((returns**2).mean(axis=0), [1.0, 1.0, 3.0, 0.5], rtol=0.05)
    assert abs(np.corrcoef(returns.T)[np.triu_indices(4, 1)]).max() < 0.03


def test_a_variance_that_shrinks_gives_finite_paths_with_the_smaller_variance() -> None:
    paths = paths_of_quantiles(normal_quantiles(np.array([2.0, 1.0])), LEVELS, draws(40_000, 2))
    np.testing.assert_allclose(paths[0].std(axis=0), [2.0, 1.0], rtol=0.03)


def test_equal_quantiles_give_paths_at_that_value() -> None:
    assert (paths_of_quantiles(np.zeros((1, 3, 7)), LEVELS, draws(5, 3)) == 0).all()
