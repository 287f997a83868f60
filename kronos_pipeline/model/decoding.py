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
from kronos_pipeline.model.decoder import Choose, Decoder
from kronos_pipeline.model.loading import KronosModel
from kronos_pipeline.model.modules import inner

_FLOATS = 2**26
"""Numbers that the caches and scores of one chunk may take, about; 256 MB."""


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
        Bars in the file's units, (series, paths, horizon, 6), as the model gives them: see `model.candles`.

    Raises:
        SettingsError: a setting is out of its range, or lookback and horizon do not fit a model's context.
        ModelError: a model gives numbers that are not finite.
    """
    series, horizon = len(history), ahead.shape[1]
    models = [model] * series if isinstance(model, KronosModel) else list(model)
    heat, share = (np.broadcast_to(np.asarray(one, np.float32), series) for one in (temperature, top_p))
    seeds = [seed] * series if isinstance(seed, int) else list(seed)
    _check(models, history, ahead, paths, heat, share)
    mean, std = lookback_statistics(history)
    normalised = normalise(history, mean, std)
    draws = [_draws(*one, paths, *parts) for one, *parts in zip(zip(seeds), history, past, ahead, strict=True)]
    sampled = np.empty((series, paths, horizon, history.shape[-1]), np.float32)
    for members in _together(models):
        distinct = list({id(models[row].predictor): models[row] for row in members}.values())
        decoder = Decoder([one.predictor for one in distinct], distinct[0].tokenizer, precision=precision)
        place = {id(one.predictor): number for number, one in enumerate(distinct)}
        for rows, some in _chunks(distinct[0], history.shape[1], horizon, members, paths):
            bars, before, after = (torch.from_numpy(np.array(part[rows])) for part in (normalised, past, ahead))
            numbers = torch.from_numpy(np.stack([draws[row] for row in rows])[:, some])
            pick = _picker(numbers.to(decoder.device), heat[rows], share[rows])
            known, context = decoder.encode(bars), distinct[0].context
            drawn = decoder.generate(
                known,
                before,
                after,
                pick,
                paths=numbers.shape[1],
                context=context,
                which=torch.tensor([place[id(models[row].predictor)] for row in rows]),
                s2_position=s2_position,
            )
            values = decoder.decode(known, drawn, context=context)
            sampled[rows, some] = values.cpu().numpy()
    for row, one in enumerate(models):
        if not np.isfinite(sampled[row]).all():
            raise ModelError(f"{one.source.label} gives forecasts that are not finite; its weights are of no use.")
    return denormalise(sampled, mean[:, None], std[:, None])


def _together(models: Sequence[KronosModel]) -> list[list[int]]:
    """The series whose models share their base's tensors and tokenizer."""
    groups: dict[tuple[int, ...], list[int]] = {}
    keys: dict[int, tuple[int, ...]] = {}
    for row, model in enumerate(models):
        if id(model.predictor) not in keys:
            shared = (value for name, value in model.predictor.named_parameters() if "lora_" not in name)
            keys[id(model.predictor)] = (id(model.tokenizer), model.context, *sorted(map(Tensor.data_ptr, shared)))
        groups.setdefault(keys[id(model.predictor)], []).append(row)
    return list(groups.values())


def _picker(draws: Tensor, temperature: NDArray[np.float32], top_p: NDArray[np.float32]) -> Choose:
    """`choose` for a decoder: draws (series, paths, horizon, s1 and s2), the rest (series,)."""
    heat, share = (torch.from_numpy(part.copy()).to(draws.device)[:, None, None] for part in (temperature, top_p))

    def pick(logits: Tensor, step: int, level: int) -> Tensor:
        return choose(logits, draws[:, :, step, level], heat, share)

    return pick


def choose(logits: Tensor, draws: Tensor, temperature: Tensor | float, top_p: Tensor | float) -> Tensor:
    """Draw tokens by the inverse of their cumulative distribution, the likeliest tokens first.

    Args:
        logits: (..., vocabulary).
        draws: uniform on [0, 1), (...).
        temperature: divides the logits; one, or (..., 1).
        top_p: one, or (..., 1); the likeliest tokens are kept up to the first at which their probability exceeds this,
            as upstream does.
    """
    likelihood, order = (logits.float() / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    cumulative = likelihood.cumsum(dim=-1)
    kept = (cumulative <= top_p) | (torch.as_tensor(top_p, device=logits.device) >= 1)
    last = kept.sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
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


def _chunks(
    model: KronosModel, context: int, horizon: int, series: Sequence[int], paths: int
) -> Iterator[tuple[list[int], slice]]:
    """The series, and of each the paths, that are sampled at once."""
    predictor, tokenizer = inner(model.predictor), model.tokenizer
    kept = 2 * (len(predictor.transformer) + 1) * predictor.d_model + 2 * len(tokenizer.decoder) * tokenizer.d_model
    scores = 3 * max(predictor.n_heads, horizon * tokenizer.n_heads) * (context + horizon)
    per_path = horizon * kept + scores + 8 * 2 ** max(predictor.s1_bits, predictor.s2_bits)
    per_series = context * kept
    some_paths = max(1, min(paths, (_FLOATS - per_series) // per_path))
    some_series = max(1, _FLOATS // (per_series + some_paths * per_path))
    for first in range(0, len(series), some_series):
        for first_path in range(0, paths, some_paths):
            yield list(series[first : first + some_series]), slice(first_path, first_path + some_paths)


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
