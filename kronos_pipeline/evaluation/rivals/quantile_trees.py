"""A regressor for mlforecast that predicts a random quantile: trees for each of several levels, and a score per row.

mlforecast feeds a model's prediction back into the features of the next bar. As the prediction here is the quantile at
a random score, the recursion samples a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import lightgbm
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from kronos_pipeline.evaluation.rivals.quantile_paths import Floats, quantiles_at

_PARAMETERS: dict[str, Any] = {
    "objective": "quantile",
    "learning_rate": 0.05,
    "num_leaves": 8,
    "min_data_in_leaf": 50,
    "max_bin": 63,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
"""Small trees: the quantiles of a return depend little on the past, and a large tree fits noise."""


class QuantileTrees(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Trees by the pinball loss for each of some levels; scikit-learn's estimator, as mlforecast takes it."""

    def __init__(self, levels: Sequence[float], score: str, rounds: int, patience: int, seed: int) -> None:
        """Args are kept under their names, as scikit-learn copies an estimator by them.

        Args:
            levels: the probability of each quantile.
            score: the column with the normal score of each row's prediction; no tree reads it.
            rounds: largest number of trees per level.
            patience: number of trees without a lower loss before training stops.
            seed: seed of LightGBM.
        """
        self.levels, self.score, self.rounds, self.patience, self.seed = levels, score, rounds, patience, seed

    def fit(self, features: pd.DataFrame, y: Floats, split: NDArray[Any]) -> Self:
        """Fit the trees.

        Args:
            features: a row per bar.
            y: the value of each bar.
            split: the split of each bar: "train", "selection" to stop the training, or another text to leave it out.
        """
        values = self._values(features)
        train, selection = split == "train", split == "selection"
        settings = _PARAMETERS | {"seed": self.seed}
        data = lightgbm.Dataset(values[train], y[train], params=settings, free_raw_data=False)
        stop: dict[str, Any] = {}
        if selection.any():
            stop["valid_sets"] = [data.create_valid(values[selection], y[selection])]
        self.boosters_ = []
        for level in self.levels:
            stops: list[Any] = [lightgbm.early_stopping(self.patience, verbose=False)] if stop else []
            settings = settings | {"alpha": level}
            self.boosters_.append(lightgbm.train(settings, data, self.rounds, callbacks=stops, **stop))
        return self

    def predict(self, features: pd.DataFrame) -> Floats:
        """Return of each row the quantile at its score, `(rows,)`."""
        values = self._values(features)
        quantiles = [booster.predict(values, num_threads=1) for booster in self.boosters_]
        return quantiles_at(np.stack(quantiles, axis=-1), self.levels, features[self.score].to_numpy(np.float64))

    def _values(self, features: pd.DataFrame) -> Floats:
        return features.drop(columns=self.score).to_numpy(np.float64)
