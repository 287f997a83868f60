"""The decoder's tokens, logits and bars equal upstream's and PEFT's, at every size and in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from recorded_calls import record_calls
from sktime.libs.kronos import auto_regressive_inference
from tiny_models import NO_DROPOUT, tiny_predictor, tiny_tokenizer
from torch import Tensor

from kronos_pipeline.errors import ModelError, SettingsError
from kronos_pipeline.model.decode import generate, linear
from kronos_pipeline.model.decode.decoder import Decoder, group_into_decoders
from kronos_pipeline.model.decode.generate import Prompts, StaticStep
from kronos_pipeline.model.decode.kv_cache import MAX_GROUP_PATHS
from kronos_pipeline.model.losses import teacher_forced_logits
from kronos_pipeline.model.modules import copy_sharing_weights
from kronos_pipeline.model.upstream import Kronos, KronosTokenizer

BITS = 6
TOKENIZER = {"d_in": 6, "d_model": 256, "n_heads": 4, "ff_dim": 512, "n_enc_layers": 4, "n_dec_layers": 4}
QUANTISER = {"beta": 0.05, "gamma0": 1.0, "gamma": 1.1, "zeta": 0.05, "group_size": 5}
SIZES = {
    "mini": {"n_layers": 4, "d_model": 256, "n_heads": 4, "ff_dim": 512},
    "small": {"n_layers": 8, "d_model": 512, "n_heads": 8, "ff_dim": 1024},
    "base": {"n_layers": 12, "d_model": 832, "n_heads": 16, "ff_dim": 2048},
}


@dataclass(frozen=True)
class Given:
    """Return normalised bars and stamps of some series."""

    bars: Tensor
    past: Tensor
    ahead: Tensor

    def of(self, row: int, length: int | None = None) -> Given:
        first = 0 if length is None else self.bars.shape[1] - length
        return Given(self.bars[[row], first:], self.past[[row], first:], self.ahead[[row]])


def given(series: int, bars: int, horizon: int) -> Given:
    generator = torch.Generator().manual_seed(1)
    stamps = [torch.randint(0, 7, (series, count, 5), generator=generator) for count in (bars, horizon)]
    return Given(torch.randn(series, bars, 6, generator=generator).clamp(-5, 5), *stamps)


def greedy(logits: Tensor, *_: int) -> Tensor:
    return logits.argmax(dim=-1)


class Recorder:
    """Token picker that draws from the logits with its own seed, and records both."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self._drawn = torch.Generator().manual_seed(2)

    def __call__(self, logits: Tensor, *_: int) -> Tensor:
        noise = torch.rand(logits.shape, generator=self._drawn).log().neg().log().neg()
        self.logits.append(logits.clone())
        self.tokens.append((logits + noise).argmax(dim=-1))
        return self.tokens[-1]


def sharp(predictor: Any) -> Any:
    """Sharpen the attention as training does, so that positions matter."""
    with torch.no_grad():
        for projection in ("q_proj", "k_proj", "out_proj"):
            getattr(predictor.dep_layer.cross_attn, projection).weight.mul_(10)
    return predictor


def with_lora(predictor: Any, seed: int, targets: Sequence[str], r: int = 2, **settings: Any) -> Any:
    """Add an adapter to a copy of a predictor."""
    torch.manual_seed(seed)
    config = LoraConfig(r=r, target_modules=list(targets), init_lora_weights=False, **settings)
    return get_peft_model(copy_sharing_weights(predictor), config).eval()


def adapters(predictor: Any) -> list[Any]:
    """Return the base, and adapters of several ranks on several modules, embeddings among them."""
    attention = ["q_proj", "k_proj", "v_proj", "out_proj"]
    return [
        with_lora(predictor, 1, [*attention, "w1", "w2", "w3"], r=4),
        predictor,
        with_lora(predictor, 2, ["v_proj", "w3", "emb_s1", "proj_s2", "day_embed", "month_embed"]),
        with_lora(predictor, 3, ["fusion_proj", "emb_s2", "proj_s1", "k_proj"], r=3, use_rslora=True),
    ]


def random_model(size: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    bits = {"s1_bits": 10, "s2_bits": 10}
    predictor = Kronos(**SIZES[size], **bits, **NO_DROPOUT, token_dropout_p=0.0, learn_te=True).eval()
    return sharp(predictor), KronosTokenizer(**TOKENIZER, **bits, **QUANTISER, **NO_DROPOUT).eval()


def upstreams(model: Any, tokenizer: Any, inputs: Given, context: int) -> np.ndarray:
    """Return the greedy bars of upstream's loop, (series, horizon, 6)."""
    parts = inputs.bars, inputs.past.float(), inputs.ahead.float()
    horizon = inputs.ahead.shape[1]
    settings: dict[str, Any] = {"top_k": 1, "top_p": 1.0, "sample_count": 1}
    result: np.ndarray = auto_regressive_inference(tokenizer, model, *parts, context, horizon, **settings)
    return result[:, -horizon:]


def decoded(decoder: Decoder, inputs: Given, context: int, paths: int = 1, **settings: Any) -> tuple[Tensor, Tensor]:
    """Return tokens (series, paths, horizon, s1 and s2), and bars."""
    known = decoder.encode(inputs.bars)
    prompts = Prompts(known, inputs.past, inputs.ahead, predictor_index=settings.pop("predictor_index", None))
    tokens = decoder.generate(prompts, settings.pop("choose", greedy), paths=paths, context=context, **settings)
    return torch.stack(tokens, dim=-1), decoder.decode(known, tokens, context=context)


def teacher_forced(predictor: Any, tokens: Sequence[Tensor], inputs: Given) -> list[Tensor]:
    """Return training's logits at each step ahead, for tokens of (series, bars + horizon) each."""
    s1, s2 = tokens
    stamps = torch.cat([inputs.past, inputs.ahead], dim=1)
    with torch.no_grad():
        return [part[:, inputs.past.shape[1] - 1 :] for part in teacher_forced_logits(predictor, s1, s2, stamps)]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_greedy_bars_of_a_published_size_are_upstreams(size: str) -> None:
    predictor, tokenizer = random_model(size)
    inputs = given(2, 9, 3)
    decoder = Decoder(predictor, tokenizer)
    for context in (512, 10):  # within the context, and beyond it
        _, bars = decoded(decoder, inputs, context, s2_position="first")
        np.testing.assert_allclose(bars[:, 0], upstreams(predictor, tokenizer, inputs, context), atol=1e-5)


@pytest.mark.slow
@hypothesis.settings(max_examples=40)
@hypothesis.example(bars=20, horizon=10, context=100, paths=2)  # the whole fits
@hypothesis.example(bars=20, horizon=10, context=25, paths=MAX_GROUP_PATHS + 1)  # the window begins to slide on the way
@hypothesis.example(bars=20, horizon=10, context=12, paths=2)  # it slides from the start
@hypothesis.given(
    bars=st.integers(1, 24), horizon=st.integers(1, 10), context=st.integers(10, 40), paths=st.integers(1, 20)
)
def test_within_and_beyond_the_context_bars_are_upstreams(bars: int, horizon: int, context: int, paths: int) -> None:
    predictor, tokenizer = sharp(tiny_predictor(bits=BITS)), tiny_tokenizer(bits=BITS)
    inputs = given(2, bars, horizon)
    _, result = decoded(Decoder(predictor, tokenizer), inputs, context, paths, s2_position="first")
    expected = upstreams(predictor, tokenizer, inputs, context)[:, None].repeat(paths, axis=1)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_paths_that_outlive_the_known_bars_go_on_from_their_own() -> None:
    predictor, tokenizer = tiny_predictor(bits=BITS), tiny_tokenizer(bits=BITS)
    inputs, recorder, context = given(2, 4, 9), Recorder(), 6
    decoder = Decoder(predictor, tokenizer)
    known = decoder.encode(inputs.bars)
    prompts = Prompts(known, inputs.past, inputs.ahead)
    sampled = decoder.generate(prompts, recorder, paths=3, context=context, s2_position="first")
    stamps = torch.cat([inputs.past, inputs.ahead], dim=1)
    for path in range(3):
        tokens = [torch.cat([old, new[:, path]], dim=1) for old, new in zip(known, sampled, strict=True)]
        for step in range(9):
            window = slice(max(0, 4 + step - context), 4 + step)
            with torch.no_grad():
                coarse, hidden = predictor.decode_s1(*(level[:, window] for level in tokens), stamps[:, window])
                fine = predictor.decode_s2(hidden, tokens[0][:, 4 + step, None])
            for expected, logits in zip((coarse, fine), recorder.logits[2 * step : 2 * step + 2], strict=True):
                torch.testing.assert_close(logits[:, path], expected[:, -1], rtol=0, atol=1e-4)
    with pytest.raises(SettingsError, match="9 bars of horizon exceed the context, 6"):
        decoder.decode(known, sampled, context=context)


@pytest.mark.parametrize("adapter_of", [[0, 1, 2, 3], [2, 0, 0, 2], [1, 1, 1, 1]])
def test_each_series_is_drawn_from_its_own_adapters_logits(adapter_of: list[int]) -> None:
    stack, tokenizer = adapters(tiny_predictor(bits=BITS)), tiny_tokenizer(bits=BITS)
    inputs, recorder, paths = given(4, 15, 5), Recorder(), MAX_GROUP_PATHS + 3
    decoder = Decoder(stack, tokenizer)
    tokens, _ = decoded(decoder, inputs, 512, paths, choose=recorder, predictor_index=torch.tensor(adapter_of))
    known = decoder.encode(inputs.bars)
    for row, number in enumerate(adapter_of):
        for path in (0, MAX_GROUP_PATHS - 1, MAX_GROUP_PATHS, paths - 1):
            all_tokens = tuple(
                torch.cat([known[level][[row]], tokens[[row], path, :, level]], dim=1) for level in (0, 1)
            )
            expected = teacher_forced(stack[number], all_tokens, inputs.of(row))
            for level in (0, 1):
                path_logits = torch.stack([logits[row, path] for logits in recorder.logits[level::2]])
                torch.testing.assert_close(path_logits, expected[level][0], rtol=0, atol=1e-4)


def test_a_listed_adapter_is_not_merged_so_company_changes_nothing() -> None:
    stack, tokenizer, inputs = adapters(tiny_predictor(bits=BITS)), tiny_tokenizer(bits=BITS), given(2, 15, 5)
    logits = []
    for group in (stack, stack[:2], stack[:1], stack[0]):
        recorder = Recorder()
        decoded(
            Decoder(group, tokenizer), inputs, 512, 3, choose=recorder, predictor_index=torch.zeros(2, dtype=torch.long)
        )
        logits.append(torch.stack(recorder.logits[:2]))
    for listed_logits in logits[1:3]:
        torch.testing.assert_close(listed_logits, logits[0], rtol=0, atol=1e-7)
    assert not torch.equal(logits[3], logits[2])  # merged: the same to float tolerance only


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"lora_bias": True}], ids=["lora", "dora", "with bias"])
def test_one_adapter_of_any_kind_gives_pefts_own_logits(settings: dict[str, Any], listed: bool) -> None:
    adapter = with_lora(tiny_predictor(bits=BITS), 1, ["q_proj", "out_proj", "proj_s1"], **settings)
    inputs, recorder = given(2, 15, 4), Recorder()
    decoder = Decoder([adapter] if listed else adapter, tiny_tokenizer(bits=BITS))
    tokens, _ = decoded(decoder, inputs, 512, choose=recorder)
    known = decoder.encode(inputs.bars)
    all_tokens = tuple(torch.cat([known[level], tokens[:, 0, :, level]], dim=1) for level in (0, 1))
    for level, expected in enumerate(teacher_forced(adapter, all_tokens, inputs)):
        level_logits = torch.stack([logits[:, 0] for logits in recorder.logits[level::2]], dim=1)
        torch.testing.assert_close(level_logits, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("context", [512, 22])
@pytest.mark.parametrize("position", ["true", "first"])
def test_series_of_unequal_length_are_as_each_alone(context: int, position: str) -> None:
    stack, tokenizer = adapters(sharp(tiny_predictor(bits=BITS))), tiny_tokenizer(bits=BITS)
    inputs, lengths, adapter_of = given(4, 20, 6), torch.tensor([20, 7, 13, 2]), torch.tensor([3, 1, 0, 2])
    decoder = Decoder(stack, tokenizer)
    known = decoder.encode(inputs.bars, lengths)
    settings: dict[str, Any] = {"paths": 2, "context": context, "s2_position": position}
    tokens = decoder.generate(Prompts(known, inputs.past, inputs.ahead, lengths, adapter_of), greedy, **settings)
    bars = decoder.decode(known, tokens, context=context, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        single = Decoder(stack[int(adapter_of[row])], tokenizer)
        inputs_of_row = inputs.of(row, length)
        known_of_row = single.encode(inputs_of_row.bars)
        tokens_of_row = single.generate(
            Prompts(known_of_row, inputs_of_row.past, inputs_of_row.ahead), greedy, **settings
        )
        for level in (0, 1):
            assert torch.equal(known[level][row, -length:], known_of_row[level][0])
            assert torch.equal(tokens[level][row], tokens_of_row[level][0])
        torch.testing.assert_close(bars[row], single.decode(known_of_row, tokens_of_row, context=context)[0])


@pytest.mark.parametrize("position", ["true", "first"])
def test_a_step_as_a_gpu_replays_it_gives_the_same(position: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Recording takes CUDA; the step that stands in one place and looks at all keys there will be is tried here.
    stack, tokenizer = adapters(sharp(tiny_predictor(bits=BITS))), tiny_tokenizer(bits=BITS)
    inputs, lengths, adapter_of = given(4, 12, 7), torch.tensor([12, 5, 12, 9]), torch.tensor([3, 1, 0, 2])
    settings: dict[str, Any] = {"paths": 3, "s2_position": position}
    logits, steps = [], record_calls(monkeypatch, StaticStep, "set_step")
    for kinds in (("cuda",), ("cpu",)):
        monkeypatch.setattr(generate, "REPLAYED", kinds)
        for context in (512, 15):
            recorder, decoder = Recorder(), Decoder(stack, tokenizer)
            known = decoder.encode(inputs.bars, lengths)
            prompts = Prompts(known, inputs.past, inputs.ahead, lengths, adapter_of)
            decoder.generate(prompts, recorder, context=context, **settings)
            logits.append(torch.stack(recorder.logits))
    assert [step for _, step in steps] == [*range(6), *range(3)]
    torch.testing.assert_close(logits[:2], logits[2:], rtol=0, atol=1e-4)


def test_what_is_kept_of_a_batch_serves_other_series_of_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, tokenizer = adapters(sharp(tiny_predictor(bits=BITS))), tiny_tokenizer(bits=BITS)
    decoder, logits = Decoder(stack, tokenizer), []
    batches = [([12, 5, 9], [3, 1, 0]), ([4, 12, 7], [0, 2, 2]), ([12, 5, 9], [3, 1, 0])]
    for kinds in (("cuda",), ("cpu",)):
        monkeypatch.setattr(generate, "REPLAYED", kinds)
        for seed, (lengths, adapter_of) in enumerate(batches):
            inputs, bars_of_series, recorder = given(3, 12, 5), torch.tensor(lengths), Recorder()
            known = decoder.encode(inputs.bars * (1 + seed), bars_of_series)
            prompts = Prompts(known, inputs.past, inputs.ahead, bars_of_series, torch.tensor(adapter_of))
            decoder.generate(prompts, recorder, paths=2, context=512)
            logits.append(torch.stack(recorder.logits))
    torch.testing.assert_close(logits[:3], logits[3:], rtol=0, atol=1e-4)


def test_known_tokens_are_the_tokenizers_own() -> None:
    tokenizer, inputs = tiny_tokenizer(bits=BITS), given(3, 20, 1)
    s1, s2 = Decoder(tiny_predictor(bits=BITS), tokenizer).encode(inputs.bars)
    expected = tokenizer.encode(inputs.bars, half=True)
    assert torch.equal(s1, expected[0])
    assert torch.equal(s2, expected[1])


@pytest.mark.slow
def test_half_precision_stays_near_single() -> None:
    # bf16 keeps 8 bits, so a rounding is of up to 0.4 %. Logits are compared with their own spread.
    predictor, tokenizer = random_model("small")
    inputs, logits = given(2, 24, 4), {}
    forced = torch.randint(0, 1024, (4, 2, 2, 3), generator=torch.Generator().manual_seed(3))
    for precision in ("fp32", "bf16"):
        logits_of_steps: list[Tensor] = []

        def the_same(
            logits_of_step: Tensor, step: int, level: int, logits_of_steps: list[Tensor] = logits_of_steps
        ) -> Tensor:
            logits_of_steps.append(logits_of_step.clone())
            return forced[step, level]

        decoded(Decoder(predictor, tokenizer, precision=precision), inputs, 512, 3, choose=the_same)
        logits[precision] = torch.stack(logits_of_steps)
        assert logits[precision].dtype == torch.float32
    error = (logits["bf16"] - logits["fp32"]).std() / logits["fp32"].std()
    assert 1e-4 < error < 0.02, error


def test_without_packed_products_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, tokenizer, inputs = tiny_predictor(bits=BITS), tiny_tokenizer(bits=BITS), given(2, 12, 4)
    results, calls = [], record_calls(monkeypatch, linear, "_multiply")
    for can in (linear.can_pack(torch.float32), False):
        calls.clear()
        monkeypatch.setattr(linear, "can_pack", lambda _, can=can: can)
        predictor = copy_sharing_weights(predictor)
        results.append(decoded(Decoder(predictor, copy_sharing_weights(tokenizer)), inputs, 512, paths=3))
        assert bool(calls) is can
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_onednns_operators_are_still_there() -> None:
    # They are not public. Without them decoding takes twice the time: decode/linear.py then needs another way.
    assert linear.can_pack(torch.float32) == torch.backends.mkldnn.is_available()


def test_the_modules_stay_as_they_are() -> None:
    predictor, tokenizer = tiny_predictor(bits=BITS).train(), tiny_tokenizer(bits=BITS).train()
    before = [(name, value.clone()) for module in (predictor, tokenizer) for name, value in module.state_dict().items()]
    expected = decoded(Decoder(tiny_predictor(bits=BITS), tiny_tokenizer(bits=BITS)), given(2, 12, 3), 512)
    result = decoded(Decoder(predictor, tokenizer), given(2, 12, 3), 512)
    assert torch.equal(result[0], expected[0])
    assert predictor.training
    assert tokenizer.training
    after = [(name, value) for module in (predictor, tokenizer) for name, value in module.state_dict().items()]
    assert all(was[0] == now[0] and torch.equal(was[1], now[1]) for was, now in zip(before, after, strict=True))
    assert not result[1].is_inference()  # so it can be changed in place, and trained on


def test_predictors_of_other_weights_share_no_decoder() -> None:
    first, second, tokenizer = tiny_predictor(0, bits=BITS), tiny_predictor(1, bits=BITS), tiny_tokenizer(bits=BITS)
    with pytest.raises(ModelError, match="different weights"):
        Decoder([first, second], tokenizer)
    dora = with_lora(first, 1, ["q_proj"], use_dora=True)
    stack = [first, second, *adapters(first)[2:], dora]
    assert [places for _, places in group_into_decoders(stack, tokenizer)] == [[0], [2], [3], [4], [1]]
    assert [places for _, places in group_into_decoders(stack[:-1], tokenizer)] == [[0, 2, 3], [1]]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SettingsError, match="fp32 or bf16, not in fp16"):
        Decoder(tiny_predictor(), tiny_tokenizer(), precision="fp16")


def test_an_unknown_position_is_refused() -> None:
    decoder = Decoder(tiny_predictor(), tiny_tokenizer())
    with pytest.raises(SettingsError, match="true or first, not last"):
        decoded(decoder, given(1, 4, 2), 512, s2_position="last")
