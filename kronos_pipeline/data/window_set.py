"""One ticker's windows as a value: a row of numbers per window beside the bars, and what training can know of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from kronos_pipeline.artifacts import text_hash
from kronos_pipeline.data.bars import FEATURES, Bars, FloatArray, array_hash, bars_hash, matrix
from kronos_pipeline.data.schemas import STATISTICS
from kronos_pipeline.data.splits import SPLITS

OFFSETS = ("start", "origin", "end")
"""The columns of window rows that hold indices of bars, int32."""

StampFeatures = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class WindowSet:
    """One ticker's windows.

    Attributes:
        bars: the bars that the windows look at.
        lookback: bars that a forecast sees, after the cut to the model's context.
        horizon: bars that a forecast predicts.
        rows: a row per window: `start`, `origin`, `end`, int32: it spans the bars [start, end) and knows those up to
            `origin`; `split`; `mean_<feature>` and `std_<feature>`, float64, of the lookback bars.
        stamps: `(bars, 5)`: minute, hour, weekday (Monday is 0), day, month of each bar.
        excluded: how many windows were left out, by reason.
        selection_start: index of the selection block's first bar.
        holdout_start: index of the holdout's first bar.
        training_hash: SHA-256 of all that training can depend on: the bars before the holdout, and the rows cut from
            them; no holdout bar changes it.
    """

    bars: Bars
    lookback: int
    horizon: int
    rows: pd.DataFrame
    stamps: StampFeatures
    excluded: dict[str, int]
    selection_start: int
    holdout_start: int
    training_hash: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "training_hash", _training_hash(self))

    @property
    def ticker(self) -> str:
        return self.bars.ticker

    def of_split(self, split: str) -> pd.DataFrame:
        """The rows of one split, oldest first, with an index of their own."""
        return self.rows[self.rows["split"] == split].reset_index(drop=True)

    def counts(self) -> dict[str, int]:
        """Windows per split."""
        codes = self.rows["split"].cat.codes.to_numpy()
        return {split: int((codes == code).sum()) for code, split in enumerate(SPLITS)}


def row_statistics(rows: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """The mean and the standard deviation that window rows hold, two of `(rows, 6)`, for `normalise`."""
    numbers = matrix(rows, STATISTICS)
    return numbers[:, : len(FEATURES)], numbers[:, len(FEATURES) :]


def stamp_features(stamps: pd.DatetimeIndex) -> StampFeatures:
    """What a model knows of bars' times, `(bars, 5)`: minute, hour, weekday (Monday is 0), day, month."""
    fields = (stamps.minute, stamps.hour, stamps.weekday, stamps.day, stamps.month)
    return np.stack(fields, axis=1).astype(np.uint8)


def _training_hash(windows: WindowSet) -> str:
    codes = windows.rows["split"].cat.codes.to_numpy(np.int8)
    known = codes != SPLITS.index("holdout")
    offsets = matrix(windows.rows, OFFSETS).astype("<i4")
    statistics = matrix(windows.rows, STATISTICS).astype("<f8", copy=False)
    rows = array_hash(offsets[known], codes[known], statistics[known])
    before = slice(windows.holdout_start)
    bars = bars_hash(windows.bars.frame["timestamps"].to_numpy()[before], windows.bars.values[before])
    return text_hash(windows.ticker, bars, f"{windows.lookback} {windows.horizon}", rows)
