"""Sampling for `KronosPredictor`: batches as large as the memory allows, and tokens drawn as upstream draws them.

At each step upstream draws the coarse tokens of all rows with `torch.multinomial`, then the fine tokens; a row is one
path of one series. The token of a row depends on its own probabilities and its place among the rows only. So rows that
are sampled in parts, for want of memory, are put back to their places for the draw, and each part starts from the same
state of the generator.
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
from kronos_pipeline.model.predictor.dataframes import InputError, Series, as_integer, as_number

ROWS_PER_DRAW = 4096
"""Largest number of paths, of all series together, whose tokens are drawn by one call of torch, as upstream draws them.

More rows are drawn as by several calls of upstream in turn: the draws must not depend on the free memory, and each part
of a call repeats the call's random numbers."""

_GLOBAL_GENERATOR = threading.RLock()


@dataclass(frozen=True)
class SamplingSettings:
    """Checked arguments of a forecast; see `KronosPredictor.predict`."""

    horizon: int
    temperature: float
    top_k: int
    top_p: float
    paths: int
    verbose: bool = False
    seed: int | None = None
    generator: torch.Generator | None = None


def check_sampling(
    pred_len: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    sample_count: Any,
    verbose: bool,
    seed: int | None,
    generator: torch.Generator | None,
) -> SamplingSettings:
    """Check the arguments of a forecast. If `top_k` or `top_p` is None, it is no limit.

    Raises:
        InputError: an argument is of no use.
    """
    horizon, paths, top_k = (
        as_integer(name, number)
        for name, number in (("pred_len", pred_len), ("sample_count", sample_count), ("top_k", top_k or 0))
    )
    temperature, top_p = as_number("T", temperature), as_number("top_p", 1 if top_p is None else top_p)
    for name, number in (("pred_len", horizon), ("sample_count", paths)):
        if number < 1:
            raise InputError(f"{name} must be 1 or more, not {number}.")
    if not temperature > 0:
        raise InputError(f"T must be above 0, not {temperature}; for the likeliest tokens alone give top_k=1.")
    if np.isnan(top_p):
        raise InputError("top_p is no number; give 0.9, say, or 1 to draw from all tokens.")
    if seed is not None and generator is not None:
        raise InputError("seed and generator are both given; give one of them.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(f"generator must be a torch.Generator, not {type(generator).__name__}; or give a seed.")
    if seed is not None and not 0 <= (seed := as_integer("seed", seed)) < 2**63:
        raise InputError(f"seed must be from 0 to 2**63 - 1, not {seed}.")
    return SamplingSettings(horizon, temperature, top_k, top_p, paths, bool(verbose), seed, generator)


def sample_series(
    models: Sequence[Any],
    tokenizer: Any,
    series: Sequence[Series],
    which: NDArray[np.intp],
    sampling: SamplingSettings,
    *,
    context: int,
    precision: str,
) -> NDArray[np.float32]:
    """Sample paths of future bars.

    Args:
        models: predictors on one device. Predictors that share their base's tensors are decoded together.
        tokenizer: their tokenizer, on the same device.
        series: the series to forecast, of equal or unequal length.
        which: index of each series' predictor in `models`, (series,).
        sampling: horizon, number of paths, filters and random numbers.
        context: bars that a predictor attends to.
        precision: "fp32" or "bf16", see `Decoder`.

    Returns:
        Normalised bars, (series, paths, horizon, 6).

    Raises:
        InputError: the horizon exceeds the context, or the generator belongs to another device.
        ModelError: a predictor gives numbers that are not finite.
    """
    if sampling.horizon > context:
        raise InputError(
            f"pred_len={sampling.horizon} exceeds max_context={context}: a forecast has to fit into the context."
        )
    values = np.empty((len(series), sampling.paths, sampling.horizon, len(FEATURES)), np.float32)
    device, per_draw = next(tokenizer.parameters()).device, max(1, ROWS_PER_DRAW // sampling.paths)
    exact = torch.autocast(device.type, enabled=False)  # `precision` decides, not the caller's autocast
    progress_bar = _Progress(len(series), sampling)
    with generator_for(sampling, device) as generator, one_thread_per_gpu(device), exact, progress_bar as progress:
        for first in range(0, len(series), per_draw):
            block = slice(first, first + per_draw)
            picker = MultinomialPicker(len(series[block]) * sampling.paths, sampling, generator)
            used, number = np.unique(which[block], return_inverse=True)
            predictors = [models[place] for place in used]
            for decoder, places in group_into_decoders(predictors, tokenizer, precision=precision):
                place = np.full(len(used), -1)
                place[places] = np.arange(len(places))
                _DecoderBatch(decoder, series[block], place[number], context).fill(values[block], picker, progress)
    return values


class _DecoderBatch:
    """Series of which some are sampled by one decoder."""

    def __init__(self, decoder: Decoder, series: Sequence[Series], place: NDArray[np.intp], context: int) -> None:
        """`place`: index of each series' predictor in the decoder; -1 if another decoder holds it."""
        self._decoder, self._series, self._place, self._context = decoder, series, place, context

    def fill(self, values: NDArray[np.float32], picker: MultinomialPicker, progress: _Progress) -> None:
        """Write the sampled bars of the decoder's series into `values`, (series, paths, horizon, 6)."""
        count, paths, horizon = values.shape[:3]
        rows = np.arange(count * paths).reshape(count, paths)

        def run(part: Part) -> None:
            members, chosen = np.array(part[0]), part[1]
            at = members[:, None], np.arange(chosen.start, chosen.stop)
            with progress.part() as advance:
                values[at] = self._sample(members, len(chosen), picker.for_rows(torch.from_numpy(rows[at]), advance))
                picker.check_finite()

        def size(part: Part) -> int:
            members, chosen = part
            lengths = {len(self._series[member].bars) for member in members}
            unequal = len(lengths) > 1
            return self._decoder.estimate_bytes(len(members), len(chosen), max(lengths), horizon, unequal=unequal)

        whole = np.flatnonzero(self._place >= 0).tolist(), range(paths)
        run_in_oom_safe_parts(whole, run, size, memory_budget(self._decoder.device), self._decoder.device)

    def _sample(self, members: NDArray[np.intp], paths: int, pick: TokenPicker) -> NDArray[np.float32]:
        """Sample normalised bars of some series, (series, paths, horizon, 6)."""
        series, decoder, context = [self._series[member] for member in members], self._decoder, self._context
        bars, past = (_align_ends([getattr(member, part) for member in series]) for part in ("bars", "past"))
        lengths = torch.tensor([len(member.bars) for member in series])
        s1, s2 = decoder.encode(bars, None if bool((lengths == bars.shape[1]).all()) else lengths)
        known, lengths = (s1[:, -context:], s2[:, -context:]), lengths.clamp(max=context)
        drawn = decoder.generate(
            known,
            past[:, -context:],
            torch.from_numpy(np.stack([member.ahead for member in series])),
            pick,
            paths=paths,
            context=context,
            lengths=lengths,
            which=torch.from_numpy(self._place[members]),
            s2_position="first",
        )
        return decoder.decode(known, drawn, context=context, lengths=lengths).cpu().numpy()


class _Progress:
    """Progress bar over the steps, as upstream shows it; rows that are drawn in parts count in proportion."""

    def __init__(self, series: int, sampling: SamplingSettings) -> None:
        self._bar = tqdm(total=sampling.horizon, disable=not (sampling.verbose and series))
        self._rows, self._done = series * sampling.paths, 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @contextmanager
    def part(self) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the rows of each bar drawn; if the block fails, its progress is undone."""
        before = self._done
        try:
            yield self._advance
        except BaseException:
            self._advance(before - self._done)
            raise

    def _advance(self, rows: int) -> None:
        self._done += rows
        self._bar.update(self._done // self._rows - self._bar.n)


def _align_ends(parts: Sequence[NDArray[Any]]) -> Tensor:
    """Join arrays (bars, ...) of unequal length to a tensor, (series, bars, ...), with zeros before the short ones."""
    longest = max(map(len, parts))
    joined = np.zeros((len(parts), longest, *parts[0].shape[1:]), parts[0].dtype)
    for row, part in zip(joined, parts, strict=True):
        row[longest - len(part) :] = part
    return torch.from_numpy(joined)


@contextmanager
def generator_for(sampling: SamplingSettings, device: torch.device) -> Iterator[torch.Generator]:
    """Yield the given generator, a new one with the given seed, or a copy of the device's global one.

    The global generator is used by one thread at a time, or several threads would draw the same numbers. Its state is
    updated after the block; if the block fails, its state stays.

    Raises:
        InputError: the generator belongs to another device.
    """
    if (given := sampling.generator) is not None:
        if (given.device.type, given.device.index or 0) != (device.type, device.index or 0):
            raise InputError(f"The generator is of {given.device}, and the model on {device}: make one on that device.")
        yield given
        return
    generator = torch.Generator(device)
    if sampling.seed is not None:
        yield generator.manual_seed(sampling.seed)
        return
    with _GLOBAL_GENERATOR:
        generator.set_state(_global_state(device))
        yield generator
        _set_global_state(device, generator.get_state())


class MultinomialPicker:
    """Draws the tokens of one call with `torch.multinomial`, in the order of upstream's draws."""

    def __init__(self, rows: int, sampling: SamplingSettings, generator: torch.Generator) -> None:
        """`rows`: number of all rows; rows are numbered series by series, and path by path within a series."""
        self._rows, self._generator, self._start = rows, generator, generator.get_state()
        self._filters = sampling.temperature, sampling.top_k, sampling.top_p
        self._total: Tensor | float = 0.0

    def for_rows(self, rows: Tensor, advance: Callable[[int], None]) -> TokenPicker:
        """Return a function that draws the tokens of some rows, from the first step on.

        Args:
            rows: numbers of the rows, (series, paths), ascending.
            advance: called with the number of rows after each bar.
        """
        self._generator.set_state(self._start)
        places = None if rows.numel() == self._rows else rows.flatten().to(self._generator.device)

        def pick(logits: Tensor, _: int, level: int) -> Tensor:
            probabilities = filtered_probabilities(logits.flatten(0, 1), *self._filters)
            if probabilities.device.type == "cpu":
                _check_finite(probabilities)
            else:
                # `check_finite` waits for a GPU at the end only. A draw from non-finite numbers would make the GPU
                # unusable for the process, so every token gets the same probability there.
                self._total = self._total + probabilities.sum()
                probabilities.nan_to_num_(nan=1.0)
            if places is None:
                tokens = torch.multinomial(probabilities, 1, generator=self._generator)
            else:
                all_rows = probabilities.new_ones(self._rows, probabilities.shape[-1])
                all_rows[places] = probabilities
                tokens = torch.multinomial(all_rows, 1, generator=self._generator)[places]
            if level == 1:
                advance(len(probabilities))
            return tokens.view(logits.shape[:-1])

        return pick

    def check_finite(self) -> None:
        """Check the probabilities of a part, after its tokens are drawn.

        Raises:
            ModelError: the model gave numbers that are not finite.
        """
        if isinstance(self._total, Tensor):
            _check_finite(self._total)


def _check_finite(numbers: Tensor) -> None:
    if not bool(torch.isfinite(numbers).all()):
        raise ModelError("The model gives numbers that are not finite; its weights are of no use.")


def filtered_probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Compute the probabilities of tokens after filtering, (rows, vocabulary), float32.

    Args:
        logits: (rows, vocabulary).
        temperature: divides the logits.
        top_k: number of the likeliest tokens to keep, with tokens as likely as the last of them; 0 or less keeps all.
            If it is given, `top_p` has no effect.
        top_p: the likeliest tokens are kept up to the first at which their cumulative probability exceeds this, with
            all tokens as likely as the last of them, of which upstream keeps some; 1 or more keeps all, 0 or less the
            likeliest.
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
    """Sort each row in descending order; on a CPU numpy's sort takes a thirtieth of the time of torch's."""
    if logits.device.type == "cpu":
        return torch.from_numpy(np.sort(logits.neg().numpy(), axis=-1)).neg_()
    return logits.sort(dim=-1, descending=True).values
