"""The sampling of a model for one ticker: temperature, top-p, variants of the paths and interval widths.

A file beside the model's weights holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from kronos_pipeline.artifacts import SAMPLING, read_json, write_json
from kronos_pipeline.code_version import code_version
from kronos_pipeline.config import Recipe, Role, settings_of
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.predictions import FEWEST_PATHS, LEVELS, SAMPLED, VARIANTS, Variant
from kronos_pipeline.evaluation.scoring.targets import Target

if TYPE_CHECKING:
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.evaluation.forecasting.ensemble import Forecaster


Widths = Mapping[int, tuple[float, ...]]
"""By level, the factor of the intervals at each step 1 to horizon."""


@dataclass(frozen=True)
class Score:
    """The score of a temperature and a top-p: the mean CRPS of the forecast closes, in price units."""

    temperature: float
    top_p: float
    crps: float


@dataclass(frozen=True)
class Sampling:
    """The settings that a model is sampled with for one ticker, and the data that they were fitted on.

    Attributes:
        temperature: divides the logits.
        top_p: sampling keeps the likeliest tokens up to this probability.
        s2_position: "true" or "first", the position at which decoding reads a bar's fine token.
        widths: by variant and level, the factor of the intervals at each step 1 to horizon.
        variants: by target, the variant of the paths with the lowest loss; without an entry, the paths as sampled.
        residuals: number of forecast closes that the widths were fitted on; 0 if all widths are 1.
        tuned: score of each temperature and top-p; None if they are the recipe's own.
        weights_hash: hash of the model's weights; None if the sampling is for any model.
        span: times of the first and the last scored bar; None if no bar was scored.
    """

    temperature: float
    top_p: float
    s2_position: str
    widths: Mapping[Variant, Widths]
    variants: Mapping[Target, Variant] = field(default_factory=dict)
    residuals: int = 0
    tuned: tuple[Score, ...] | None = None
    weights_hash: str | None = None
    span: tuple[str, str] | None = None

    def widths_at(self, steps: NDArray[np.integer], variant: Variant = SAMPLED) -> NDArray[np.float64]:
        """Return the factors of bars that lie `steps` bars after their cutoff, (n,), from 1: (n, levels)."""
        return np.array([self.widths[variant][level] for level in LEVELS])[:, steps - 1].T

    def variant(self, target: Target) -> Variant:
        """Return the variant that stands for the model on a target."""
        return self.variants.get(target, SAMPLED)

    def summary(self) -> dict[str, Any]:
        """Return a manifest's entry: all but the weights' hash; of the widths the mean over the steps."""
        content: dict[str, Any] = _SAMPLING.dump_python(self, mode="json", exclude={"weights_hash"})
        means = {
            variant: {level: float(np.mean(factors)) for level, factors in widths.items()}
            for variant, widths in content["widths"].items()
        }
        return content | {"widths": means}


_SAMPLING = TypeAdapter(Sampling)


def plain_sampling(recipe: Recipe) -> Sampling:
    """Return the recipe's own temperature and top-p, with intervals as sampled."""
    widths = dict.fromkeys(LEVELS, (1.0,) * recipe.horizon)
    return Sampling(recipe.temperature, recipe.top_p, recipe.s2_position, dict.fromkeys(VARIANTS, widths))


def save_sampling(folder: Path, windows: WindowSet, sampling: Sampling, recipe: Recipe) -> None:
    """Write `<folder>/sampling/<T>.json`: equal input gives equal bytes.

    Args:
        folder: folder of an adapter or a checkpoint; the layout's `base` for the untouched base model.
        windows: the ticker's windows that the sampling was fitted on.
        sampling: the result of `fit_sampling`.
        recipe: the recipe that the sampling was fitted with.
    """
    content = {
        "sampling": _SAMPLING.dump_python(sampling, mode="json"),
        "fitted_by": _settings(recipe),
        "fitted_on": {"training_hash": windows.training_hash, "lookback": windows.lookback},
        "code_version": code_version(),
    }
    write_json(_path(folder, windows.ticker), content)


def load_sampling(folder: Path, windows: WindowSet | str, model: Forecaster, recipe: Recipe) -> Sampling | None:
    """Read the file of `save_sampling`.

    Args:
        folder: see `save_sampling`.
        windows: a ticker's windows, to get the sampling that was fitted on exactly these by exactly this recipe; or its
            symbol, to get the sampling for a forecast of later bars, with its temperature and top-p in place of the
            recipe's.
        model: the model to sample.
        recipe: the recipe.

    Returns:
        None if there is no file, or the sampling was fitted for other weights; and for a symbol, if it was fitted for
        another lookback or a shorter horizon, or for another number of paths and either number is too small for every
        level.

    Raises:
        ArtifactError: the file is damaged.
    """
    ticker = windows if isinstance(windows, str) else windows.ticker
    path = _path(folder, ticker)
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        sampling = _SAMPLING.validate_python(content["sampling"])
        fitted_by, fitted_on = content["fitted_by"], content["fitted_on"]
        steps = min(len(sampling.widths[variant][level]) for variant in VARIANTS for level in LEVELS)
        if isinstance(windows, str):
            path_counts = {fitted_by["eval_samples"], recipe.eval_samples}
            same_paths = len(path_counts) == 1 or min(path_counts) >= FEWEST_PATHS
            fits = fitted_on["lookback"] == recipe.used_lookback and steps >= recipe.horizon and same_paths
        else:
            fits = fitted_on["training_hash"] == windows.training_hash and fitted_by == _settings(recipe)
    except (KeyError, TypeError, ValidationError) as error:
        raise ArtifactError(f"{path} holds no sampling ({error}); delete it and evaluate again.") from error
    return sampling if fits and sampling.weights_hash == model.weights_hash else None


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that shape a fit, beside the windows and the model."""
    return recipe.model_dump(mode="json", include=set(settings_of(Role.SAMPLING)))


def _path(folder: Path, ticker: str) -> Path:
    return folder / SAMPLING / f"{ticker}.json"
