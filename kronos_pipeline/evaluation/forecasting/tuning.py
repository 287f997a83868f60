"""How a model is sampled for a ticker, and how far its intervals are stretched: chosen on the selection block alone.

    bars    ...------------|----- older half -----|----- newer half -----|---- holdout ----|
                                 temperature,             widths             not read,
                                    top-p                                   nor its times

A forecast may start before its half, and is cut where the half ends; the bars of that half alone are scored. So widths
rest on bars that temperature and top-p were not chosen on. Early stopping has seen both halves, so those of a trained
model may come out a little small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from kronos_pipeline.artifacts import read_json, write_json
from kronos_pipeline.code_version import code_version
from kronos_pipeline.config import Recipe, Role, settings_of
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.forecasting.batching import Sampler
from kronos_pipeline.evaluation.forecasting.distributions import FEWEST_PATHS, crps
from kronos_pipeline.evaluation.halves import Half
from kronos_pipeline.evaluation.predictions import LEVELS
from kronos_pipeline.evaluation.recalibration import fit_widths, shrink
from kronos_pipeline.evaluation.rounds import Asking, alone

if TYPE_CHECKING:
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.model.loading import KronosModel

TEMPERATURES = (0.8, 1.0, 1.2)
TOP_PS = (0.9, 1.0)
"""The grid that every model is tuned on. Small, as the bars that it is chosen on are few: on 24 simulated tickers
temperatures from 0.6 to 1.5 came out no better than no choice."""


@dataclass(frozen=True)
class Score:
    """What a temperature and a top-p came to: the mean CRPS of the closes that were forecast, in price units."""

    temperature: float
    top_p: float
    crps: float


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled for one ticker, and what that rests on.

    Attributes:
        temperature: divides the logits.
        top_p: the likeliest tokens up to this probability are kept.
        s2_position: "true" or "first", where decoding asks for a bar's fine token.
        widths: by level, the factor of its intervals at each step 1 to horizon.
        residuals: how many forecast closes the widths rest on; 0 where they are all 1.
        tuned: what each temperature and top-p scored; None where they are the recipe's own.
        weights_hash: of the model that this is for; None where it is for any.
        span: times of the first and the last bar that were scored for it; None where none was.
    """

    temperature: float
    top_p: float
    s2_position: str
    widths: Mapping[int, tuple[float, ...]]
    residuals: int = 0
    tuned: tuple[Score, ...] | None = None
    weights_hash: str | None = None
    span: tuple[str, str] | None = None

    def widths_at(self, steps: NDArray[np.integer]) -> NDArray[np.float64]:
        """The factors of bars that are `steps` bars after their cutoff, (n,), counted from 1: (n, levels)."""
        return np.array([self.widths[level] for level in LEVELS])[:, steps - 1].T

    def summary(self) -> dict[str, Any]:
        """What a manifest says of it: all but the weights; of the widths the mean over the steps, by level."""
        content = _SAMPLING.dump_python(self, mode="json", exclude={"weights_hash"})
        return content | {"widths": {level: float(np.mean(factors)) for level, factors in content["widths"].items()}}


_SAMPLING = TypeAdapter(Sampling)


def plain_sampling(recipe: Recipe) -> Sampling:
    """The recipe's own temperature and top-p, and intervals as they are sampled."""
    widths = dict.fromkeys(LEVELS, (1.0,) * recipe.horizon)
    return Sampling(recipe.temperature, recipe.top_p, recipe.s2_position, widths)


def fit_sampling(windows: WindowSet, model: KronosModel, recipe: Recipe, *, sampler: Sampler | None = None) -> Sampling:
    """Choose temperature and top-p, and fit the widths of intervals, as far as the recipe asks for either.

    Work is bounded: from at most 16 cutoffs each, once per pair of the grid over the older half, once over the newer.
    Where a half has no cutoff that can be used, as all lie beyond holes or flat bars, what it is for stays as it is.

    Args:
        windows: the ticker's windows.
        model: the model that is sampled.
        recipe: `tune_sampling` and `recalibrate`; horizon, paths per forecast and seed; temperature and top-p, which
            are a pair of the grid too.
        sampler: what samples, `sample_paths` by default.

    Raises:
        ModelError: a sampled number is not finite.
    """
    return alone(fitting_sampling(windows, model, recipe), sampler)


def fitting_sampling(windows: WindowSet, model: KronosModel, recipe: Recipe) -> Asking[Sampling]:
    """`fit_sampling`, side by side with other evaluations."""
    start, end = windows.selection_start, windows.holdout_start
    middle = (start + end) // 2
    sampling = replace(plain_sampling(recipe), weights_hash=model.weights_hash)
    blocks = []
    older = Half(windows, start, middle, recipe)
    if recipe.tune_sampling and len(older.origins):
        tried = [replace(sampling, temperature=heat, top_p=mass) for heat, mass in _grid(recipe)]
        sampled = yield [older.rolls(model, one) for one in tried]
        scores = []
        for one, paths in zip(tried, sampled, strict=True):
            closes, y, _ = older.scored(paths)
            scores.append(Score(one.temperature, one.top_p, float(crps(closes, y).mean())))
        best = min(scores, key=lambda score: score.crps)  # of equals the first, the recipe's own before any other
        sampling = replace(sampling, temperature=best.temperature, top_p=best.top_p, tuned=tuple(scores))
        blocks.append(older)
    newer = Half(windows, middle, end, recipe)
    if recipe.recalibrate and len(newer.origins):
        (paths,) = yield [newer.rolls(model, sampling)]
        closes, y, steps = newer.scored(paths)
        widths = shrink(fit_widths(closes, y, steps, recipe.horizon), newer.disjoint)
        sampling = replace(sampling, widths=widths, residuals=len(y))
        blocks.append(newer)
    if blocks:
        stamps = windows.bars.frame["timestamps"]
        span = stamps[blocks[0].first].isoformat(), stamps[blocks[-1].end - 1].isoformat()
        sampling = replace(sampling, span=span)
    return sampling


def save_sampling(folder: Path, windows: WindowSet, sampling: Sampling, recipe: Recipe) -> None:
    """Write `<folder>/sampling/<T>.json`: equal input, equal bytes.

    Args:
        folder: an adapter's or a checkpoint's; the layout's `base` for the untouched base model.
        windows: the ticker's windows, that it was fitted on.
        sampling: what `fit_sampling` gave.
        recipe: the recipe that it was fitted by.
    """
    content = {
        "sampling": _SAMPLING.dump_python(sampling, mode="json"),
        "fitted_by": _settings(recipe),
        "fitted_on": {"training_hash": windows.training_hash, "lookback": windows.lookback},
        "code_version": code_version(),
    }
    write_json(_path(folder, windows.ticker), content)


def load_sampling(folder: Path, windows: WindowSet | str, model: KronosModel, recipe: Recipe) -> Sampling | None:
    """Read what `save_sampling` wrote.

    Args:
        folder: see `save_sampling`.
        windows: a ticker's windows, to get what was fitted on just these, by just this recipe; or its symbol, to get
            what serves a forecast of later bars, whose temperature and top-p then stand in place of the recipe's.
        model: the model that is to be sampled.
        recipe: the recipe.

    Returns:
        None where there is none, or it was fitted for other weights; and for a symbol, where it was fitted for another
        lookback or a shorter horizon, or for another number of paths, one of the two being too few for every level.

    Raises:
        ArtifactError: the file is damaged.
    """
    ticker = windows if isinstance(windows, str) else windows.ticker
    path = _path(folder, ticker)
    if not path.is_file():
        return None
    content: Any = read_json(path)
    try:
        sampling = _SAMPLING.validate_python(content["sampling"])
        by, on = content["fitted_by"], content["fitted_on"]
        steps = min(len(sampling.widths[level]) for level in LEVELS)
        if isinstance(windows, str):
            numbers = {by["eval_samples"], recipe.eval_samples}
            alike = len(numbers) == 1 or min(numbers) >= FEWEST_PATHS
            serves = on["lookback"] == recipe.used_lookback and steps >= recipe.horizon and alike
        else:
            serves = on["training_hash"] == windows.training_hash and by == _settings(recipe)
    except (KeyError, TypeError, ValidationError) as error:
        raise ArtifactError(f"{path} holds no sampling ({error}); delete it and evaluate again.") from error
    return sampling if serves and sampling.weights_hash == model.weights_hash else None


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What shapes a fit beside the windows and the model."""
    return recipe.model_dump(mode="json", include=set(settings_of(Role.SAMPLING)))


def _path(folder: Path, ticker: str) -> Path:
    return folder / "sampling" / f"{ticker}.json"


def _grid(recipe: Recipe) -> list[tuple[float, float]]:
    """Pairs of temperature and top-p, the recipe's own first."""
    pairs = [(temperature, top_p) for temperature in TEMPERATURES for top_p in TOP_PS]
    return list(dict.fromkeys([(recipe.temperature, recipe.top_p), *pairs]))
