"""Distribution of each close from sampled paths: mean, median, intervals, and scores against the real close.

An interval ends at quantiles by Weibull's plotting positions, p (N + 1) of N paths; equal paths share their mean
position. If the real close has the paths' distribution, such an interval covers its nominal share for any N (a little
more if a position lies between two paths).

No position lies beyond the outermost paths: 90 percent needs 19 paths, 80 percent 9, 50 percent 3. Beyond them the
distribution is continued by an exponential tail (Breiman, Stone and Kooperberg, 1990), that of the Laplace distribution
fitted to the paths by maximum likelihood, with N - 1 for the fitted median:

    Q(p) = outermost path -+ scale ln(outermost position / p),  scale = sum of |path - median| / (N - 1)

On 20,000 simulated normal, Student-t (4) and log-normal forecasts, intervals of 80 and 90 percent covered 79 to 82 and
88 to 92 percent with 5 to 18 paths, and 75 and 83 to 84 percent with 3.
"""

from __future__ import annotations

import numpy as np
import scoringrules
from numpy.typing import NDArray

from kronos_pipeline.evaluation.predictions import LEVELS

Floats = NDArray[np.float64]

_ROUNDING = 1e-6
"""Relative difference below which two sampled closes are equal."""


def describe_closes(closes: Floats, y: Floats, widths: Floats) -> dict[str, Floats]:
    """Describe the distributions of closes, and score them.

    An interval's two sides are stretched around the median: lo = median - width (median - raw_lo). The factor of a
    level is raised to those of the lower levels, so for any widths above 0 an interval is wider on both sides than the
    intervals of the lower levels, unless all paths are equal.

    Args:
        closes: the sampled closes, (n, paths), in price units.
        y: the real closes, (n,).
        widths: factors of the intervals of each of `LEVELS`, (n, levels); 1 changes nothing.

    Returns:
        The columns of a table of predictions, (n,) each: `mean`, `median`, `lo_50` to `hi_90` and the same with `raw_`
        before the recalibration, `crps` and `pit`.
    """
    median = np.median(closes, axis=1)
    lows, highs = raw_intervals(closes)
    columns = {"mean": closes.mean(axis=1), "median": median}
    growing = np.maximum.accumulate(widths, axis=1)
    for side, raw in (("lo", lows), ("hi", highs)):
        stretched = median[:, None] + growing * (raw - median[:, None])
        for column, level in enumerate(LEVELS):
            columns |= {f"{side}_{level}": stretched[:, column], f"raw_{side}_{level}": raw[:, column]}
    return columns | {"crps": crps(closes, y), "pit": pit(closes, y)}


def raw_intervals(closes: Floats) -> tuple[Floats, Floats]:
    """Return the lower and the upper ends of the central intervals of `LEVELS`, (n, levels) each, from (n, paths)."""
    tails = np.array([(100 - level) / 200 for level in LEVELS])
    ends = quantiles(closes, np.concatenate([tails, 1 - tails]))
    return ends[:, : len(LEVELS)], ends[:, len(LEVELS) :]


def quantiles(closes: Floats, probabilities: Floats) -> Floats:
    """Return quantiles of closes (n, paths) at probabilities (m,), (n, m); they rise with p unless all are equal."""
    n, paths = closes.shape
    ordered = np.sort(closes, axis=1)
    positions = _mean_ranks(ordered) / (paths + 1)
    scale = np.abs(closes - np.median(closes, axis=1)[:, None]).sum(axis=1) / max(paths - 1, 1)
    row = np.arange(n)
    found = np.empty((n, len(probabilities)))
    for column, p in enumerate(probabilities):
        right = np.minimum((positions < p).sum(axis=1), paths - 1)
        left = np.maximum(right - 1, 0)
        gap = positions[row, right] - positions[row, left]  # 0 at the first path, and at the last of equal paths
        share = np.clip((p - positions[row, left]) / np.where(gap > 0, gap, 1.0), 0.0, 1.0)
        inside = ordered[row, left] + share * (ordered[row, right] - ordered[row, left])
        below = np.log(np.maximum(positions[:, 0] / p, 1.0))
        above = np.log(np.maximum((1 - positions[:, -1]) / (1 - p), 1.0))
        found[:, column] = inside + scale * (above - below)
    return found


def _mean_ranks(ordered: Floats) -> Floats:
    """Return the ranks from 1 of ordered closes, (n, paths); equal closes share the mean of their ranks.

    Closes of one token are equal but for the rounding of the device, so a difference of a millionth counts as none.
    """
    paths = ordered.shape[1]
    index = np.arange(paths)
    starts = np.diff(ordered, axis=1) > _ROUNDING * np.abs(ordered[:, 1:])
    edge = np.ones((len(ordered), 1), np.bool_)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, starts], axis=1), index, 0), axis=1)
    ends = np.where(np.concatenate([starts, edge], axis=1), index, paths - 1)
    last = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    ranks: Floats = (first + last) / 2 + 1
    return ranks


def path_statistics(closes: Floats, last: Floats) -> dict[str, Floats]:
    """Return the mean squared log change of the close by step, and the probability that the close is above `last`.

    Args:
        closes: sampled closes, (cutoffs, paths, horizon).
        last: closes at the cutoffs, (cutoffs,).

    Returns:
        `variance` and `p_up`, (cutoffs, horizon) each. The variance is NaN at a step if a path's close there or at the
        step before is not a finite number above 0. A close equal to `last` counts half for `p_up`.
    """
    start = np.broadcast_to(last[:, None, None], (*closes.shape[:2], 1))
    known = np.concatenate([start, closes], axis=2)
    changes = np.diff(np.log(known, out=np.full_like(known, np.nan), where=(known > 0) & (known < np.inf)), axis=2)
    signs = np.sign(closes - last[:, None, None])
    return {"variance": (changes**2).mean(axis=1), "p_up": (signs.mean(axis=1) + 1) / 2}


def crps(closes: Floats, y: Floats) -> Floats:
    """Return the continuous ranked probability score of closes (n, paths) at y (n,), in price units, (n,).

    The estimator is fair: its mean does not depend on the number of paths (Ferro, 2014). The score of a single path is
    its absolute error.
    """
    if closes.shape[1] == 1:
        return np.abs(closes[:, 0] - y)
    # By probability-weighted moments: the number of the estimator "fair", without its (n, paths, paths) differences.
    return np.asarray(scoringrules.crps_ensemble(y, closes, estimator="pwm", backend="numpy"), np.float64)


def pit(closes: Floats, y: Floats) -> Floats:
    """Return the rank of y (n,) among the closes (n, paths), (n,), above 0 and below 1; the middle rank of equal paths.

    Ranks are uniform over many bars if real closes and paths have one distribution.
    """
    below, equal = (closes < y[:, None]).sum(axis=1), (closes == y[:, None]).sum(axis=1)
    ranks: Floats = (below + (equal + 1) / 2) / (closes.shape[1] + 1)
    return ranks
