"""An ensemble: models of one recipe that were trained with different seeds, and forecast with all their paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from kronos_pipeline.checksums import text_hash

if TYPE_CHECKING:
    import torch

    from kronos_pipeline.base_models import BaseModelSource
    from kronos_pipeline.model.loading import KronosModel

    Forecaster: TypeAlias = "KronosModel | Ensemble"


@dataclass(frozen=True)
class Ensemble:
    """Models on one base model that forecast together; it stands wherever a `KronosModel` is sampled.

    Attributes:
        members: the models, by the seed of their training and sampling.
    """

    members: Mapping[int, KronosModel]

    @property
    def first(self) -> KronosModel:
        """The first of the models."""
        return next(iter(self.members.values()))

    @property
    def source(self) -> BaseModelSource:
        """The base model of the models."""
        return self.first.source

    @property
    def device(self) -> torch.device:
        """The device of the models."""
        return self.first.device

    @property
    def context(self) -> int:
        """Number of bars that the predictors attend to."""
        return self.first.context

    @property
    def weights_hash(self) -> str:
        """Hash of the weights of all models."""
        return text_hash(*(f"{seed} {model.weights_hash}" for seed, model in self.members.items()))


def count_models(model: Forecaster) -> int:
    """Return the number of models of an ensemble, 1 for a single model."""
    return len(model.members) if isinstance(model, Ensemble) else 1
