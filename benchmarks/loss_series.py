"""Measure verdicts on simulated loss series: the rate of false verdicts, and the power to detect an advantage.

    python benchmarks/loss_series.py --series 2000        # the tables in docs/false-positives.md
    python benchmarks/loss_series.py --series 50          # a smoke test

A series has a pair of losses per cutoff. In the first table both losses have the same expected value, so every "better"
and every "worse" is false; the nominal rate of each is 5 percent. In the second table the model's loss is lower, by a
multiple of the standard deviation of the difference from cutoff to cutoff.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd

from kronos_pipeline.evaluation.scoring.significance import diebold_mariano
from kronos_pipeline.evaluation.scoring.verdicts import ALPHA, BETTER, WORSE, Comparison, compare, correct

CUTOFFS = (8, 12, 24, 40)
ADVANTAGES = (0.5, 1.0, 1.5, 2.0)
TESTED = (1, 12, 100)


def _alike(rng: np.random.Generator, cutoffs: int, decay: float) -> np.ndarray:
    """Draw a stationary autoregression of order 1 with variance 1."""
    values = rng.normal(size=cutoffs)
    for number in range(1, cutoffs):
        values[number] = decay * values[number - 1] + (1 - decay**2) ** 0.5 * values[number]
    return values


# Differences of two losses by cutoff, with expected value 0 and variance near 1; the last two kinds are the hardest.
KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails (t of 3)": lambda rng, n: rng.standard_t(3, size=n) / 3**0.5,
    "calm and stormy": lambda rng, n: rng.normal(size=n) * np.exp(_alike(rng, n, 0.8) - 1),
    "rare large losses, model (skewness 2)": lambda rng, n: rng.exponential(size=n) - 1,
    "rare large losses, rival (skewness 2)": lambda rng, n: 1 - rng.exponential(size=n),
    "neighbours correlated 0.3": lambda rng, n: _alike(rng, n, 0.3),
    "neighbours correlated 0.5": lambda rng, n: _alike(rng, n, 0.5),
    "rare huge losses, model (skewness 6)": lambda rng, n: (np.exp(rng.normal(size=n)) - np.exp(0.5)) / 2.16,
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=2000, help="simulated pairs of loss series per cell")
    options = parser.parse_args()
    print(f"False verdicts, percent of {options.series} series (and by Diebold-Mariano alone)")
    print(false_verdicts(options.series).to_string(index=False))
    print('\n"Better", percent, by advantage in standard deviations of the difference')
    print(true_verdicts(options.series // 4).to_string(index=False))


def false_verdicts(series: int) -> pd.DataFrame:
    """Return the percentages of "better", of "worse" and of "better" by one test alone, by kind and cutoffs."""
    rows = []
    for seed, (kind, draw) in enumerate(KINDS.items()):
        for cutoffs in CUTOFFS:
            rng = np.random.default_rng([seed, cutoffs])
            verdicts, false_verdicts = [], 0
            for _ in range(series):
                difference = draw(rng, cutoffs)
                statistic, p_value = diebold_mariano(difference)
                false_verdicts += statistic < 0 and p_value <= ALPHA
                verdicts.append(correct([_compared(difference, rng)], 1)[0].verdict)
            shares = [100 * count / series for count in (verdicts.count(BETTER), verdicts.count(WORSE), false_verdicts)]
            rows.append([kind, cutoffs, *(f"{share:.1f}" for share in shares)])
    return pd.DataFrame(rows, columns=["differences", "cutoffs", "better", "worse", "better by one test"])


def true_verdicts(series: int) -> pd.DataFrame:
    """Return the percentage of "better" by cutoffs and advantage, for 1 ticker and for the best of 12 and of 100."""
    rows = []
    for cutoffs in CUTOFFS:
        for advantage in ADVANTAGES:
            row: list[object] = [cutoffs, advantage]
            for tested in TESTED:
                rng = np.random.default_rng([cutoffs, tested])
                comparisons = [_compared(rng.normal(size=cutoffs) - advantage, rng, tested) for _ in range(series)]
                better = sum(correct([comparison], tested)[0].verdict == BETTER for comparison in comparisons)
                row.append(f"{100 * better / series:.0f}")
            rows.append(row)
    return pd.DataFrame(rows, columns=["cutoffs", "advantage", *(f"{tested} tested" for tested in TESTED)])


def _compared(difference: np.ndarray, rng: np.random.Generator, tested: int = 1) -> Comparison:
    rival = 10 + np.abs(rng.normal(size=len(difference)))  # the offset keeps losses above 0
    model_losses = pd.Series(rival + difference)
    return compare(model_losses, pd.Series(rival), model="model", rival="rival", tickers_tested=tested)


if __name__ == "__main__":
    main()
