"""Candles that can be: what a sampled bar breaks is mended, and how often is counted.

A model draws the six numbers of a bar as one token, and nothing makes it put the high above the close.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kronos_pipeline.data.bars import FEATURES

_OPEN, _HIGH, _LOW, _CLOSE = (FEATURES.index(price) for price in ("open", "high", "low", "close"))
_AMOUNTS = slice(FEATURES.index("volume"), None)


def mend(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Widen each bar's range to hold its open and close, and raise a negative volume or amount to 0.

    Open and close stay as they are, so no forecast of a close changes.

    Args:
        values: bars, (..., 6), finite; they are not changed.

    Returns:
        The mended bars, with low <= min(open, close), high >= max(open, close), volume >= 0 and amount >= 0; and the
        number of bars in which something had to be mended.
    """
    mended = np.array(values, np.float64)
    body = mended[..., [_OPEN, _CLOSE]]
    mended[..., _HIGH] = np.maximum(mended[..., _HIGH], body.max(axis=-1))
    mended[..., _LOW] = np.minimum(mended[..., _LOW], body.min(axis=-1))
    mended[..., _AMOUNTS] = np.maximum(mended[..., _AMOUNTS], 0.0)
    return mended, int((mended != values).any(axis=-1).sum())
