"""Find jumps between bars that no trading explains: unadjusted splits, and prices in another unit.

    close  100 101 102 | 10.2 10.3 ...        a split of 10:1 that the file does not adjust for
    close  100 101 | 1.01 1.02 | 102 ...      pounds instead of pence for two days

A jump counts if the price moves from a close to the next open by a usual ratio of splits, far beyond the ticker's other
moves, and stays there to the close.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kronos_pipeline.data.bar_schedule import IntArray
from kronos_pipeline.data.bars import FEATURES, FloatArray

_RATIOS = np.array([1.5, 2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 25, 30, 40, 50, 100])
_NEAR_OPEN = 0.05
"""Largest distance, in log price, of the open after a jump from the value that the ratio gives."""
_NEAR_CLOSE = 0.12
"""Largest distance, in log price, of the close after a jump from the value that the ratio gives."""
_ODD_MOVE = 8.0
"""Smallest odd move, in multiples of the ticker's usual move from a close to the next open."""


@dataclass(frozen=True)
class Jumps:
    """Jumps of a ticker's prices.

    Attributes:
        bars: index of the first bar after each jump, ascending.
        ratios: price before over price after for a fall, such as 10; its inverse, such as 0.1, for a rise.
    """

    bars: IntArray
    ratios: FloatArray


def find_jumps(values: FloatArray, measured: int | None = None) -> Jumps:
    """Find jumps in features of bars, `(bars, 6)`.

    Args:
        values: the features; all bars are searched.
        measured: number of bars that the usual move is measured on, so that later bars change no earlier result; by
            default all.
    """
    # The newest bars may be few; a move needs two.
    measured = len(values) if measured is None else max(measured, 2)
    log_open, log_close = np.log(values[:, FEATURES.index("open")]), np.log(values[:, FEATURES.index("close")])
    moves = log_open[1:] - log_close[:-1]
    usual_moves = moves[: measured - 1]
    usual_move = 1.4826 * np.median(np.abs(usual_moves - np.median(usual_moves))) if len(usual_moves) else 0.0
    unusual = np.flatnonzero(np.abs(moves) > np.maximum(_ODD_MOVE * usual_move, np.log(_RATIOS[0]) - _NEAR_OPEN))
    open_move, close_move = moves[unusual], log_close[unusual + 1] - log_close[unusual]
    ratios = np.log(_RATIOS)
    nearest = ratios[np.abs(np.abs(open_move)[:, None] - ratios).argmin(axis=1)]
    expected = np.sign(open_move) * nearest
    matching = (np.abs(open_move - expected) < _NEAR_OPEN) & (np.abs(close_move - expected) < _NEAR_CLOSE)
    return Jumps(unusual[matching] + 1, np.exp(-expected[matching]))
