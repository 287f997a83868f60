"""Rows of several adapters in one batch have the logits and gradients of PEFT for each adapter alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import tiny_predictor

from kronos_pipeline.model.lora import add_lora
from kronos_pipeline.model.losses import token_losses
from kronos_pipeline.model.multi_lora import MultiLora

LINEAR = ["q_proj", "k_proj", "v_proj", "out_proj", "w1", "w2", "w3"]
EMBEDDINGS = ["month_embed", "day_embed"]
TARGETS = {"linear": LINEAR, "embeddings": EMBEDDINGS, "all": [*LINEAR, *EMBEDDINGS, "emb_s1", "emb_s2", "proj_s2"]}
FIRST_TARGET = 6


def batch_of(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    s1, s2 = (torch.randint(0, 16, (rows, 11), generator=generator) for _ in range(2))
    return {"s1": s1, "s2": s2, "stamps": torch.randint(0, 7, (rows, 11, 5), generator=generator)}


def trained_tensors(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def adapters_of(predictor: Any, targets: list[str], count: int) -> list[Any]:
    """Return PEFT models with different matrices."""
    torch.manual_seed(5)
    models = []
    for _ in range(count):
        model = add_lora(copy.deepcopy(predictor), r=3, alpha=5.0, dropout=0.0, targets=targets)
        for tensor in trained_tensors(model).values():
            torch.nn.init.normal_(tensor, std=0.3)
        models.append(model)
    return models


@pytest.mark.slow
@pytest.mark.parametrize("targets", list(TARGETS))
@pytest.mark.parametrize("counts", [(2, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_each_row_is_its_own_adapters(targets: str, counts: tuple[int, ...], training: bool) -> None:
    predictor = tiny_predictor(dropout=False)
    models = adapters_of(predictor, TARGETS[targets], len(counts))
    multi_lora = MultiLora(predictor, models[0], scaling=5.0 / 3, dropout=0.0)
    multi_lora.predictor.train(training)
    packed = torch.stack([multi_lora.pack(trained_tensors(model)) for model in models]).requires_grad_()
    adapter_of = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    batch = batch_of(sum(counts))
    with multi_lora.serving(packed, adapter_of, even=len(set(counts)) == 1):
        losses = token_losses(multi_lora.predictor, **batch, first_target=FIRST_TARGET)
    (gradient,) = torch.autograd.grad(losses.sum(), packed)
    for number, model in enumerate(models):
        batch_of_adapter = {name: tensor[adapter_of == number] for name, tensor in batch.items()}
        expected = token_losses(model.train(training), **batch_of_adapter, first_target=FIRST_TARGET)
        torch.testing.assert_close(losses[adapter_of == number], expected, rtol=1e-5, atol=1e-6)
        expected.sum().backward()
        gradients = {name: tensor.grad for name, tensor in trained_tensors(model).items()}
        torch.testing.assert_close(multi_lora.unpack(gradient[number]), gradients, rtol=1e-4, atol=1e-5)


def test_bfloat16_products_are_pefts_own_but_for_rounding() -> None:
    predictor = tiny_predictor(dropout=False)
    models = adapters_of(predictor, TARGETS["all"], 2)
    multi_lora = MultiLora(predictor, models[0], scaling=5.0 / 3, dropout=0.0)
    packed = torch.stack([multi_lora.pack(trained_tensors(model)) for model in models])
    batch = batch_of(4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with multi_lora.serving(packed, torch.tensor([0, 0, 1, 1]), even=True):
            losses = token_losses(multi_lora.predictor, **batch, first_target=FIRST_TARGET)
        expected = torch.cat(
            [
                token_losses(model, **{name: tensor[rows] for name, tensor in batch.items()}, first_target=FIRST_TARGET)
                for model, rows in zip(models, (slice(0, 2), slice(2, 4)), strict=True)
            ]
        )
    torch.testing.assert_close(losses, expected, rtol=0.01, atol=0.02)


def test_dropout_falls_on_the_detours_of_linear_targets_while_training() -> None:
    predictor = tiny_predictor(dropout=False)
    (model,) = adapters_of(predictor, LINEAR, 1)
    multi_lora = MultiLora(predictor, model, scaling=5.0 / 3, dropout=0.5)
    packed = multi_lora.pack(trained_tensors(model))[None]

    def losses(training: bool) -> torch.Tensor:
        multi_lora.predictor.train(training)
        with torch.no_grad(), multi_lora.serving(packed, torch.zeros(2, dtype=torch.int64), even=True):
            return token_losses(multi_lora.predictor, **batch_of(2), first_target=FIRST_TARGET)

    assert torch.equal(losses(False), losses(False))
    assert not torch.equal(losses(True), losses(True))
    assert not torch.equal(losses(True), losses(False))


def test_the_base_stays_as_it_is_and_its_memory_is_shared() -> None:
    predictor = tiny_predictor(dropout=False)
    before = [(tensor.clone(), tensor.requires_grad) for tensor in predictor.parameters()]
    (model,) = adapters_of(predictor, LINEAR, 1)
    multi_lora = MultiLora(predictor, model, scaling=1.0, dropout=0.0)
    assert type(predictor.transformer[0].self_attn.q_proj) is torch.nn.Linear
    shared = multi_lora.predictor.transformer[0].self_attn.q_proj.base.weight
    assert shared.data_ptr() == predictor.transformer[0].self_attn.q_proj.weight.data_ptr()
    for tensor, (value, trained) in zip(predictor.parameters(), before, strict=True):
        assert torch.equal(tensor, value)
        assert tensor.requires_grad is trained
