"""Tokens drawn as upstream draws them: the same filters, and the same random numbers in the same order.

At each step upstream draws the coarse tokens of all rows with `torch.multinomial`, then the fine ones; a row is one
path of one series. What is drawn for a row depends on its own probabilities and its place among the rows alone. So
rows that are sampled apart, for want of memory, are put back to their places for the draw, each part starting from the
same state of the generator.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.decode.decoder import Decoder, group_into_decoders
from kronos_pipeline.model.decode.generate import TokenPicker
from kronos_pipeline.model.decode.memory import Part, memory_budget, one_thread_per_gpu, run_in_oom_safe_parts
from kronos_pipeline.model.predictor.dataframes import InputError, Series, real, whole

ROWS = 4096
"""Paths, of all series together, whose tokens are drawn by one call of torch, as upstream draws them. More are drawn as
upstream would in several calls, one after the other: what is drawn may not depend on how much memory there is, and each
part of a call repeats the call's random numbers."""

_GLOBAL = threading.RLock()


@dataclass(frozen=True)
class Sampling:
    """How futures are drawn; what each field means is told in `KronosPredictor.predict`."""

    horizon: int
    temperature: float
    top_k: int
    top_p: float
    paths: int
    verbose: bool = False
    seed: int | None = None
    generator: torch.Generator | None = None


def parse_sampling(
    pred_len: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    sample_count: Any,
    verbose: bool,
    seed: int | None,
    generator: torch.Generator | None,
) -> Sampling:
    """The arguments of a forecast, checked. Where `top_k` or `top_p` is None, it is no limit.

    Raises:
        InputError: one is of no use.
    """
    horizon, paths, kept = (
        whole(name, number)
        for name, number in (("pred_len", pred_len), ("sample_count", sample_count), ("top_k", top_k or 0))
    )
    heat, share = real("T", temperature), real("top_p", 1 if top_p is None else top_p)
    for name, number in (("pred_len", horizon), ("sample_count", paths)):
        if number < 1:
            raise InputError(f"{name} must be 1 or more, not {number}.")
    if not heat > 0:
        raise InputError(f"T must be above 0, not {heat}; for the likeliest tokens alone give top_k=1.")
    if np.isnan(share):
        raise InputError("top_p is no number; give 0.9, say, or 1 to draw from all tokens.")
    if seed is not None and generator is not None:
        raise InputError("seed and generator are both given; give one of them.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(f"generator must be a torch.Generator, not {type(generator).__name__}; or give a seed.")
    if seed is not None and not 0 <= (seed := whole("seed", seed)) < 2**63:
        raise InputError(f"seed must be from 0 to 2**63 - 1, not {seed}.")
    return Sampling(horizon, heat, kept, share, paths, bool(verbose), seed, generator)


@contextmanager
def generator_for(sampling: Sampling, device: torch.device) -> Iterator[torch.Generator]:
    """The generator that was given, a new one of the seed that was given, or the device's global one.

    The global one is lent, to one thread at a time, or several would draw the same: where the block fails, it stays as
    it was.

    Raises:
        InputError: the generator is another device's.
    """
    if (given := sampling.generator) is not None:
        if (given.device.type, given.device.index or 0) != (device.type, device.index or 0):
            raise InputError(f"The generator is of {given.device}, and the model on {device}: make one on that device.")
        yield given
        return
    own = torch.Generator(device)
    if sampling.seed is not None:
        yield own.manual_seed(sampling.seed)
        return
    with _GLOBAL:
        own.set_state(_global_state(device))
        yield own
        _set_global_state(device, own.get_state())


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
    with generator_for(sampling, device) as generator, one_thread_per_gpu(device), exact, progress_bar as progress:
        for first in range(0, len(series), at_once):
            block = slice(first, first + at_once)
            draws = Draws(len(series[block]) * sampling.paths, sampling, generator)
            used, number = np.unique(which[block], return_inverse=True)
            for decoder, places in group_into_decoders(
                [models[place] for place in used], tokenizer, precision=precision
            ):
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
            return self._decoder.estimate_bytes(
                len(members), len(some), max(lengths), horizon, unequal=len(lengths) > 1
            )

        whole = np.flatnonzero(self._place >= 0).tolist(), range(paths)
        run_in_oom_safe_parts(whole, run, size, memory_budget(self._decoder.device), self._decoder.device)

    def _futures(self, members: NDArray[np.intp], paths: int, choose: TokenPicker) -> NDArray[np.float32]:
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


class Draws:
    """The draws of one call."""

    def __init__(self, rows: int, sampling: Sampling, generator: torch.Generator) -> None:
        """Rows are counted series by series, and in each path by path."""
        self._rows, self._generator, self._start = rows, generator, generator.get_state()
        self._filters = sampling.temperature, sampling.top_k, sampling.top_p
        self._total: Tensor | float = 0.0

    def part(self, rows: Tensor, drawn: Callable[[int], None]) -> TokenPicker:
        """What draws the tokens of some rows, from the first step on.

        Args:
            rows: which of all rows they are, (series, paths), ascending.
            drawn: is told the number of rows of each bar that is drawn.
        """
        self._generator.set_state(self._start)
        places = None if rows.numel() == self._rows else rows.flatten().to(self._generator.device)

        def choose(logits: Tensor, _: int, level: int) -> Tensor:
            likelihood = probabilities(logits.flatten(0, 1), *self._filters)
            if likelihood.device.type == "cpu":
                _check_finite(likelihood)
            else:
                # A GPU is waited for at the end alone, by `check`. To draw from what is not finite would make it
                # unusable for the process, so there every token is as likely as any other.
                self._total = self._total + likelihood.sum()
                likelihood.nan_to_num_(nan=1.0)
            if places is None:
                tokens = torch.multinomial(likelihood, 1, generator=self._generator)
            else:
                everywhere = likelihood.new_ones(self._rows, likelihood.shape[-1])
                everywhere[places] = likelihood
                tokens = torch.multinomial(everywhere, 1, generator=self._generator)[places]
            if level == 1:
                drawn(len(likelihood))
            return tokens.view(logits.shape[:-1])

        return choose

    def check(self) -> None:
        """To be called when the tokens of a part are drawn.

        Raises:
            ModelError: the model gave numbers that are not finite.
        """
        if isinstance(self._total, Tensor):
            _check_finite(self._total)


def _check_finite(numbers: Tensor) -> None:
    if not bool(torch.isfinite(numbers).all()):
        raise ModelError("The model gives numbers that are not finite; its weights are of no use.")


def probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """What each token is drawn with, (rows, vocabulary), float32.

    Args:
        logits: (rows, vocabulary).
        temperature: divides the logits.
        top_k: as many of the likeliest tokens are kept, with those as likely as the last; 0 or less keeps all. Where it
            is given, `top_p` says nothing.
        top_p: the likeliest tokens are kept up to the first at which their probability exceeds this, with those as
            likely as the last, of which upstream keeps some; 1 or more keeps all, 0 or less the likeliest.
    """
    logits = logits.float() / temperature
    if top_k > 0:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
    elif top_p < 1:
        descending = _descending(logits)
        before = descending.softmax(dim=-1).cumsum(dim=-1)[:, :-1]
        least = descending.gather(-1, (before <= top_p).sum(dim=-1, keepdim=True))
    else:
        return logits.softmax(dim=-1)
    return logits.masked_fill(logits < least, float("-inf")).softmax(dim=-1)


def _global_state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.mps.get_rng_state() if device.type == "mps" else torch.cuda.get_rng_state(device)


def _set_global_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)


def _descending(logits: Tensor) -> Tensor:
    """Each row's values, the largest first; numpy's sort of them alone takes a thirtieth of torch's on a CPU."""
    if logits.device.type == "cpu":
        return torch.from_numpy(np.sort(logits.neg().numpy(), axis=-1)).neg_()
    return logits.sort(dim=-1, descending=True).values
