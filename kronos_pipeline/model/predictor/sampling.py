"""Sampling for `KronosPredictor`: batches as large as the memory allows, and tokens drawn as upstream draws them.

At each step upstream draws the coarse tokens of all rows with `torch.multinomial`, then the fine tokens; a row is one
path of one series. The token of a row depends on its own probabilities and its place among the rows only. So rows that
are sampled in parts, for want of memory, are put back to their places for the draw, and each part starts from the same
state of the generator.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.decode.memory import Part, one_thread_per_gpu
from kronos_pipeline.model.decode.sample import ModelSet, SeriesSet, sample_bars
from kronos_pipeline.model.predictor.dataframes import InputError, Series, as_integer, as_number

ROWS_PER_DRAW = 4096
"""Largest number of paths, of all series together, whose tokens are drawn by one call of torch, as upstream draws them.

More rows are drawn as by several calls of upstream in turn: the draws must not depend on the free memory, and each part
of a call repeats the call's random numbers."""

_GLOBAL_GENERATOR = threading.RLock()


@dataclass(frozen=True)
class SamplingSettings:
    """Arguments of a forecast, checked; see `KronosPredictor.predict`. If `top_k` or `top_p` is None, it is no limit.

    Raises:
        InputError: an argument is of no use.
    """

    horizon: int
    temperature: float
    top_k: int
    top_p: float
    paths: int
    verbose: bool = False
    seed: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        horizon, paths = as_integer("pred_len", self.horizon), as_integer("sample_count", self.paths)
        top_k, temperature = as_integer("top_k", self.top_k or 0), as_number("T", self.temperature)
        top_p = as_number("top_p", 1 if self.top_p is None else self.top_p)
        for name, number in (("pred_len", horizon), ("sample_count", paths)):
            if number < 1:
                raise InputError(f"{name} must be 1 or more, not {number}.")
        if not temperature > 0:
            raise InputError(f"T must be above 0, not {temperature}; for the likeliest tokens alone give top_k=1.")
        if np.isnan(top_p):
            raise InputError("top_p is no number; give 0.9, say, or 1 to draw from all tokens.")
        seed, generator = self.seed, self.generator
        if seed is not None and generator is not None:
            raise InputError("seed and generator are both given; give one of them.")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise InputError(f"generator must be a torch.Generator, not {type(generator).__name__}; or give a seed.")
        if seed is not None and not 0 <= (seed := as_integer("seed", seed)) < 2**63:
            raise InputError(f"seed must be from 0 to 2**63 - 1, not {seed}.")
        checked = {"horizon": horizon, "temperature": temperature, "top_k": top_k, "top_p": top_p, "paths": paths}
        for name, value in (checked | {"verbose": bool(self.verbose), "seed": seed}).items():
            object.__setattr__(self, name, value)  # the class is frozen


def sample_series(
    models: ModelSet, series: Sequence[Series], predictor_index: NDArray[np.intp], sampling: SamplingSettings
) -> NDArray[np.float32]:
    """Sample paths of future bars.

    Args:
        models: the predictors.
        series: the series to forecast, of equal or unequal length.
        predictor_index: index of each series' predictor in `models`, (series,).
        sampling: horizon, number of paths, filters and random numbers.

    Returns:
        Normalised bars, (series, paths, horizon, 6).

    Raises:
        InputError: the horizon exceeds the context, or the generator belongs to another device.
        ModelError: a predictor gives numbers that are not finite.
    """
    if sampling.horizon > models.context:
        raise InputError(
            f"pred_len={sampling.horizon} exceeds max_context={models.context}: a forecast has to fit into the context."
        )
    values = np.empty((len(series), sampling.paths, sampling.horizon, len(FEATURES)), np.float32)
    device, per_draw = next(models.tokenizer.parameters()).device, max(1, ROWS_PER_DRAW // sampling.paths)
    exact = torch.autocast(device.type, enabled=False)  # the precision of `models` decides, not the caller's autocast
    progress_bar = Progress(len(series), sampling)
    with generator_for(sampling, device) as generator, one_thread_per_gpu(device), exact, progress_bar as progress:
        for first in range(0, len(series), per_draw):
            block = slice(first, first + per_draw)
            bars, past, ahead = zip(*((entry.bars, entry.past, entry.ahead) for entry in series[block]), strict=True)
            picker = MultinomialPicker(len(bars), sampling, generator, progress)
            values[block] = sample_bars(
                models, SeriesSet(bars, past, ahead, predictor_index[block]), picker, sampling.paths
            )
    return values


class Progress:
    """Progress bar over the steps, as upstream shows it; rows that are drawn in parts count in proportion."""

    def __init__(self, series: int, sampling: SamplingSettings) -> None:
        self._bar = tqdm(total=sampling.horizon, disable=not (sampling.verbose and series))
        self._rows, self._done, self._finished = max(1, series * sampling.paths), 0, 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def start_part(self) -> None:
        """Start a part; the progress of a part that failed is undone."""
        self.advance(self._finished - self._done)

    def advance(self, rows: int) -> None:
        """Count the rows of a bar that is drawn."""
        self._done += rows
        self._bar.update(self._done // self._rows - self._bar.n)

    def end_part(self) -> None:
        """Keep the progress of the part."""
        self._finished = self._done


@contextmanager
def generator_for(sampling: SamplingSettings, device: torch.device) -> Iterator[torch.Generator]:
    """Yield the given generator, a new one with the given seed, or a copy of the device's global one.

    The global generator is used by one thread at a time, or several threads would draw the same numbers. Its state is
    updated after the block; if the block fails, its state stays.

    Raises:
        InputError: the generator belongs to another device.
    """
    if (own_generator := sampling.generator) is not None:
        if (own_generator.device.type, own_generator.device.index or 0) != (device.type, device.index or 0):
            raise InputError(
                f"The generator is of {own_generator.device}, and the model on {device}: make one on that device."
            )
        yield own_generator
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

    def __init__(
        self, series: int, sampling: SamplingSettings, generator: torch.Generator, progress: Progress | None = None
    ) -> None:
        """Start at the generator's state. Rows are numbered series by series, and path by path within a series."""
        self.sampling, self.generator, self._start = sampling, generator, generator.get_state()
        self.rows, self.progress = series * sampling.paths, progress or Progress(0, sampling)

    def for_part(self, part: Part, _: torch.device | None = None) -> MultinomialPart:
        """Return the picker of some rows, from the first step on; each part repeats the random numbers of the call."""
        members, paths = part
        self.generator.set_state(self._start)
        self.progress.start_part()
        rows = torch.arange(self.rows).view(-1, self.sampling.paths)[members, paths.start : paths.stop]
        return MultinomialPart(self, rows)


class MultinomialPart:
    """Draws the tokens of some rows of a `MultinomialPicker`."""

    def __init__(self, all_rows: MultinomialPicker, rows: Tensor) -> None:
        """`rows`: numbers of the rows, (series, paths), ascending."""
        self._whole = all_rows
        self._total: Tensor | float = 0.0
        self._places = None if rows.numel() == all_rows.rows else rows.flatten().to(all_rows.generator.device)

    def __call__(self, logits: Tensor, _: int, level: int, /) -> Tensor:
        """Pick tokens; see `TokenPicker`."""
        whole, sampling = self._whole, self._whole.sampling
        probabilities = filtered_probabilities(
            logits.flatten(0, 1), sampling.temperature, sampling.top_k, sampling.top_p
        )
        if probabilities.device.type == "cpu":
            _check_finite(probabilities)
        else:
            # `finish` waits for a GPU at the end only. A draw from non-finite numbers would make the GPU
            # unusable for the process, so every token gets the same probability there.
            self._total = self._total + probabilities.sum()
            probabilities.nan_to_num_(nan=1.0)
        if self._places is None:
            tokens = torch.multinomial(probabilities, 1, generator=whole.generator)
        else:
            all_rows = probabilities.new_ones(whole.rows, probabilities.shape[-1])
            all_rows[self._places] = probabilities
            tokens = torch.multinomial(all_rows, 1, generator=whole.generator)[self._places]
        if level == 1:
            whole.progress.advance(len(probabilities))
        return tokens.view(logits.shape[:-1])

    def finish(self, bars: Tensor) -> Tensor:
        """Return the bars that the tokens decode to, as they are.

        Raises:
            ModelError: the model gave numbers that are not finite.
        """
        if isinstance(self._total, Tensor):
            _check_finite(self._total)
        self._whole.progress.end_part()
        return bars


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
