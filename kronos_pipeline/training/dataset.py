"""Token windows of one split of many tickers: what a training reads.

The tokenizer is frozen, so each window is encoded once, to two bytes for each half of each bar's token. Stamps are not
stored per window at all: they are looked up beside the bars, a byte each. What is kept is on the training's device
where it takes no large share of its memory; then a batch is an indexing there, and nothing but the windows' numbers
goes to it. Else it is in the host's memory or in a file, and a batch is gathered there while the device is at work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kronos_pipeline.data.normalisation import normalise
from kronos_pipeline.data.windows import WindowSet, row_statistics
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.model.devices import free_memory, with_index
from kronos_pipeline.model.tokens import encode, windows_per_call

CPU = torch.device("cpu")
_DEVICE_SHARE = 0.25
"""Share of a GPU's memory, and of what is free of it, that tokens and stamps may take."""
_ON_DISK_ABOVE = 256 * 2**20
"""Bytes of tokens above which they are kept in a file, where a folder for it is given and the device has no room."""

Batch = dict[str, Tensor]
"""Token windows. `s1` and `s2`: (windows, bars) int16, the coarse and the fine half of each bar's token; `stamps`:
(windows, bars, 5) uint8, minute, hour, weekday, day and month of each bar."""


class KronosMultiTickerDataset(Dataset[Batch]):
    """The windows of one split of one or many tickers, as tokens; tickers in the order given, each by time.

    An item is one window: `s1` and `s2` of shape (lookback + horizon + 1,) and `stamps` of shape
    (lookback + horizon + 1, 5). `batch` assembles many at once by indexing.

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
            device: where the tokenizer is, and where batches are to be.
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
        self._device = with_index(device)
        first_bar = np.cumsum([0, *(len(one.bars.frame) for one in windows)])
        rows = [
            one.of_split(split)["start"].to_numpy(np.int64) + first
            for one, first in zip(windows, first_bar, strict=False)
        ]
        stamps, starts = _joined([one.stamps for one in windows], (0, 5)), _joined(rows, (0,))
        taken = 4 * len(starts) * self.window + stamps.nbytes + starts.nbytes
        self._here = self._device if _has_room(self._device, taken) else CPU
        try:
            self._keep(stamps, starts, folder)
        except torch.OutOfMemoryError:  # other processes share the GPU
            self._here = CPU
            self._keep(stamps, starts, folder)
        self._encode(windows, tokenizer)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Batch:
        return {key: value[0] for key, value in self.batch([index]).items()}

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor) -> Batch:
        """Windows by number, as one batch on the device; it does not wait for it."""
        rows = to_device(torch.as_tensor(indices, dtype=torch.int64), self._here)
        bars = self._starts[rows, None] + torch.arange(self.window, device=self._here)
        tokens, stamps = (to_device(part, self._device) for part in (self._tokens[rows], self._stamps[bars]))
        return {"s1": tokens[:, 0], "s2": tokens[:, 1], "stamps": stamps}

    def _keep(self, stamps: np.ndarray, starts: np.ndarray, folder: Path | None) -> None:
        """Copy stamps and starts to where they are kept, and make room for the tokens there."""
        self._stamps, self._starts = (torch.from_numpy(part).to(self._here) for part in (stamps, starts))
        self._tokens = self._store(folder)

    def _store(self, folder: Path | None) -> Tensor:
        """Room for the tokens, (windows, 2, bars) int16."""
        shape = (len(self), 2, self.window)
        if folder is None or self._here != CPU or 2 * int(np.prod(shape)) <= _ON_DISK_ABOVE:
            return torch.empty(shape, dtype=torch.int16, device=self._here)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"tokens-{self.split}.npy"
        return torch.from_numpy(np.lib.format.open_memmap(file, mode="w+", dtype=np.int16, shape=shape))

    def _encode(self, windows: Sequence[WindowSet], tokenizer: torch.nn.Module) -> None:
        """Fill the store, so many windows at a time as the device encodes best, whatever their ticker."""
        filled, size = 0, windows_per_call(self.window, self._device)
        for values in _regrouped(_normalised(windows, self.split, self.window, size), size):
            tokens = encode(tokenizer, to_device(torch.from_numpy(values), self._device), self._device)
            self._tokens[filled : filled + len(tokens)] = tokens
            filled += len(tokens)


def _normalised(windows: Sequence[WindowSet], split: str, length: int, at_once: int) -> Iterator[np.ndarray]:
    """The normalised windows of some tickers, up to `at_once` of one ticker together: (windows, bars, 6) float32."""
    for one in windows:
        rows = one.of_split(split)
        starts, bars = rows["start"].to_numpy(np.int64), one.bars.values
        mean, std = row_statistics(rows)
        for first in range(0, len(rows), at_once):
            part = slice(first, first + at_once)
            yield normalise(bars[starts[part, None] + np.arange(length)], mean[part], std[part])


def _regrouped(blocks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same rows, `size` at a time; the last are what is left."""
    kept: list[np.ndarray] = []
    for block in blocks:
        kept.append(block)
        while sum(map(len, kept)) >= size:
            joined = np.concatenate(kept)
            yield joined[:size]
            kept = [joined[size:]]
    if any(map(len, kept)):
        yield np.concatenate(kept)


def _has_room(device: torch.device, needed: int) -> bool:
    """Return whether a device takes so many bytes beside a training; other processes may share a GPU."""
    if device.type != "cuda":
        return device.type == "cpu"
    return needed <= _DEVICE_SHARE * free_memory(device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device unless it is there; from the host to a GPU asynchronously, from pinned memory."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _joined(arrays: list[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(empty, np.int64)
