"""Sample paths of future bars, from a model or from a model per series.

`sample_bars` is the loop over decoders and over parts that fit into memory. A `PathPicker` picks its tokens:
`TopPPicker` for `sample_paths`, and `MultinomialPicker` for `KronosPredictor`.

In `sample_paths` the random numbers of a series depend on its seed and its bars only, and are drawn before sampling
starts. So the sample of a series depends neither on the other series of a call nor on how the work is divided, and two
models that forecast the same bars are compared on the same random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from kronos_pipeline.data.normalisation import denormalise, lookback_statistics, normalise
from kronos_pipeline.errors import ModelError, SettingsError
from kronos_pipeline.model.decode.decoder import Decoder, group_into_decoders
from kronos_pipeline.model.decode.generate import Prompts
from kronos_pipeline.model.decode.memory import Part, memory_budget, one_thread_per_gpu, run_in_oom_safe_parts
from kronos_pipeline.model.loading import KronosModel


def sample_paths(  # noqa: PLR0913  the settings of a sampling, keywords of a public function
    model: KronosModel | Sequence[KronosModel],
    history: NDArray[np.float64],
    past: NDArray[np.uint8],
    ahead: NDArray[np.uint8],
    *,
    paths: int,
    temperature: ArrayLike,
    top_p: ArrayLike,
    seed: int | Sequence[int],
    s2_position: str = "true",
    precision: str = "fp32",
    on_bars: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Sample paths of future bars.

    Args:
        model: a base model, a checkpoint or an adapter; or a model per series. Models that share the tensors of a base
            are decoded together, each series by its own adapter.
        history: the lookback bars in the file's units, (series, lookback, 6).
        past: minute, hour, weekday, day and month of the lookback, (series, lookback, 5).
        ahead: the same of the horizon, (series, horizon, 5).
        paths: number of paths per series.
        temperature: above 0; values below 1 sharpen the distributions, values above 1 flatten them. A number, or a
            number per series.
        top_p: above 0, at most 1; each token is drawn from the likeliest tokens that together have this probability. A
            number, or a number per series.
        seed: of the random numbers; an integer, or an integer per series.
        s2_position: "true" or "first", the position at which a fine token is predicted, see `Decoder.generate`.
        precision: "fp32" or "bf16", see `Decoder`.
        on_bars: receives the number of bars that were sampled since its last call.

    Returns:
        Bars in the file's units, (series, paths, horizon, 6), not yet repaired: see `repair_candles`.

    Raises:
        SettingsError: a setting is out of its range, or lookback and horizon do not fit a model's context.
        ModelError: a model gives numbers that are not finite.
    """
    series, horizon = len(history), ahead.shape[1]
    models = [model] * series if isinstance(model, KronosModel) else list(model)
    temperatures, top_ps = (np.broadcast_to(np.asarray(part, np.float32), series) for part in (temperature, top_p))
    seeds = np.broadcast_to(np.asarray(seed, object), series)
    _check(models, history, ahead, paths, temperatures, top_ps)
    mean, std = lookback_statistics(history)
    normalised = normalise(history, mean, std)
    draws = [_draw(number, paths, *parts) for number, *parts in zip(seeds, history, past, ahead, strict=True)]
    sampled = np.empty((series, paths, horizon, history.shape[-1]), np.float32)
    with one_thread_per_gpu(models[0].device if models else torch.device("cpu")):
        for rows in _rows_by_tokenizer(models):
            first, predictors = models[rows[0]], {id(models[row].predictor): models[row].predictor for row in rows}
            index_of = {identity: index for index, identity in enumerate(predictors)}
            predictor_index = np.array([index_of[id(models[row].predictor)] for row in rows], np.intp)
            random = np.stack([draws[row] for row in rows])
            picker: PathPicker = TopPPicker(*map(torch.from_numpy, (random, temperatures[rows], top_ps[rows])))
            if on_bars is not None:
                picker = _Counted(picker, on_bars)
            model_set = ModelSet([*predictors.values()], first.tokenizer, first.context, precision, s2_position)
            series_set = SeriesSet([*normalised[rows]], [*past[rows]], [*ahead[rows]], predictor_index)
            sampled[rows] = sample_bars(model_set, series_set, picker, paths)
    for row, row_model in enumerate(models):
        if not np.isfinite(sampled[row]).all():
            raise ModelError(
                f"{row_model.source.label} gives forecasts that are not finite; its weights are of no use."
            )
    return denormalise(sampled, mean[:, None], std[:, None])


def _rows_by_tokenizer(models: Sequence[KronosModel]) -> list[list[int]]:
    """Group the indices of models with the same tokenizer and context."""
    rows: dict[tuple[int, int], list[int]] = {}
    for row, model in enumerate(models):
        rows.setdefault((id(model.tokenizer), model.context), []).append(row)
    return list(rows.values())


@dataclass(frozen=True)
class ModelSet:
    """Predictors of one tokenizer.

    Attributes:
        predictors: predictors on one device. Predictors that share their base's tensors are decoded together.
        tokenizer: their tokenizer, on the same device.
        context: bars that a predictor attends to.
        precision: "fp32" or "bf16", see `Decoder`.
        s2_position: "true" or "first", see `Decoder.generate`.
    """

    predictors: Sequence[Any]
    tokenizer: Any
    context: int
    precision: str
    s2_position: str


@dataclass(frozen=True)
class SeriesSet:
    """Series of equal or unequal length.

    Attributes:
        bars: normalised bars of each series, (bars, 6), float32.
        past: minute, hour, weekday, day and month of these bars, (bars, 5) of each series.
        ahead: the same of the horizon, (horizon, 5) of each series.
        predictor_index: index of each series' predictor in its `ModelSet`, (series,).
    """

    bars: Sequence[NDArray[np.float32]]
    past: Sequence[NDArray[np.uint8]]
    ahead: Sequence[NDArray[np.uint8]]
    predictor_index: NDArray[np.intp]


class PartPicker(Protocol):
    """Picks the tokens of a part of the paths, from the first step on."""

    def __call__(self, logits: Tensor, step: int, level: int, /) -> Tensor:
        """Pick tokens; see `TokenPicker`."""

    def finish(self, bars: Tensor) -> Tensor:
        """Return the bars that the tokens decode to, (series, paths, horizon, 6), after a check of the logits.

        If logits were not finite, a picker either raises a ModelError or replaces the bars of their paths by NaN.
        """


class PathPicker(Protocol):
    """Picks the tokens of all paths of some series, whichever parts they are sampled in."""

    def for_part(self, part: Part, device: torch.device) -> PartPicker:
        """Return the picker of a part, for logits on a device; a part that failed is asked for again."""


@dataclass(frozen=True)
class _Counted:
    """A picker that reports each bar of each path when its first token is picked."""

    picker: PathPicker
    on_bars: Callable[[int], None]

    def for_part(self, part: Part, device: torch.device) -> PartPicker:
        """Return the picker of a part, which reports its bars."""
        rows, paths = part
        return _CountedPart(self.picker.for_part(part, device), self.on_bars, len(rows) * len(paths))


@dataclass(frozen=True)
class _CountedPart:
    picker: PartPicker
    on_bars: Callable[[int], None]
    paths: int

    def __call__(self, logits: Tensor, step: int, level: int, /) -> Tensor:
        if level == 0:
            self.on_bars(self.paths)
        return self.picker(logits, step, level)

    def finish(self, bars: Tensor) -> Tensor:
        """Return the bars, as the picker does."""
        return self.picker.finish(bars)


def sample_bars(models: ModelSet, series: SeriesSet, picker: PathPicker, paths: int) -> NDArray[np.float32]:
    """Sample paths of normalised bars, in parts if the memory is too small.

    Returns:
        (series, paths, horizon, 6).
    """
    values = np.empty((len(series.bars), paths, len(series.ahead[0]), series.bars[0].shape[-1]), np.float32)
    used, number = np.unique(series.predictor_index, return_inverse=True)
    predictors = [models.predictors[index_in_decoder] for index_in_decoder in used]
    for decoder, indices in group_into_decoders(predictors, models.tokenizer, precision=models.precision):
        index_in_decoder = np.full(len(used), -1)
        index_in_decoder[indices] = np.arange(len(indices))
        _DecoderBatch(decoder, models, series, index_in_decoder[number]).fill(values, picker)
    return values


class _DecoderBatch:
    """Series of which some are sampled by one decoder."""

    def __init__(self, decoder: Decoder, models: ModelSet, series: SeriesSet, index: NDArray[np.intp]) -> None:
        """`index`: index of each series' predictor in the decoder; -1 if another decoder holds it."""
        self._decoder, self._models, self._series, self._index = decoder, models, series, index

    def fill(self, values: NDArray[np.float32], picker: PathPicker) -> None:
        """Write the sampled bars of the decoder's series into `values`, (series, paths, horizon, 6)."""
        device, (_, paths, horizon, _) = self._decoder.device, values.shape

        def run(part: Part) -> None:
            rows, chosen = part
            pick = picker.for_part(part, device)
            values[rows, chosen.start : chosen.stop] = pick.finish(self._sample(rows, len(chosen), pick)).cpu().numpy()

        def size(part: Part) -> int:
            rows, chosen = part
            lengths = {len(self._series.bars[row]) for row in rows}
            unequal = len(lengths) > 1
            return self._decoder.estimate_bytes(len(rows), len(chosen), max(lengths), horizon, unequal=unequal)

        all_paths = np.flatnonzero(self._index >= 0).tolist(), range(paths)
        run_in_oom_safe_parts(all_paths, run, size, memory_budget(device), device)

    def _sample(self, rows: list[int], paths: int, pick: PartPicker) -> Tensor:
        """Sample normalised bars of some series, (series, paths, horizon, 6)."""
        decoder, context, series = self._decoder, self._models.context, self._series
        bars, past = (_align_ends([parts[row] for row in rows]) for parts in (series.bars, series.past))
        lengths = torch.tensor([len(series.bars[row]) for row in rows])
        s1, s2 = decoder.encode(bars, _unless_equal(lengths, bars.shape[1]))
        prompts = Prompts(
            (s1[:, -context:], s2[:, -context:]),
            past[:, -context:],
            torch.from_numpy(np.stack([series.ahead[row] for row in rows])),
            _unless_equal(lengths.clamp(max=context), min(bars.shape[1], context)),
            torch.from_numpy(self._index[rows]),
        )
        drawn = decoder.generate(prompts, pick, paths=paths, context=context, s2_position=self._models.s2_position)
        return decoder.decode(prompts.tokens, drawn, context=context, lengths=prompts.lengths)


def _unless_equal(lengths: Tensor, longest: int) -> Tensor | None:
    """Return the lengths, or None if all series are as long as the longest."""
    return None if bool((lengths == longest).all()) else lengths


def _align_ends(parts: Sequence[NDArray[Any]]) -> Tensor:
    """Join arrays (bars, ...) of unequal length to a tensor, (series, bars, ...), with zeros before the short ones."""
    longest = max(map(len, parts))
    joined = np.zeros((len(parts), longest, *parts[0].shape[1:]), parts[0].dtype)
    for row, part in zip(joined, parts, strict=True):
        row[longest - len(part) :] = part
    return torch.from_numpy(joined)


class TopPPicker:
    """Draws tokens with given random numbers, by `sample_top_p`; paths of non-finite logits become NaN."""

    def __init__(self, draws: Tensor, temperature: Tensor, top_p: Tensor) -> None:
        """`draws`: uniform on [0, 1), (series, paths, horizon, 2); `temperature` and `top_p`: (series,)."""
        self._draws, self._temperature, self._top_p = draws, temperature, top_p
        self._sums: Tensor | float = 0.0

    def for_part(self, part: Part, device: torch.device) -> TopPPicker:
        """Return the picker of a part, with its numbers on a device."""
        rows, paths = part
        draws = self._draws[rows, paths.start : paths.stop]
        return TopPPicker(*(tensor.to(device) for tensor in (draws, self._temperature[rows], self._top_p[rows])))

    def __call__(self, logits: Tensor, step: int, level: int, /) -> Tensor:
        """Pick tokens; see `TokenPicker`."""
        self._sums = self._sums + logits.sum(dim=-1)  # not finite if a logit is not; the tokens do not show it
        temperature, top_p = self._temperature[:, None, None], self._top_p[:, None, None]
        return sample_top_p(logits, self._draws[:, :, step, level], temperature, top_p)

    def finish(self, bars: Tensor) -> Tensor:
        """Replace the bars of paths that were drawn from non-finite logits by NaN."""
        finite = torch.isfinite(torch.as_tensor(self._sums, device=bars.device))
        return bars.where(finite[..., None, None], torch.nan)


def sample_top_p(logits: Tensor, draws: Tensor, temperature: Tensor | float, top_p: Tensor | float) -> Tensor:
    """Draw tokens by inverting the cumulative distribution of the tokens, sorted by falling probability.

    Args:
        logits: (..., vocabulary).
        draws: uniform on [0, 1), (...).
        temperature: divides the logits; a number, or (..., 1).
        top_p: a number, or (..., 1); the likeliest tokens are kept up to the first at which their cumulative
            probability exceeds `top_p`, as upstream does.
    """
    sorted_probabilities, order = _sort_descending((logits.float() / temperature).softmax(dim=-1))
    cumulative = sorted_probabilities.cumsum(dim=-1)
    below = (cumulative <= top_p) | (torch.as_tensor(top_p, device=logits.device) >= 1)
    last = below.sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    target = draws[..., None] * cumulative.gather(-1, last)
    index = torch.minimum((cumulative <= target).sum(dim=-1, keepdim=True), last)
    return order.gather(-1, index)[..., 0]


def _sort_descending(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Sort and return the order too; on a CPU by numpy, which sorts with vector instructions."""
    if probabilities.device.type != "cpu":
        return probabilities.sort(dim=-1, descending=True)
    order = torch.from_numpy(np.argsort(probabilities.neg().numpy(), axis=-1))
    return probabilities.gather(-1, order), order


def _draw(seed: int, paths: int, history: np.ndarray, past: np.ndarray, ahead: np.ndarray) -> NDArray[np.float32]:
    """Draw uniform numbers, (paths, horizon, s1 and s2); the first paths do not depend on the number of paths."""
    content = hashlib.sha256()
    for part, kind in ((history, np.float64), (past, np.uint8), (ahead, np.uint8)):
        content.update(np.ascontiguousarray(part, dtype=kind).tobytes())
    generator = np.random.default_rng([seed, int.from_bytes(content.digest()[:16], "little")])
    return generator.random((paths, len(ahead), 2), dtype=np.float32)


def _check(
    models: Sequence[KronosModel],
    history: np.ndarray,
    ahead: np.ndarray,
    paths: int,
    temperatures: np.ndarray,
    top_ps: np.ndarray,
) -> None:
    if len(models) != len(history):
        raise SettingsError(f"{len(models)} models for {len(history)} series; give one for all, or one per series.")
    if paths < 1:
        raise SettingsError(f"--eval-samples must be 1 or more, not {paths}.")
    if (wrong := temperatures[~(temperatures > 0)]).size:
        raise SettingsError(f"--temperature must be above 0, not {wrong[0]}.")
    if (wrong := top_ps[~((top_ps > 0) & (top_ps <= 1))]).size:
        raise SettingsError(f"--top-p must be above 0 and at most 1, not {wrong[0]}.")
    bars = history.shape[1] + ahead.shape[1]
    for model in models:
        if bars > model.context:
            raise SettingsError(
                f"{history.shape[1]} bars of lookback and {ahead.shape[1]} of horizon exceed the context of "
                f"{model.source.name}, {model.context} bars; lower one of them."
            )
