"""Tests of calibration: do intervals hold as often as their level, without clusters, and is the PIT uniform?

The tests take independent observations: one per forecast, of forecasts that share no bar. A holdout has some dozen of
them, too few for the chi-squared limits of the statistics. So each p-value comes from the statistic's own distribution
under the null hypothesis: summed for Kupiec's test, drawn with a fixed seed for the other tests, as Dufour (2006)
proposes and Christoffersen and Pelletier (2004) do for backtests of value at risk. Such a p-value holds for any number
of forecasts.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy
from scipy.stats import binom

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

DRAWS = 1_999
"""Draws per distribution; no drawn p-value is below 1 / (DRAWS + 1)."""
SEED = 0
_ROUNDING = 1e-9
"""Difference of two statistics that counts as rounding."""


def kupiec(misses: Bools, rate: float) -> tuple[float, float]:
    """Test that a share `rate` of independent closes lies outside their interval: the proportion of failures.

        LR = -2 ln[ (1 - p)^(n - x) p^x ] + 2 ln[ (1 - x/n)^(n - x) (x/n)^x ],  x misses of n, p the rate

    (Kupiec, 1995, Journal of Derivatives 3(2)). The p-value is the binomial probability of all x with at least this LR.

    Args:
        misses: `(n,)`, n at least 1; true where the close lies outside the interval.
        rate: the nominal share outside, above 0 and below 1: 0.2 of an interval of 80 percent.

    Returns:
        The statistic and the p-value.
    """
    n = len(misses)
    counts = np.arange(n + 1)
    statistics = _failures(counts, n, rate)
    statistic = float(statistics[int(misses.sum())])
    p_value = binom.pmf(counts, n, rate)[statistics >= statistic - _ROUNDING].sum()
    return statistic, float(min(1.0, p_value))


def independence(misses: Bools) -> tuple[float, float]:
    """Test that a miss is as likely after a miss as after a hit.

        LR = 2 ln[ (1 - a)^n00 a^n01 (1 - b)^n10 b^n11 ] - 2 ln[ (1 - c)^(n00 + n10) c^(n01 + n11) ]

    with nij the number of changes from state i to state j (1 is a miss), a = n01 / (n00 + n01), b = n11 / (n10 + n11)
    and c = (n01 + n11) / (n - 1) (Christoffersen, 1998, International Economic Review 39(4)). Independent misses come
    in every order with the same probability, so the p-value is the share of shuffled orders with at least this LR,
    whatever the share of misses.

    Args:
        misses: `(n,)` by time, n at least 2.

    Returns:
        The statistic and the p-value.
    """
    statistic = float(_clusters(misses[None])[0])
    return statistic, _tail(_shuffled(len(misses), int(misses.sum())), statistic)


def conditional_coverage(misses: Bools, rate: float) -> tuple[float, float]:
    """Test the share of misses and their independence as one: LR = LR of `kupiec` + LR of `independence`.

    Christoffersen (1998). The p-value is the share of drawn series of independent misses with at least this LR.

    Args:
        misses: `(n,)` by time, n at least 2.
        rate: the nominal share outside the interval.

    Returns:
        The statistic and the p-value.
    """
    statistic = float(_joint(misses[None], rate)[0])
    return statistic, _tail(_independent(len(misses), rate), statistic)


def uniform_pit(pit: Floats) -> tuple[float, float]:
    """Test that independent PIT values are uniform: Neyman's (1937) smooth test of order 2.

        statistic = n (mean of q1)^2 + n (mean of q2)^2,  q1 = sqrt(12) (u - 1/2),  q2 = sqrt(5) (6 (u - 1/2)^2 - 1/2)

    q1 and q2 are the first orthonormal Legendre polynomials on (0, 1): a mean of q1 that is not 0 shows forecasts that
    are too low or too high, a mean of q2 above 0 shows paths that are too narrow, and below 0 too wide. These are the
    errors of a forecast that a dozen values can show; a Kolmogorov-Smirnov test has less power against them (Bera and
    Ghosh, 2002). Ranks among N paths change the mean of q2 by about 1 / N^2, which the test cannot see.

    Args:
        pit: `(n,)`, from 0 to 1, n at least 1.

    Returns:
        The statistic and the p-value.
    """
    statistic = float(_smooth(pit[None])[0])
    return statistic, _tail(_uniform(len(pit)), statistic)


def _failures(counts: NDArray[np.integer], n: int, rate: float) -> Floats:
    share = counts / n
    fitted = xlogy(counts, share) + xlogy(n - counts, 1 - share)
    nominal = counts * np.log(rate) + (n - counts) * np.log1p(-rate)
    statistics: Floats = np.maximum(2 * (fitted - nominal), 0.0)
    return statistics


def _clusters(misses: Bools) -> Floats:
    """Return the statistic of `independence` of each series `(series, n)`, `(series,)`."""
    before, after = misses[:, :-1], misses[:, 1:]
    n11, n01 = (before & after).sum(axis=1), (~before & after).sum(axis=1)
    n10, n00 = (before & ~after).sum(axis=1), (~before & ~after).sum(axis=1)
    apart = _likelihood(n01, n00) + _likelihood(n11, n10)
    statistics: Floats = np.maximum(2 * (apart - _likelihood(n01 + n11, n00 + n10)), 0.0)
    return statistics


def _likelihood(ones: NDArray[np.integer], zeros: NDArray[np.integer]) -> Floats:
    """Return the maximum log likelihood of counts of ones and zeros; 0 without any."""
    total = np.maximum(ones + zeros, 1)
    value: Floats = xlogy(ones, ones / total) + xlogy(zeros, zeros / total)
    return value


def _joint(misses: Bools, rate: float) -> Floats:
    n = misses.shape[1]
    statistics: Floats = _failures(misses.sum(axis=1), n, rate) + _clusters(misses)
    return statistics


def _smooth(pit: Floats) -> Floats:
    centred = pit - 0.5
    first, second = 12**0.5 * centred, 5**0.5 * (6 * centred**2 - 0.5)
    statistics: Floats = pit.shape[1] * (first.mean(axis=1) ** 2 + second.mean(axis=1) ** 2)
    return statistics


@lru_cache(maxsize=512)
def _shuffled(n: int, misses: int) -> Floats:
    series = np.tile(np.arange(n) < misses, (DRAWS, 1))
    return np.sort(_clusters(np.random.default_rng(SEED).permuted(series, axis=1)))


@lru_cache(maxsize=512)
def _independent(n: int, rate: float) -> Floats:
    return np.sort(_joint(np.random.default_rng(SEED).random((DRAWS, n)) < rate, rate))


@lru_cache(maxsize=512)
def _uniform(n: int) -> Floats:
    return np.sort(_smooth(np.random.default_rng(SEED).random((DRAWS, n))))


def _tail(drawn: Floats, statistic: float) -> float:
    """Return the p-value of a statistic by sorted draws under the null hypothesis, of which it counts as one itself."""
    below = int(np.searchsorted(drawn, statistic - _ROUNDING, side="left"))
    return (1 + len(drawn) - below) / (1 + len(drawn))
