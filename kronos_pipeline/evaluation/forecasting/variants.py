"""Variants of a model's sampled paths: as sampled, recentred on the last close, and rescaled to EWMA volatility.

    sampled      the model's view on direction, spread and shape
    recentred    its spread and shape, without a view on direction
    rescaled     its shape alone, with the volatility of the past bars

On daily prices the direction of a sampled path is mostly noise, and its spread is often too small. A variant takes from
the model what it is good for. `tuning.py` chooses the variant of each target on the selection block.
"""

from __future__ import annotations

import numpy as np

from kronos_pipeline.data.bars import FloatArray
from kronos_pipeline.evaluation.predictions import RECENTRED, RESCALED, SAMPLED, Variant

_LEAST = 1e-3
"""The least sampled close, as a share of the last: a model's output may be below 0, and has no logarithm then."""


def variants_of(closes: FloatArray, last: FloatArray, variance: FloatArray) -> dict[Variant, FloatArray]:
    """Return every variant of sampled closes.

    Args:
        closes: sampled closes, (cutoffs, paths, horizon), above 0.
        last: closes at the cutoffs, (cutoffs,).
        variance: EWMA variance per bar at the cutoffs, (cutoffs,).
    """
    centre = np.broadcast_to(last[:, None], (len(last), closes.shape[2]))
    return {
        SAMPLED: closes,
        RECENTRED: recentre(closes, centre),
        RESCALED: recentre(rescale(closes, last, variance), centre),
    }


def recentre(closes: FloatArray, centre: FloatArray) -> FloatArray:
    """Scale the closes of each step by one factor, so that their mean is `centre`.

    Args:
        closes: closes, (cutoffs, paths, horizon).
        centre: the new mean path, (cutoffs, horizon).
    """
    factors: FloatArray = centre / np.maximum(closes.mean(axis=1), _LEAST * centre)
    return closes * factors[:, None, :]


def rescale(closes: FloatArray, last: FloatArray, variance: FloatArray) -> FloatArray:
    """Scale the log returns of each step, without their mean over the paths, to a given mean square.

    The order of the paths, the shape of their distribution and the dependence between steps stay as sampled. If all
    paths of a step agree, the step has no spread to scale, and its returns are 0.

    Args:
        closes: closes, (cutoffs, paths, horizon); a close below a thousandth of `last` counts as that.
        last: closes at the cutoffs, (cutoffs,).
        variance: mean square of the log return per bar, (cutoffs,).
    """
    start = np.broadcast_to(last[:, None, None], (*closes.shape[:2], 1))
    above_zero = np.maximum(closes, _LEAST * start)
    returns = np.diff(np.log(np.concatenate([start, above_zero], axis=2)), axis=2)
    returns -= returns.mean(axis=1, keepdims=True)
    spread = np.sqrt((returns**2).mean(axis=1, keepdims=True))
    # Rounding leaves a spread of some 1e-16 where all paths agree.
    factors = np.where(spread > 1e-12, np.sqrt(variance)[:, None, None] / np.maximum(spread, 1e-12), 0.0)
    scaled: FloatArray = last[:, None, None] * np.exp(np.cumsum(factors * returns, axis=2))
    return scaled
