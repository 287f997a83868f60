"""The z-score normalisation of Kronos: mean and standard deviation of the lookback bars only, clipped.

The constants are those of the published model's predictor; other constants would give it inputs unlike its training.
"""

from __future__ import annotations

import numpy as np

from kronos_pipeline.data.bars import FloatArray

EPSILON = 1e-5
"""Added to the standard deviation."""
CLIP = 5.0
"""Largest absolute value of a normalised feature."""

Float32Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def lookback_statistics(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard deviation over axis -2, the bars: (..., bars, 6) gives two arrays (..., 6).

    The deviation is the population's, divided by the number of bars, as upstream.
    """
    values = np.asarray(values, np.float64)
    return values.mean(axis=-2), values.std(axis=-2)


def normalise(values: FloatArray, mean: FloatArray, std: FloatArray) -> Float32Array:
    """Normalise bars (..., bars, 6) by statistics (..., 6); clipped to +-5, float32."""
    scaled = (np.asarray(values, np.float64) - mean[..., None, :]) / (std[..., None, :] + EPSILON)
    return np.clip(scaled, -CLIP, CLIP).astype(np.float32)


def denormalise(values: np.ndarray, mean: FloatArray, std: FloatArray) -> FloatArray:
    """Convert normalised bars (..., bars, 6) back to the file's units by statistics (..., 6), float64."""
    return np.asarray(values, np.float64) * (std[..., None, :] + EPSILON) + mean[..., None, :]


def rolling_statistics(values: FloatArray, length: int) -> tuple[FloatArray, FloatArray]:
    """Compute `lookback_statistics` of every run of `length` bars: (bars, 6) gives two (bars - length + 1, 6).

    Runs of 1, 2, 4, ... bars are merged pairwise (update of Chan, Golub and LeVeque). Squares are only added, so there
    is no cancellation as in differences of running sums; a run of equal values has deviation exactly 0; and no run
    depends on a bar outside it.
    """
    block, block_mean, block_squares = 1, values, np.zeros_like(values)
    total, mean, squares = 0, block_mean, block_squares
    while True:
        if length & block:
            if total:
                # Append the block to the run of `total` bars.
                mean, squares = _merge(mean, squares, total, block_mean, block_squares, block)
            else:
                mean, squares = block_mean, block_squares
            total += block
        if total == length:
            break
        block_mean, block_squares = _merge(block_mean, block_squares, block, block_mean, block_squares, block)
        block *= 2
    return mean, np.sqrt(squares / length)


def _merge(
    mean: FloatArray, squares: FloatArray, bars: int, next_mean: FloatArray, next_squares: FloatArray, next_bars: int
) -> tuple[FloatArray, FloatArray]:
    """Merge each run of `bars` with the run of `next_bars` that follows it."""
    following, following_squares = next_mean[bars:], next_squares[bars:]
    count = min(len(mean), len(following))
    delta = following[:count] - mean[:count]
    joined = bars + next_bars
    merged = mean[:count] + delta * (next_bars / joined)
    return merged, squares[:count] + following_squares[:count] + delta * delta * (bars * next_bars / joined)
