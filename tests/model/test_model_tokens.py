"""Tokens are upstream's, two bytes each, and do not depend on how windows are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer

from kronos_pipeline.model.tokens import encode

CPU = torch.device("cpu")


@pytest.fixture
def bars() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 11, 6)).astype(np.float32)


def test_they_are_upstreams(bars: np.ndarray) -> None:
    tokenizer = tiny_tokenizer(bits=10, group_size=5)
    s1, s2 = encode(tokenizer, bars, CPU)
    expected = tokenizer.encode(torch.from_numpy(bars), half=True)
    assert s1.dtype == s2.dtype == np.uint16
    np.testing.assert_array_equal(s1, expected[0])
    np.testing.assert_array_equal(s2, expected[1])
    assert len(np.unique(s1)) > 10


def test_batches_change_nothing(bars: np.ndarray) -> None:
    tokenizer = tiny_tokenizer()
    np.testing.assert_array_equal(encode(tokenizer, bars, CPU, batch=3), encode(tokenizer, bars, CPU))


def test_a_bars_tokens_do_not_know_later_bars(bars: np.ndarray) -> None:
    tokenizer = tiny_tokenizer()
    later = bars.copy()
    later[:, 6:] += 1
    before, after = np.stack(encode(tokenizer, bars, CPU)), np.stack(encode(tokenizer, later, CPU))
    np.testing.assert_array_equal(after[..., :6], before[..., :6])
    assert (after[..., 6:] != before[..., 6:]).any()


def test_no_windows_give_no_tokens() -> None:
    s1, s2 = encode(tiny_tokenizer(), np.empty((0, 11, 6), np.float32), CPU)
    assert s1.shape == s2.shape == (0, 11)


def test_the_tokenizer_can_train_afterwards(bars: np.ndarray) -> None:
    tokenizer = tiny_tokenizer().train()
    with torch.inference_mode():
        encode(tokenizer, bars, CPU)
    reconstructed, *_ = tokenizer(torch.from_numpy(bars))
    reconstructed[1].sum().backward()
    assert tokenizer.embed.weight.grad is not None
