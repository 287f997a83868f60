"""A test that may be looked at every day: is a model better than a rival on forecasts that come one after another?

A gambler bets on each forecast before its outcome. `d` is the difference of the two losses over their sum:

    d = (rival - model) / (rival + model)             from -1, the rival made no error, to 1, the model made none
    wealth = wealth * (1 + bet * d)                   bet from 0 to 3/4, known when the forecast is issued

If the model is no better, that is, if the mean of d is at most 0 given all that was known at the issue, the wealth is a
nonnegative supermartingale, and the probability that it ever reaches 20 is at most 1/20 (Ville's inequality), however
often it is looked at (Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2024; Choe and
Ramdas, Comparing sequential forecasters, 2023). The wealth is called an e-value. The bet is the growth-optimal bet for
the mean and variance of the outcomes so far, approximately: mean / (variance + mean squared).

Forecasts overlap if a horizon is longer than the time from one issue to the next, and a bet on bars that are partly
known is no fair bet. Forecasts are therefore dealt to as many streams as a horizon has bars; within a stream, each
is issued when the one before has ended. The e-value is the mean wealth of the streams (Henzi and Ziegel, Valid
sequential inference on probability forecast performance, 2022; Arnold, Henzi and Ziegel, Sequentially valid tests for
forecast calibration, 2023).

    issued every bar, horizon 3     stream 1   |--a--|--d--|--g--
                                    stream 2     |--b--|--e--|--h--
                                    stream 3       |--c--|--f--

The mean of the streams is no supermartingale at each bar, as who stops at a bar knows a part of the forecasts that are
still open. It is one at the bars at which no bet is open. So when the mean wealth reaches 20, no bet is placed until
all open bets have ended, and the result counts only if the mean wealth is at least 20 then; else betting goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EVIDENCE = 20.0
"""E-value from which on a model is called better, or worse; ever reached by chance with probability 1/20 at most."""
LARGEST_BET = 0.75
_PRIOR_VARIANCE = 0.25
"""Variance of d before any outcome; it counts as one outcome."""


@dataclass(frozen=True)
class EProcess:
    """An e-process over time.

    Attributes:
        times: `(times,)`, the ends of forecasts, ascending and distinct.
        values: `(times,)`, the mean wealth of the streams at each of them; 1 at the start.
        stream: `(forecasts,)`, the stream of each forecast; -1 for a forecast without a bet, as all streams had an open
            bet or all open bets were waited for.
        confirmed: the first time at which the mean wealth was `EVIDENCE` or more with no bet open, or None.
    """

    times: NDArray[np.int64]
    values: Floats
    stream: NDArray[np.int64]
    confirmed: int | None

    @property
    def value(self) -> float:
        """The present e-value."""
        return float(self.values[-1]) if len(self.values) else 1.0


def loss_differences(losses: Floats, rival_losses: Floats) -> Floats:
    """Return d, from -1 to 1, of losses at or above 0; 0 if both are 0, NaN if either is NaN."""
    total = losses + rival_losses
    return np.divide(rival_losses - losses, total, out=np.zeros_like(total), where=total != 0)


def e_process(starts: NDArray[np.int64], ends: NDArray[np.int64], d: Floats, streams: int) -> EProcess:
    """Test that the mean of d is at most 0 at every forecast; for the opposite, pass -d.

    Args:
        starts: `(forecasts,)`, the cutoffs, ascending; the bet on a forecast knows the forecasts that ended by then.
        ends: `(forecasts,)`, the time of each forecast's last bar, after its cutoff.
        d: `(forecasts,)`, from -1 to 1; NaN for a forecast that has not ended yet.
        streams: number of streams, the bars of the horizon; fixed before the first outcome.
    """
    ended = np.isfinite(d)
    bets = predictable_bets(starts, ends, d)
    times = np.unique(ends[ended])
    values, wealth = np.ones(len(times)), np.ones(streams)
    stream = np.full(len(starts), -1, np.int64)
    open_bets: dict[int, int] = {}  # the forecast by stream
    confirmed, pausing, upcoming = None, False, 0

    def place_bets(before: float) -> None:
        nonlocal upcoming
        while upcoming < len(starts) and starts[upcoming] < before:
            free = next((number for number in range(streams) if number not in open_bets), None)
            if free is not None and not pausing:
                stream[upcoming], open_bets[free] = free, upcoming
            upcoming += 1

    for index, time in enumerate(times):
        place_bets(time)
        for number in [number for number, forecast in open_bets.items() if ended[forecast] and ends[forecast] <= time]:
            forecast = open_bets.pop(number)
            wealth[number] *= 1 + bets[forecast] * d[forecast]
        values[index] = wealth.mean()
        if confirmed is None:
            pausing = bool(open_bets) and (pausing or values[index] >= EVIDENCE)
            confirmed = int(time) if not open_bets and values[index] >= EVIDENCE else None
    place_bets(np.inf)
    return EProcess(times, values, stream, confirmed)


def predictable_bets(starts: NDArray[np.int64], ends: NDArray[np.int64], d: Floats) -> Floats:
    """Return the bet on each forecast, `(forecasts,)`, from the outcomes of all forecasts that ended by its cutoff."""
    ended = np.flatnonzero(np.isfinite(d))
    ended = ended[np.argsort(ends[ended], kind="stable")]
    outcomes = d[ended]
    known = np.searchsorted(ends[ended], starts, side="right")
    total = np.concatenate([[0.0], np.cumsum(outcomes)])[known]
    squares = np.concatenate([[0.0], np.cumsum(outcomes**2)])[known]
    mean = total / (known + 1)
    variance = np.maximum(_PRIOR_VARIANCE + squares - (known + 1) * mean**2, 1e-12) / (known + 1)
    return np.clip(mean / (variance + mean**2), 0.0, LARGEST_BET)
