"""The loss of a bar reads neither the bar nor later bars, in train and eval mode, and repeats to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_predictor

from kronos_pipeline.model import losses
from kronos_pipeline.model.losses import teacher_forced_logits, token_loss, token_losses
from kronos_pipeline.model.modules import eval_mode, move, prepare_rotary, rotary_tables

WINDOWS, BARS = 3, 14
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Wrap = Callable[[Any], Any]


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    s1, s2 = (torch.randint(0, 16, (WINDOWS, BARS), generator=generator) for _ in range(2))
    return s1, s2, torch.randint(0, 7, (WINDOWS, BARS, 5), generator=generator)


def with_lora(predictor: Any) -> Any:
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "w1"], init_lora_weights=False)
    return get_peft_model(predictor, config).eval()


@pytest.mark.parametrize("wrap", [lambda predictor: predictor, with_lora], ids=["plain", "lora"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_no_logit_sees_its_own_bar_or_a_later_one(batch: Batch, wrap: Wrap, training: bool) -> None:
    s1, s2, stamps = batch
    predictor = wrap(tiny_predictor(dropout=False)).train(training)
    with torch.no_grad():
        s1_before, s2_before = teacher_forced_logits(predictor, s1, s2, stamps)
        for changed in range(1, BARS):
            later_s1, later_s2, later_stamps = s1.clone(), s2.clone(), stamps.clone()
            later_s1[:, changed + 1 :] = (s1[:, changed + 1 :] + 5) % 16
            later_s2[:, changed:] = (s2[:, changed:] + 5) % 16
            later_stamps[:, changed:] = (stamps[:, changed:] + 1) % 7
            s1_after, s2_after = teacher_forced_logits(predictor, later_s1, later_s2, later_stamps)
            # Logits at t are of bar t + 1; the logits of the bar `changed` may depend on its true s1 alone.
            torch.testing.assert_close(s1_after[:, :changed], s1_before[:, :changed], rtol=0, atol=1e-6)
            torch.testing.assert_close(s2_after[:, :changed], s2_before[:, :changed], rtol=0, atol=1e-6)
            if changed < BARS - 1:
                assert not torch.allclose(s1_after[:, changed:], s1_before[:, changed:], atol=1e-3)


def test_the_fine_logits_know_the_true_coarse_token_of_their_bar(batch: Batch) -> None:
    s1, s2, stamps = batch
    predictor = tiny_predictor()
    other = s1.clone()
    other[:, -1] = (other[:, -1] + 5) % 16
    with torch.no_grad():
        (s1_before, s2_before), (s1_after, s2_after) = (
            teacher_forced_logits(predictor, tokens, s2, stamps) for tokens in (s1, other)
        )
    torch.testing.assert_close(s1_after, s1_before)
    assert not torch.allclose(s2_after[:, -1], s2_before[:, -1], atol=1e-3)


@pytest.mark.parametrize("wrap", [lambda predictor: predictor, with_lora], ids=["plain", "lora"])
@pytest.mark.parametrize("first_target", [1, 8])
def test_in_training_mode_it_is_upstreams_own_loss(batch: Batch, wrap: Wrap, first_target: int) -> None:
    s1, s2, stamps = batch
    predictor = wrap(tiny_predictor(dropout=False)).train()
    scored = slice(first_target - 1, None)
    logits = predictor(s1[:, :-1], s2[:, :-1], stamps[:, :-1], use_teacher_forcing=True, s1_targets=s1[:, 1:])
    targets = [tokens[:, first_target:] for tokens in (s1, s2)]
    upstreams, _, _ = predictor.head.compute_loss(*(part[:, scored] for part in logits), *targets)
    actual_loss = token_loss(predictor, s1, s2, stamps, first_target)
    torch.testing.assert_close(actual_loss, upstreams, rtol=0, atol=1e-6)
    for actual, expected in zip(teacher_forced_logits(predictor, s1, s2, stamps, first_target), logits, strict=True):
        torch.testing.assert_close(actual, expected[:, scored], rtol=0, atol=2e-6)
    trained = [parameter for parameter in predictor.parameters() if parameter.requires_grad]
    gradients = (torch.autograd.grad(loss, trained) for loss in (actual_loss, upstreams))
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("score_limit", [2**23, 0], ids=["scores kept", "scores made again"])
def test_both_ways_of_attention_give_upstreams_logits_in_bfloat16(
    batch: Batch, score_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_SCORES", score_limit)
    predictor = tiny_predictor(dropout=False).train()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = teacher_forced_logits(predictor, *batch, first_target=8)
        s1, s2, stamps = (part[:, :-1] for part in batch)
        upstreams = predictor(s1, s2, stamps, use_teacher_forcing=True, s1_targets=batch[0][:, 1:])
    for actual, expected in zip(logits, upstreams, strict=True):
        torch.testing.assert_close(actual, expected[:, 7:], rtol=0.02, atol=0.03)


@pytest.mark.parametrize("changes", [{}, {"attention": 0.5}], ids=["as published", "dropout in the cross-attention"])
def test_two_evaluations_are_equal_to_the_bit(batch: Batch, changes: dict[str, float]) -> None:
    predictor = tiny_predictor(dropout=True)
    predictor.dep_layer.cross_attn.attn_dropout_p = changes.get("attention", 0.0)
    first, second = (token_losses(predictor, *batch, first_target=8) for _ in range(2))
    assert torch.equal(first, second)


def test_evaluation_is_training_without_dropout(batch: Batch) -> None:
    predictor = tiny_predictor(dropout=False)
    in_eval = token_losses(predictor, *batch, first_target=8)
    assert torch.equal(token_losses(predictor.train(), *batch, first_target=8), in_eval)


def test_training_has_its_dropout(batch: Batch) -> None:
    predictor = tiny_predictor(dropout=True).train()
    assert not torch.equal(*(token_losses(predictor, *batch, first_target=8) for _ in range(2)))


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_dropout_are_as_before(batch: Batch, training: bool) -> None:
    predictor = tiny_predictor().train(training)
    predictor.dep_layer.cross_attn.attn_dropout_p = 0.3
    token_loss(predictor, *batch, first_target=8)
    assert all(part.training is training for part in predictor.modules())
    assert predictor.dep_layer.cross_attn.attn_dropout_p == 0.3


def test_only_targets_from_the_first_on_count(batch: Batch) -> None:
    predictor = tiny_predictor()
    s1_logits, s2_logits = teacher_forced_logits(predictor, *batch)
    by_hand = torch.zeros(WINDOWS)
    for window in range(WINDOWS):
        for bar in range(10, BARS):
            for logits, tokens in ((s1_logits, batch[0]), (s2_logits, batch[1])):
                by_hand[window] -= logits[window, bar - 1].log_softmax(-1)[tokens[window, bar]] / 2 / (BARS - 10)
    losses = token_losses(predictor, *batch, first_target=10)
    torch.testing.assert_close(losses, by_hand)
    torch.testing.assert_close(token_loss(predictor, *batch, first_target=10), by_hand.mean())


@pytest.mark.parametrize("first_target", [0, BARS])
def test_a_target_outside_of_the_window_is_refused(batch: Batch, first_target: int) -> None:
    with pytest.raises(ValueError, match="first_target"):
        token_loss(tiny_predictor(), *batch, first_target=first_target)


@pytest.mark.parametrize("kind", [torch.uint16, torch.uint8, torch.int32])
def test_small_integers_will_do(batch: Batch, kind: torch.dtype) -> None:
    predictor = tiny_predictor()
    s1, s2, stamps = (part.to(kind) for part in batch)
    assert torch.equal(
        token_loss(predictor, s1, s2, stamps, first_target=8), token_loss(predictor, *batch, first_target=8)
    )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_low_precision_changes_little_and_trains(batch: Batch, kind: torch.dtype) -> None:
    predictor = tiny_predictor(dropout=False).train()
    exact = token_loss(predictor, *batch, first_target=8)
    with torch.autocast("cpu", kind):
        rough = token_loss(predictor, *batch, first_target=8)
    rough.backward()
    assert rough.dtype == torch.float32
    assert abs(rough.item() - exact.item()) < 0.02
    assert all(torch.isfinite(parameter.grad).all() for parameter in predictor.parameters())


def test_rotations_are_upstreams_and_exact_inside_autocast() -> None:
    # 300 bars: bfloat16 does not tell all whole numbers above 256 apart.
    rotary, generator = tiny_predictor().transformer[0].self_attn.rotary, torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 2, 300, 8, generator=generator)
    expected, _ = rotary(vectors, vectors)
    with torch.autocast("cpu", torch.bfloat16):
        cos, sin = rotary_tables(rotary, 300)
    torch.testing.assert_close(vectors * cos + vectors.roll(4, dims=-1) * sin, expected, rtol=0, atol=1e-6)


def test_a_cache_made_in_inference_mode_does_not_stop_training(batch: Batch) -> None:
    predictor = tiny_predictor()
    with torch.inference_mode():
        predictor.decode_s1(batch[0][:, :-1], batch[1][:, :-1])
    token_loss(predictor.train(), *batch, first_target=8).backward()
    assert predictor.norm.weight.grad is not None


def test_a_moved_model_has_no_cache_of_its_former_device() -> None:
    predictor = tiny_predictor()
    prepare_rotary(predictor, 9)
    rotary = predictor.transformer[0].self_attn.rotary
    assert rotary.cos_cached.shape[-2] == 9
    move(predictor, torch.device("meta"))
    assert rotary.cos_cached is None
    assert rotary.inv_freq.device.type == "meta"


def test_a_cache_left_on_another_device_is_made_again() -> None:
    predictor = tiny_predictor()
    prepare_rotary(predictor, 9)
    rotary = predictor.transformer[0].self_attn.rotary
    rotary.cos_cached = rotary.cos_cached.to("meta")
    prepare_rotary(predictor, 9)
    assert rotary.cos_cached.device.type == "cpu"


def test_gradients_reach_the_lora_matrices_alone(batch: Batch) -> None:
    predictor = with_lora(tiny_predictor()).train()
    token_loss(predictor, *batch, first_target=8).backward()
    with_gradient = {name for name, parameter in predictor.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in predictor.named_parameters() if "lora_" in name}
    assert any("cross_attn" in name for name in with_gradient)


def test_evaluating_gives_each_part_its_mode_back() -> None:
    predictor = tiny_predictor().train()
    predictor.norm.eval()
    before = copy.deepcopy({name: part.training for name, part in predictor.named_modules()})
    with eval_mode(predictor):
        assert not any(part.training for part in predictor.modules())
    assert {name: part.training for name, part in predictor.named_modules()} == before
