"""Sample paths of future bars, from a model or from a model per series.

The random numbers of a series depend on its seed and its bars only, and are drawn before sampling starts. So the sample
of a series depends neither on the other series of a call nor on how the work is divided, and two models that forecast
the same bars are compared on the same random numbers.
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
        for decoder, context, place in _decoders(models, precision):

            def run(
                part: Part, decoder: Decoder = decoder, place: dict[int, int] = place, context: int = context
            ) -> None:
                rows, chosen = part
                bars, before, after = (torch.from_numpy(np.array(values[rows])) for values in (normalised, past, ahead))
                numbers = torch.from_numpy(np.stack([draws[row][chosen.start : chosen.stop] for row in rows]))
                pick = _TopPPicker(numbers.to(decoder.device), temperatures[rows], top_ps[rows])
                known = decoder.encode(bars)
                drawn = decoder.generate(
                    known,
                    before,
                    after,
                    pick,
                    paths=len(chosen),
                    context=context,
                    which=torch.tensor([place[row] for row in rows]),
                    s2_position=s2_position,
                )
                values = pick.where_finite(decoder.decode(known, drawn, context=context))
                sampled[rows, chosen.start : chosen.stop] = values.cpu().numpy()

            def size(part: Part, decoder: Decoder = decoder) -> int:
                return decoder.estimate_bytes(len(part[0]), len(part[1]), history.shape[1], horizon)

            run_in_oom_safe_parts((list(place), range(paths)), run, size, memory_budget(decoder.device), decoder.device)
    for row, used in enumerate(models):
        if not np.isfinite(sampled[row]).all():
            raise ModelError(f"{used.source.label} gives forecasts that are not finite; its weights are of no use.")
    return denormalise(sampled, mean[:, None], std[:, None])


def _decoders(models: Sequence[KronosModel], precision: str) -> Iterator[tuple[Decoder, int, dict[int, int]]]:
    """Yield decoders, each with its context and, by series, the index of the series' predictor in the decoder."""
    alike: dict[tuple[int, int], dict[int, KronosModel]] = {}
    rows: dict[int, list[int]] = {}
    for row, model in enumerate(models):
        alike.setdefault((id(model.tokenizer), model.context), {})[id(model.predictor)] = model
        rows.setdefault(id(model.predictor), []).append(row)
    for (_, context), distinct in alike.items():
        several = list(distinct.values())
        for decoder, places in group_into_decoders(
            [model.predictor for model in several], several[0].tokenizer, precision=precision
        ):
            members = enumerate(rows[id(several[place].predictor)] for place in places)
            yield decoder, context, {row: number for number, group in members for row in group}


class _TopPPicker:
    """Token picker with given random numbers, (series, paths, horizon, 2); temperature and top-p are (series,)."""

    def __init__(self, draws: Tensor, temperature: NDArray[np.float32], top_p: NDArray[np.float32]) -> None:
        self._draws = draws
        self._temperature, self._top_p = (
            torch.from_numpy(part.copy()).to(draws.device)[:, None, None] for part in (temperature, top_p)
        )
        self._sums: Tensor | float = 0.0

    def __call__(self, logits: Tensor, step: int, level: int) -> Tensor:
        self._sums = self._sums + logits.sum(dim=-1)  # not finite if a logit is not; the tokens do not show it
        return sample_top_p(logits, self._draws[:, :, step, level], self._temperature, self._top_p)

    def where_finite(self, values: Tensor) -> Tensor:
        """Replace the bars, (series, paths, horizon, 6), of paths that were drawn from non-finite logits by NaN."""
        finite = torch.isfinite(torch.as_tensor(self._sums, device=values.device))
        return values.where(finite[..., None, None], torch.nan)


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
    place = torch.minimum((cumulative <= target).sum(dim=-1, keepdim=True), last)
    return order.gather(-1, place)[..., 0]


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
    used = history.shape[1] + ahead.shape[1]
    for model in models:
        if used > model.context:
            raise SettingsError(
                f"{history.shape[1]} bars of lookback and {ahead.shape[1]} of horizon exceed the context of "
                f"{model.source.name}, {model.context} bars; lower one of them."
            )
