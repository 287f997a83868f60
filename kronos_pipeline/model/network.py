"""A predictor's and a tokenizer's weights, read once and packed for decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kronos_pipeline.model.adapter_rows import read, scale
from kronos_pipeline.model.blocks import Blocks, Cross, Norm
from kronos_pipeline.model.modules import inner
from kronos_pipeline.model.packed import Product, Table


class Network:
    """The weights of one predictor, or of several that share a base. Their modules are not kept."""

    def __init__(self, predictors: Sequence[Any], dtype: torch.dtype) -> None:
        """Read them.

        Raises:
            ModelError: several predictors do not share their weights.
        """
        cores = [inner(predictor) for predictor in predictors]
        core, embeddings, heads = cores[0], [one.embedding for one in cores], [one.head for one in cores]
        self.device, self.dtype, self.width = core.head.proj_s1.weight.device, dtype, core.d_model
        self.vocabulary = 2 ** max(core.s1_bits, core.s2_bits)
        self.detoured = 2 * max(map(_detoured, predictors)) if len(predictors) > 1 else 0
        self.time_embeddings = [one.time_emb for one in cores]
        self.coarse = Table(read([one.emb_s1 for one in embeddings]), dtype)
        self.fine = Table(read([one.emb_s2 for one in embeddings]), dtype)
        fusion = read([one.fusion_proj for one in embeddings])
        self.fusion = Product(scale(fusion, math.sqrt(core.d_model)), dtype)  # upstream scales its input
        self.blocks = Blocks([one.transformer for one in cores], dtype)
        self.norm = Norm(core.norm, dtype)
        self.cross = Cross([one.dep_layer for one in cores], dtype)
        self.coarse_head = Product(read([head.proj_s1 for head in heads]), torch.float32)
        self.fine_head = Product(read([head.proj_s2 for head in heads]), torch.float32)

    def rows(self, which: Tensor | None, series: int) -> Rows:
        """Ready for a batch whose series belong to the predictors `which`, (series,); all to the first by default."""
        several = len(self.time_embeddings) > 1
        if several and which is None:
            which = torch.zeros(series, dtype=torch.long, device=self.device)
        return Rows(self, which if several else None)


def _detoured(predictor: Any) -> int:
    """Numbers in a predictor's LoRA matrices."""
    return sum(value.numel() for name, value in predictor.named_parameters() if "lora_" in name)


class Rows:
    """What is before and after a network's blocks, for the rows of one batch."""

    def __init__(self, network: Network, which: Tensor | None) -> None:
        self._network, self.which = network, which
        self.coarse, self._fine = network.coarse.chosen(which), network.fine.chosen(which)
        self._fusion = network.fusion.chosen(which)
        self.coarse_head, self.fine_head = network.coarse_head.chosen(which), network.fine_head.chosen(which)

    def embed(self, tokens: Sequence[Tensor]) -> Tensor:
        """s1 and s2, (series, tokens) each -> (series, tokens, width)."""
        return self._fusion(torch.cat([self.coarse(tokens[0]), self._fine(tokens[1])], dim=-1))

    def stamps(self, stamps: Tensor) -> Tensor:
        """(series, bars, 5) -> (series, bars, width)."""
        network = self._network
        if self.which is None:
            embedded: Tensor = network.time_embeddings[0](stamps)
            return embedded.to(network.dtype)
        result = torch.empty(*stamps.shape[:2], network.width, dtype=network.dtype, device=network.device)
        for place in self.which.unique().tolist():
            rows = self.which == place
            result[rows] = network.time_embeddings[place](stamps[rows]).to(network.dtype)
        return result


class Bars:
    """The weights of a tokenizer's decoder, from tokens back to bars; always in float32."""

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        (tokenizer,) = tokenizers
        self.embed = Product(read([tokenizer.post_quant_embed]), torch.float32)
        self.blocks = Blocks([tokenizer.decoder], torch.float32)
        self.values = Product(read([tokenizer.head]), torch.float32)
