"""Series of unequal length and of several predictors, sampled in batches as large as the memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.decoder import Choose, Decoder
from kronos_pipeline.model.draws import Draws, Sampling, generator_for
from kronos_pipeline.model.frames import InputError, Series
from kronos_pipeline.model.memory import room, work_in_parts
from kronos_pipeline.model.modules import inner

ROWS = 4096
"""Paths, of all series together, whose tokens are drawn by one call of torch, as upstream draws them. More are drawn as
upstream would in several calls, one after the other: what is drawn may not depend on how much memory there is, and each
part of a call repeats the call's random numbers."""

Part = tuple[NDArray[np.intp], range]
"""Some series, and of each some paths."""


def sample_series(
    models: Sequence[Any],
    tokenizer: Any,
    series: Sequence[Series],
    which: NDArray[np.intp],
    sampling: Sampling,
    *,
    context: int,
    precision: str,
) -> NDArray[np.float32]:
    """Sample futures.

    Args:
        models: predictors on one device. Those that share their base's tensors are decoded together.
        tokenizer: theirs, on the same device.
        series: what to forecast.
        which: place of each series' predictor among `models`, (series,).
        sampling: how.
        context: bars that a predictor attends to.
        precision: "fp32" or "bf16", see `Decoder`.

    Returns:
        Normalised bars, (series, paths, horizon, 6).

    Raises:
        InputError: the horizon exceeds the context, or the generator is another device's.
        ModelError: a predictor gives numbers that are not finite.
    """
    horizon, paths = sampling.horizon, sampling.paths
    if horizon > context:
        raise InputError(f"pred_len={horizon} exceeds max_context={context}: a forecast has to fit into the context.")
    values = np.empty((len(series), paths, horizon, len(FEATURES)), np.float32)
    if not len(series):
        return values
    device = inner(models[0]).head.proj_s1.weight.device
    progress = _Progress(horizon, len(series) * paths, sampling.verbose)
    with generator_for(sampling, device) as generator, progress:
        at_once = max(1, ROWS // paths)
        for first in range(0, len(series), at_once):
            some = slice(first, first + at_once)
            draws = Draws(len(series[some]) * paths, sampling, generator)
            for batch in _batches(models, tokenizer, series[some], which[some], precision, context):
                _sample_batch(batch, draws, values[some], progress, device)
    return values


def _sample_batch(
    batch: _Batch, draws: Draws, values: NDArray[np.float32], progress: _Progress, device: torch.device
) -> None:
    """Fill in `values`, (series, paths, horizon, 6), those of the batch's series."""
    series, paths = values.shape[:2]
    rows = torch.arange(series * paths, device=device).view(series, paths)

    def run(part: Part) -> None:
        members, some = part
        place = members[:, None], np.arange(some.start, some.stop)
        with progress.of_part() as drawn:
            values[place] = batch.futures(members, len(some), draws.part(rows[place], drawn))

    work_in_parts((batch.members, range(paths)), run, _halves, batch.bytes, room(device))


class _Batch:
    """Series whose predictors are decoded together."""

    def __init__(
        self,
        models: Sequence[Any],
        tokenizer: Any,
        series: Sequence[Series],
        places: Sequence[int],
        which: NDArray[np.intp],
        context: int,
        precision: str,
    ) -> None:
        """`places`: of the predictors among `models`."""
        self._core, self._tokenizer, self._series, self._context = inner(models[0]), tokenizer, series, context
        self._decoder = Decoder([models[place] for place in places], tokenizer, precision=precision)
        self._number = np.full(len(models), -1)
        self._number[list(places)] = np.arange(len(places))
        self._number = self._number[which]  # of each series' predictor in the decoder, -1 if it is in none
        self.members = np.flatnonzero(self._number >= 0)

    def futures(self, members: NDArray[np.intp], paths: int, choose: Choose) -> NDArray[np.float32]:
        """Normalised bars of some series, (series, paths, horizon, 6)."""
        series, context = [self._series[member] for member in members], self._context
        bars, past = (_end_together([getattr(one, part) for one in series]) for part in ("bars", "past"))
        lengths = torch.tensor([len(one.bars) for one in series])
        known = self._decoder.encode(bars, None if bool((lengths == bars.shape[1]).all()) else lengths)
        s1, s2 = (level[:, -context:] for level in known)
        lengths = lengths.clamp(max=s1.shape[1])
        drawn = self._decoder.generate(
            (s1, s2),
            past[:, -context:],
            torch.from_numpy(np.stack([one.ahead for one in series])),
            choose,
            paths=paths,
            context=context,
            lengths=lengths,
            which=torch.from_numpy(self._number[members]),
            s2_position="first",
        )
        return self._decoder.decode((s1, s2), drawn, context=context, lengths=lengths).cpu().numpy()

    def bytes(self, part: Part) -> int:
        """What a part takes of the memory, about: caches, scores, logits, and what the encoder keeps of the history."""
        (members, some), core, tokenizer = part, self._core, self._tokenizer
        bars = max(len(self._series[member].bars) for member in members)
        steps = len(some) * len(self._series[members[0]].ahead)
        tokens = min(bars, self._context) + steps
        predictor = tokens * (2 * (len(core.transformer) + 1) * core.d_model + core.n_heads * len(some))
        decoding = tokens * (2 * len(tokenizer.decoder) * tokenizer.d_model + tokenizer.n_heads * steps)
        logits = 8 * len(some) * 2 ** max(core.s1_bits, core.s2_bits)
        return 4 * len(members) * max(predictor + logits, decoding, 8 * bars * tokenizer.d_model)


class _Progress:
    """Bars drawn so far, shown as upstream shows them; of rows that are drawn apart, their share."""

    def __init__(self, horizon: int, rows: int, verbose: bool) -> None:
        self._bar, self._rows, self._done = tqdm(total=horizon, disable=not verbose), rows, 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @contextmanager
    def of_part(self) -> Iterator[Any]:
        """What is to be called with the number of rows of each bar drawn; it is taken back where the block fails."""
        before = self._done
        try:
            yield self._add
        except BaseException:
            self._add(before - self._done)
            raise

    def _add(self, rows: int) -> None:
        self._done += rows
        self._bar.update(self._done // self._rows - self._bar.n)


def _batches(
    models: Sequence[Any],
    tokenizer: Any,
    series: Sequence[Series],
    which: NDArray[np.intp],
    precision: str,
    context: int,
) -> Iterator[_Batch]:
    """One for all predictors that share their base's tensors; one for each that no other can be decoded with."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place in np.unique(which).tolist():
        shared = (value for name, value in models[place].named_parameters() if "lora_" not in name)
        groups.setdefault(tuple(sorted(map(Tensor.data_ptr, shared))), []).append(place)
    for places in groups.values():
        try:
            yield _Batch(models, tokenizer, series, places, which, context, precision)
        except ModelError:
            if len(places) == 1:
                raise
            for place in places:
                yield _Batch(models, tokenizer, series, [place], which, context, precision)


def _halves(part: Part) -> list[Part]:
    members, paths = part
    if (half := len(members) // 2) > 0:
        return [(members[:half], paths), (members[half:], paths)]
    half = paths.start + len(paths) // 2
    return [(members, range(paths.start, half)), (members, range(half, paths.stop))] if len(paths) > 1 else []


def _end_together(parts: Sequence[NDArray[Any]]) -> Tensor:
    """Arrays (bars, ...) of unequal length as one tensor, (series, bars, ...); before the short ones are zeros."""
    longest = max(map(len, parts))
    joined = np.zeros((len(parts), longest, *parts[0].shape[1:]), parts[0].dtype)
    for row, part in zip(joined, parts, strict=True):
        row[longest - len(part) :] = part
    return torch.from_numpy(joined)
