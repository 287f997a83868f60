"""What a refit takes over from the model that was measured in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kronos_pipeline.evaluation.sampling import load_sampling, save_sampling
from kronos_pipeline.tracking.choice import load_trained

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.model.loading import KronosModel


def pass_on_sampling(
    measured: Path, refit: Path, windows: Sequence[WindowSet], base: KronosModel, recipe: Recipe
) -> None:
    """Let a refit be sampled as the model that was measured: it has no bars left to fit temperature and widths on.

    Args:
        measured: the measured adapter or checkpoint.
        refit: the same recipe's on all bars; it gets `sampling/<T>.json` for each ticker that the measured one has it
            for.
        windows: the windows that the refit was trained on.
        base: the base model of both.
        recipe: the recipe of both.

    Raises:
        ModelError, ArtifactError: one of the two is of another base model, or damaged.
    """
    before, after = load_trained(measured, base), load_trained(refit, base)
    for one in windows:
        sampling = load_sampling(measured, one.ticker, before, recipe)
        if sampling is not None:
            save_sampling(refit, one, replace(sampling, weights_hash=after.weights_hash), recipe)
