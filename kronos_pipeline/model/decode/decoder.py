"""Decoding: from known bars to sampled tokens and back to bars, for many series, paths and adapters at once.

Upstream runs the whole context again for every bar and path; here it is run once per series, and by packed products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kronos_pipeline.errors import ModelError, SettingsError
from kronos_pipeline.model.decode.generate import Generation, TokenPicker, Tokens
from kronos_pipeline.model.decode.kv_cache import CacheLayout, SeriesLengths
from kronos_pipeline.model.decode.memory import retry_after_release
from kronos_pipeline.model.decode.network import PredictorWeights, TokenizerWeights
from kronos_pipeline.model.decode.transformer import CachedBlocks
from kronos_pipeline.model.decode.weight_cache import cached_weights
from kronos_pipeline.model.devices import FREE_MEMORY, explain_out_of_memory
from kronos_pipeline.model.modules import eval_mode, limit_threads, prepare_rotary

S2_POSITIONS = ("true", "first")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

_MAX_PREDICTORS = 64
"""Predictors of one decoder, at most: the LoRA matrices of each are kept beside the base's weights."""


class Decoder:
    """A base predictor, or several adapters on it, and their tokenizer, made ready to decode.

    Their modules stay as they are. Weights that change later are not seen; make another decoder then.
    """

    def __init__(self, predictors: Any | Sequence[Any], tokenizer: Any, *, precision: str = "fp32") -> None:
        """Read the weights.

        Args:
            predictors: upstream's predictor or a PEFT model around one, which is added to the weights; or a list of one
                or several that share the base's weights. Their LoRA matrices stay beside these, so that each series
                gets the same to the last bit, or nearly, whatever the company.
            tokenizer: upstream's tokenizer.
            precision: "fp32" or "bf16", of the predictor's blocks. Logits and the tokenizer are always in fp32.

        Raises:
            SettingsError: there is no such precision.
            ModelError: several predictors do not share their weights, or the memory is not enough for a packed copy.
        """
        if precision not in PRECISIONS:
            raise SettingsError(f"Decoding is done in {' or '.join(PRECISIONS)}, not in {precision}; choose one.")
        listed = isinstance(predictors, list | tuple)
        several: list[Any] = list(predictors) if listed else [predictors]
        self.device = next(several[0].parameters()).device

        def packed() -> tuple[PredictorWeights, TokenizerWeights]:
            return _network(several, PRECISIONS[precision], beside=listed), cached_weights(
                TokenizerWeights, [tokenizer]
            )

        with explain_out_of_memory("Packing the model's weights for sampling", self.device, FREE_MEMORY):
            self._network, self._bars = retry_after_release(packed, self.device)
        self._tokenizer, self._threads_for = tokenizer, several[0]

    def encode(self, bars: Tensor, lengths: Tensor | None = None) -> Tokens:
        """Tokens of normalised bars, as upstream's tokenizer gives them.

        Args:
            bars: (series, bars, 6).
            lengths: bars of each series that are there, (series,), the last ones; all by default.

        Returns:
            s1 and s2, (series, bars) each; anything where there is no bar.
        """
        tokenizer, bars = self._tokenizer, bars.to(self.device)
        with torch.no_grad(), eval_mode(tokenizer), limit_threads(tokenizer):
            prepare_rotary(tokenizer, bars.shape[1])
            if lengths is None:
                s1, s2 = tokenizer.encode(bars, half=True)
                return s1, s2
            # The encoder is causal, so what stands behind the bars does not matter: each series begins at place 0.
            place = torch.arange(bars.shape[1], device=self.device)
            missing = bars.shape[1] - lengths.to(self.device)[:, None]
            begun = bars.gather(1, ((place + missing) % len(place))[..., None].expand_as(bars))
            back = (place - missing) % len(place)
            s1, s2 = (level.gather(1, back) for level in tokenizer.encode(begun, half=True))
            return s1, s2

    def generate(
        self,
        known: Tokens,
        past: Tensor,
        ahead: Tensor,
        choose: TokenPicker,
        *,
        paths: int,
        context: int,
        lengths: Tensor | None = None,
        which: Tensor | None = None,
        s2_position: str = "true",
    ) -> Tokens:
        """Continue every series by several paths, bar by bar.

        Args:
            known: s1 and s2 of the bars that are known, (series, bars).
            past: their minute, hour, weekday, day and month, (series, bars, 5).
            ahead: the same of the bars to come, (series, horizon, 5).
            choose: what picks tokens; called for s1 and then for s2 of each step.
            paths: how many futures per series.
            context: bars that the predictor attends to. Where there are more, it sees the last ones, at positions
                from 0 on, as upstream does; every bar is then computed again at each step.
            lengths: bars of each series that are there, (series,), the last ones; all by default.
            which: place of each series' predictor among those that the decoder was made of, (series,); all the first
                by default.
            s2_position: "true": the fine token is asked for at the bar's own position, as in training; "first": as
                upstream's decoding does, with itself and all bars before it at the first position.

        Returns:
            s1 and s2, (series, paths, horizon) each.

        Raises:
            SettingsError: there is no such position.
        """
        if s2_position not in S2_POSITIONS:
            raise SettingsError(f"--s2-position must be true or first, not {s2_position}.")
        with torch.inference_mode(), limit_threads(self._threads_for):
            run = Generation(self._network, known, past, ahead, paths, context, lengths, which, s2_position == "true")
            s1, s2 = run.sample(choose)
        return s1.clone(), s2.clone()

    def decode(self, known: Tokens, drawn: Tokens, *, context: int, lengths: Tensor | None = None) -> Tensor:
        """Normalised bars of the futures, by the tokenizer's decoder over the last `context` tokens.

        Args:
            known: s1 and s2 of the bars that are known, (series, bars).
            drawn: s1 and s2 of the futures, (series, paths, horizon).
            context: tokens that the decoder attends to.
            lengths: bars of each series that are there, (series,), the last ones; all by default.

        Returns:
            (series, paths, horizon, 6) in float32.

        Raises:
            SettingsError: the horizon exceeds the context.
        """
        horizon = drawn[0].shape[2]
        if horizon > context:
            raise SettingsError(f"{horizon} bars of horizon exceed the context, {context} bars; lower the horizon.")
        with torch.inference_mode(), limit_threads(self._threads_for):
            values = self._decode(known, drawn, context, lengths)
        return values.clone()

    def _decode(self, known: Tokens, drawn: Tokens, context: int, lengths: Tensor | None) -> Tensor:
        _, paths, horizon = drawn[0].shape
        start = max(0, known[0].shape[1] + horizon - context)
        known = known[0][:, start:], known[1][:, start:]
        span = CacheLayout.of(known[0].shape[1], paths, horizon, SeriesLengths.of(lengths, self.device))
        blocks = CachedBlocks(self._bars.blocks.chosen(None), span)
        blocks.over_context(self._bars.embed(self._tokenizer.indices_to_bits(known, half=True)))
        steps = [span.group(level).transpose(1, 2).flatten(1) for level in drawn]  # (series * groups, steps * paths)
        whole = span.at(0, horizon, span.paths_mask(horizon, torch.float32, self.device))
        hidden = blocks.over_paths(self._bars.embed(self._tokenizer.indices_to_bits(steps, half=True)), whole)
        values = self._bars.values(hidden).unflatten(1, (horizon, -1)).transpose(1, 2)
        return span.ungroup(values, paths)

    def bytes(self, series: int, paths: int, bars: int, horizon: int, *, unequal: bool = False) -> int:
        """What sampling takes of the memory at once, about: caches, masks, logits, and what the layers pass on.

        Args:
            series, paths, bars, horizon: how many of each; `bars` of the longest series.
            unequal: whether the series differ in length, so that each has masks of its own.
        """
        network, decoder = self._network, self._bars.blocks
        span = CacheLayout.of(bars, paths, horizon, None)
        rows, keys = span.groups * span.paths * horizon, span.context + span.paths * horizon
        cached = 2 * series * span.groups * keys * (len(network.blocks) + 1) * network.blocks.width
        context = 12 * series * bars * max(network.width, decoder.width)
        values = series * rows * (12 * decoder.width + 2 * len(decoder) * decoder.width)
        masks = series * (rows * keys + bars**2) if unequal else span.paths * horizon * keys
        detours = series * network.lora_size
        return 4 * (max(cached + 8 * series * paths * network.vocabulary, values + masks) + context + detours)


def _network(predictors: list[Any], dtype: torch.dtype, *, beside: bool) -> PredictorWeights:
    if len(predictors) > 1 or not beside:
        return cached_weights(PredictorWeights, predictors, dtype)
    try:  # as of two, whose matrices stay beside the weights
        return cached_weights(PredictorWeights, predictors * 2, dtype)
    except ModelError:  # no plain LoRA
        return cached_weights(PredictorWeights, predictors, dtype)


def group_into_decoders(
    predictors: Sequence[Any], tokenizer: Any, *, precision: str = "fp32"
) -> Iterator[tuple[Decoder, list[int]]]:
    """As few decoders as there can be for some predictors, each with the places of its own among them.

    Those that share their base's tensors are decoded together, but for an adapter that only itself can apply.

    Args:
        predictors: upstream's predictors, or PEFT models around them.
        tokenizer: upstream's tokenizer.
        precision: see `Decoder`.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, predictor in enumerate(predictors):
        shared = (value for name, value in predictor.named_parameters() if "lora_" not in name)
        groups.setdefault(tuple(sorted(map(Tensor.data_ptr, shared))), []).append(place)
    for group in groups.values():
        for first in range(0, len(group), _MAX_PREDICTORS):
            places = group[first : first + _MAX_PREDICTORS]
            try:
                yield Decoder([predictors[place] for place in places], tokenizer, precision=precision), places
            except ModelError:
                for place in places:
                    yield Decoder(predictors[place], tokenizer, precision=precision), [place]
