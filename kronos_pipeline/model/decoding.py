"""Sampling: many possible futures of some series, bar by bar, from a predictor and its tokenizer.

For each next bar the predictor gives the coarse token s1 from the bars before, then the fine token s2 from these and
s1 by a cross-attention. It is asked at the bar's true position, as in training; or, as upstream's decoding does, with
itself and every bar before it at the first position, so that it cannot tell a recent bar from an old one.

Random numbers are drawn before anything else, for each series from the seed and the series itself. So what is sampled
for a series depends neither on the other series of a call nor on how the work is divided, and two models that forecast
the same bars are compared on the same draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kronos_pipeline.data.normalisation import denormalise, lookback_statistics, normalise
from kronos_pipeline.errors import ModelError, SettingsError
from kronos_pipeline.model.cached import CachedAttention, CachedBlocks, Shape
from kronos_pipeline.model.loading import KronosModel
from kronos_pipeline.model.modules import evaluating, fitting_threads, inner, prepare_rotary

_FLOATS = 2**26
"""Numbers that the caches and scores of one chunk may take, about; 256 MB."""

S2_POSITIONS = ("true", "first")


def sample_paths(
    model: KronosModel,
    history: NDArray[np.float64],
    past: NDArray[np.uint8],
    ahead: NDArray[np.uint8],
    *,
    paths: int,
    temperature: float,
    top_p: float,
    seed: int,
    s2_position: str = "true",
) -> NDArray[np.float64]:
    """Sample futures.

    Args:
        model: a base model, a checkpoint or an adapter.
        history: the lookback bars in the file's units, (series, lookback, 6).
        past: their minute, hour, weekday, day and month, (series, lookback, 5).
        ahead: the same of the bars to come, (series, horizon, 5).
        paths: how many futures per series.
        temperature: above 0; below 1 sharpens the distributions, above it flattens them.
        top_p: above 0, at most 1; each token is drawn from the likeliest ones that together have this probability.
        seed: of the draws.
        s2_position: "true" or "first"; where a bar's fine token is asked for.

    Returns:
        Bars in the file's units, (series, paths, horizon, 6), as the model gives them: see `model.candles`.

    Raises:
        SettingsError: a setting is out of its range, or lookback and horizon do not fit the model's context.
        ModelError: the model gives numbers that are not finite.
    """
    _check(model, history, ahead, paths, temperature, top_p)
    if s2_position not in S2_POSITIONS:
        raise SettingsError(f"--s2-position must be true or first, not {s2_position}.")
    series, horizon = len(history), ahead.shape[1]
    mean, std = lookback_statistics(history)
    normalised = normalise(history, mean, std)
    draws = [_draws(seed, paths, *one) for one in zip(history, past, ahead, strict=True)]
    sampled = np.empty((series, paths, horizon, history.shape[-1]), np.float32)
    predictor, tokenizer = model.predictor, model.tokenizer
    with torch.no_grad(), evaluating(predictor), evaluating(tokenizer), fitting_threads(predictor):
        for rows, some in _chunks(model, history.shape[1], horizon, series, paths):
            bars, *stamps = (torch.from_numpy(np.array(part[rows])) for part in (normalised, past, ahead))
            numbers = torch.from_numpy(np.stack(draws[rows])[:, some])
            run = _Run(model, numbers.to(model.device), temperature, top_p, s2_position)
            values = run.sample(bars.to(model.device), *(part.to(model.device) for part in stamps))
            sampled[rows, some] = values.float().cpu().numpy()
    if not np.isfinite(sampled).all():
        raise ModelError(f"{model.source.label} gives forecasts that are not finite; its weights are of no use.")
    return denormalise(sampled, mean[:, None], std[:, None])


class _Run:
    """One chunk: some series, each with as many paths as there are draws, (series, paths, horizon, s1 and s2)."""

    def __init__(self, model: KronosModel, draws: Tensor, temperature: float, top_p: float, s2_position: str) -> None:
        self._predictor, self._tokenizer = inner(model.predictor), model.tokenizer
        self._draws, self._temperature, self._top_p = draws, temperature, top_p
        self._in_place = s2_position == "true"

    def sample(self, bars: Tensor, past: Tensor, ahead: Tensor) -> Tensor:
        """Normalised bars of the futures, (series, paths, horizon, 6)."""
        predictor, paths, horizon = self._predictor, self._draws.shape[1], ahead.shape[1]
        shape = Shape(bars.shape[1], paths, horizon)
        blocks = CachedBlocks(predictor.transformer, shape)
        self._cross = CachedAttention(predictor.dep_layer.cross_attn, shape, in_place=self._in_place)

        prepare_rotary(self._tokenizer, shape.context)
        known: tuple[Tensor, Tensor] = tuple(self._tokenizer.encode(bars, half=True))
        hidden = predictor.norm(blocks.over_context(self._embed(known, past)))
        self._cross.read_context(hidden)
        last = hidden[:, -1, None, None].expand(-1, paths, -1, -1)  # (series, paths, 1, model width)
        tokens = [self._next_tokens(last, 0)]
        for step in range(1, horizon):
            stamps = ahead[:, step - 1, None].expand(-1, paths, -1)
            last = predictor.norm(blocks.over_paths(self._embed(tokens[-1], stamps)[:, :, None], step - 1))
            self._cross.read_paths(last, step - 1)
            tokens.append(self._next_tokens(last, step))
        s1, s2 = (torch.stack(level, dim=-1) for level in zip(*tokens, strict=True))
        return self._values(known, (s1, s2), shape)

    def _embed(self, tokens: tuple[Tensor, Tensor], stamps: Tensor) -> Tensor:
        return self._predictor.embedding(tokens) + self._predictor.time_emb(stamps)

    def _next_tokens(self, last: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Draw one bar's s1 and s2, (series, paths) each, from the hidden states of the bars before it."""
        predictor = self._predictor
        s1 = self._draw(predictor.head(last[:, :, 0]), step, 0)
        mixed = self._cross.over_paths(predictor.embedding.emb_s1(s1)[:, :, None], step - 1)
        fine = predictor.head.cond_forward(predictor.dep_layer.norm(last + mixed))
        return s1, self._draw(fine[:, :, 0], step, 1)

    def _draw(self, logits: Tensor, step: int, level: int) -> Tensor:
        return choose(logits, self._draws[:, :, step, level], self._temperature, self._top_p)

    def _values(self, known: tuple[Tensor, Tensor], drawn: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
        """The tokenizer's decoder over the context's tokens once, then over each path's."""
        tokenizer = self._tokenizer
        blocks = CachedBlocks(tokenizer.decoder, shape)
        blocks.over_context(tokenizer.post_quant_embed(tokenizer.indices_to_bits(known, half=True)))
        hidden = tokenizer.post_quant_embed(tokenizer.indices_to_bits(drawn, half=True))
        return tokenizer.head(blocks.over_paths(hidden, 0))


def choose(logits: Tensor, draws: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw tokens by the inverse of their cumulative distribution, the likeliest tokens first.

    Args:
        logits: (..., vocabulary).
        draws: uniform on [0, 1), (...).
        temperature: divides the logits.
        top_p: the likeliest tokens are kept up to the first at which their probability exceeds this, as upstream does.
    """
    likelihood, order = (logits.float() / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    cumulative = likelihood.cumsum(dim=-1)
    last = torch.full_like(draws, logits.shape[-1] - 1, dtype=torch.long)[..., None]
    if top_p < 1:
        last = torch.minimum(last, (cumulative <= top_p).sum(dim=-1, keepdim=True))
    aim = draws[..., None] * cumulative.gather(-1, last)
    place = torch.minimum((cumulative <= aim).sum(dim=-1, keepdim=True), last)
    return order.gather(-1, place)[..., 0]


def _draws(seed: int, paths: int, history: np.ndarray, past: np.ndarray, ahead: np.ndarray) -> NDArray[np.float32]:
    """(paths, horizon, s1 and s2); the first paths are the same however many there are."""
    content = hashlib.sha256()
    for part, kind in ((history, np.float64), (past, np.uint8), (ahead, np.uint8)):
        content.update(np.ascontiguousarray(part, dtype=kind).tobytes())
    generator = np.random.default_rng([seed, int.from_bytes(content.digest()[:16], "little")])
    return generator.random((paths, len(ahead), 2), dtype=np.float32)


def _chunks(model: KronosModel, context: int, horizon: int, series: int, paths: int) -> Iterator[tuple[slice, slice]]:
    """The series, and of each the paths, that are sampled at once."""
    predictor, tokenizer = inner(model.predictor), model.tokenizer
    kept = 2 * (len(predictor.transformer) + 1) * predictor.d_model + 2 * len(tokenizer.decoder) * tokenizer.d_model
    scores = 3 * max(predictor.n_heads, horizon * tokenizer.n_heads) * (context + horizon)
    per_path = horizon * kept + scores + 8 * 2 ** max(predictor.s1_bits, predictor.s2_bits)
    per_series = context * kept
    some_paths = max(1, min(paths, (_FLOATS - per_series) // per_path))
    some_series = max(1, _FLOATS // (per_series + some_paths * per_path))
    for first in range(0, series, some_series):
        for first_path in range(0, paths, some_paths):
            yield slice(first, first + some_series), slice(first_path, first_path + some_paths)


def _check(
    model: KronosModel, history: np.ndarray, ahead: np.ndarray, paths: int, temperature: float, top_p: float
) -> None:
    if paths < 1:
        raise SettingsError(f"--eval-samples must be 1 or more, not {paths}.")
    if not temperature > 0:
        raise SettingsError(f"--temperature must be above 0, not {temperature}.")
    if not 0 < top_p <= 1:
        raise SettingsError(f"--top-p must be above 0 and at most 1, not {top_p}.")
    used = history.shape[1] + ahead.shape[1]
    if used > model.context:
        raise SettingsError(
            f"{history.shape[1]} bars of lookback and {ahead.shape[1]} of horizon exceed the context of "
            f"{model.source.name}, {model.context} bars; lower one of them."
        )
