"""A few kernels detect a change of weights on a GPU, for any number of adapters on a base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_predictor

from kronos_pipeline.model.decode.weight_cache import weights_state
from kronos_pipeline.model.modules import copy_sharing_weights

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def adapters(count: int) -> list[Any]:
    base = tiny_predictor(n_layers=4).to("cuda")
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "w2"], init_lora_weights=False)
    return [get_peft_model(copy_sharing_weights(base), settings) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 16])
def test_the_weights_are_read_by_few_kernels_and_copied_once(count: int) -> None:
    simcuda = pytest.importorskip("simcuda")
    stack = adapters(count)
    weights_state(stack)
    with simcuda.watching() as watch:
        weights_state(stack)
    assert watch.counts["kernels"] <= 10
    assert sum(watch.syncs.values()) == 1


def test_each_change_is_seen() -> None:
    stack = adapters(3)
    before = weights_state(stack)
    assert weights_state(stack) == before
    base = stack[0].get_base_model()
    lora = stack[2].get_base_model().transformer[1].self_attn.q_proj.lora_B["default"]
    for weight in (base.transformer[0].ffn.w1.weight, base.norm.weight, lora.weight):
        weight.data.neg_()
        after = weights_state(stack)
        assert after != before
        before = after
    rows = base.embedding.emb_s1.weight
    rows.data.copy_(rows.flip(0).clone())
    assert weights_state(stack) != before
