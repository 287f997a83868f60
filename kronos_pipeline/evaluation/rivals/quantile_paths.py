"""Sample paths from forecast quantiles, so that a quantile model is described and scored as every model of paths.

A forecast gives the quantiles of each bar ahead, and not their dependence. The paths have the forecast's distribution
at each bar, and the dependence of a random walk with the forecast's variances (a Gaussian copula): the log returns of
a path are uncorrelated, and their variance at a step is the growth of the forecast variance from the step before.

    normal scores   z[h] = w[h] / deviation of w[h],    w[h] = w[h - 1] + normal(0, variance[h] - variance[h - 1])
    paths           x[h] = the forecast's quantile at the level of z[h]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]

LEAST_GROWTH = 1e-3
"""Smallest growth of the variance at a step, as a share of the variance there: the variance of a walk cannot shrink."""
_GRID = ndtri((np.arange(200) + 0.5) / 200)
"""Normal scores of equally likely levels, for the moments of a forecast."""


def quantiles_at(quantiles: Floats, levels: Sequence[float], scores: Floats) -> Floats:
    """Return the values at some normal scores of distributions that are known by their quantiles.

    The quantiles are sorted first (Chernozhukov, Fernandez-Val and Galichon, 2010). Between two levels, and beyond the
    first and the last, a value is linear in the score: the quantiles of a normal distribution give that distribution.

    Args:
        quantiles: `(..., levels)`.
        levels: the probability of each quantile, increasing, at least two.
        scores: `(...)` or `(n, ...)`: for each distribution one score, or n scores.

    Returns:
        The values, of the shape of `scores`.
    """
    knots, ordered = ndtri(np.asarray(levels)), np.sort(quantiles, axis=-1)
    left = np.clip(np.searchsorted(knots, scores, side="right") - 1, 0, len(knots) - 2)
    ordered = np.broadcast_to(ordered, (*scores.shape, len(knots)))
    low, high = (np.take_along_axis(ordered, at[..., None], axis=-1)[..., 0] for at in (left, left + 1))
    values: Floats = low + (high - low) * (scores - knots[left]) / (knots[left + 1] - knots[left])
    return values


def paths_of_quantiles(quantiles: Floats, levels: Sequence[float], draws: Floats) -> Floats:
    """Sample paths with given quantiles at each bar ahead.

    Args:
        quantiles: quantiles of the log price relative to the last close, `(cutoffs, horizon, levels)`.
        levels: the probability of each quantile.
        draws: standard normal numbers, `(cutoffs, paths, horizon)`.

    Returns:
        Log prices relative to the last close, `(cutoffs, paths, horizon)`.
    """
    moments = quantiles_at(quantiles, levels, np.broadcast_to(_GRID[:, None, None], (len(_GRID), *quantiles.shape[:2])))
    variance = np.maximum(moments.var(axis=0), np.finfo(np.float64).tiny)  # (cutoffs, horizon)
    growth = np.maximum(np.diff(variance, axis=1, prepend=0.0), LEAST_GROWTH * variance)
    walk = np.cumsum(np.sqrt(growth)[:, None] * draws, axis=-1)
    scores = walk / np.sqrt(np.cumsum(growth, axis=1))[:, None]
    return quantiles_at(quantiles, levels, scores.swapaxes(0, 1)).swapaxes(0, 1)
