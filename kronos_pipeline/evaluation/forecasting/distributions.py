"""Distribution of each close from sampled paths: mean, median, intervals, and scores against the real close.

An interval ends at quantiles by Weibull's plotting positions, p (N + 1) of N paths. If the real close has the paths'
distribution, such an interval covers its nominal share for any N (a little more if a position lies between two paths).
No position lies beyond the outermost paths, so an interval of too few paths ends there and covers less than its level:
90 percent needs 19 paths, 80 percent 9, 50 percent 3.
"""

from __future__ import annotations

import numpy as np
import scoringrules
from numpy.typing import NDArray

from kronos_pipeline.evaluation.predictions import LEVELS

Floats = NDArray[np.float64]


def describe_closes(closes: Floats, y: Floats, widths: Floats) -> dict[str, Floats]:
    """Describe the distributions of closes, and score them.

    An interval's two sides are stretched around the median: lo = median - width (median - raw_lo). An interval always
    contains the intervals of the lower levels, for any widths.

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
    for side, raw, widest in (("lo", lows, np.minimum), ("hi", highs, np.maximum)):
        stretched = widest.accumulate(median[:, None] + widths * (raw - median[:, None]), axis=1)
        for column, level in enumerate(LEVELS):
            columns |= {f"{side}_{level}": stretched[:, column], f"raw_{side}_{level}": raw[:, column]}
    return columns | {"crps": crps(closes, y), "pit": pit(closes, y)}


def raw_intervals(closes: Floats) -> tuple[Floats, Floats]:
    """Return the lower and the upper ends of the central intervals of `LEVELS`, (n, levels) each, from (n, paths)."""
    tails = np.array([(100 - level) / 200 for level in LEVELS])
    lows, highs = (np.quantile(closes, ends, axis=1, method="weibull").T for ends in (tails, 1 - tails))
    return lows, highs


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
