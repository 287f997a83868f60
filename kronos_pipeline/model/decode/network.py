"""A predictor's and a tokenizer's weights, read once and packed for decoding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kronos_pipeline.model.decode.kv_cache import CacheLayout, Steps
from kronos_pipeline.model.decode.linear import PackedEmbedding, PackedLinear, read, scale
from kronos_pipeline.model.decode.transformer import (
    CachedBlocks,
    CachedCrossAttention,
    CrossAttention,
    Norm,
    TransformerBlocks,
)
from kronos_pipeline.model.modules import unwrap_peft


class PredictorWeights:
    """The weights of one predictor, or of several that share a base. Their modules are not kept."""

    def __init__(self, predictors: Sequence[Any], dtype: torch.dtype) -> None:
        """Read them.

        Raises:
            ModelError: several predictors do not share their weights.
        """
        cores = [unwrap_peft(predictor) for predictor in predictors]
        core, embeddings, heads = cores[0], [one.embedding for one in cores], [one.head for one in cores]
        self.device, self.dtype, self.width = core.head.proj_s1.weight.device, dtype, core.d_model
        self.vocabulary = 2 ** max(core.s1_bits, core.s2_bits)
        self.lora_size = 2 * max(map(_lora_size, predictors)) if len(predictors) > 1 else 0
        self.time_embeddings = _shared([one.time_emb for one in cores])
        self.coarse = PackedEmbedding(read([one.emb_s1 for one in embeddings]), dtype)
        self.fine = PackedEmbedding(read([one.emb_s2 for one in embeddings]), dtype)
        fusion = read([one.fusion_proj for one in embeddings])
        self.fusion = PackedLinear(scale(fusion, math.sqrt(core.d_model)), dtype)  # upstream scales its input
        self.blocks = TransformerBlocks([one.transformer for one in cores], dtype)
        self.norm = Norm(core.norm, dtype)
        self.cross = CrossAttention([one.dep_layer for one in cores], dtype)
        self.coarse_head = PackedLinear(read([head.proj_s1 for head in heads]), torch.float32)
        self.fine_head = PackedLinear(read([head.proj_s2 for head in heads]), torch.float32)

    def rows(self, which: Sequence[int] | None, series: int) -> BatchWeights:
        """Ready for a batch whose series belong to the predictors `which`; all to the first by default."""
        return BatchWeights(self, which, series)


def _shared(modules: Sequence[Any]) -> list[Any]:
    """The modules, but the first of several whose tensors are the same in memory in place of the others."""
    first: dict[tuple[int, ...], Any] = {}
    tensors = ([*module.parameters(), *module.buffers()] for module in modules)
    return [
        first.setdefault(tuple(map(Tensor.data_ptr, held)), one) for one, held in zip(modules, tensors, strict=True)
    ]


def _lora_size(predictor: Any) -> int:
    """Numbers in a predictor's LoRA matrices."""
    return sum(value.numel() for name, value in predictor.named_parameters() if "lora_" in name)


class BatchWeights:
    """A network in which every series of the batch has its own predictor."""

    def __init__(self, network: PredictorWeights, which: Sequence[int] | None, series: int) -> None:
        self._time_embeddings, self._dtype, self.device = network.time_embeddings, network.dtype, network.device
        self._embeddings: dict[Any, int]  # with the number of series of each
        places = self._places(which, series)
        self.coarse, self._fine = network.coarse.chosen(places), network.fine.chosen(places)
        self._fusion = network.fusion.chosen(places)
        self.coarse_head, self.fine_head = network.coarse_head.chosen(places), network.fine_head.chosen(places)
        self.blocks, self.norm, self.cross = network.blocks.chosen(places), network.norm, network.cross.chosen(places)

    def choose(self, which: Sequence[int] | None, series: int) -> None:
        """Take other predictors, for as many series, in the same memory."""
        if (places := self._places(which, series)) is not None:
            heads = self.coarse_head, self.fine_head
            for part in (self.coarse, self._fine, self._fusion, *heads, self.blocks, self.cross):
                part.choose(places)

    def _places(self, which: Sequence[int] | None, series: int) -> Tensor | None:
        """The places of the series' predictors, on the device; and how their stamps are brought together."""
        if len(self._time_embeddings) == 1:
            self._embeddings = {self._time_embeddings[0]: series}
            return None
        which = which or [0] * series
        embeddings = [self._time_embeddings[place] for place in which]
        self._embeddings = Counter(embeddings)
        distinct = list(self._embeddings)
        together = sorted(range(series), key=lambda row: distinct.index(embeddings[row]))
        apart = sorted(range(series), key=together.__getitem__)
        places, self._together, self._apart = torch.tensor([which, together, apart], device=self.device)
        return places

    def embed(self, tokens: Sequence[Tensor]) -> Tensor:
        """s1 and s2, (series, tokens) each -> (series, tokens, width)."""
        return self._fusion(torch.cat([self.coarse(tokens[0]), self._fine(tokens[1])], dim=-1))

    def stamps(self, stamps: Tensor) -> Tensor:
        """(series, bars, 5) -> (series, bars, width)."""
        if len(self._embeddings) == 1:
            (only,) = self._embeddings
            embedded: Tensor = only(stamps)
            return embedded.to(self._dtype)
        parts = stamps[self._together].split(list(self._embeddings.values()))
        each = [one(part).to(self._dtype) for one, part in zip(self._embeddings, parts, strict=True)]
        return torch.cat(each)[self._apart]


class CachedPredictor:
    """A network over one context and its paths, with the keys and values of what it has read."""

    def __init__(self, rows: BatchWeights, span: CacheLayout, *, in_place: bool) -> None:
        """`in_place`: whether fine tokens are asked for at their bar's own position."""
        self.rows, self.span = rows, span
        self._blocks, self._cross = (
            CachedBlocks(rows.blocks, span),
            CachedCrossAttention(rows.cross, span, in_place=in_place),
        )

    def begin(self, span: CacheLayout) -> None:
        """Make ready to read a context; also for another of the same shape, in the same memory."""
        self.span = span
        self._blocks.begin(span)

    @property
    def bytes(self) -> int:
        """What the keys and values take of the memory."""
        return self._blocks.bytes + self._cross.bytes

    def over_context(self, known: Sequence[Tensor], past: Tensor) -> Tensor:
        """Hidden states, (series, context, width), of tokens, (series, context) each, and embedded stamps."""
        hidden = self.rows.norm(self._blocks.over_context(self.rows.embed(known) + past))
        self._cross.read_context(hidden)
        return hidden

    def over_paths(self, s1: Tensor, s2: Tensor, ahead: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """Read some steps of the paths.

        Args:
            s1: coarse tokens, (series * groups, steps * paths of a group).
            s2: fine tokens, the same shape.
            ahead: embedded stamps, (series * groups, steps * paths of a group, width).
            steps: which they are.

        Returns:
            The hidden states of the last step, (series * groups, paths of a group, width), and the logits of what
            comes after it, (series * groups, paths of a group, vocabulary).
        """
        hidden = self.rows.norm(self._blocks.over_paths(self.rows.embed((s1, s2)) + ahead, steps))
        self._cross.read_paths(hidden, steps)
        last = hidden[:, -self.span.paths :]
        return last, self.rows.coarse_head(last.float())

    def fine_logits(self, s1: Tensor, last: Tensor, step: Steps) -> Tensor:
        """The logits of the fine token that goes with s1, (series * groups, paths of a group, vocabulary)."""
        return self.rows.fine_head(self._cross.over_paths(self.rows.coarse(s1), last, step).float())


class TokenizerWeights:
    """The weights of a tokenizer's decoder, from tokens back to bars; always in float32."""

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        (tokenizer,) = tokenizers
        self.embed = PackedLinear(read([tokenizer.post_quant_embed]), torch.float32)
        self.blocks = TransformerBlocks([tokenizer.decoder], torch.float32)
        self.values = PackedLinear(read([tokenizer.head]), torch.float32)
