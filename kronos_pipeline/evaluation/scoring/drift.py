"""Drift: does a model err more on the bars since its evaluation than its evidence lets expect?

    bars   ...x = evidence = |x = evidence = |..|x = horizon = |x = horizon = |....
                               measured until    seen until                     not yet a whole horizon

The evidence has one loss per cutoff, and so have the newer bars, in whole horizons: the scaled error of the verdicts.
Drift means that the mean of the newer losses exceeds the one-sided prediction bound of 95 percent, by Student's t, for
the mean of as many further losses of the same kind. Losses are skewed, so the bound is a bound of their logarithms: on
simulated random walks chance exceeds it in 5 percent of all cases (a bound of the losses themselves in 8 to 10), and in
up to 10 if volatility comes in spells. A rival's error beside it, of the last close or of `ewma`, distinguishes such a
spell from a model that is out of date. If several targets are compared, they share the 5 percent.

The loss of the mean is that of the verdicts; that of the distribution is twice the mean pinball loss of the seven
quantiles, scaled, as the ledger has quantiles and no paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.evaluation.predictions import EWMA, NAIVE, QUANTILES
from kronos_pipeline.evaluation.scoring.metrics import quantile_score
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, MEAN, Target, target_losses
from kronos_pipeline.evaluation.scoring.verdicts import MIN_CUTOFFS

RECENT = 3
"""Maximum number of cutoffs, the newest ones; older cutoffs would hide a change."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Drift:
    """The result of a comparison of newer errors with the evidence.

    Attributes:
        drifted: True if the error is above the bound.
        reason: the figures in a sentence, or the reason that there are none.
        cutoffs: number of complete cutoffs since the evidence, at most `RECENT`.
        error: the scaled error over these cutoffs; this and the next three are geometric means over cutoffs, None
            without figures.
        expected: the scaled error of the evidence.
        bound: the bound that the error exceeds by chance in 5 percent of cases.
        rival_ratio: the error of the last close, or of the distribution that of `ewma`, over the new cutoffs, divided
            by its error in the evidence.
        newest: time of the newest complete cutoff, ISO 8601, or None.
        targets: the targets that have drifted.
    """

    drifted: bool
    reason: str
    cutoffs: int = 0
    error: float | None = None
    expected: float | None = None
    bound: float | None = None
    rival_ratio: float | None = None
    newest: str | None = None
    targets: tuple[Target, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON: every number is finite or None."""
        return asdict(self)


def windows_since(bars: Bars, evidence: pd.DataFrame, recipe: Recipe, seen_until: str | None) -> WindowSet | None:
    """Build windows with a holdout of the bars that a model was not measured on and has not seen.

    Args:
        bars: the ticker's bars as they are now.
        evidence: predictions of this ticker at least; their newest bar is the last measured bar.
        recipe: the recipe of the evidence.
        seen_until: time of the ticker's newest bar that the model's training may have read, ISO 8601; None if it read
            none. It may be newer than the evidence: a backtest ends with its last whole horizon.

    Returns:
        The windows, or None if the newer bars are less than a whole horizon.

    Raises:
        DataError: the bars up to there are too few for this recipe.
    """
    measured_until = evidence.loc[evidence["unique_id"] == bars.ticker, "ds"].max()
    known_until = measured_until if seen_until is None else max(measured_until, pd.Timestamp(seen_until))
    since = int((bars.frame["timestamps"] > known_until).sum())
    if since < recipe.horizon:
        return None
    # The last roll may be cut short; it is not complete, and one more is kept in its place.
    cutoffs = RECENT + (since % recipe.horizon > 0)
    return build_windows(bars, recipe.model_copy(update={"validation_bars": since, "max_cutoffs": cutoffs}))


def find_drift(
    evidence: pd.DataFrame,
    since: pd.DataFrame | None,
    model: str,
    horizon: int,
    *,
    target: Target = MEAN,
    targets: int = 1,
) -> Drift:
    """Compare a model's errors on the bars since its evidence with the errors of the evidence.

    Args:
        evidence: one ticker's predictions that the model was judged on.
        since: the model's predictions of the bars of `windows_since`; None without a whole horizon.
        model: "adapter" or "checkpoint".
        horizon: number of bars ahead of a complete cutoff.
        target: mean or distribution.
        targets: number of targets that are compared, for which the bound is corrected.
    """
    if since is None:
        return Drift(False, f"the bars since it was measured are not yet a whole horizon of {horizon}")
    complete = since[since.groupby(["cutoff", "model"])["step"].transform("max") == horizon]
    cutoffs = sorted(complete["cutoff"].unique())[-RECENT:]
    if not cutoffs:
        return Drift(False, "no cutoff since it was measured can be forecast: holes, or a close that does not move")
    newer = complete[complete["cutoff"].isin(cutoffs)]
    drift = Drift(False, "", len(cutoffs), newest=pd.Timestamp(cutoffs[-1]).isoformat())
    before, now = _logarithms(evidence, model, target), _logarithms(newer, model, target)
    if before is None or now is None:
        return replace(drift, reason="its error is 0 or undefined at a cutoff, so the errors cannot be compared")
    if len(before) < MIN_CUTOFFS:
        few = f"its evidence has {len(before)} cutoffs, and {MIN_CUTOFFS} are needed"
        return replace(drift, reason=few)
    spread = before.std(ddof=1) * np.sqrt(1 / len(before) + 1 / len(now))
    bound = before.mean() + student.ppf(1 - (1 - CONFIDENCE) / targets, len(before) - 1) * spread
    error, expected, bound = (float(np.exp(value)) for value in (now.mean(), before.mean(), bound))
    rival = EWMA if target == DISTRIBUTION else NAIVE
    ratio = _ratio(_logarithms(newer, rival, target), _logarithms(evidence, rival, target))
    loss = "pinball loss" if target == DISTRIBUTION else "error"
    reason = (
        f"scaled {loss} {error:.3g} over {len(now)} cutoffs up to {drift.newest}; the evidence predicts "
        f"{expected:.3g}, and by chance at most {bound:.3g}"
    ) + (
        f"; the {rival} forecast's {loss} is {ratio:.2f} times its {loss} in the evidence" if ratio is not None else ""
    )
    drifted = error > bound
    return replace(
        drift,
        drifted=drifted,
        reason=reason,
        error=error,
        expected=expected,
        bound=bound,
        rival_ratio=ratio,
        targets=(target,) if drifted else (),
    )


def join_drifts(drifts: Sequence[Drift]) -> Drift:
    """Join the drifts of several targets: the figures are those of the first that has drifted, or else of the first."""
    first = next((drift for drift in drifts if drift.drifted), drifts[0])
    targets = tuple(target for drift in drifts for target in drift.targets)
    return replace(first, reason="; ".join(drift.reason for drift in drifts), targets=targets)


def _logarithms(predictions: pd.DataFrame, model: str, target: Target) -> np.ndarray | None:
    """Return the logarithm of a model's loss at each cutoff; None if a cutoff has none, or there is no cutoff."""
    if target == DISTRIBUTION:
        rows = predictions[predictions["model"] == model]
        scores = quantile_score(rows[list(QUANTILES)].to_numpy(np.float64), rows["y"].to_numpy(np.float64))
        scaled = pd.Series(scores / rows["scale"].to_numpy(np.float64)).fillna(np.inf)  # a mean would leave NaN out
        losses = scaled.groupby(rows["cutoff"].to_numpy()).mean().to_numpy(np.float64)
    else:
        losses = target_losses(predictions, model, target).to_numpy(np.float64)
    return np.log(losses) if len(losses) and np.isfinite(losses).all() and (losses > 0).all() else None


def _ratio(now: np.ndarray | None, before: np.ndarray | None) -> float | None:
    return None if now is None or before is None else float(np.exp(now.mean() - before.mean()))
