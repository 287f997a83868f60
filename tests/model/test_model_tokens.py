"""Tokens equal upstream's, take two bytes each, and do not depend on the batches of windows."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_tokenizer

from kronos_pipeline.model import tokens as tokens_module
from kronos_pipeline.model.tokens import encode

CPU = torch.device("cpu")


@pytest.fixture
def bars() -> torch.Tensor:
    return torch.randn(7, 11, 6, generator=torch.Generator().manual_seed(0))


def test_they_are_upstreams(bars: torch.Tensor) -> None:
    tokenizer = tiny_tokenizer(bits=10, group_size=5)
    tokens = encode(tokenizer, bars, CPU)
    assert tokens.dtype == torch.int16
    torch.testing.assert_close(tokens.long(), torch.stack(tokenizer.encode(bars, half=True), dim=1))
    assert len(tokens[:, 0].unique()) > 10


@pytest.mark.parametrize("bars_per_call", [1, 40])
def test_batches_change_nothing(bars: torch.Tensor, bars_per_call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    at_once = encode(tokenizer, bars, CPU)
    monkeypatch.setattr(tokens_module, "_BARS_ON_A_CPU", bars_per_call)
    assert torch.equal(encode(tokenizer, bars, CPU), at_once)


def test_a_bars_tokens_do_not_know_later_bars(bars: torch.Tensor) -> None:
    tokenizer = tiny_tokenizer()
    later = bars.clone()
    later[:, 6:] += 1
    before, after = encode(tokenizer, bars, CPU), encode(tokenizer, later, CPU)
    assert torch.equal(after[..., :6], before[..., :6])
    assert (after[..., 6:] != before[..., 6:]).any()


def test_no_windows_give_no_tokens() -> None:
    assert encode(tiny_tokenizer(), torch.empty(0, 11, 6), CPU).shape == (0, 2, 11)


def test_the_tokenizer_can_train_afterwards(bars: torch.Tensor) -> None:
    tokenizer = tiny_tokenizer().train()
    with torch.inference_mode():
        encode(tokenizer, bars, CPU)
    reconstructed, *_ = tokenizer(bars)
    reconstructed[1].sum().backward()
    assert tokenizer.embed.weight.grad is not None
