"""How far is the newest lookback from the lookbacks that a model was trained on?

A model reads z-scored windows, so the distance is measured on those: five features of each window,

    newest    the newest close                    level at the end of the window, in its standard deviations
    step      mean absolute change of the close   rough or smooth
    largest   largest absolute change             a jump
    range     mean of high minus low              noise within bars
    volume    mean volume of the newest quarter   rising or falling interest

and the Mahalanobis distance of the newest window's features from the mean of the ticker's own training windows
(Mahalanobis, 1936; Lee et al., A simple unified framework for detecting out-of-distribution samples, 2018). A window is
outside if its distance exceeds the 99.9 percent quantile of the training windows' own distances: with fewer than a
thousand windows, the largest of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kronos_pipeline.data.bars import FEATURES, FloatArray
from kronos_pipeline.data.normalisation import lookback_statistics, normalise

QUANTILE = 0.999
MIN_WINDOWS = 50
"""Minimum number of training windows; the covariance of five features needs more than a few."""
_MOST_WINDOWS = 2_000
"""Number of newest training windows."""
_RIDGE = 1e-6
"""Added to the variances: a feature that never varied in training, such as a missing volume, must not divide by 0."""
_HIGH, _LOW, _CLOSE, _VOLUME = (FEATURES.index(name) for name in ("high", "low", "close", "volume"))


@dataclass(frozen=True)
class InputDistance:
    """The distance of the newest lookback from the training windows.

    Attributes:
        distance: the Mahalanobis distance.
        bound: the quantile of the training windows' distances.
        windows: number of training windows.
    """

    distance: float
    bound: float
    windows: int

    @property
    def outside(self) -> bool:
        """True if the newest lookback lies outside the training windows."""
        return not self.distance <= self.bound

    def sentence(self) -> str:
        """Return the finding in words."""
        place = "outside" if self.outside else "within"
        return (
            f"the newest lookback lies {place} the {self.windows:,} lookbacks of its training "
            f"(distance {self.distance:.1f}, bound {self.bound:.1f})"
        )


def input_distance(values: FloatArray, trained: int, lookback: int) -> InputDistance | None:
    """Measure the distance of the newest lookback from those of the training.

    Args:
        values: features of a ticker's bars, `(bars, 6)`, oldest first.
        trained: number of oldest bars that the model's training may have read.
        lookback: bars of a window.

    Returns:
        The distance; None with fewer than `MIN_WINDOWS` training windows whose close moves, or if the newest close does
        not move.
    """
    known = values[: min(trained, len(values))][-(_MOST_WINDOWS + lookback - 1) :]
    if len(known) < MIN_WINDOWS + lookback - 1:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(known, lookback, axis=0).swapaxes(1, 2)
    trained_features, newest = window_features(windows), window_features(values[None, -lookback:])
    if len(trained_features) < MIN_WINDOWS or not len(newest):
        return None
    centre = trained_features.mean(axis=0)
    covariance = np.cov(trained_features, rowvar=False) + _RIDGE * np.eye(trained_features.shape[1])
    inverse = np.linalg.inv(covariance)

    def distances(features: FloatArray) -> FloatArray:
        centred = features - centre
        squared: FloatArray = np.sqrt(np.einsum("ij,jk,ik->i", centred, inverse, centred))
        return squared

    bound = np.quantile(distances(trained_features), QUANTILE, method="higher")
    return InputDistance(float(distances(newest)[0]), float(bound), len(trained_features))


def window_features(windows: FloatArray) -> FloatArray:
    """Return the features of z-scored windows, `(windows, 5)`, of bars `(windows, lookback, 6)`.

    Windows whose close does not move are left out, as in training.
    """
    mean, std = lookback_statistics(windows)
    moving = std[:, _CLOSE] > 0
    scaled = normalise(windows[moving], mean[moving], std[moving]).astype(np.float64)
    close, volume = scaled[..., _CLOSE], scaled[..., _VOLUME]
    steps = np.abs(np.diff(close, axis=1))
    features: FloatArray = np.stack(
        [
            close[:, -1],
            steps.mean(axis=1),
            steps.max(axis=1),
            (scaled[..., _HIGH] - scaled[..., _LOW]).mean(axis=1),
            volume[:, -max(volume.shape[1] // 4, 1) :].mean(axis=1),
        ],
        axis=1,
    )
    return features
