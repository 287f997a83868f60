"""Calibration of a model's forecasts: do its intervals hold, also when it matters, and does its P(up) come true?

An interval of 80 percent can hold 80 percent of all closes and 60 percent of the closes in a wild month. So coverage is
computed overall, by tercile of the volatility at the cutoff, by distance from the cutoff, and in the worst calendar
month.

Bars of one forecast err together: if the first close breaks out of its interval, the next closes do so too. A share of
hundreds of bars may therefore carry as much information as a dozen forecasts, and each share has the binomial band of
as many independent forecasts as there are forecasts that share no bar. The mean of a forecast's bars varies at most as
much as a single bar (Hoeffding, 1963), so a calibrated model leaves the band in at most about 5 percent of all cases.
The tests read one bar per forecast, the last: it lies the farthest ahead, and contains the errors of the bars before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import bdtr
from scipy.stats import rankdata

from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.predictions import EWMA, LEVELS
from kronos_pipeline.evaluation.scoring.calibration_tests import (
    conditional_coverage,
    independence,
    kupiec,
    uniform_pit,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

TERCILES = ("low", "middle", "high")
CHANCE = 0.95
"""Probability of a band: a calibrated share lies outside in at most 5 percent of all cases."""
MIN_FORECASTS = 8
"""Minimum number of forecasts that share no bar for a test."""
MIN_MONTH_BARS = 10
"""Minimum number of bars of a calendar month that can be the worst."""
_ALPHA = 0.05
_ROUNDING = 1e-12
BINS = 10
"""Bins of equal width of a reliability curve."""


@dataclass(frozen=True)
class Share:
    """Share of bars with a property, and the band of chance around its nominal value.

    Attributes:
        bars: number of bars.
        forecasts: number of forecasts that share no bar; the band is that of as many independent bars.
        percent: the share, in percent; None without a bar.
        low, high: ends of the band, in percent.
        holds: whether the share lies within the band.
        reason: the reason that there is no share; else empty.
    """

    bars: int
    forecasts: int
    percent: float | None = None
    low: float | None = None
    high: float | None = None
    holds: bool | None = None
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """Result of a test; a p-value of at most 0.05 rejects calibration.

    Attributes:
        forecasts: number of forecasts that share no bar, each with one bar in the test.
        statistic, p_value: of the test; None with a reason.
        reason: the reason that the test cannot be made; else empty.
    """

    forecasts: int
    statistic: float | None = None
    p_value: float | None = None
    reason: str = ""


def calibrations(
    predictions: pd.DataFrame, models: Iterable[str], *, independent: bool = False
) -> dict[str, dict[str, Any]]:
    """Describe the calibration of several models, as content for JSON: every number is finite, or None with a reason.

    Args:
        predictions: a table of `predictions.py` with one ticker or many.
        models: models of the table that forecast a distribution.
        independent: whether the tickers are independent, as simulated tickers are. By default forecasts of several
            tickers over the same time count once, as tickers of one market move together.

    Returns:
        By model: `bars`; `forecasts`, the number of forecasts that share no bar; `coverage` by level, see `_coverage`;
        `pit` and `p_up`, see `_pit` and `_direction`. The tests read independent tickers one after the other; of
        several tickers that are not independent there is no test, with the reason.
    """
    terciles, reason = volatility_terciles(predictions)
    described = {}
    for model in models:
        rows = predictions[predictions["model"] == model]
        forecasts = _Forecasts(rows, terciles, reason, independent)
        described[model] = {
            "bars": len(rows),
            "forecasts": len(forecasts.disjoint(np.ones(len(rows), np.bool_))),
            "coverage": {str(level): _coverage(forecasts, level) for level in LEVELS},
            "pit": _pit(forecasts),
            "p_up": _direction(forecasts),
        }
    return described


class _Forecasts:
    """The forecasts of one model.

    Attributes:
        rows: the model's rows, by ticker, cutoff and step.
        tercile: `(bars,)`, number of the tercile of volatility at the cutoff; -1 if unknown.
        no_tercile: the reason that terciles are unknown; else empty.
        step_groups: the bars of each third of the horizon, near to far, by name such as "1-10"; fewer groups of a
            horizon below 3.
        months: the bars of each calendar month with `MIN_MONTH_BARS` bars or more, by name such as "2024-03".
        several: whether there are several tickers that are not independent.
    """

    def __init__(self, rows: pd.DataFrame, terciles: pd.DataFrame, no_tercile: str, independent: bool) -> None:
        self.rows = rows.sort_values(["unique_id", "cutoff", "step"], kind="stable").reset_index(drop=True)
        keys = self.rows[["unique_id", "cutoff"]]
        ranked = keys.merge(terciles, how="left", on=["unique_id", "cutoff"])["tercile"]
        self.tercile: Integers = ranked.fillna(-1).to_numpy(np.int64)
        self.no_tercile, self._independent = no_tercile, independent

        ticker = pd.factorize(keys["unique_id"])[0]
        cutoff, ds = (self.rows[name].to_numpy().astype("datetime64[ns]") for name in ("cutoff", "ds"))
        new = np.ones(len(rows), np.bool_)
        new[1:] = (ticker[1:] != ticker[:-1]) | (cutoff[1:] != cutoff[:-1])
        self._forecast: Integers = np.cumsum(new) - 1
        self._last: Integers = np.append(np.flatnonzero(new)[1:], len(rows))[: int(new.sum())] - 1
        self._ticker, self._start, self._end = (
            ticker[new],
            cutoff[new].astype(np.int64),
            ds[self._last].astype(np.int64),
        )
        self.several = not independent and len(np.unique(ticker)) > 1

        steps, horizon = self.rows["step"].to_numpy(np.int64), int(rows["step"].max()) if len(rows) else 0
        thirds = [third for third in np.array_split(np.arange(1, horizon + 1), min(3, max(horizon, 1))) if len(third)]
        self.step_groups: dict[str, Bools] = {
            "-".join(str(step) for step in dict.fromkeys((third[0], third[-1]))): np.isin(steps, third)
            for third in thirds
        }
        months, counts = np.unique(ds.astype("datetime64[M]"), return_counts=True)
        self.months: dict[str, Bools] = {
            str(month): ds.astype("datetime64[M]") == month for month in months[counts >= MIN_MONTH_BARS]
        }

    def disjoint(self, bars: Bools) -> Integers:
        """Return the last row of each forecast, of as many forecasts with any of these bars as share no bar."""
        forecasts = np.unique(self._forecast[bars])
        tickers = self._ticker[forecasts] if self._independent else np.zeros(len(forecasts), np.int64)
        order = np.lexsort((self._end[forecasts], tickers))  # the earliest end first leaves most room for others
        taken: list[int] = []
        before, end = -1, 0
        for forecast, ticker in zip(forecasts[order].tolist(), tickers[order].tolist(), strict=True):
            if ticker != before or self._start[forecast] >= end:
                taken.append(forecast)
                before, end = ticker, self._end[forecast]
        return self._last[taken]


def rejections(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Count the tickers whose tests reject calibration at 5 percent; of calibrated tickers about one in twenty does.

    Args:
        entries: the results of `calibrations` for one model, one per ticker.

    Returns:
        By test, `pit` and such as `kupiec_80`: `rejected` and `tested`, numbers of tickers.
    """
    outcomes = {"pit": [entry["pit"] for entry in entries]}
    for level, name in itertools.product(LEVELS, ("kupiec", "independence", "conditional_coverage")):
        outcomes[f"{name}_{level}"] = [entry["coverage"][str(level)][name] for entry in entries]
    p_values = {
        name: [outcome["p_value"] for outcome in tests if outcome["p_value"] is not None]
        for name, tests in outcomes.items()
    }
    return {
        name: {"rejected": sum(p_value <= _ALPHA for p_value in values), "tested": len(values)}
        for name, values in p_values.items()
    }


def volatility_terciles(predictions: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Rank each ticker's cutoffs by their volatility, and cut them into thirds.

    The volatility at a cutoff is the variance of the first bar ahead that the EWMA forecasts, from bars up to the
    cutoff alone.

    Returns:
        A row per ticker and cutoff, with `tercile` 0 (low) to 2 (high); and the reason that there is none, or "".
    """
    empty = pd.DataFrame({"unique_id": pd.Series(dtype=object), "cutoff": pd.Series(dtype="datetime64[ns]")})
    empty["tercile"] = pd.Series(dtype=np.int64)
    if "variance" not in predictions.columns:
        return empty, "the table has no variances"
    first = predictions[(predictions["model"] == EWMA) & (predictions["step"] == 1)]
    known = first[np.isfinite(first["variance"].to_numpy(np.float64))]
    parts = []
    for _, cutoffs in known.groupby("unique_id", sort=False):
        if len(cutoffs) >= len(TERCILES):
            ranks = rankdata(cutoffs["variance"].to_numpy(np.float64))
            tercile = np.minimum((3 * (ranks - 0.5) / len(cutoffs)).astype(np.int64), 2)
            parts.append(cutoffs[["unique_id", "cutoff"]].assign(tercile=tercile))
    if not parts:
        few = f"terciles need {len(TERCILES)} cutoffs of a ticker with a variance of the {EWMA} model"
        return empty, few
    return pd.concat(parts, ignore_index=True), ""


def _coverage(forecasts: _Forecasts, level: int) -> dict[str, Any]:
    """Describe the coverage of the central interval of a level.

    Returns:
        `overall`, `by_volatility` (low, middle, high), `by_step` (thirds of the horizon) and `worst_month`, a `Share`
        each; the band of the worst month allows for the number of months that it was chosen from (Sidak, 1967).
        `kupiec`, `independence` and `conditional_coverage`, an `Outcome` each.
    """
    inside, known = _inside(forecasts.rows, level)
    nominal = level / 100

    def share(bars: Bools, chance: float = CHANCE, reason: str = "no bar") -> Share:
        bars = bars & known
        return _share(inside[bars], len(forecasts.disjoint(bars)), nominal, chance, reason)

    none = "no interval" if not known.any() else forecasts.no_tercile or "no cutoff in this tercile"
    months = {name: bars & known for name, bars in forecasts.months.items() if (bars & known).sum() >= MIN_MONTH_BARS}
    if len(months) > 1:
        worst = min(months, key=lambda name: float(inside[months[name]].mean()))
        of_month = {"month": worst} | asdict(share(months[worst], CHANCE ** (1 / len(months))))
    else:
        of_month = {"month": None} | asdict(Share(0, 0, reason=f"fewer than two months with {MIN_MONTH_BARS} bars"))
    return {
        "overall": asdict(share(known, reason="no interval")),
        "by_volatility": {
            name: asdict(share(forecasts.tercile == number, reason=none)) for number, name in enumerate(TERCILES)
        },
        "by_step": {name: asdict(share(bars, reason="no interval")) for name, bars in forecasts.step_groups.items()},
        "worst_month": of_month,
        **{name: asdict(test) for name, test in _coverage_tests(forecasts, inside, known, nominal).items()},
    }


def _coverage_tests(forecasts: _Forecasts, inside: Bools, known: Bools, nominal: float) -> dict[str, Outcome]:
    last = forecasts.disjoint(known)
    last = last[known[last]]
    misses, rate = ~inside[last], 1 - nominal
    names = ("kupiec", "independence", "conditional_coverage")
    if reason := _untestable(forecasts, len(last)):
        return dict.fromkeys(names, Outcome(len(last), reason=reason))
    tests = {
        "kupiec": Outcome(len(last), *kupiec(misses, rate)),
        "conditional_coverage": Outcome(len(last), *conditional_coverage(misses, rate)),
    }
    if misses.all() or not misses.any():
        why = f"{'no' if misses.all() else 'every'} close lies within its interval, so there is no order to test"
        return {"independence": Outcome(len(last), reason=why), **tests}
    return {"independence": Outcome(len(last), *independence(misses)), **tests}


def _pit(forecasts: _Forecasts) -> dict[str, Any]:
    """Test that the PIT of the sampled paths is uniform, and describe its deviation.

    Returns:
        The fields of an `Outcome`; `mean` of the PIT over all bars (0.5 is right, above it the forecasts are too low)
        and `spread`, its mean squared distance from 0.5 times 12 (1 is right, above it the paths are too narrow).
    """
    pit = forecasts.rows["pit"].to_numpy(np.float64)
    known = np.isfinite(pit)
    last = forecasts.disjoint(known)
    last = last[known[last]]
    moments: dict[str, float | None] = {"mean": None, "spread": None}
    if known.any():
        moments = {"mean": float(pit[known].mean()), "spread": float(12 * ((pit[known] - 0.5) ** 2).mean())}
    reason = "no PIT" if not known.any() else _untestable(forecasts, len(last))
    test = Outcome(len(last), reason=reason) if reason else Outcome(len(last), *uniform_pit(pit[last]))
    return asdict(test) | moments


def _direction(forecasts: _Forecasts) -> dict[str, Any]:
    """Score the probability that the close lies above the close at the cutoff.

        Brier score = mean of (p_up - up)^2  (Brier, 1950),  skill = 1 - Brier score / that of the constant 0.5

    A close equal to the close at the cutoff counts half, in `up` as in `p_up`.

    Returns:
        `bars`, `brier` (0 to 1; 0.25 is that of 0.5), `skill` and `reason`; `by_step`, the same for thirds of the
        horizon; `bins`, the reliability curve: for each bin that is not empty, its ends, mean `p_up` in percent, and
        the `Share` of closes above with the band around that mean.
    """
    rows = forecasts.rows
    p_up = rows["p_up"].to_numpy(np.float64) if "p_up" in rows.columns else np.full(len(rows), np.nan)
    move = rows["y"].to_numpy(np.float64) - rows["last"].to_numpy(np.float64)
    known = np.isfinite(p_up) & np.isfinite(move)
    up = np.where(move > 0, 1.0, np.where(move == 0, 0.5, 0.0))
    bins = []
    number = np.minimum((np.where(known, p_up, 0.0) * BINS).astype(np.int64), BINS - 1)
    for index in range(BINS):
        bars = known & (number == index)
        if bars.any():
            mean = float(p_up[bars].mean())
            share = _share(up[bars], len(forecasts.disjoint(bars)), mean, CHANCE, "")
            bins.append({"from": index / BINS, "to": (index + 1) / BINS, "p_up": 100 * mean} | asdict(share))
    return {
        **_brier(p_up[known], up[known]),
        "by_step": {name: _brier(p_up[bars & known], up[bars & known]) for name, bars in forecasts.step_groups.items()},
        "bins": bins,
    }


def _brier(p_up: Floats, up: Floats) -> dict[str, Any]:
    if not len(up):
        return {"bars": 0, "brier": None, "skill": None, "reason": "no probability of a close above the last"}
    score, reference = float(((p_up - up) ** 2).mean()), float(((0.5 - up) ** 2).mean())
    never = "" if reference else "the close never left the close at the cutoff"
    return {"bars": len(up), "brier": score, "skill": 1 - score / reference if reference else None, "reason": never}


def _inside(rows: pd.DataFrame, level: int) -> tuple[Bools, Bools]:
    """Return whether each close lies within its interval, and whether there is an interval."""
    low, high, y = (rows[name].to_numpy(np.float64) for name in (f"lo_{level}", f"hi_{level}", "y"))
    known: Bools = np.isfinite(low) & np.isfinite(high) & np.isfinite(y)
    inside: Bools = (low <= y) & (y <= high)
    return inside, known


def _share(values: NDArray[Any], forecasts: int, nominal: float, chance: float, reason: str) -> Share:
    if not len(values):
        return Share(0, 0, reason=reason)
    share = float(values.mean())
    low, high = binomial_band(forecasts, nominal, chance)
    holds = low - _ROUNDING <= share <= high + _ROUNDING
    return Share(len(values), forecasts, 100 * share, 100 * low, 100 * high, holds)


def binomial_band(n: int, share: float, chance: float = CHANCE) -> tuple[float, float]:
    """Return the central interval of the share of n independent hits, each of probability `share`."""
    below = bdtr(np.arange(n + 1), n, share)  # the binomial distribution function of 0 to n hits
    low, high = np.searchsorted(below, ((1 - chance) / 2, (1 + chance) / 2)) / n
    return float(low), float(high)


def _untestable(forecasts: _Forecasts, disjoint: int) -> str:
    if forecasts.several:
        return "tickers of one market err together; see the tests of each ticker"
    if disjoint < MIN_FORECASTS:
        return f"{count(disjoint, 'forecast')} without a shared bar, and a test needs {MIN_FORECASTS}"
    return ""
