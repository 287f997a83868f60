"""Decoding: sample tokens after known bars, and map tokens back to bars, for many series, paths and adapters at once.

Upstream runs the whole context again for every bar and path; the decoder runs it once per series, with packed weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kronos_pipeline.errors import ModelError, SettingsError
from kronos_pipeline.model.decode.generate import Generation, Prompts, TokenPicker, Tokens
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
"""Largest number of predictors per decoder: it holds the LoRA matrices of each beside the base's weights."""


class Decoder:
    """A base predictor, or several adapters on it, and their tokenizer, with packed weights.

    The modules do not change. The decoder does not notice later changes of their weights; make another one then.
    """

    def __init__(self, predictors: Any | Sequence[Any], tokenizer: Any, *, precision: str = "fp32") -> None:
        """Read and pack the weights.

        Args:
            predictors: upstream's predictor or a PEFT model around one, whose LoRA matrices are added to the weights;
                or a list of one or several that share the base's weights. The LoRA matrices of a list stay beside these
                weights, so that the numbers of a series do not depend on the other predictors, to the last bit or
                nearly.
            tokenizer: upstream's tokenizer.
            precision: "fp32" or "bf16", of the predictor's blocks. Logits and the tokenizer are always in fp32.

        Raises:
            SettingsError: the precision is unknown.
            ModelError: several predictors do not share their weights, or the memory is too small for a packed copy.
        """
        if precision not in PRECISIONS:
            raise SettingsError(f"Decoding is done in {' or '.join(PRECISIONS)}, not in {precision}; choose one.")
        listed = isinstance(predictors, list | tuple)
        predictor_list: list[Any] = list(predictors) if listed else [predictors]
        self.device = next(predictor_list[0].parameters()).device

        def pack() -> tuple[PredictorWeights, TokenizerWeights]:
            weights = _predictor_weights(predictor_list, PRECISIONS[precision], separate=listed)
            return weights, cached_weights(TokenizerWeights, [tokenizer])

        with explain_out_of_memory("Packing the model's weights for sampling", self.device, FREE_MEMORY):
            self._weights, self._tokenizer_weights = retry_after_release(pack, self.device)
        self._tokenizer, self._first_predictor = tokenizer, predictor_list[0]

    def encode(self, bars: Tensor, lengths: Tensor | None = None) -> Tokens:
        """Encode normalised bars as upstream's tokenizer does.

        Args:
            bars: (series, bars, 6).
            lengths: number of valid bars of each series, (series,), the last ones; all by default.

        Returns:
            s1 and s2, (series, bars) each; arbitrary tokens for bars that are not valid.
        """
        tokenizer, bars = self._tokenizer, bars.to(self.device)
        with torch.no_grad(), eval_mode(tokenizer), limit_threads(tokenizer):
            prepare_rotary(tokenizer, bars.shape[1])
            if lengths is None:
                s1, s2 = tokenizer.encode(bars, half=True)
                return s1, s2
            # The encoder is causal, so each series is moved to place 0; the padding after it has no effect.
            positions = torch.arange(bars.shape[1], device=self.device)
            missing = bars.shape[1] - lengths.to(self.device)[:, None]
            aligned = bars.gather(1, ((positions + missing) % len(positions))[..., None].expand_as(bars))
            original = (positions - missing) % len(positions)
            s1, s2 = (level.gather(1, original) for level in tokenizer.encode(aligned, half=True))
            return s1, s2

    def generate(
        self,
        prompts: Prompts,
        pick: TokenPicker,
        *,
        paths: int,
        context: int,
        s2_position: str = "true",
    ) -> Tokens:
        """Continue every series by several paths, bar by bar.

        Args:
            prompts: the series.
            pick: picks tokens from logits; called for s1 and then for s2 of each step.
            paths: number of paths per series.
            context: bars that the predictor attends to. If there are more, it attends to the last ones, at positions
                from 0 on, as upstream does; every bar is then computed again at each step.
            s2_position: "true": the fine token is predicted at the bar's own position, as in training; "first": as in
                upstream's decoding, with this bar and all bars before it at the first position.

        Returns:
            s1 and s2, (series, paths, horizon) each.

        Raises:
            SettingsError: `s2_position` is unknown.
        """
        if s2_position not in S2_POSITIONS:
            raise SettingsError(f"--s2-position must be true or first, not {s2_position}.")
        with torch.inference_mode(), limit_threads(self._first_predictor):
            true_positions = s2_position == "true"
            generation = Generation(self._weights, prompts, paths=paths, context=context, true_positions=true_positions)
            s1, s2 = generation.sample(pick)
        return s1.clone(), s2.clone()

    def decode(self, known: Tokens, drawn: Tokens, *, context: int, lengths: Tensor | None = None) -> Tensor:
        """Decode tokens to normalised bars, by the tokenizer's decoder over the last `context` tokens.

        Args:
            known: s1 and s2 of the known bars, (series, bars).
            drawn: s1 and s2 of the sampled paths, (series, paths, horizon).
            context: tokens that the decoder attends to.
            lengths: number of valid bars of each series, (series,), the last ones; all by default.

        Returns:
            The bars of the horizon, (series, paths, horizon, 6), in float32.

        Raises:
            SettingsError: the horizon exceeds the context.
        """
        horizon = drawn[0].shape[2]
        if horizon > context:
            raise SettingsError(f"{horizon} bars of horizon exceed the context, {context} bars; lower the horizon.")
        with torch.inference_mode(), limit_threads(self._first_predictor):
            values = self._decode(known, drawn, context, lengths)
        return values.clone()

    def _decode(self, known: Tokens, drawn: Tokens, context: int, lengths: Tensor | None) -> Tensor:
        _, paths, horizon = drawn[0].shape
        start = max(0, known[0].shape[1] + horizon - context)
        known = known[0][:, start:], known[1][:, start:]
        layout = CacheLayout.of(known[0].shape[1], paths, horizon, SeriesLengths.of(lengths, self.device))
        weights = self._tokenizer_weights
        blocks = CachedBlocks(weights.blocks.for_batch(None), layout)
        blocks.prefill(weights.embed(self._tokenizer.indices_to_bits(known, half=True)))
        tokens = [layout.group(level).transpose(1, 2).flatten(1) for level in drawn]  # (series * groups, steps * paths)
        steps = layout.slice_steps(0, horizon, layout.paths_mask(horizon, torch.float32, self.device))
        hidden = blocks.decode(weights.embed(self._tokenizer.indices_to_bits(tokens, half=True)), steps)
        values = torch.unflatten(weights.values(hidden), 1, (horizon, -1)).transpose(1, 2)
        return layout.ungroup(values, paths)

    def estimate_bytes(self, series: int, paths: int, bars: int, horizon: int, *, unequal: bool = False) -> int:
        """Estimate the peak memory of sampling: caches, masks, logits and activations.

        Args:
            series: number of series.
            paths: number of paths per series.
            bars: known bars of the longest series.
            horizon: bars to sample.
            unequal: whether the series differ in length, so that each has its own masks.
        """
        predictor, decoder = self._weights, self._tokenizer_weights.blocks
        layout = CacheLayout.of(bars, paths, horizon, None)
        rows, keys = layout.groups * layout.paths * horizon, layout.context + layout.paths * horizon
        cached = 2 * series * layout.groups * keys * (len(predictor.blocks) + 1) * predictor.blocks.width
        context = 12 * series * bars * max(predictor.width, decoder.width)
        values = series * rows * (12 * decoder.width + 2 * len(decoder) * decoder.width)
        masks = series * (rows * keys + bars**2) if unequal else layout.paths * horizon * keys
        lora = series * predictor.lora_size
        return 4 * (max(cached + 8 * series * paths * predictor.vocabulary, values + masks) + context + lora)


def _predictor_weights(predictors: list[Any], dtype: torch.dtype, *, separate: bool) -> PredictorWeights:
    """Pack predictors; `separate` keeps LoRA matrices beside the base's weights, also for a single predictor."""
    if len(predictors) > 1 or not separate:
        return cached_weights(PredictorWeights, predictors, dtype)
    try:  # two predictors, as their LoRA matrices stay beside the weights
        return cached_weights(PredictorWeights, predictors * 2, dtype)
    except ModelError:  # not plain LoRA
        return cached_weights(PredictorWeights, predictors, dtype)


def group_into_decoders(
    predictors: Sequence[Any], tokenizer: Any, *, precision: str = "fp32"
) -> Iterator[tuple[Decoder, list[int]]]:
    """Yield as few decoders as possible for some predictors, each with the indices of its predictors.

    Predictors that share their base's tensors share a decoder, except adapters that are not plain LoRA.

    Args:
        predictors: upstream's predictors, or PEFT models around them.
        tokenizer: upstream's tokenizer.
        precision: see `Decoder`.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, predictor in enumerate(predictors):
        shared = (value for name, value in predictor.named_parameters() if "lora_" not in name)
        groups.setdefault(tuple(sorted(map(Tensor.data_ptr, shared))), []).append(index)
    for group in groups.values():
        for first in range(0, len(group), _MAX_PREDICTORS):
            indices = group[first : first + _MAX_PREDICTORS]
            try:
                yield Decoder([predictors[index] for index in indices], tokenizer, precision=precision), indices
            except ModelError:
                for index in indices:
                    yield Decoder(predictors[index], tokenizer, precision=precision), [index]
