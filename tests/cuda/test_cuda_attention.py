"""Attention on a GPU gets heads and masks that fit its memory-efficient kernels, for any width of the model's heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_predictor, tiny_tokenizer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from kronos_pipeline.model.decode.decoder import Decoder
from kronos_pipeline.model.decode.generate import Prompts
from kronos_pipeline.model.modules import copy_sharing_weights

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def logits_of(device: str, precision: str, width: int) -> Tensor:
    """Return the logits of all steps for series of unequal length, of the base and an adapter, by head width."""
    base, tokenizer = tiny_predictor(d_model=4 * width, n_heads=4).to(device), tiny_tokenizer().to(device)
    torch.manual_seed(1)
    targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    adapter = get_peft_model(copy_sharing_weights(base), config).eval()
    generator, logits_of_steps = torch.Generator().manual_seed(3), []
    s1, s2 = (torch.randint(0, 16, (2, 9), generator=generator) for _ in range(2))
    past, ahead = (torch.randint(0, 7, (2, count, 5), generator=generator) for count in (9, 4))

    def choose(logits: Tensor, *_: int) -> Tensor:
        logits_of_steps.append(logits.cpu())
        return torch.randint(0, 16, logits.shape[:2], generator=generator).to(logits.device)

    Decoder([base, adapter], tokenizer, precision=precision).generate(
        Prompts((s1, s2), past, ahead, torch.tensor([9, 6]), torch.tensor([1, 0])), choose, paths=3, context=64
    )
    return torch.stack(logits_of_steps)


@pytest.mark.parametrize(("precision", "width"), [("fp32", 6), ("fp32", 10), ("bf16", 12), ("bf16", 52)])
def test_heads_and_masks_are_aligned_and_the_numbers_those_of_the_cpu(
    precision: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits_of("cpu", precision, width)
    attention, calls = F.scaled_dot_product_attention, []

    def watched(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **settings: Any) -> Tensor:
        calls.append(1)
        for part in (query, key, value):
            assert part.shape[-1] * part.element_size() % 16 == 0
            assert part.stride(-1) == 1
        if attn_mask is not None:
            assert attn_mask.stride(-1) == 1
            assert all(stride % 8 == 0 for stride in attn_mask.stride()[:-1])
        return attention(query, key, value, attn_mask=attn_mask, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    logits = logits_of("cuda", precision, width)
    assert calls
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 if precision == "fp32" else 0.1)
