"""Tests of whether one series of losses is lower than another by more than chance: the statistics of a verdict.

Both tests compare two paired series with one value per cutoff. Diebold-Mariano is exact if the differences are normal;
the block bootstrap does not assume this, and keeps neighbours together, as a good cutoff may follow a good cutoff. Each
test fails in cases that the other handles, so a verdict needs both.
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtr

SEED = 0


def diebold_mariano(differences: np.ndarray, overlap: int = 0) -> tuple[float, float]:
    """Test that the mean loss difference is 0: Diebold and Mariano (1995), with the small-sample correction.

        V = g_0 + 2 (g_1 + ... + g_overlap),  g_k the k-th autocovariance, divided by n
        statistic = mean / sqrt(V / n) * sqrt((n + 1 - 2 h + h (h - 1) / n) / n),  h = overlap + 1

    compared with Student's t of n - 1 degrees of freedom (Harvey, Leybourne and Newbold, 1997). V is at least g_0:
    overlapping forecasts err together, and a negative sum is chance that would inflate the statistic.
    Without overlap this is the paired t-test.

    Args:
        differences: `(n,)`, loss minus the rival's loss, by time; n > overlap + 1.
        overlap: number of later cutoffs within one forecast; 0 if cutoffs are a horizon apart.

    Returns:
        The statistic, below 0 if the loss is lower than the rival's, and the two-sided p-value. Differences that do not
        vary give 0 and 1 if they are 0, else an infinite statistic and 0.
    """
    n, mean = len(differences), float(differences.mean())
    centred = differences - mean
    covariances = [float(centred[lag:] @ centred[: n - lag]) / n for lag in range(overlap + 1)]
    variance = max(covariances[0], covariances[0] + 2 * sum(covariances[1:]))
    if variance <= (1e-12 * mean) ** 2:  # as rounding leaves it
        return (float(np.copysign(np.inf, mean)), 0.0) if mean else (0.0, 1.0)
    h = overlap + 1
    statistic = mean / np.sqrt(variance / n) * np.sqrt((n + 1 - 2 * h + h * (h - 1) / n) / n)
    return float(statistic), float(2 * stdtr(n - 1, -abs(statistic)))


def bootstrap_skill(
    losses: np.ndarray, rival: np.ndarray, *, block: int, draws: int, level: float = 0.95
) -> tuple[float, float, float]:
    """Compute the studentised interval of the skill `1 - losses / rival`, of the sums, and the p-value that it is 0.

    Blocks of neighbours are drawn from the series closed to a circle (Politis and Romano, 1992). Each draw's skill is
    divided by its own standard error from its block sums (Götze and Künsch, 1996), as plain percentiles are far too
    narrow for ten or twenty cutoffs. The draws are seeded: equal series give equal intervals.

    Args:
        losses: losses of the model, `(n,)`, at or above 0.
        rival: losses of the rival, `(n,)`, at or above 0; their sum is above 0.
        block: neighbours per block.
        draws: number of draws; no p-value is below 2 / (draws + 1).
        level: probability that the interval covers the true skill.

    Returns:
        Lower and upper end, infinite if too few different draws bound it, and the two-sided p-value.
    """
    n = len(losses)
    circle = (np.arange(n)[:, None] + np.arange(block)) % n
    loss_sums, rival_sums = losses[circle].sum(axis=1), rival[circle].sum(axis=1)
    skill = 1 - losses.sum() / rival.sum()
    errors = loss_sums - (1 - skill) * rival_sums
    spread = float(np.sqrt((errors**2).mean() * n / block) / rival.sum())
    if spread <= 1e-9 * abs(skill):  # every block shows the same skill
        return float(skill), float(skill), 2 / (draws + 1) if skill else 1.0

    starts = np.random.default_rng(SEED).integers(0, n, (draws, -(-n // block)))
    drawn_losses, drawn_rival = loss_sums[starts], rival_sums[starts]  # (draws, blocks)
    totals = drawn_rival.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        skills = 1 - drawn_losses.sum(axis=1) / totals
        drawn_errors = drawn_losses - (1 - skills)[:, None] * drawn_rival
        spreads = np.sqrt((drawn_errors**2).sum(axis=1)) / totals
        scores = (skills - skill) / spreads
    # A draw of one block many times, or without any error of the rival's, has no spread and bounds nothing.
    above = np.where(np.isnan(skills), skill > 0, skills > skill)
    scores = np.where(spreads > 1e-9 * spread, scores, np.where(above, np.inf, -np.inf))
    tail = (1 - level) / 2
    low, high = np.quantile(scores, [tail, 1 - tail], method="inverted_cdf")
    beyond = int(min((scores >= skill / spread).sum(), (scores <= skill / spread).sum()))
    return float(skill - high * spread), float(skill - low * spread), min(1.0, 2 * (beyond + 1) / (draws + 1))


def holm(p_values: np.ndarray, tests: int) -> np.ndarray:
    """Correct p-values by Holm's (1979) step-down method, which holds for any dependence between the tests.

    Args:
        p_values: `(n,)`.
        tests: number of all tests, at least n; the p-values of the other tests count as larger.

    Returns:
        `(n,)` in the same order, at most 1; a value of at most 0.05 is significant at that level.
    """
    order = np.argsort(p_values, kind="stable")
    raised = np.minimum(1.0, np.maximum.accumulate(p_values[order] * (tests - np.arange(len(p_values)))))
    adjusted = np.empty_like(raised)
    adjusted[order] = raised
    return adjusted
