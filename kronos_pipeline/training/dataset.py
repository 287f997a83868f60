"""Token windows of a split of one or many tickers: the data of a training.

The tokenizer is frozen, so each window is encoded once, to two bytes for each half of each bar's token. Stamps are not
stored per window: they are looked up beside the bars, a byte each. Tokens and stamps are on the training's device if
they take no large share of its memory; then a batch is an indexing there, and only the numbers of the windows are
copied to it. Otherwise they are in the host's memory or in a file, and a batch is gathered while the device computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.data.folder import read_windows
from kronos_pipeline.data.normalisation import normalise
from kronos_pipeline.data.windows import WindowSet, row_statistics
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.model.devices import free_memory, with_index
from kronos_pipeline.model.loading import load_recipe_base
from kronos_pipeline.model.tokens import encode, windows_per_call

CPU = torch.device("cpu")
_DEVICE_SHARE = 0.25
"""Share of a GPU's free memory that tokens and stamps may take."""
_ON_DISK_ABOVE = 256 * 2**20
"""Bytes of tokens above which they go to a file, if a folder for it is given and the device has no room."""

Batch = dict[str, Tensor]
"""Token windows. `s1` and `s2`: (windows, bars) int16, the coarse and the fine half of each bar's token; `stamps`:
(windows, bars, 5) uint8, minute, hour, weekday, day and month of each bar."""


class KronosMultiTickerDataset(Dataset[Batch]):
    """Windows of one split of one or many tickers, as tokens; tickers in the given order, each by time.

    An item is one window: `s1` and `s2` of shape (lookback + horizon + 1,) and `stamps` of shape
    (lookback + horizon + 1, 5). `batch` assembles many at once by indexing.

    Examples:
        >>> from kronos_pipeline import KronosMultiTickerDataset, KronosTrainingConfig
        >>> config = KronosTrainingConfig(data_dir="trainingdata/AAPL", model_name="kronos-nano", stride=16)
        >>> dataset = KronosMultiTickerDataset(config, "train")
        >>> dataset.tickers, len(dataset), dataset[0]["s1"].shape
        (['AAPL'], 51, torch.Size([95]))
        >>> dataset.batch([0, 1, 2])["stamps"].shape
        torch.Size([3, 95, 5])

    Attributes:
        lookback: bars of a window that a forecast would know; the targets are the bars after them.
        window: bars of a window, lookback + horizon + 1.
        split: "train" or "selection".
        tickers: the tickers' names.
    """

    def __init__(
        self,
        windows: Sequence[WindowSet] | KronosTrainingConfig,
        split: str = "train",
        tokenizer: torch.nn.Module | None = None,
        *,
        device: torch.device = CPU,
        folder: Path | None = None,
    ) -> None:
        """Encode the windows.

        Args:
            windows: one per ticker, all cut with the same lookback and horizon; or a config, whose CSVs are read.
            split: "train" by default, or "selection"; only evaluation reads the holdout.
            tokenizer: the base model's tokenizer, in eval mode, on `device`; for a config by default its base model's.
            device: device of the tokenizer and of the batches.
            folder: folder for a file of many tokens; without it they stay in memory.

        Raises:
            SettingsError: the windows differ in lookback or horizon, the split is the holdout or unknown, or there are
                windows without a tokenizer.
            DataError: a CSV of the config cannot be read, or its bars are too few.
        """
        if isinstance(windows, KronosTrainingConfig):
            tokenizer = tokenizer or load_recipe_base(windows, device).tokenizer
            by_ticker, unfit = read_windows(windows)
            for error in unfit.values():
                raise error
            windows = list(by_ticker.values())
        if tokenizer is None:
            raise SettingsError("Give the tokenizer of the base model, or a KronosTrainingConfig in place of windows.")
        if split not in ("train", "selection"):
            raise SettingsError(f"A training reads the splits train and selection, not {split!r}.")
        if len({(ticker.lookback, ticker.horizon) for ticker in windows}) > 1:
            raise SettingsError("The tickers' windows differ in lookback or horizon; cut them with the same settings.")
        self.split = split
        self.tickers = [ticker.ticker for ticker in windows]
        self.lookback = windows[0].lookback if windows else 0
        self.window = self.lookback + windows[0].horizon + 1 if windows else 0
        self._device = with_index(device)
        first_bar = np.cumsum([0, *(len(ticker.bars.frame) for ticker in windows)])
        rows = [
            ticker.of_split(split)["start"].to_numpy(np.int64) + first
            for ticker, first in zip(windows, first_bar, strict=False)
        ]
        stamps, starts = _joined([ticker.stamps for ticker in windows], (0, 5)), _joined(rows, (0,))
        needed = 4 * len(starts) * self.window + stamps.nbytes + starts.nbytes
        self._storage = self._device if _has_room(self._device, needed) else CPU
        try:
            self._keep(stamps, starts, folder)
        except torch.OutOfMemoryError:  # other processes share the GPU
            self._storage = CPU
            self._keep(stamps, starts, folder)
        self._encode(windows, tokenizer)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Batch:
        return {key: value[0] for key, value in self.batch([index]).items()}

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor) -> Batch:
        """Return windows by number as one batch on the device, without waiting for the device."""
        rows = to_device(torch.as_tensor(indices, dtype=torch.int64), self._storage)
        bars = self._starts[rows, None] + torch.arange(self.window, device=self._storage)
        tokens, stamps = (to_device(part, self._device) for part in (self._tokens[rows], self._stamps[bars]))
        return {"s1": tokens[:, 0], "s2": tokens[:, 1], "stamps": stamps}

    def _keep(self, stamps: np.ndarray, starts: np.ndarray, folder: Path | None) -> None:
        """Copy stamps and starts to the storage device, and allocate the tokens there."""
        self._stamps, self._starts = (torch.from_numpy(part).to(self._storage) for part in (stamps, starts))
        self._tokens = self._store(folder)

    def _store(self, folder: Path | None) -> Tensor:
        """Allocate the tokens, (windows, 2, bars) int16."""
        shape = (len(self), 2, self.window)
        if folder is None or self._storage != CPU or 2 * int(np.prod(shape)) <= _ON_DISK_ABOVE:
            return torch.empty(shape, dtype=torch.int16, device=self._storage)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"tokens-{self.split}.npy"
        return torch.from_numpy(np.lib.format.open_memmap(file, mode="w+", dtype=np.int16, shape=shape))

    def _encode(self, windows: Sequence[WindowSet], tokenizer: torch.nn.Module) -> None:
        """Encode all windows, across tickers, in the chunk size that is fastest on the device."""
        filled, size = 0, windows_per_call(self.window, self._device)
        for values in _regrouped(_normalised(windows, self.split, self.window, size), size):
            tokens = encode(tokenizer, to_device(torch.from_numpy(values), self._device), self._device)
            self._tokens[filled : filled + len(tokens)] = tokens
            filled += len(tokens)


class TrainingData(NamedTuple):
    """Data of a training: the windows to train on, and the windows of the selection block."""

    train: KronosMultiTickerDataset
    selection: KronosMultiTickerDataset


def _normalised(windows: Sequence[WindowSet], split: str, length: int, at_once: int) -> Iterator[np.ndarray]:
    """Yield normalised windows, up to `at_once` of one ticker at a time: (windows, bars, 6) float32."""
    for ticker in windows:
        rows = ticker.of_split(split)
        starts, bars = rows["start"].to_numpy(np.int64), ticker.bars.values
        mean, std = row_statistics(rows)
        for first in range(0, len(rows), at_once):
            part = slice(first, first + at_once)
            yield normalise(bars[starts[part, None] + np.arange(length)], mean[part], std[part])


def _regrouped(blocks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the same rows in chunks of `size`; the last chunk may be smaller."""
    pending: list[np.ndarray] = []
    for block in blocks:
        pending.append(block)
        while sum(map(len, pending)) >= size:
            joined = np.concatenate(pending)
            yield joined[:size]
            pending = [joined[size:]]
    if any(map(len, pending)):
        yield np.concatenate(pending)


def _has_room(device: torch.device, needed: int) -> bool:
    """Return whether a device has room for so many bytes beside a training; other processes may share a GPU."""
    if device.type != "cuda":
        return device.type == "cpu"
    return needed <= _DEVICE_SHARE * free_memory(device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a GPU asynchronously from pinned memory."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _joined(arrays: list[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(empty, np.int64)
