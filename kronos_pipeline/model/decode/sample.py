"""Sampling: many possible futures of some series, from a model or from one model per series.

Random numbers are drawn before anything else, for each series from its seed and the series itself. So what is sampled
for a series depends neither on the other series of a call nor on how the work is divided, and two models that forecast
the same bars are compared on the same draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from kronos_pipeline.data.normalisation import denormalise, lookback_statistics, normalise
from kronos_pipeline.errors import ModelError, SettingsError
from kronos_pipeline.model.decode.decoder import Decoder, group_into_decoders
from kronos_pipeline.model.decode.memory import Part, memory_budget, one_thread_per_gpu, run_in_oom_safe_parts
from kronos_pipeline.model.loading import KronosModel


def sample_paths(
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
) -> NDArray[np.float64]:
    """Sample futures.

    Args:
        model: a base model, a checkpoint or an adapter; or one of them per series. Those that share the tensors of a
            base are decoded together, each series through its own adapter.
        history: the lookback bars in the file's units, (series, lookback, 6).
        past: their minute, hour, weekday, day and month, (series, lookback, 5).
        ahead: the same of the bars to come, (series, horizon, 5).
        paths: how many futures per series.
        temperature: above 0; below 1 sharpens the distributions, above it flattens them. One, or one per series.
        top_p: above 0, at most 1; each token is drawn from the likeliest ones that together have this probability.
            One, or one per series.
        seed: of the draws; one, or one per series.
        s2_position: "true" or "first"; where a bar's fine token is asked for, see `Decoder.generate`.
        precision: "fp32" or "bf16", see `Decoder`.

    Returns:
        TokenizerWeights in the file's units, (series, paths, horizon, 6), as the model gives them: see `model.candles`.

    Raises:
        SettingsError: a setting is out of its range, or lookback and horizon do not fit a model's context.
        ModelError: a model gives numbers that are not finite.
    """
    series, horizon = len(history), ahead.shape[1]
    models = [model] * series if isinstance(model, KronosModel) else list(model)
    heat, share = (np.broadcast_to(np.asarray(one, np.float32), series) for one in (temperature, top_p))
    seeds = np.broadcast_to(np.asarray(seed, object), series)
    _check(models, history, ahead, paths, heat, share)
    mean, std = lookback_statistics(history)
    normalised = normalise(history, mean, std)
    draws = [_draws(*one, paths, *parts) for one, *parts in zip(zip(seeds), history, past, ahead, strict=True)]
    sampled = np.empty((series, paths, horizon, history.shape[-1]), np.float32)
    with one_thread_per_gpu(models[0].device if models else torch.device("cpu")):
        for decoder, context, place in _decoders(models, precision):

            def run(
                part: Part, decoder: Decoder = decoder, place: dict[int, int] = place, context: int = context
            ) -> None:
                rows, some = part
                bars, before, after = (torch.from_numpy(np.array(one[rows])) for one in (normalised, past, ahead))
                numbers = torch.from_numpy(np.stack([draws[row][some.start : some.stop] for row in rows]))
                pick = _Picker(numbers.to(decoder.device), heat[rows], share[rows])
                known = decoder.encode(bars)
                drawn = decoder.generate(
                    known,
                    before,
                    after,
                    pick,
                    paths=len(some),
                    context=context,
                    which=torch.tensor([place[row] for row in rows]),
                    s2_position=s2_position,
                )
                values = pick.where_finite(decoder.decode(known, drawn, context=context))
                sampled[rows, some.start : some.stop] = values.cpu().numpy()

            def size(part: Part, decoder: Decoder = decoder) -> int:
                return decoder.bytes(len(part[0]), len(part[1]), history.shape[1], horizon)

            run_in_oom_safe_parts((list(place), range(paths)), run, size, memory_budget(decoder.device), decoder.device)
    for row, one in enumerate(models):
        if not np.isfinite(sampled[row]).all():
            raise ModelError(f"{one.source.label} gives forecasts that are not finite; its weights are of no use.")
    return denormalise(sampled, mean[:, None], std[:, None])


def _decoders(models: Sequence[KronosModel], precision: str) -> Iterator[tuple[Decoder, int, dict[int, int]]]:
    """Decoders, their context, and the series that each is for, with the place of the series' predictor in it."""
    alike: dict[tuple[int, int], dict[int, KronosModel]] = {}
    rows: dict[int, list[int]] = {}
    for row, model in enumerate(models):
        alike.setdefault((id(model.tokenizer), model.context), {})[id(model.predictor)] = model
        rows.setdefault(id(model.predictor), []).append(row)
    for (_, context), distinct in alike.items():
        several = list(distinct.values())
        for decoder, places in group_into_decoders(
            [one.predictor for one in several], several[0].tokenizer, precision=precision
        ):
            members = enumerate(rows[id(several[place].predictor)] for place in places)
            yield decoder, context, {row: number for number, group in members for row in group}


class _Picker:
    """`choose` for a decoder: draws (series, paths, horizon, s1 and s2), the rest (series,)."""

    def __init__(self, draws: Tensor, temperature: NDArray[np.float32], top_p: NDArray[np.float32]) -> None:
        self._draws = draws
        self._heat, self._share = (
            torch.from_numpy(part.copy()).to(draws.device)[:, None, None] for part in (temperature, top_p)
        )
        self._sums: Tensor | float = 0.0

    def __call__(self, logits: Tensor, step: int, level: int) -> Tensor:
        self._sums = self._sums + logits.sum(dim=-1)  # not finite where a logit is not, which no token tells
        return sample_top_p(logits, self._draws[:, :, step, level], self._heat, self._share)

    def where_finite(self, values: Tensor) -> Tensor:
        """Bars, (series, paths, horizon, 6), but NaN for a path that was drawn from logits that are not finite."""
        finite = torch.isfinite(torch.as_tensor(self._sums, device=values.device))
        return values.where(finite[..., None, None], torch.nan)


def sample_top_p(logits: Tensor, draws: Tensor, temperature: Tensor | float, top_p: Tensor | float) -> Tensor:
    """Draw tokens by the inverse of their cumulative distribution, the likeliest tokens first.

    Args:
        logits: (..., vocabulary).
        draws: uniform on [0, 1), (...).
        temperature: divides the logits; one, or (..., 1).
        top_p: one, or (..., 1); the likeliest tokens are kept up to the first at which their probability exceeds this,
            as upstream does.
    """
    likelihood, order = _sort_descending((logits.float() / temperature).softmax(dim=-1))
    cumulative = likelihood.cumsum(dim=-1)
    kept = (cumulative <= top_p) | (torch.as_tensor(top_p, device=logits.device) >= 1)
    last = kept.sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    aim = draws[..., None] * cumulative.gather(-1, last)
    place = torch.minimum((cumulative <= aim).sum(dim=-1, keepdim=True), last)
    return order.gather(-1, place)[..., 0]


def _sort_descending(likelihood: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted, with the order; on a CPU by numpy, which sorts with vector instructions."""
    if likelihood.device.type != "cpu":
        return likelihood.sort(dim=-1, descending=True)
    order = torch.from_numpy(np.argsort(likelihood.neg().numpy(), axis=-1))
    return likelihood.gather(-1, order), order


def _draws(seed: int, paths: int, history: np.ndarray, past: np.ndarray, ahead: np.ndarray) -> NDArray[np.float32]:
    """(paths, horizon, s1 and s2); the first paths are the same however many there are."""
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
    heat: np.ndarray,
    share: np.ndarray,
) -> None:
    if len(models) != len(history):
        raise SettingsError(f"{len(models)} models for {len(history)} series; give one for all, or one per series.")
    if paths < 1:
        raise SettingsError(f"--eval-samples must be 1 or more, not {paths}.")
    if (cold := heat[~(heat > 0)]).size:
        raise SettingsError(f"--temperature must be above 0, not {cold[0]}.")
    if (wrong := share[~((share > 0) & (share <= 1))]).size:
        raise SettingsError(f"--top-p must be above 0 and at most 1, not {wrong[0]}.")
    used = history.shape[1] + ahead.shape[1]
    for model in models:
        if used > model.context:
            raise SettingsError(
                f"{history.shape[1]} bars of lookback and {ahead.shape[1]} of horizon exceed the context of "
                f"{model.source.name}, {model.context} bars; lower one of them."
            )
