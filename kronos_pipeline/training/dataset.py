"""Token windows of one split of many tickers: what a training reads.

The tokenizer is frozen, so each window is encoded once, to two bytes for each half of each bar's token. Stamps are not
stored per window at all: they are looked up beside the bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from kronos_pipeline.data.normalisation import normalise
from kronos_pipeline.data.windows import WindowSet, row_statistics
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.model.tokens import encode

CPU = torch.device("cpu")
_CHUNK = 1024
"""Windows that are gathered and encoded together."""
_ON_DISK_ABOVE = 256 * 2**20
"""Bytes of tokens above which they are kept in a file, where a folder for it is given."""


Batch = dict[str, torch.Tensor]
"""Token windows. `s1` and `s2`: (windows, bars) int64, the coarse and the fine half of each bar's token; `stamps`:
(windows, bars, 5) int64, minute, hour, weekday, day and month of each bar."""


class KronosMultiTickerDataset(Dataset[Batch]):
    """The windows of one split of one or many tickers, as tokens; tickers in the order given, each by time.

    An item is one window: `s1` and `s2` of shape (lookback + horizon + 1,) and `stamps` of shape
    (lookback + horizon + 1, 5). `batch` and PyTorch's own `__getitems__` assemble many at once by indexing.

    Attributes:
        lookback: bars of a window that a forecast would know; the targets are the bars after them.
        window: bars of a window, lookback + horizon + 1.
        split: "train" or "selection".
        tickers: the tickers' names.
    """

    def __init__(
        self,
        windows: Sequence[WindowSet],
        split: str,
        tokenizer: torch.nn.Module,
        *,
        device: torch.device = CPU,
        folder: Path | None = None,
    ) -> None:
        """Encode the windows.

        Args:
            windows: one per ticker, all cut with the same lookback and horizon.
            split: "train" or "selection"; the holdout's rolls are for evaluation alone.
            tokenizer: the base model's tokenizer, in eval mode.
            device: where the tokenizer is.
            folder: where tokens go when they are many; without it they stay in memory.

        Raises:
            SettingsError: the windows differ in lookback or horizon, or the split is the holdout or unknown.
        """
        if split not in ("train", "selection"):
            raise SettingsError(f"A training reads the splits train and selection, not {split!r}.")
        if len({(one.lookback, one.horizon) for one in windows}) > 1:
            raise SettingsError("The tickers' windows differ in lookback or horizon; cut them with the same settings.")
        self.split = split
        self.tickers = [one.ticker for one in windows]
        self.lookback = windows[0].lookback if windows else 0
        self.window = self.lookback + windows[0].horizon + 1 if windows else 0
        counts = [len(one.of_split(split)) for one in windows]
        first_bar = np.cumsum([0, *(len(one.bars.frame) for one in windows)])
        self._stamps = _joined([one.stamps for one in windows], (0, 5))
        self._starts = _joined(
            [
                one.of_split(split)["start"].to_numpy(np.int64) + first
                for one, first in zip(windows, first_bar, strict=False)
            ],
            (0,),
        )
        self._tokens = _token_store((2, sum(counts), self.window), split, folder)
        filled = 0
        for one, count in zip(windows, counts, strict=True):
            _encode_split(one, split, tokenizer, device, self._tokens[:, filled : filled + count])
            filled += count

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Batch:
        return {key: value[0] for key, value in self.batch([index]).items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        return self.batch(indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Windows by number, as one batch."""
        rows = np.asarray(indices, np.int64)
        bars = self._starts[rows, None] + np.arange(self.window)
        s1, s2 = torch.from_numpy(self._tokens[:, rows].astype(np.int64))
        return {"s1": s1, "s2": s2, "stamps": torch.from_numpy(self._stamps[bars].astype(np.int64))}


def as_batch(batch: Any) -> Batch:
    """A DataLoader's collate function: `__getitems__` has made the batch already."""
    return batch


def _encode_split(
    windows: WindowSet, split: str, tokenizer: torch.nn.Module, device: torch.device, tokens: np.ndarray
) -> None:
    rows = windows.of_split(split)
    starts, bars = rows["start"].to_numpy(np.int64), windows.bars.values
    mean, std = row_statistics(rows)
    for first in range(0, len(rows), _CHUNK):
        part = slice(first, first + _CHUNK)
        values = bars[starts[part, None] + np.arange(tokens.shape[-1])]
        normalised = normalise(values, mean[part], std[part])
        tokens[0, part], tokens[1, part] = encode(tokenizer, normalised, device=device)


def _token_store(shape: tuple[int, int, int], split: str, folder: Path | None) -> np.ndarray:
    if folder is None or 2 * int(np.prod(shape)) <= _ON_DISK_ABOVE:
        return np.empty(shape, np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(folder / f"tokens-{split}.npy", mode="w+", dtype=np.uint16, shape=shape)


def _joined(arrays: list[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(empty, np.int64)
