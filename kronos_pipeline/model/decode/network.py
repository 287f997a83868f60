"""The weights of predictors and of a tokenizer's decoder, read once and packed for decoding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kronos_pipeline.model.decode.kv_cache import CacheLayout, Steps
from kronos_pipeline.model.decode.linear import PackedEmbedding, PackedLinear, read_linear, scale
from kronos_pipeline.model.decode.transformer import (
    CachedBlocks,
    CachedCrossAttention,
    CrossAttention,
    RMSNorm,
    TransformerBlocks,
)
from kronos_pipeline.model.modules import unwrap_peft


class PredictorWeights:
    """The weights of one predictor, or of several that share a base. Holds no reference to their modules."""

    def __init__(self, predictors: Sequence[Any], dtype: torch.dtype) -> None:
        """Read and pack the weights.

        Raises:
            ModelError: several predictors do not share their base's weights.
        """
        cores = [unwrap_peft(predictor) for predictor in predictors]
        core, embeddings, heads = cores[0], [part.embedding for part in cores], [part.head for part in cores]
        self.device, self.dtype = core.head.proj_s1.weight.device, dtype
        self.width: int = core.d_model
        self.vocabulary: int = 2 ** max(core.s1_bits, core.s2_bits)
        self.lora_size = 2 * max(map(_lora_size, predictors)) if len(predictors) > 1 else 0
        self.time_embeddings = _deduplicate([part.time_emb for part in cores])
        self.coarse = PackedEmbedding(read_linear([part.emb_s1 for part in embeddings]), dtype)
        self.fine = PackedEmbedding(read_linear([part.emb_s2 for part in embeddings]), dtype)
        fusion = read_linear([part.fusion_proj for part in embeddings])
        self.fusion = PackedLinear(scale(fusion, math.sqrt(core.d_model)), dtype)  # upstream scales its input
        self.blocks = TransformerBlocks([part.transformer for part in cores], dtype)
        self.norm = RMSNorm(core.norm, dtype)
        self.cross = CrossAttention([part.dep_layer for part in cores], dtype)
        self.coarse_head = PackedLinear(read_linear([head.proj_s1 for head in heads]), torch.float32)
        self.fine_head = PackedLinear(read_linear([head.proj_s2 for head in heads]), torch.float32)

    def for_batch(self, predictor_index: Sequence[int] | None, series: int) -> BatchWeights:
        """Bind the weights to a batch: series i uses predictor `predictor_index[i]`; by default all use the first."""
        return BatchWeights(self, predictor_index, series)


def _deduplicate(modules: Sequence[Any]) -> list[Any]:
    """Replace each module by the first one that has the same tensors in memory."""
    first: dict[tuple[int, ...], Any] = {}
    tensors = ([*module.parameters(), *module.buffers()] for module in modules)
    return [
        first.setdefault(tuple(map(Tensor.data_ptr, parts)), module)
        for module, parts in zip(modules, tensors, strict=True)
    ]


def _lora_size(predictor: Any) -> int:
    """Count the numbers in a predictor's LoRA matrices."""
    return sum(value.numel() for name, value in predictor.named_parameters() if "lora_" in name)


class BatchWeights:
    """The weights bound to a batch in which every series has its own predictor."""

    def __init__(self, weights: PredictorWeights, predictor_index: Sequence[int] | None, series: int) -> None:
        self._time_embeddings, self._dtype, self.device = weights.time_embeddings, weights.dtype, weights.device
        self._embeddings: dict[Any, int]  # the number of series of each time embedding
        index = self._index(predictor_index, series)
        self.coarse, self._fine = weights.coarse.for_batch(index), weights.fine.for_batch(index)
        self._fusion = weights.fusion.for_batch(index)
        self.coarse_head, self.fine_head = weights.coarse_head.for_batch(index), weights.fine_head.for_batch(index)
        self.blocks, self.cross = weights.blocks.for_batch(index), weights.cross.for_batch(index)
        self.norm = weights.norm

    def select(self, predictor_index: Sequence[int] | None, series: int) -> None:
        """Switch to other predictors, for the same number of series, in the same memory."""
        if (index := self._index(predictor_index, series)) is not None:
            heads = self.coarse_head, self.fine_head
            for part in (self.coarse, self._fine, self._fusion, *heads, self.blocks, self.cross):
                part.select(index)

    def _index(self, predictor_index: Sequence[int] | None, series: int) -> Tensor | None:
        """Return the predictor of each series, on the device, and set the order in which time stamps are embedded."""
        if len(self._time_embeddings) == 1:
            self._embeddings = {self._time_embeddings[0]: series}
            return None
        predictor_index = predictor_index or [0] * series
        embeddings = [self._time_embeddings[number] for number in predictor_index]
        self._embeddings = Counter(embeddings)
        distinct = list(self._embeddings)
        by_embedding = sorted(range(series), key=lambda row: distinct.index(embeddings[row]))
        inverse = sorted(range(series), key=by_embedding.__getitem__)
        orders = torch.tensor([predictor_index, by_embedding, inverse], device=self.device)
        index, self._by_embedding, self._inverse = orders.unbind()
        return index

    def embed(self, tokens: Sequence[Tensor]) -> Tensor:
        """Embed s1 and s2, (series, tokens) each: (series, tokens, width)."""
        return self._fusion(torch.cat([self.coarse(tokens[0]), self._fine(tokens[1])], dim=-1))

    def embed_stamps(self, stamps: Tensor) -> Tensor:
        """Embed time stamps, (series, bars, 5): (series, bars, width)."""
        if len(self._embeddings) == 1:
            (embedding,) = self._embeddings
            embedded: Tensor = embedding(stamps)
            return embedded.to(self._dtype)
        groups = torch.split(stamps[self._by_embedding], list(self._embeddings.values()))
        parts = [embed(group).to(self._dtype) for embed, group in zip(self._embeddings, groups, strict=True)]
        return torch.cat(parts)[self._inverse]


class CachedPredictor:
    """A batch's predictors with key-value caches, over a context and the paths that continue it."""

    def __init__(self, weights: BatchWeights, layout: CacheLayout, *, true_positions: bool) -> None:
        """Allocate nothing yet.

        Args:
            weights: of the batch.
            layout: of the caches.
            true_positions: whether a fine token is predicted at its bar's own position; else all bars count as the
                first one.
        """
        self.weights, self.layout = weights, layout
        self._blocks = CachedBlocks(weights.blocks, layout)
        self._cross = CachedCrossAttention(weights.cross, layout, true_positions=true_positions)

    def reset(self, layout: CacheLayout) -> None:
        """Prepare for another context of the same shape, in the same memory."""
        self.layout = layout
        self._blocks.reset(layout)

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return self._blocks.bytes + self._cross.bytes

    def prefill(self, known: Sequence[Tensor], past: Tensor) -> Tensor:
        """Read the context and return its hidden states, (series, context, width).

        Args:
            known: s1 and s2, (series, context) each.
            past: embedded stamps, (series, context, width).
        """
        hidden = self.weights.norm(self._blocks.prefill(self.weights.embed(known) + past))
        self._cross.write_context(hidden)
        return hidden

    def decode(self, s1: Tensor, s2: Tensor, ahead: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """Read some steps of the paths.

        Args:
            s1: coarse tokens, (series * groups, steps * paths of a group).
            s2: fine tokens, the same shape.
            ahead: embedded stamps, (series * groups, steps * paths of a group, width).
            steps: positions, keys and mask of the steps.

        Returns:
            The hidden states of the last step, (series * groups, paths of a group, width), and the logits of the next
            coarse tokens, (series * groups, paths of a group, vocabulary).
        """
        hidden = self.weights.norm(self._blocks.decode(self.weights.embed((s1, s2)) + ahead, steps))
        self._cross.write_steps(hidden, steps)
        last = hidden[:, -self.layout.paths :]
        return last, self.weights.coarse_head(last.float())

    def fine_logits(self, s1: Tensor, last: Tensor, step: Steps) -> Tensor:
        """Return the logits of the fine tokens that belong to s1, (series * groups, paths of a group, vocabulary)."""
        return self.weights.fine_head(self._cross.attend(self.weights.coarse(s1), last, step).float())


class TokenizerWeights:
    """The weights of a tokenizer's decoder, which maps tokens to bars; always in float32."""

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        (tokenizer,) = tokenizers
        self.embed = PackedLinear(read_linear([tokenizer.post_quant_embed]), torch.float32)
        self.blocks = TransformerBlocks([tokenizer.decoder], torch.float32)
        self.values = PackedLinear(read_linear([tokenizer.head]), torch.float32)
