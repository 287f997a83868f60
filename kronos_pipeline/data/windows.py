"""Windows: which bars a model sees and which it predicts, as one row of numbers per window beside the bars.

    bars      |------------ train ------------|--- selection ---|---- holdout ----|
    window          [ lookback ) targets )
    belongs to train; its lookback may reach back into any earlier block, its targets lie in one

A row holds offsets, the split and the lookback's statistics; no bar is copied, so memory grows with bars, not with bars
times lookback.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_pipeline.artifacts import read_parquet, write_parquet
from kronos_pipeline.code_version import code_version
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bar_schedule import find_rhythm
from kronos_pipeline.data.bars import FEATURES, Bars
from kronos_pipeline.data.normalisation import (
    denormalise,
    lookback_statistics,
    normalise,
    rolling_statistics,
)
from kronos_pipeline.data.schemas import STATISTICS, VALIDATED_TOGETHER, WindowRows
from kronos_pipeline.data.splits import SPLITS, Blocks, find_blocks, need_windows
from kronos_pipeline.data.window_set import OFFSETS, WindowSet, row_statistics, stamp_features
from kronos_pipeline.errors import ArtifactError, DataError

__all__ = [
    "SPLITS",
    "WindowSet",
    "build_all_windows",
    "build_windows",
    "denormalise",
    "load_windows",
    "lookback_statistics",
    "normalise",
    "row_statistics",
    "save_windows",
    "stamp_features",
]

TOO_MANY_CUTOFFS = "cutoffs above --max-cutoffs"
STRADDLING = "targets in two splits"
ACROSS_A_HOLE = "hole longer than --max-gap"
FLAT = "flat lookback"
HOLDOUT_ACROSS_A_HOLE = "cutoffs with a hole longer than --max-gap"
HOLDOUT_FLAT = "cutoffs with a flat lookback"
_REASONS = {
    "train": (ACROSS_A_HOLE, FLAT),
    "selection": (ACROSS_A_HOLE, FLAT),
    "holdout": (HOLDOUT_ACROSS_A_HOLE, HOLDOUT_FLAT),
}


def build_windows(bars: Bars, recipe: Recipe, *, hold_out: bool = True) -> WindowSet:
    """Cut a ticker's bars into windows.

    Train and selection windows span lookback + horizon + 1 bars. Holdout rows are the rolls of an evaluation: the first
    origin is the last bar before the holdout, the next are `horizon` bars apart, and the last is cut at the last bar.

    Args:
        bars: the ticker's bars.
        recipe: the settings.
        hold_out: by default the recipe's holdout is set aside; else the selection block ends with the last bar, and no
            window is left to evaluate.

    Raises:
        DataError: there are too few bars (it says how many there are and are needed), or a split has no window left.
        SettingsError: lookback and horizon do not fit the base model's context.
        ModelError: the base model is unknown.
    """
    windows = _cut(bars, recipe, recipe.used_lookback, hold_out)
    WindowRows.validate(windows.rows)
    return windows


def build_all_windows(bars: Sequence[Bars], recipe: Recipe) -> tuple[dict[str, WindowSet], dict[str, DataError]]:
    """`build_windows` of some tickers: the windows of those that are fit, and what is wrong with each of the others.

    Raises:
        SettingsError: lookback and horizon do not fit the base model's context.
        ModelError: the base model is unknown.
    """
    lookback = recipe.used_lookback
    fit: dict[str, WindowSet] = {}
    unfit: dict[str, DataError] = {}
    for first in range(0, len(bars), VALIDATED_TOGETHER):
        cut = []
        for one in bars[first : first + VALIDATED_TOGETHER]:
            try:
                cut.append(_cut(one, recipe, lookback, hold_out=True))
            except DataError as error:
                unfit[one.ticker] = error
        if cut:
            WindowRows.validate(pd.concat([one.rows for one in cut], ignore_index=True), inplace=True)
        fit |= {one.ticker: one for one in cut}
    return fit, unfit


def _cut(bars: Bars, recipe: Recipe, lookback: int, hold_out: bool) -> WindowSet:
    horizon = recipe.horizon
    blocks = find_blocks(bars, recipe, lookback, hold_out=hold_out)
    mean, std = rolling_statistics(bars.values, lookback)
    stamps = bars.frame["timestamps"].to_numpy()
    # The rhythm is observed before the holdout alone, so that no training window depends on a holdout bar.
    missing = find_rhythm(stamps[: blocks.holdout]).missing(stamps)
    holes = np.concatenate([[0], np.cumsum(missing > recipe.max_gap)])

    excluded = {STRADDLING: blocks.straddling(lookback, horizon, recipe.stride)}
    kept = []
    starts = _starts(blocks, lookback, horizon, recipe.stride)
    for split, start in zip(SPLITS, starts, strict=True):
        if split == "holdout" and not hold_out:
            kept.append(np.empty((0, 3), np.int64))
            continue
        end = np.minimum(start + lookback + horizon + (split != "holdout"), len(bars))
        across = holes[end - 1] > holes[start]
        flat = (std[start, FEATURES.index("close")] == 0) & ~across
        need_windows(bars, split, len(start), int(across.sum()), int(flat.sum()), recipe)
        for reason, left_out in zip(_REASONS[split], (across, flat), strict=True):
            excluded[reason] = excluded.get(reason, 0) + int(left_out.sum())
        kept.append(np.stack([start, start + lookback - 1, end], axis=1)[~(across | flat)])
    excluded[TOO_MANY_CUTOFFS] = max(len(kept[-1]) - recipe.max_cutoffs, 0)
    kept[-1] = kept[-1][-recipe.max_cutoffs :]
    offsets = np.concatenate(kept).astype(np.int32)
    codes: Any = np.repeat(np.arange(len(SPLITS), dtype=np.int8), [len(rows_of) for rows_of in kept])
    numbers = np.concatenate([mean[offsets[:, 0]], std[offsets[:, 0]]], axis=1)
    rows = pd.DataFrame(
        dict(zip(OFFSETS, offsets.T, strict=True))
        | {"split": pd.Categorical.from_codes(codes, pd.Index(SPLITS))}
        | dict(zip(STATISTICS, numbers.T, strict=True))
    )
    excluded = {reason: count for reason, count in excluded.items() if count}
    features = stamp_features(pd.DatetimeIndex(stamps))
    return WindowSet(bars, lookback, horizon, rows, features, excluded, blocks.selection, blocks.holdout)


def save_windows(path: Path, windows: WindowSet, recipe: Recipe) -> None:
    """Write `windows/<T>.parquet`: the rows, and in the schema's metadata what they were cut from and how."""
    manifest = {
        "ticker": windows.ticker,
        "bars_hash": windows.bars.content_hash,
        "lookback": windows.lookback,
        "horizon": windows.horizon,
        "excluded": windows.excluded,
        "selection_start": windows.selection_start,
        "holdout_start": windows.holdout_start,
        "training_hash": windows.training_hash,
        "config": recipe.model_dump(mode="json"),
        "code_version": code_version(),
    }
    write_parquet(path, windows.rows, manifest)


def load_windows(path: Path, bars: Bars) -> WindowSet:
    """Read what `save_windows` wrote.

    Args:
        path: the file.
        bars: the bars that the windows were cut from.

    Raises:
        ArtifactError: there is no such file, it is damaged, or its windows were cut from other bars.
    """
    rows, manifest = read_parquet(path)
    try:
        if manifest["bars_hash"] != bars.content_hash:
            raise ArtifactError(f"{path} was cut from other bars than these of {bars.ticker}; materialise it again.")
        rows["split"] = pd.Categorical(rows["split"], SPLITS)
        names = ("lookback", "horizon", "excluded", "selection_start", "holdout_start")
        found: dict[str, Any] = {name: manifest[name] for name in names}
        features = stamp_features(pd.DatetimeIndex(bars.frame["timestamps"]))
        windows = WindowSet(bars=bars, rows=rows, stamps=features, **found)
        damaged = windows.training_hash != manifest["training_hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} holds no windows ({error}); materialise them again.") from error
    if damaged:
        raise ArtifactError(f"{path} is damaged: its windows are not those written; materialise them again.")
    return windows


def _starts(blocks: Blocks, lookback: int, horizon: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first bar of every window that train, selection and holdout have room for, oldest first."""
    span = lookback + horizon + 1
    # Counted back from the block's end, so that a stride leaves out old windows and not the newest.
    train = np.arange(blocks.selection - span, -1, -stride)[::-1]
    selection = np.arange(blocks.selection - lookback, blocks.holdout - span + 1)
    return train, selection, np.arange(blocks.holdout - lookback, blocks.bars - lookback, horizon)
