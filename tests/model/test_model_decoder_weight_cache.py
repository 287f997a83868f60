"""Packed weights are cached as long as a model lives and its weights do not change."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_predictor, tiny_tokenizer
from torch import Tensor

from kronos_pipeline.model.decode import weight_cache as module
from kronos_pipeline.model.decode.decoder import Decoder
from kronos_pipeline.model.decode.generate import Prompts
from kronos_pipeline.model.decode.weight_cache import cached_weights


def adapter() -> Any:
    torch.manual_seed(1)
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "w2"], init_lora_weights=False)
    return get_peft_model(tiny_predictor(), settings).eval()


def last_logits(predictor: Any) -> Tensor:
    """Return the logits of the third bar's fine token."""
    logits_of_steps: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    s1, s2 = (torch.randint(0, 16, (2, 8), generator=generator) for _ in range(2))
    past, ahead = (torch.randint(0, 7, (2, bars, 5), generator=generator) for bars in (8, 3))

    def watched(logits: Tensor, *_: int) -> Tensor:
        logits_of_steps.append(logits.clone())
        return torch.full(logits.shape[:2], 3)

    Decoder(predictor, tiny_tokenizer()).generate(Prompts((s1, s2), past, ahead), watched, paths=1, context=512)
    return logits_of_steps[-1]


def through_data(predictor: Any) -> None:
    predictor.get_base_model().transformer[0].ffn.w1.weight.data.mul_(1.5)


def in_place(predictor: Any) -> None:
    with torch.no_grad():
        predictor.get_base_model().head.proj_s2.weight[3].add_(0.5)


def of_a_norm(predictor: Any) -> None:
    with torch.no_grad():
        predictor.get_base_model().norm.weight.mul_(2)


def replaced(predictor: Any) -> None:
    predictor.get_base_model().embedding.emb_s1.weight = torch.nn.Parameter(torch.randn(16, 16))


def of_the_adapter(predictor: Any) -> None:
    with torch.no_grad():
        predictor.get_base_model().transformer[1].self_attn.q_proj.lora_B["default"].weight.mul_(3)


def rescaled(predictor: Any) -> None:
    predictor.get_base_model().transformer[0].ffn.w2.scaling["default"] = 1.0


CHANGES = [through_data, in_place, of_a_norm, replaced, of_the_adapter, rescaled]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_are_seen(change: Callable[[Any], None]) -> None:
    predictor = adapter()
    before = last_logits(predictor)
    assert torch.equal(last_logits(predictor), before)
    change(predictor)
    after = last_logits(predictor)
    assert not torch.allclose(after, before, atol=1e-4)
    fresh = adapter()
    fresh.load_state_dict(predictor.state_dict())
    if change is rescaled:
        change(fresh)
    torch.testing.assert_close(after, last_logits(fresh))


def test_an_adapter_that_is_switched_off_or_merged_is_not_added() -> None:
    predictor = adapter()
    with_it = last_logits(predictor)
    with predictor.disable_adapter():
        without = last_logits(predictor)
    torch.testing.assert_close(without, last_logits(tiny_predictor()))
    assert not torch.allclose(without, with_it, atol=1e-4)
    torch.testing.assert_close(last_logits(predictor), with_it)
    predictor.merge_adapter()
    torch.testing.assert_close(last_logits(predictor), with_it)


def test_what_is_kept_is_made_once() -> None:
    factors: list[float] = []

    def make(_: Any, factor: float) -> float:
        factors.append(factor)
        return factor

    layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for layers in ([layer], [layer], [other], [layer], [layer, other]):
        cached_weights(make, layers, 2.0)
    cached_weights(make, [layer], 3.0)
    assert factors == [2.0, 2.0, 2.0, 3.0]


@pytest.mark.slow
def test_nothing_outlives_its_model() -> None:
    predictor = adapter()
    weight = weakref.ref(predictor.get_base_model().embedding.emb_s1.weight)
    last_logits(predictor)
    del predictor
    gc.collect()
    assert weight() is None
    assert not any(value for states, value, watches in module._cache.values() if any(ref() is None for ref in watches))


def test_only_the_latest_few_are_kept() -> None:
    layers = [torch.nn.Linear(2, 2) for _ in range(9)]
    for layer in layers:
        cached_weights(lambda tensors: tensors[0].weight * 2, [layer])
    assert len(module._cache) <= 4
