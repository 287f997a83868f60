"""Cut a ticker's bars into training, selection and holdout windows, and store them as offsets into the bars.

    bars      |------------ train ------------|--- selection ---|---- holdout ----|
    window          [ lookback ) targets )
    belongs to train; its lookback may reach back into any earlier block, its targets lie in one block

A row holds offsets, the split and the statistics of the lookback. No bar is copied, so memory grows with the number of
bars and not with bars times lookback.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_pipeline.artifacts import read_parquet, write_parquet
from kronos_pipeline.checksums import text_hash
from kronos_pipeline.code_version import code_version
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bar_schedule import IntArray, find_bar_schedule
from kronos_pipeline.data.bars import FEATURES, Bars, FloatArray, array_hash, bars_hash, column_matrix
from kronos_pipeline.data.jumps import find_jumps
from kronos_pipeline.data.normalisation import rolling_statistics
from kronos_pipeline.data.schemas import SPLITS, STATISTICS, VALIDATION_BATCH, WindowRows
from kronos_pipeline.errors import ArtifactError, DataError, Problem

OFFSETS = ("start", "origin", "end")
"""Columns of window rows that hold indices of bars, int32."""

StampFeatures = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


TOO_MANY_CUTOFFS = "cutoffs above --max-cutoffs"
STRADDLING = "targets in two splits"
ACROSS_A_HOLE = "hole longer than --max-gap"
OVER_A_JUMP = "jump like an unadjusted split"
FLAT = "flat lookback"
HOLDOUT_REASONS = (
    "cutoffs with a hole longer than --max-gap",
    "cutoffs over a jump like an unadjusted split",
    "cutoffs with a flat lookback",
)
_REASONS = {
    "train": (ACROSS_A_HOLE, OVER_A_JUMP, FLAT),
    "selection": (ACROSS_A_HOLE, OVER_A_JUMP, FLAT),
    "holdout": HOLDOUT_REASONS,
}


@dataclass(frozen=True)
class WindowSet:
    """One ticker's windows.

    Attributes:
        bars: the ticker's bars.
        lookback: input bars of a forecast, after the cut to the model's context.
        horizon: predicted bars of a forecast.
        rows: a row per window: `start`, `origin`, `end`, int32: the window spans the bars [start, end), and `origin` is
            the last bar that the model sees; `split`; `mean_<feature>` and `std_<feature>`, float64, of the lookback.
        stamps: `(bars, 5)`: minute, hour, weekday (Monday is 0), day, month of each bar.
        excluded: number of windows left out, by reason.
        selection_start: index of the selection block's first bar.
        holdout_start: index of the holdout's first bar.
        training_hash: SHA-256 of everything that training can depend on: the bars before the holdout and the rows cut
            from them; no holdout bar changes it.
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
        """Symbol of the bars."""
        return self.bars.ticker

    def of_split(self, split: str) -> pd.DataFrame:
        """Return the rows of a split, oldest first, with a new index."""
        return self.rows[self.rows["split"] == split].reset_index(drop=True)

    def counts(self) -> dict[str, int]:
        """Count the windows of each split."""
        codes = self.rows["split"].cat.codes.to_numpy()
        return {split: int((codes == code).sum()) for code, split in enumerate(SPLITS)}


def row_statistics(rows: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Return the lookback means and standard deviations of window rows, each `(rows, 6)`, for `normalise`."""
    statistics = column_matrix(rows, STATISTICS)
    return statistics[:, : len(FEATURES)], statistics[:, len(FEATURES) :]


def stamp_features(stamps: pd.DatetimeIndex) -> StampFeatures:
    """Return the time features of bars, `(bars, 5)`: minute, hour, weekday (Monday is 0), day, month."""
    fields = (stamps.minute, stamps.hour, stamps.weekday, stamps.day, stamps.month)
    return np.stack(fields, axis=1).astype(np.uint8)


def build_windows(bars: Bars, recipe: Recipe, *, hold_out: bool = True) -> WindowSet:
    """Cut a ticker's bars into windows.

    Train and selection windows span lookback + horizon + 1 bars. Holdout rows are the cutoffs of an evaluation: the
    first origin is the last bar before the holdout, origins are `horizon` bars apart, and the last window ends with the
    last bar.

    Args:
        bars: the ticker's bars.
        recipe: the settings.
        hold_out: reserve the recipe's holdout; otherwise the selection block ends with the last bar and there are no
            holdout rows.

    Raises:
        DataError: there are too few bars (the message gives the number present and the number needed), or a split has
            no window.
        SettingsError: lookback and horizon do not fit the base model's context.
        ModelError: the base model is unknown.
    """
    windows = _cut(bars, recipe, recipe.used_lookback, hold_out)
    WindowRows.validate(windows.rows)
    return windows


def build_all_windows(bars: Sequence[Bars], recipe: Recipe) -> tuple[dict[str, WindowSet], dict[str, DataError]]:
    """Cut many tickers' bars into windows, see `build_windows`.

    Returns:
        The windows of each usable ticker, and the errors of each unusable ticker.

    Raises:
        SettingsError: lookback and horizon do not fit the base model's context.
        ModelError: the base model is unknown.
    """
    lookback = recipe.used_lookback
    windows: dict[str, WindowSet] = {}
    errors: dict[str, DataError] = {}
    for first in range(0, len(bars), VALIDATION_BATCH):
        batch: dict[str, WindowSet] = {}
        for ticker_bars in bars[first : first + VALIDATION_BATCH]:
            try:
                batch[ticker_bars.ticker] = _cut(ticker_bars, recipe, lookback, hold_out=True)
            except DataError as error:
                errors[ticker_bars.ticker] = error
        if batch:
            rows = pd.concat([ticker_windows.rows for ticker_windows in batch.values()], ignore_index=True)
            WindowRows.validate(rows, inplace=True)
        windows |= batch
    return windows, errors


def _cut(bars: Bars, recipe: Recipe, lookback: int, hold_out: bool) -> WindowSet:
    horizon = recipe.horizon
    blocks = find_split_boundaries(bars, recipe, lookback, hold_out=hold_out)
    mean, std = rolling_statistics(bars.values, lookback)
    stamps = bars.frame["timestamps"].to_numpy()
    holes, jumps = find_breaks(bars, blocks.holdout, recipe)

    excluded = {STRADDLING: blocks.straddling(lookback, horizon, recipe.stride)}
    offsets_per_split = []
    starts = _starts(blocks, lookback, horizon, recipe.stride)
    for split, start in zip(SPLITS, starts, strict=True):
        if split == "holdout" and not hold_out:
            offsets_per_split.append(np.empty((0, 3), np.int64))
            continue
        end = np.minimum(start + lookback + horizon + (split != "holdout"), len(bars))
        crossing = holes[end - 1] > holes[start]
        jumping = (jumps[end - 1] > jumps[start]) & ~crossing
        flat = (std[start, FEATURES.index("close")] == 0) & ~crossing & ~jumping
        left_out = dict(zip(_REASONS[split], (int(rows.sum()) for rows in (crossing, jumping, flat)), strict=True))
        require_windows(bars, split, len(start), tuple(left_out.values()), recipe)
        for reason, count in left_out.items():
            excluded[reason] = excluded.get(reason, 0) + count
        offsets_per_split.append(np.stack([start, start + lookback - 1, end], axis=1)[~(crossing | jumping | flat)])
    cutoffs = offsets_per_split[-1]
    excluded[TOO_MANY_CUTOFFS] = max(len(cutoffs) - recipe.max_cutoffs, 0)
    offsets_per_split[-1] = cutoffs[-recipe.max_cutoffs :]
    offsets = np.concatenate(offsets_per_split).astype(np.int32)
    codes: Any = np.repeat(np.arange(len(SPLITS), dtype=np.int8), list(map(len, offsets_per_split)))
    statistics = np.concatenate([mean[offsets[:, 0]], std[offsets[:, 0]]], axis=1)
    rows = pd.DataFrame(
        dict(zip(OFFSETS, offsets.T, strict=True))
        | {"split": pd.Categorical.from_codes(codes, pd.Index(SPLITS))}
        | dict(zip(STATISTICS, statistics.T, strict=True))
    )
    excluded = {reason: count for reason, count in excluded.items() if count}
    features = stamp_features(pd.DatetimeIndex(stamps))
    return WindowSet(bars, lookback, horizon, rows, features, excluded, blocks.selection, blocks.holdout)


def find_breaks(bars: Bars, holdout: int, recipe: Recipe) -> tuple[IntArray, IntArray]:
    """Count the holes and the jumps before each bar: a window with different counts at its ends spans a break.

    Args:
        bars: the ticker's bars.
        holdout: index of the holdout's first bar. The schedule and the usual move are observed before it only, so that
            no training window depends on a holdout bar.
        recipe: the largest gap, and whether jumps are kept.

    Returns:
        Running counts of holes longer than `max_gap` and of jumps, each `(bars,)`.
    """
    stamps = bars.frame["timestamps"].to_numpy()
    missing = find_bar_schedule(stamps[:holdout]).missing(stamps)
    jumped = np.zeros(len(bars), np.int64)
    if not recipe.keep_jumps:
        jumped[find_jumps(bars.values, holdout).bars] = 1
    return np.concatenate([[0], np.cumsum(missing > recipe.max_gap)]), np.cumsum(jumped)


def save_windows(path: Path, windows: WindowSet, recipe: Recipe) -> None:
    """Write `windows/<T>.parquet`: the rows, with the source bars' hash and the settings in the schema's metadata."""
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
    """Load the windows that `save_windows` wrote.

    Args:
        path: the file.
        bars: the bars that the windows were cut from.

    Raises:
        ArtifactError: the file is missing or damaged, or its windows were cut from other bars.
    """
    rows, manifest = read_parquet(path)
    try:
        if manifest["bars_hash"] != bars.content_hash:
            raise ArtifactError(f"{path} was cut from other bars than these of {bars.ticker}; materialise it again.")
        rows["split"] = pd.Categorical(rows["split"], SPLITS)
        names = ("lookback", "horizon", "excluded", "selection_start", "holdout_start")
        fields: dict[str, Any] = {name: manifest[name] for name in names}
        features = stamp_features(pd.DatetimeIndex(bars.frame["timestamps"]))
        windows = WindowSet(bars=bars, rows=rows, stamps=features, **fields)
        damaged = windows.training_hash != manifest["training_hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} holds no windows ({error}); materialise them again.") from error
    if damaged:
        raise ArtifactError(f"{path} is damaged: its windows are not those written; materialise them again.")
    return windows


def _starts(
    blocks: SplitBoundaries, lookback: int, horizon: int, stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the start index of every possible train, selection and holdout window, oldest first."""
    span = lookback + horizon + 1
    # Count back from the block's end, so that a stride leaves out old windows and not the newest window.
    train = np.arange(blocks.selection - span, -1, -stride)[::-1]
    selection = np.arange(blocks.selection - lookback, blocks.holdout - span + 1)
    return train, selection, np.arange(blocks.holdout - lookback, blocks.bars - lookback, horizon)


def _training_hash(windows: WindowSet) -> str:
    codes = windows.rows["split"].cat.codes.to_numpy(np.int8)
    before_holdout = codes != SPLITS.index("holdout")
    offsets = column_matrix(windows.rows, OFFSETS).astype("<i4")
    statistics = column_matrix(windows.rows, STATISTICS).astype("<f8", copy=False)
    rows = array_hash(offsets[before_holdout], codes[before_holdout], statistics[before_holdout])
    holdout = windows.holdout_start
    bars = bars_hash(windows.bars.frame["timestamps"].to_numpy()[:holdout], windows.bars.values[:holdout])
    return text_hash(windows.ticker, bars, f"{windows.lookback} {windows.horizon}", rows)


@dataclass(frozen=True)
class SplitBoundaries:
    """Boundaries of the splits of a ticker's bars.

    Attributes:
        selection: index of the selection block's first bar.
        holdout: index of the holdout's first bar.
        bars: number of bars.
    """

    selection: int
    holdout: int
    bars: int

    def straddling(self, lookback: int, horizon: int, stride: int) -> int:
        """Count the windows that belong to no split because their targets lie on both sides of a boundary.

        Around the start of the selection block these are training windows, so the stride applies.
        """
        span = lookback + horizon + 1
        training = range(self.selection - span, -1, -stride)
        later = len(range(self.selection - span + stride, self.selection - lookback, stride)) if training else 0
        return later + min(horizon, self.bars - self.holdout)


def find_split_boundaries(bars: Bars, recipe: Recipe, lookback: int, *, hold_out: bool = True) -> SplitBoundaries:
    """Find the boundaries for the recipe's days or bars; without `hold_out`, the holdout is empty.

    Raises:
        DataError: there are too few bars for one window in each block; the message gives the number present, the number
            needed and the settings that need them.
    """
    count = len(bars)
    dates = bars.frame["timestamps"].to_numpy().astype("datetime64[D]")
    first_bars = np.flatnonzero(np.concatenate([[True], dates[1:] != dates[:-1]]))
    held_out = _block_start(count, first_bars, recipe.validation_bars, recipe.validation_days)
    holdout = held_out if hold_out else count
    selection = _block_start(holdout, first_bars, recipe.selection_bars, recipe.selection_days)
    targets = recipe.horizon + 1
    window = lookback + targets
    if selection < window or holdout - selection < targets:
        raise _too_few(bars, recipe, lookback, len(first_bars))
    return SplitBoundaries(selection, holdout, count)


def require_windows(bars: Bars, split: str, windows: int, left_out: tuple[int, ...], recipe: Recipe) -> None:
    """Check that a split has a window left.

    Args:
        bars: the ticker's bars.
        split: the split.
        windows: number of windows that the split could have.
        left_out: number of windows left out for a hole, for a jump, and for a flat lookback.
        recipe: the settings.

    Raises:
        DataError: every window of the split was left out; the message gives the reason.
    """
    if sum(left_out) < windows:
        return
    crossing, jumping, flat = left_out
    if flat == windows and (bars.frame["close"] == bars.frame["close"].iloc[0]).all():
        close = bars.frame["close"].iloc[0]
        rule = f"the close is {close:g} in all {len(bars)} bars: a constant series has nothing to learn"
    elif flat == windows:
        rule = f"no {split} window is left: the close does not move in the lookback of any of the {windows}"
    else:
        rule = (
            f"no {split} window is left: of {windows}, {crossing} cross a hole of more than --max-gap {recipe.max_gap} "
            f"bars, {jumping} a jump like an unadjusted split, and {flat} have a flat lookback; fill the holes or "
            "raise --max-gap, adjust the prices or use --keep-jumps"
        )
    raise DataError(Problem(bars.source, rule), bars.ticker)


def _block_start(end: int, first_bars: np.ndarray, bars: int | None, days: int) -> int:
    """Return the index of the first bar of a block that ends before bar `end`; 0 if there are too few bars."""
    if bars is not None:
        return max(end - bars, 0)
    earlier = first_bars[first_bars < end]
    return int(earlier[-days]) if len(earlier) >= days else 0


def _too_few(bars: Bars, recipe: Recipe, lookback: int, trading_days: int) -> DataError:
    horizon, targets = recipe.horizon, recipe.horizon + 1
    per_day = len(bars) / trading_days
    selection_setting, selection = _block_size("selection", recipe.selection_bars, recipe.selection_days, per_day)
    holdout_setting, holdout = _block_size("validation", recipe.validation_bars, recipe.validation_days, per_day)
    if selection < targets:
        rule = (
            f"{selection_setting} holds {selection} bars, and a selection window needs {targets} "
            f"(--horizon {horizon} + 1); raise it or lower --horizon"
        )
    else:
        about = "" if per_day == 1 else "about "
        rule = (
            f"{len(bars)} bars, and {about}{lookback + targets + selection + holdout} are needed: {lookback + targets} "
            f"for one training window (lookback {lookback} + --horizon {horizon} + 1), {selection} for "
            f"{selection_setting}, {holdout} for {holdout_setting}; add bars or lower these"
        )
    return DataError(Problem(bars.source, rule), bars.ticker)


def _block_size(block: str, bars: int | None, days: int, per_day: float) -> tuple[str, int]:
    """Return the flag that sizes a block, as on the command line, and the block's size in bars."""
    if bars is not None:
        return f"--{block}-bars {bars}", bars
    return f"--{block}-days {days}", math.ceil(days * per_day)
