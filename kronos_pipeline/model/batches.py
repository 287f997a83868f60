"""Series of unequal length and of several predictors, sampled in batches as large as the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.model.decode.decoder import Decoder, decoders
from kronos_pipeline.model.decode.generate import Choose
from kronos_pipeline.model.decode.memory import Part, in_turn, room, work_in_parts
from kronos_pipeline.model.predictor.dataframes import InputError, Series
from kronos_pipeline.model.predictor.sampling import Draws, Sampling, generator_for

ROWS = 4096
"""Paths, of all series together, whose tokens are drawn by one call of torch, as upstream draws them. More are drawn as
upstream would in several calls, one after the other: what is drawn may not depend on how much memory there is, and each
part of a call repeats the call's random numbers."""


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
    if sampling.horizon > context:
        raise InputError(
            f"pred_len={sampling.horizon} exceeds max_context={context}: a forecast has to fit into the context."
        )
    values = np.empty((len(series), sampling.paths, sampling.horizon, len(FEATURES)), np.float32)
    device, at_once = next(tokenizer.parameters()).device, max(1, ROWS // sampling.paths)
    exact = torch.autocast(device.type, enabled=False)  # the precision is the one that was asked for
    progress_bar = _Progress(len(series), sampling)
    with generator_for(sampling, device) as generator, in_turn(device), exact, progress_bar as progress:
        for first in range(0, len(series), at_once):
            block = slice(first, first + at_once)
            draws = Draws(len(series[block]) * sampling.paths, sampling, generator)
            used, number = np.unique(which[block], return_inverse=True)
            for decoder, places in decoders([models[place] for place in used], tokenizer, precision=precision):
                place = np.full(len(used), -1)
                place[places] = np.arange(len(places))
                _Batch(decoder, series[block], place[number], context).fill(values[block], draws, progress)
    return values


class _Batch:
    """Series of which some are decoded together."""

    def __init__(self, decoder: Decoder, series: Sequence[Series], place: NDArray[np.intp], context: int) -> None:
        """`place`: of each series' predictor in the decoder, -1 where it is none of the decoder's."""
        self._decoder, self._series, self._place, self._context = decoder, series, place, context

    def fill(self, values: NDArray[np.float32], draws: Draws, progress: _Progress) -> None:
        """Write the futures of the decoder's series into `values`, (series, paths, horizon, 6)."""
        count, paths, horizon = values.shape[:3]
        rows = np.arange(count * paths).reshape(count, paths)

        def run(part: Part) -> None:
            members, some = np.array(part[0]), part[1]
            at = members[:, None], np.arange(some.start, some.stop)
            with progress.of_part() as drawn:
                values[at] = self._futures(members, len(some), draws.part(torch.from_numpy(rows[at]), drawn))
                draws.check()

        def size(part: Part) -> int:
            members, some = part
            lengths = {len(self._series[member].bars) for member in members}
            return self._decoder.bytes(len(members), len(some), max(lengths), horizon, unequal=len(lengths) > 1)

        whole = np.flatnonzero(self._place >= 0).tolist(), range(paths)
        work_in_parts(whole, run, size, room(self._decoder.device), self._decoder.device)

    def _futures(self, members: NDArray[np.intp], paths: int, choose: Choose) -> NDArray[np.float32]:
        """Normalised bars of some series, (series, paths, horizon, 6)."""
        series, decoder, context = [self._series[member] for member in members], self._decoder, self._context
        bars, past = (_end_together([getattr(one, part) for one in series]) for part in ("bars", "past"))
        lengths = torch.tensor([len(one.bars) for one in series])
        s1, s2 = decoder.encode(bars, None if bool((lengths == bars.shape[1]).all()) else lengths)
        known, lengths = (s1[:, -context:], s2[:, -context:]), lengths.clamp(max=context)
        drawn = decoder.generate(
            known,
            past[:, -context:],
            torch.from_numpy(np.stack([one.ahead for one in series])),
            choose,
            paths=paths,
            context=context,
            lengths=lengths,
            which=torch.from_numpy(self._place[members]),
            s2_position="first",
        )
        return decoder.decode(known, drawn, context=context, lengths=lengths).cpu().numpy()


class _Progress:
    """Bars drawn so far, shown as upstream shows them; of rows that are drawn apart, their share."""

    def __init__(self, series: int, sampling: Sampling) -> None:
        self._bar = tqdm(total=sampling.horizon, disable=not (sampling.verbose and series))
        self._rows, self._done = series * sampling.paths, 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @contextmanager
    def of_part(self) -> Iterator[Callable[[int], None]]:
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


def _end_together(parts: Sequence[NDArray[Any]]) -> Tensor:
    """Arrays (bars, ...) of unequal length as one tensor, (series, bars, ...); before the short ones are zeros."""
    longest = max(map(len, parts))
    joined = np.zeros((len(parts), longest, *parts[0].shape[1:]), parts[0].dtype)
    for row, part in zip(joined, parts, strict=True):
        row[longest - len(part) :] = part
    return torch.from_numpy(joined)
