"""Sampled paths follow the model's logits, positions and values, in any batch and any chunks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sktime.libs.kronos import auto_regressive_inference, top_k_top_p_filtering
from tiny_models import tiny_predictor, tiny_tokenizer

from kronos_pipeline.base_models import BaseModelSource, WeightsSource
from kronos_pipeline.data.normalisation import denormalise, lookback_statistics, normalise
from kronos_pipeline.errors import ModelError, SettingsError
from kronos_pipeline.model.decode import decoder, sample
from kronos_pipeline.model.decode.decoder import Decoder
from kronos_pipeline.model.decode.generate import Prompts
from kronos_pipeline.model.decode.sample import sample_paths, sample_top_p
from kronos_pipeline.model.loading import KronosModel
from kronos_pipeline.model.losses import teacher_forced_logits
from kronos_pipeline.model.modules import copy_sharing_weights

SERIES, LOOKBACK, HORIZON, PATHS = 3, 20, 8, 5
Series = tuple[np.ndarray, np.ndarray, np.ndarray]
Choices = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
SETTINGS: dict[str, Any] = {"paths": PATHS, "temperature": 1.0, "top_p": 0.9, "seed": 7}


def tiny_model(predictor: Any = None, bits: int = 6, context: int = 512) -> KronosModel:
    weights = WeightsSource("tiny")
    source = BaseModelSource("tiny", weights, weights, context)
    predictor = predictor or tiny_predictor(bits=bits)
    return KronosModel(predictor, tiny_tokenizer(bits=bits), source, torch.device("cpu"), "")


def with_lora(predictor: Any, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "out_proj", "w2", "emb_s1", "proj_s2"]
    return get_peft_model(predictor, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()


@pytest.fixture
def series() -> Series:
    """Return history in price units, past stamps and future stamps."""
    rng = np.random.default_rng(0)
    history = np.exp(rng.normal(0, 0.02, (SERIES, LOOKBACK, 6)).cumsum(axis=1)) * [[[50.0]], [[3.0]], [[4e4]]]
    past, ahead = (rng.integers(0, 7, (SERIES, bars, 5)).astype(np.uint8) for bars in (LOOKBACK, HORIZON))
    return history, past, ahead


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> Choices:
    """Recorder of logits, random numbers and tokens of each call, s1 and s2 in turn."""
    calls: Choices = []

    def watched(logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
        tokens = sample_top_p(logits, draws, temperature, top_p)
        calls.append((logits, draws, tokens))
        return tokens

    monkeypatch.setattr(sample, "sample_top_p", watched)
    return calls


def known_tokens(model: KronosModel, history: np.ndarray) -> list[torch.Tensor]:
    normalised = normalise(history, *lookback_statistics(history))
    return [
        part.repeat_interleave(PATHS, 0) for part in model.tokenizer.encode(torch.from_numpy(normalised), half=True)
    ]


def rows(tokens: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(tokens, dim=-1).flatten(0, 1)


PREDICTORS = {
    "plain": lambda: tiny_predictor(bits=6),
    "lora": lambda: with_lora(tiny_predictor(bits=6)),
    "wide": lambda: tiny_predictor(bits=6, d_model=48, n_heads=6, n_layers=3, learn_te=False),
}


@pytest.mark.parametrize("kind", PREDICTORS)
def test_each_step_is_drawn_from_the_training_logits(kind: str, series: Series, choices: Choices) -> None:
    model = tiny_model(PREDICTORS[kind]())
    history, past, ahead = series
    result = sample_paths(model, history, past, ahead, **SETTINGS)

    known = known_tokens(model, history)
    s1, s2 = (
        torch.cat([known[level], rows([tokens for _, _, tokens in choices[level::2]])], dim=-1) for level in (0, 1)
    )
    stamps = torch.from_numpy(np.concatenate([past, ahead], axis=1)).repeat_interleave(PATHS, 0)
    with torch.no_grad():
        expected = teacher_forced_logits(model.predictor, s1, s2, stamps)
    for level in (0, 1):
        for step in range(HORIZON):
            logits = choices[2 * step + level][0].flatten(0, 1)
            torch.testing.assert_close(logits, expected[level][:, LOOKBACK - 1 + step], rtol=0, atol=1e-4)

    with torch.no_grad():
        values = model.tokenizer.decode([s1, s2], half=True)[:, LOOKBACK:].unflatten(0, (SERIES, PATHS))
    mean, std = lookback_statistics(history)
    np.testing.assert_allclose(result, denormalise(values.numpy(), mean[:, None], std[:, None]), rtol=1e-5)


def test_a_slow_loop_with_upstreams_own_methods_draws_the_same_tokens(series: Series, choices: Choices) -> None:
    model = tiny_model()
    history, past, ahead = series
    sample_paths(model, history, past, ahead, **SETTINGS)
    fast = list(choices)

    s1, s2 = known_tokens(model, history)
    stamps = torch.from_numpy(np.concatenate([past, ahead], axis=1)).long().repeat_interleave(PATHS, 0)
    predictor = model.predictor
    for step in range(HORIZON):
        draws = [fast[2 * step + level][1].flatten() for level in (0, 1)]
        with torch.no_grad():
            logits, hidden = predictor.decode_s1(s1, s2, stamps[:, : LOOKBACK + step])
            coarse = sample_top_p(logits[:, -1], draws[0], 1.0, 0.9)
            # As in training: every position asks with its own next s1, and the last one with that just drawn.
            s1_targets = torch.cat([s1[:, 1:], coarse[:, None]], dim=1)
            predictor.dep_layer.cross_attn.training = True
            fine = sample_top_p(predictor.decode_s2(hidden, s1_targets)[:, -1], draws[1], 1.0, 0.9)
        s1, s2 = torch.cat([s1, coarse[:, None]], dim=1), torch.cat([s2, fine[:, None]], dim=1)
    assert torch.equal(s1[:, LOOKBACK:], rows([tokens for _, _, tokens in fast[0::2]]))
    assert torch.equal(s2[:, LOOKBACK:], rows([tokens for _, _, tokens in fast[1::2]]))


def test_the_first_position_greedily_is_what_upstreams_own_decoding_gives(series: Series) -> None:
    model = tiny_model()
    with torch.no_grad():  # with attention as sharp as training makes it, positions matter
        for projection in ("q_proj", "k_proj", "out_proj"):
            getattr(model.predictor.dep_layer.cross_attn, projection).weight.mul_(10)
    history, past, ahead = series
    mean, std = lookback_statistics(history)
    inputs = [torch.from_numpy(part).float() for part in (normalise(history, mean, std), past, ahead)]
    expected = auto_regressive_inference(
        model.tokenizer, model.predictor, *inputs, 512, HORIZON, top_k=1, top_p=1.0, sample_count=1
    )[:, -HORIZON:]
    greedy = {**SETTINGS, "paths": 1, "top_p": 1e-9}
    first, true = (sample_paths(model, *series, **greedy, s2_position=position)[:, 0] for position in ("first", "true"))
    np.testing.assert_allclose(first, denormalise(expected, mean, std), rtol=1e-5)
    assert not np.allclose(true, first, rtol=1e-5)


def test_the_first_position_draws_each_path_as_a_slow_loop_with_upstreams_own_methods(
    series: Series, choices: Choices
) -> None:
    model = tiny_model(with_lora(tiny_predictor(bits=6)))
    history, past, ahead = series
    sample_paths(model, history, past, ahead, **SETTINGS, s2_position="first")

    s1, s2 = known_tokens(model, history)
    stamps = torch.from_numpy(np.concatenate([past, ahead], axis=1)).long().repeat_interleave(PATHS, 0)
    predictor = model.predictor.get_base_model()
    for step in range(HORIZON):
        (coarse, _, s1_tokens), (fine, _, s2_tokens) = choices[2 * step : 2 * step + 2]
        with torch.no_grad():
            logits, hidden = predictor.decode_s1(s1, s2, stamps[:, : LOOKBACK + step])
            fine_logits = predictor.decode_s2(hidden, s1_tokens.flatten()[:, None])
        torch.testing.assert_close(coarse.flatten(0, 1), logits[:, -1], rtol=0, atol=1e-4)
        torch.testing.assert_close(fine.flatten(0, 1), fine_logits[:, -1], rtol=0, atol=1e-4)
        s1, s2 = (
            torch.cat([known, new.flatten()[:, None]], dim=1) for known, new in ((s1, s1_tokens), (s2, s2_tokens))
        )


def test_the_result_is_in_each_series_own_units(series: Series) -> None:
    history, past, ahead = series
    result = sample_paths(tiny_model(), history, past, ahead, **SETTINGS)
    assert result.shape == (SERIES, PATHS, HORIZON, 6)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result.mean(axis=(1, 2, 3)), history.mean(axis=(1, 2)), rtol=0.3)


def test_sampled_bars_are_counted_as_they_are_sampled(series: Series) -> None:
    counts: list[int] = []
    counted = sample_paths(tiny_model(), *series, **SETTINGS, on_bars=counts.append)
    assert (len(counts), sum(counts)) == (HORIZON, SERIES * PATHS * HORIZON)
    np.testing.assert_array_equal(counted, sample_paths(tiny_model(), *series, **SETTINGS))


def test_a_series_gets_the_same_paths_alone_and_in_company(series: Series) -> None:
    model = tiny_model()
    joint = sample_paths(model, *series, **SETTINGS)
    single = [sample_paths(model, *(part[i : i + 1] for part in series), **SETTINGS)[0] for i in range(SERIES)]
    np.testing.assert_allclose(joint, single, rtol=1e-6)
    reordered = sample_paths(model, *(part[::-1] for part in series), **SETTINGS)
    np.testing.assert_allclose(joint, reordered[::-1], rtol=1e-6)


@pytest.mark.parametrize("room", [1, 2**17])
def test_chunks_change_nothing(series: Series, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    expected = sample_paths(tiny_model(), *series, **SETTINGS)
    monkeypatch.setattr(sample, "memory_budget", lambda _: room)
    np.testing.assert_allclose(sample_paths(tiny_model(), *series, **SETTINGS), expected, rtol=1e-6)


def test_chunks_are_as_small_as_memory_asks(series: Series, choices: Choices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "memory_budget", lambda _: 1)
    sample_paths(tiny_model(), *series, **SETTINGS)
    assert {logits.shape[:2] for logits, _, _ in choices} == {(1, 1)}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_where_memory_runs_out_halves_are_tried(
    series: Series, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, parts, generate = sample_paths(tiny_model(), *series, **SETTINGS), [], Decoder.generate

    def short_of_memory(self: Decoder, prompts: Prompts, *arguments: Any, paths: int, **settings: Any) -> Any:
        series = len(prompts.tokens[0])
        parts.append((series, paths))
        if series * paths > PATHS:
            raise error
        return generate(self, prompts, *arguments, paths=paths, **settings)

    monkeypatch.setattr(Decoder, "generate", short_of_memory)
    np.testing.assert_allclose(sample_paths(tiny_model(), *series, **SETTINGS), expected, rtol=1e-6)
    assert parts[:2] == [(3, PATHS), (1, PATHS)]
    assert sum(series * paths for series, paths in parts if series * paths <= PATHS) == SERIES * PATHS


def test_another_error_is_told(series: Series, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample_paths(tiny_model(), *series, **SETTINGS)


def test_series_of_several_models_are_as_each_alone(series: Series, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_model()
    adapters = [replace(base, predictor=with_lora(copy_sharing_weights(base.predictor), seed)) for seed in (1, 2)]
    other = tiny_model(tiny_predictor(seed=5, bits=6))
    models = [adapters[0], base, other, adapters[1], adapters[0], base]
    series_of_models = [np.concatenate([part, part[::-1]]) for part in series]
    settings = {**SETTINGS, "temperature": [0.7, 1.0, 1.3, 0.9, 1.0, 1.1], "top_p": [0.9, 1.0, 0.5, 0.9, 0.8, 0.7]}
    settings["seed"] = [1, 2, 3, 4, 5, 6]
    joint = sample_paths(models, *series_of_models, **settings)
    for row, model in enumerate(models):
        settings_of_row = {name: value[row] if isinstance(value, list) else value for name, value in settings.items()}
        single = sample_paths(model, *(part[[row]] for part in series_of_models), **settings_of_row)
        np.testing.assert_allclose(joint[row], single[0], rtol=1e-5)
    monkeypatch.setattr(decoder, "_MAX_PREDICTORS", 2)
    np.testing.assert_allclose(sample_paths(models, *series_of_models, **settings), joint, rtol=1e-5)


def test_models_that_share_a_base_are_decoded_at_once(series: Series, choices: Choices) -> None:
    base = tiny_model()
    adapters = [replace(base, predictor=with_lora(copy_sharing_weights(base.predictor), seed)) for seed in (1, 2)]
    sample_paths([*adapters, base], *series, **SETTINGS)
    assert {logits.shape[:2] for logits, _, _ in choices} == {(3, PATHS)}


@pytest.mark.parametrize("part", ["proj_s1", "proj_s2"])
def test_logits_that_are_not_finite_are_told_by_the_models_name(series: Series, part: str) -> None:
    sound, broken = tiny_model(), tiny_model()
    broken = replace(broken, source=replace(broken.source, name="broken"))
    getattr(broken.predictor.head, part).weight.data[3] = torch.nan
    with pytest.raises(ModelError, match=r"broken.* not finite"):
        sample_paths([sound, broken, sound], *series, **SETTINGS)


def test_as_many_models_as_series_are_needed(series: Series) -> None:
    with pytest.raises(SettingsError, match="2 models for 3 series"):
        sample_paths([tiny_model()] * 2, *series, **SETTINGS)


def test_half_precision_is_asked_for(series: Series) -> None:
    single, half = (sample_paths(tiny_model(), *series, **SETTINGS, precision=kind) for kind in ("fp32", "bf16"))
    assert np.isfinite(half).all()
    assert not np.array_equal(single, half)


def test_more_paths_keep_the_first_ones(series: Series) -> None:
    few, many = (sample_paths(tiny_model(), *series, **{**SETTINGS, "paths": paths}) for paths in (2, 6))
    np.testing.assert_allclose(many[:, :2], few, rtol=1e-6)


def test_a_seed_repeats_itself_and_another_does_not(series: Series) -> None:
    first, second = (sample_paths(tiny_model(), *series, **SETTINGS) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, sample_paths(tiny_model(), *series, **{**SETTINGS, "seed": 8}))


def test_the_global_generator_plays_no_part(series: Series) -> None:
    model = tiny_model()
    state = torch.get_rng_state()
    first = sample_paths(model, *series, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    np.testing.assert_array_equal(sample_paths(model, *series, **SETTINGS), first)


def test_a_predictor_left_in_training_mode_is_not_sampled_with_dropout(series: Series) -> None:
    expected = sample_paths(tiny_model(), *series, **SETTINGS)
    model = tiny_model(tiny_predictor(bits=6, dropout=True).train())
    np.testing.assert_array_equal(sample_paths(model, *series, **SETTINGS), expected)
    assert model.predictor.training


def test_the_model_can_train_afterwards(series: Series) -> None:
    model = tiny_model()
    sample_paths(model, *series, **SETTINGS)
    tokens = torch.zeros(2, LOOKBACK, dtype=torch.long)
    s1_logits, _ = teacher_forced_logits(model.predictor.train(), tokens, tokens, torch.zeros(2, LOOKBACK, 5))
    s1_logits.sum().backward()


def test_a_stamp_matters_to_the_bars_after_it(series: Series, choices: Choices) -> None:
    # A bar's stamp goes in with its tokens, so it shapes the bars after it. Only the likeliest tokens are drawn here.
    history, past, ahead = series
    other = ahead.copy()
    other[:, 2] = (other[:, 2] + 1) % 7
    logits = []
    for stamps in (ahead, other):
        choices.clear()
        sample_paths(tiny_model(), history[:1], past[:1], stamps[:1], **{**SETTINGS, "top_p": 1e-9})
        logits.append([drawn_from for drawn_from, _, _ in choices])
    for step, (before, after) in enumerate(zip(*logits, strict=True)):
        assert torch.equal(before, after) is (step < 2 * 3)


def test_one_bar_ahead_and_one_path_will_do(series: Series) -> None:
    history, past, ahead = series
    result = sample_paths(tiny_model(), history, past, ahead[:, :1], **{**SETTINGS, "paths": 1})
    assert result.shape == (SERIES, 1, 1, 6)


def test_no_series_give_no_paths(series: Series) -> None:
    result = sample_paths(tiny_model(), *(part[:0] for part in series), **SETTINGS)
    assert result.shape == (0, PATHS, HORIZON, 6)


def test_a_flat_lookback_gives_finite_paths(series: Series) -> None:
    history, past, ahead = series
    assert np.isfinite(sample_paths(tiny_model(), np.full_like(history, 5.0), past, ahead, **SETTINGS)).all()


@pytest.mark.parametrize(
    "changes", [{"paths": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"s2_position": "last"}]
)
def test_settings_out_of_range_are_refused(series: Series, changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        sample_paths(tiny_model(), *series, **{**SETTINGS, **changes})


def test_more_bars_than_the_context_holds_are_refused(series: Series) -> None:
    assert len(sample_paths(tiny_model(context=LOOKBACK + HORIZON), *series, **SETTINGS)) == SERIES
    with pytest.raises(SettingsError, match="exceed the context of tiny, 27 bars"):
        sample_paths(tiny_model(context=LOOKBACK + HORIZON - 1), *series, **SETTINGS)


def test_forecasts_that_are_not_finite_are_an_error(series: Series) -> None:
    model = tiny_model()
    torch.nn.init.constant_(model.tokenizer.head.bias, float("inf"))
    with pytest.raises(ModelError, match="not finite"):
        sample_paths(model, *series, **SETTINGS)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_tokens_are_drawn_as_often_as_upstreams_filter_has_them(top_p: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 24) * 2
    filtered = (logits / 0.7).clone()
    if top_p < 1:
        filtered = top_k_top_p_filtering(filtered, top_p=top_p)
    expected = filtered.softmax(dim=-1)[0]
    draws = (torch.arange(20_000) + 0.5) / 20_000
    tokens = sample_top_p(logits.expand(len(draws), -1), draws, temperature=0.7, top_p=top_p)
    shares = torch.bincount(tokens, minlength=24) / len(draws)
    torch.testing.assert_close(shares, expected, rtol=0, atol=2e-4)
    assert (shares[expected == 0] == 0).all()


@pytest.mark.parametrize("top_p", [1e-6, 0.9, 1.0])
def test_the_largest_draw_is_a_token_that_was_kept(top_p: float) -> None:
    largest = torch.tensor([np.nextafter(np.float32(1), np.float32(0))])
    torch.manual_seed(0)
    for size in (2, 1024):
        token = sample_top_p(torch.randn(1, size), largest, temperature=1.0, top_p=top_p)
        assert 0 <= int(token) < size


def test_a_small_model_on_a_cpu_takes_one_thread_and_gives_the_others_back(
    series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    draw = sample.sample_top_p

    def watched(*arguments: Any) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        return draw(*arguments)

    monkeypatch.setattr(sample, "sample_top_p", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sample_paths(tiny_model(), *series, **SETTINGS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}
