"""Scores of the forecasts in the ledger whose bars have come, against rivals from the same cutoffs.

A forecast counts once its last bar is in the file, or a later bar is. Its loss is the mean over its bars that are no
replays and have a close at their time; forecast and rivals are scored on the same bars.

    mean           |mean - y| / last                           rival: the close at the cutoff
    distribution   pinball losses of seven quantiles / last    rival: a random walk with EWMA volatility

The pinball loss of a quantile q at level p is (y - q) (p - [y < q]). Twice its mean over the levels 5, 10, 25, 50, 75,
90 and 95 percent, which the ledger has as median and interval bounds, approximates the CRPS (Gneiting and Ranjan,
Comparing density forecasts using threshold- and quantile-weighted scoring rules, 2011), with more weight on the tails;
the rival is scored at the same levels.

The rival's log returns are normal with mean 0 and the variance of RiskMetrics: a mean of the squared log returns up to
the cutoff whose weights fall by 6 percent per bar (J.P. Morgan and Reuters, 1996), times the number of bars ahead. It
needs no fit, so everybody can compute it again from the bars. A jump like an unadjusted split counts as a return of 0,
and a forecast over such a jump is not scored.

Prices before a split are restated later. The ledger's prices are multiplied by the close at the cutoff now over the
close at the cutoff then. If the mean of the closes before it has changed by another factor, prices were not restated by
one factor: the forecast is not scored, and a note says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from kronos_pipeline.data.bar_schedule import BoolArray, IntArray, StampArray
from kronos_pipeline.data.bars import FEATURES, Bars
from kronos_pipeline.data.jumps import find_jumps
from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.ledger import ENTRY, RECENT_BARS
from kronos_pipeline.evaluation.predictions import LEVELS, QUANTILES
from kronos_pipeline.evaluation.rivals.ewma import RISKMETRICS_DECAY, ewma_variance
from kronos_pipeline.evaluation.scoring.metrics import quantile_score
from kronos_pipeline.evaluation.scoring.sequential import EProcess, e_process, loss_differences

Floats = NDArray[np.float64]

BETTER, WORSE, OPEN = "better", "worse", "open"
"""Verdicts of the sequential test."""
_RESTATED = 0.01
"""Tolerance of the ratio between two factors of restated prices: a price of one dollar is rounded to cents."""
_PRICES = ["mean", *QUANTILES]


@dataclass(frozen=True)
class TrackRecord:
    """Scores of one ticker's forecasts that were issued before their bars existed.

    Attributes:
        ticker: the symbol.
        model: name and version of the model; "all" for all forecasts of the ticker, of any model.
        forecasts: number of scored forecasts.
        bars: number of their scored bars.
        first, last: the oldest and the newest cutoff of them, ISO 8601, or None.
        mean_skill: 1 - loss / the last close's loss, of the sums over the forecasts; None if undefined, as all below.
        crps_skill: the same of the distribution, against EWMA.
        coverage: share of closes within the central interval, in percent, by level.
        brier: mean squared error of the probability that the close is above the close at the cutoff; 0.25 of a coin.
        mean_evidence, crps_evidence: e-values that the model is better than the rival.
        mean_against, crps_against: e-values that the model is worse.
        mean_verdict, crps_verdict: "better", "worse", or "open".
        waiting: number of forecasts whose bars have not all come.
        replays: number of forecasts without a bar that was still to come at the issue.
        repeats: number of forecasts that repeat one of the same model from the same cutoff.
        notes: forecasts that could not be scored, with the reason.
    """

    ticker: str
    model: str
    forecasts: int
    bars: int
    first: str | None
    last: str | None
    mean_skill: float | None
    crps_skill: float | None
    coverage: dict[str, float | None]
    brier: float | None
    mean_evidence: float
    crps_evidence: float
    mean_against: float
    crps_against: float
    mean_verdict: str
    crps_verdict: str
    waiting: int
    replays: int
    repeats: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the record for JSON: every number is finite or None."""
        return asdict(self)


@dataclass(frozen=True)
class ScoredLedger:
    """The entries of one ticker's ledger, scored.

    Attributes:
        bars: a row per scored bar: the ledger's columns with prices restated, the factor, `y`, `loss` and `rival_loss`
            (distribution), `mean_loss` and `naive_loss`, in shares of the close at the cutoff, `rival_` and the name of
            each quantile of the rival, `inside_50` to `inside_90` and `brier`.
        forecasts: a row per forecast, by cutoff: the columns of `ENTRY`, `end`, `steps`, `state` ("scored", "waiting",
            "replay", "repeat" or "unscored") and, of scored ones, the means of the losses over the bars.
        notes: reasons of unscored forecasts.
    """

    bars: pd.DataFrame
    forecasts: pd.DataFrame
    notes: tuple[str, ...] = ()


def score_ledger(rows: pd.DataFrame, bars: Bars) -> ScoredLedger:
    """Score one ticker's ledger on the bars that have come.

    Args:
        rows: the ticker's rows, as `ledger.read` returns them.
        bars: the ticker's bars; bars after a forecast's cutoff change nothing but its `y`.
    """
    stamps = bars.frame["timestamps"].to_numpy("datetime64[ns]")
    closes = bars.values[:, FEATURES.index("close")]
    rows = rows.reset_index(drop=True)
    origin, known = _positions(stamps, rows["cutoff"])
    target, came = _positions(stamps, rows["ds"])
    issued = ~rows["replay"].to_numpy(np.bool_)
    factor = closes[origin] / rows["last"].to_numpy(np.float64)
    recent = recent_means(closes)[origin] / rows["recent"].to_numpy(np.float64)
    few = np.isnan(rows["recent"].to_numpy(np.float64))  # the forecast had fewer bars, and knows only its last close
    jumped = np.zeros(len(closes), np.bool_)
    first = int(origin.min(initial=len(closes)))  # what a jump is depends on no bar after the first cutoff
    jumped[find_jumps(bars.values, first + 1).bars] = True
    jumps = np.cumsum(jumped)
    checks = pd.DataFrame(
        {
            "known": known,
            "numbers": np.isfinite(rows[["last", *_PRICES]].to_numpy(np.float64)).all(axis=1),
            "one_factor": few | (np.abs(recent / factor - 1) <= _RESTATED),
            "smooth": jumps[target] == jumps[origin],
        }
    )
    entry = rows.groupby(ENTRY, sort=False).ngroup().to_numpy()
    forecasts = pd.concat(
        [
            rows.groupby(entry)[ENTRY].first(),
            rows.groupby(entry).agg(end=("ds", "max"), steps=("step", "max"), replay=("replay", "all")),
            checks.groupby(entry).all(),
            pd.Series(came & issued).groupby(entry).any().rename("came"),
        ],
        axis=1,
    )
    forecasts["state"], notes = _states(forecasts, stamps[-1], bars.ticker)

    scored = came & issued & (forecasts["state"] == "scored").to_numpy()[entry]
    kept = rows[scored].assign(y=closes[target][scored], factor=factor[scored])
    prices = ["last", "recent", *_PRICES]
    kept[prices] = kept[prices].mul(kept["factor"], axis=0)
    kept = _with_losses(kept, ewma_quantiles(closes, origin[scored], kept["step"].to_numpy(np.int64), jumped))
    losses = ["loss", "rival_loss", "mean_loss", "naive_loss"]
    forecasts[losses] = kept.groupby(entry[scored])[losses].mean().reindex(forecasts.index)
    forecasts = forecasts.sort_values(["cutoff", "issued"], ignore_index=True, kind="stable")
    return ScoredLedger(kept.reset_index(drop=True), forecasts, notes)


def summarise(scored: ScoredLedger, ticker: str, model: str | None = None, version: str | None = None) -> TrackRecord:
    """Summarise the record of a ticker, or of one model's version.

    Of all forecasts of a ticker, the first from each cutoff counts, whichever model made it.

    Args:
        scored: the result of `score_ledger`.
        ticker: the symbol.
        model: name of the model; None for all.
        version: its version.
    """
    forecasts = counted_forecasts(scored, model, version)
    of_model = scored.forecasts if model is None else _of_model(scored.forecasts, model, version)
    ended = forecasts[forecasts["state"] == "scored"]
    bars = scored.bars.merge(ended[ENTRY], on=ENTRY)
    mean, crps = evidence(forecasts, "mean_loss", "naive_loss"), evidence(forecasts, "loss", "rival_loss")
    states = of_model["state"].value_counts()
    return TrackRecord(
        ticker=ticker,
        model="all" if model is None else f"{model} {version}".strip(),
        forecasts=len(ended),
        bars=len(bars),
        first=None if ended.empty else ended["cutoff"].min().isoformat(),
        last=None if ended.empty else ended["cutoff"].max().isoformat(),
        mean_skill=_skill(ended["mean_loss"], ended["naive_loss"]),
        crps_skill=_skill(ended["loss"], ended["rival_loss"]),
        coverage={str(level): _mean(100.0 * bars[f"inside_{level}"]) for level in LEVELS},
        brier=_mean(bars["brier"]),
        mean_evidence=mean[0].value,
        crps_evidence=crps[0].value,
        mean_against=mean[1].value,
        crps_against=crps[1].value,
        mean_verdict=verdict(*mean),
        crps_verdict=verdict(*crps),
        waiting=int(states.get("waiting", 0)),
        replays=int(states.get("replay", 0)),
        repeats=int(states.get("repeat", 0)),
        notes=scored.notes,
    )


def counted_forecasts(scored: ScoredLedger, model: str | None = None, version: str | None = None) -> pd.DataFrame:
    """Return the forecasts that count or are waited for: the first from each cutoff, by cutoff."""
    forecasts = scored.forecasts[scored.forecasts["state"].isin(["scored", "waiting"])]
    if model is not None:
        return _of_model(forecasts, model, version)
    return forecasts.sort_values(["cutoff", "issued"], kind="stable").drop_duplicates("cutoff")


def evidence(forecasts: pd.DataFrame, loss: str, rival_loss: str) -> tuple[EProcess, EProcess]:
    """Return the e-processes that the model is better than the rival, and that it is worse.

    Args:
        forecasts: the result of `counted_forecasts`.
        loss: column of the model's losses; NaN for forecasts that are waited for.
        rival_loss: column of the rival's losses.
    """
    starts, ends = (forecasts[name].to_numpy("datetime64[ns]").astype(np.int64) for name in ("cutoff", "end"))
    d = loss_differences(forecasts[loss].to_numpy(np.float64), forecasts[rival_loss].to_numpy(np.float64))
    d = np.where(np.isfinite(forecasts[loss].to_numpy(np.float64)), d, np.nan)
    streams = int(forecasts["steps"].iloc[0]) if len(forecasts) else 1
    return e_process(starts, ends, d, streams), e_process(starts, ends, -d, streams)


def verdict(better: EProcess, worse: EProcess) -> str:
    """Return "better" or "worse" if the test has confirmed it; of both, the later; else "open"."""
    reached = {BETTER: better.confirmed, WORSE: worse.confirmed}
    times = {name: time for name, time in reached.items() if time is not None}
    return max(times, key=lambda name: times[name]) if times else OPEN


def ewma_quantiles(closes: Floats, origins: IntArray, steps: IntArray, jumped: BoolArray) -> Floats:
    """Return the rival's quantiles of the close, `(n, 7)`, in the order of `QUANTILES`.

    Args:
        closes: `(bars,)`, above 0.
        origins: `(n,)`, the last known bar of each forecast.
        steps: `(n,)`, bars ahead.
        jumped: `(bars,)`, True for a bar whose return counts as 0.
    """
    deviation = np.sqrt(ewma_variances(closes, jumped)[origins] * steps)
    normal = ndtri(np.array(list(QUANTILES.values())))
    quantiles: Floats = closes[origins, None] * np.exp(deviation[:, None] * normal)
    return quantiles


def ewma_variances(closes: Floats, jumped: BoolArray) -> Floats:
    """Return the weighted mean of the squared log returns up to each bar, `(bars,)`; 0 at the first bar."""
    returns = np.where(jumped[1:], 0.0, np.diff(np.log(closes)))
    return np.concatenate([[0.0], ewma_variance(returns, RISKMETRICS_DECAY)])


def recent_means(closes: Floats) -> Floats:
    """Return the mean of the newest `RECENT_BARS` closes up to each bar, of all where there are fewer, `(bars,)`."""
    return pd.Series(closes).rolling(RECENT_BARS, min_periods=1).mean().to_numpy(np.float64)


def _positions(stamps: StampArray, times: pd.Series) -> tuple[IntArray, BoolArray]:
    """Return the position of each time among the bars, and whether there is a bar at that time."""
    wanted = times.to_numpy("datetime64[ns]")
    positions = np.minimum(np.searchsorted(stamps, wanted), len(stamps) - 1)
    return positions, stamps[positions] == wanted


def _states(forecasts: pd.DataFrame, newest: np.datetime64, ticker: str) -> tuple[pd.Series, tuple[str, ...]]:
    """Return the state of each forecast, and notes on those that cannot be scored."""
    state = pd.Series("scored", index=forecasts.index)
    state[forecasts["end"] > newest] = "waiting"
    notes = []
    reasons = {
        "known": "the file has no bar at their cutoff",
        "numbers": "they hold numbers that are not finite",
        "one_factor": "the closes before their cutoff differ from those of the issue by more than one factor",
        "smooth": "the close jumps within their bars, like an unadjusted split",
        "came": "the file has no bar at their times",
    }
    for column, reason in reasons.items():
        bad = (state == "scored") & ~forecasts["replay"] & ~forecasts[column]
        state[bad] = "unscored"
        if bad.any():
            notes.append(f"{ticker}: {count(int(bad.sum()), 'forecast')} could not be scored: {reason}.")
    by_issue = forecasts[~forecasts["replay"]].sort_values("issued", kind="stable")
    state[by_issue.index[by_issue.duplicated(["cutoff", "model", "version"])]] = "repeat"
    state[forecasts["replay"]] = "replay"
    return state, tuple(notes)


def _with_losses(rows: pd.DataFrame, rival: Floats) -> pd.DataFrame:
    y, last = rows["y"].to_numpy(np.float64), rows["last"].to_numpy(np.float64)
    outcome = (np.sign(y - last) + 1) / 2
    return rows.assign(
        **{f"rival_{name}": rival[:, number] for number, name in enumerate(QUANTILES)},
        loss=quantile_score(rows[list(QUANTILES)].to_numpy(np.float64), y) / last,
        rival_loss=quantile_score(rival, y) / last,
        mean_loss=np.abs(rows["mean"].to_numpy(np.float64) - y) / last,
        naive_loss=np.abs(last - y) / last,
        **{f"inside_{level}": rows["y"].between(rows[f"lo_{level}"], rows[f"hi_{level}"]) for level in LEVELS},
        brier=(rows["p_up"].to_numpy(np.float64) - outcome) ** 2,
    )


def _of_model(forecasts: pd.DataFrame, model: str, version: str | None) -> pd.DataFrame:
    return forecasts[(forecasts["model"] == model) & (forecasts["version"] == (version or ""))]


def _skill(losses: pd.Series, rival_losses: pd.Series) -> float | None:
    total = float(rival_losses.sum())
    return _finite(1 - float(losses.sum()) / total) if total > 0 else None


def _mean(values: pd.Series) -> float | None:
    return _finite(float(values.mean())) if len(values) else None


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
