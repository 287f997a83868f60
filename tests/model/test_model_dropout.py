"""Fast dropout on a CPU keeps PyTorch's guarantees: the share, the mean, the mask of a seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_predictor
from torch import nn

from kronos_pipeline.model.dropout import FastDropout, dropout, replace_dropout


@pytest.mark.parametrize("p", [0.05, 0.2, 0.9])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_share_and_the_mean_are_as_asked(p: float, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    values = dropout(torch.ones(400_001, dtype=kind), p)
    assert values.dtype == kind
    assert float((values == 0).double().mean()) == pytest.approx(p, abs=0.004)
    assert values.double().mean().item() == pytest.approx(1, rel=0.02)
    assert len(values.unique()) == 2


@settings(max_examples=30)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), p=st.floats(1e-7, 1, exclude_max=True))
def test_any_shape_and_share_will_do(shape: list[int], p: float) -> None:
    values = dropout(torch.ones(shape), p)
    assert values.shape == torch.Size(shape)
    assert torch.isfinite(values).all()


def test_neighbours_are_drawn_apart() -> None:
    torch.manual_seed(0)
    mask = (dropout(torch.ones(100_000, 4), 0.5) > 0).double()
    correlation = torch.corrcoef(mask.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02


def test_a_restored_generator_draws_the_same_mask_and_the_gradient_passes_it() -> None:
    module, values = FastDropout(0.3).train(), torch.ones(7, 11, requires_grad=True)
    state = torch.get_rng_state()
    first, second = module(values), module(values)
    torch.set_rng_state(state)
    assert torch.equal(module(values), first)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, first)


@pytest.mark.parametrize(("p", "training", "expected"), [(0.5, False, 1.0), (0.0, True, 1.0), (1.0, True, 0.0)])
def test_where_nothing_is_drawn_it_is_pytorchs_own(p: float, training: bool, expected: float) -> None:
    state = torch.get_rng_state()
    assert torch.equal(FastDropout(p).train(training)(torch.ones(50)), torch.full((50,), expected))
    assert torch.equal(torch.get_rng_state(), state)


def test_all_dropouts_of_a_model_and_its_lora_are_replaced_and_keep_share_mode_and_tensors() -> None:
    model = get_peft_model(tiny_predictor(), LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.05))
    model.transformer[1].eval()
    before = {name: (part.p, part.training) for name, part in model.named_modules() if isinstance(part, nn.Dropout)}
    tensors = list(model.state_dict())
    replace_dropout(model)
    after = {name: part for name, part in model.named_modules() if isinstance(part, nn.Dropout)}
    assert {name: (part.p, part.training) for name, part in after.items()} == before
    assert {type(part) for part in after.values()} == {FastDropout}
    assert {p for p, _ in before.values()} >= {0.1, 0.2, 0.05}
    assert list(model.state_dict()) == tensors
