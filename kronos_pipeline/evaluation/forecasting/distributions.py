"""What sampled paths say of each close: mean, median, intervals, and how well they foresaw the real one.

An interval ends at quantiles by Weibull's plotting positions, p (N + 1) of N paths. Where the real close is drawn as
the paths are, such an interval covers its nominal share whatever their number (a little more where a position lies
between two paths). No position lies outside of the outermost paths, so an interval of too few ends there and covers
less than it says: 90 percent needs 19 paths, 80 percent 9, 50 percent 3.
"""

from __future__ import annotations

import numpy as np
import scoringrules
from numpy.typing import NDArray

from kronos_pipeline.evaluation.predictions import LEVELS

Floats = NDArray[np.float64]

FEWEST_PATHS = 19
"""Paths that the interval of every level needs: 2 / (N + 1) lies outside of the outermost two."""


def describe(closes: Floats, y: Floats, widths: Floats) -> dict[str, Floats]:
    """Describe the distribution of some closes, and score it.

    An interval's two sides are stretched around the median: lo = median - width (median - raw_lo). It always holds
    the intervals of the lower levels, whatever their widths.

    Args:
        closes: the sampled paths' closes, (n, paths), in price units.
        y: the real ones, (n,).
        widths: factors of the intervals of each of `LEVELS`, (n, levels); 1 leaves one as it is.

    Returns:
        The columns of a table of predictions, (n,) each: `mean`, `median`, `lo_50` to `hi_90` and the same with `raw_`
        before the recalibration, `crps` and `pit`.
    """
    median = np.median(closes, axis=1)
    lows, highs = raw_intervals(closes)
    columns = {"mean": closes.mean(axis=1), "median": median}
    for side, raw, widest in (("lo", lows, np.minimum), ("hi", highs, np.maximum)):
        stretched = widest.accumulate(median[:, None] + widths * (raw - median[:, None]), axis=1)
        for place, level in enumerate(LEVELS):
            columns |= {f"{side}_{level}": stretched[:, place], f"raw_{side}_{level}": raw[:, place]}
    return columns | {"crps": crps(closes, y), "pit": pit(closes, y)}


def raw_intervals(closes: Floats) -> tuple[Floats, Floats]:
    """Lower and upper ends of the central intervals of each of `LEVELS`, from closes (n, paths): two of (n, levels)."""
    tails = np.array([(100 - level) / 200 for level in LEVELS])
    lows, highs = (np.quantile(closes, ends, axis=1, method="weibull").T for ends in (tails, 1 - tails))
    return lows, highs


def crps(closes: Floats, y: Floats) -> Floats:
    """Continuous ranked probability score of closes (n, paths) at y (n,), in price units, (n,); of one path, its error.

    The estimator is fair: its mean does not depend on the number of paths (Ferro, 2014).
    """
    if closes.shape[1] == 1:
        return np.abs(closes[:, 0] - y)
    # By probability-weighted moments: the number of the estimator "fair", without its (n, paths, paths) differences.
    return np.asarray(scoringrules.crps_ensemble(y, closes, estimator="pwm", backend="numpy"), np.float64)


def pit(closes: Floats, y: Floats) -> Floats:
    """Where y (n,) lies among the closes (n, paths), (n,), above 0 and below 1; the middle of the paths that equal it.

    Uniform over many bars where the real closes are drawn as the paths are.
    """
    below, equal = (closes < y[:, None]).sum(axis=1), (closes == y[:, None]).sum(axis=1)
    return (below + (equal + 1) / 2) / (closes.shape[1] + 1)
