"""Sampling on a GPU equals sampling on a CPU, with graphs that are cached for the next batch of the same shape."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_predictor, tiny_tokenizer
from torch import Tensor

from kronos_pipeline.base_models import BaseModelSource, WeightsSource
from kronos_pipeline.model.decode import generate
from kronos_pipeline.model.decode.decoder import Decoder
from kronos_pipeline.model.decode.sample import sample_paths
from kronos_pipeline.model.loading import KronosModel
from kronos_pipeline.model.modules import copy_sharing_weights, move

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
DEVICES = ["cuda", pytest.param("cuda:1", marks=TWO)]
CONTEXT = 40
SETTINGS: dict[str, Any] = {"paths": 3, "temperature": 1.0, "top_p": 0.9, "seed": 7}


def with_lora(predictor: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "out_proj", "w2", "emb_s1", "proj_s2", "day_embed"]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    return get_peft_model(copy_sharing_weights(predictor), config).eval()


def models(device: str, adapters: int = 0) -> list[KronosModel]:
    """Return a base model, or adapters on it."""
    base, tokenizer = tiny_predictor(), tiny_tokenizer()
    weights = WeightsSource("tiny")
    source = BaseModelSource("tiny", weights, weights, CONTEXT)
    move(base, torch.device(device))
    move(tokenizer, torch.device(device))
    stack = [move(with_lora(base, seed), torch.device(device)) for seed in range(adapters)] or [base]
    return [KronosModel(predictor, tokenizer, source, torch.device(device), "") for predictor in stack]


def series(count: int, horizon: int = 6, lookback: int = 20, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return history, past stamps and future stamps."""
    rng = np.random.default_rng(seed)
    history = 50 * np.exp(rng.normal(0, 0.02, (count, lookback, 6)).cumsum(axis=1))
    return history, *(rng.integers(0, 7, (count, bars, 5)).astype(np.uint8) for bars in (lookback, horizon))


def sampled(stack: Sequence[KronosModel], count: int, adapter_of: Sequence[int] = (), **settings: Any) -> np.ndarray:
    chosen = [stack[number] for number in adapter_of] or list(stack) * count
    shape = {name: settings.pop(name) for name in ("horizon", "lookback") if name in settings}
    return sample_paths(chosen[:count], *series(count, **shape), **{**SETTINGS, **settings})


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    generate.release_graphs()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("adapters", [0, 3])
def test_paths_are_those_of_the_cpu(device: str, adapters: int) -> None:
    expected = sampled(models("cpu", adapters), 3)
    on_device = models(device, adapters)
    for _ in range(2):
        np.testing.assert_allclose(sampled(on_device, 3), expected, rtol=1e-4)


def logits_of(decoder: Decoder, lengths: list[int] | None, adapter_of: list[int], context: int, horizon: int) -> Tensor:
    """Return the logits of each step, with the same tokens drawn on every device."""
    generator, logits_of_steps = torch.Generator().manual_seed(3), []
    bars = torch.randn(len(adapter_of), 12, 6, generator=generator).clamp(-5, 5)
    past, ahead = (torch.randint(0, 7, (len(adapter_of), count, 5), generator=generator) for count in (12, horizon))
    bars_of_series = None if lengths is None else torch.tensor(lengths)

    def choose(logits: Tensor, *_: int) -> Tensor:
        logits_of_steps.append(logits.cpu())
        return torch.randint(0, 16, logits.shape[:2], generator=generator).to(logits.device)

    known = decoder.encode(bars, bars_of_series)
    prompts = generate.Prompts(known, past, ahead, bars_of_series, torch.tensor(adapter_of))
    tokens = decoder.generate(prompts, choose, paths=3, context=context)
    values = decoder.decode(known, tokens, context=context, lengths=bars_of_series)
    return torch.cat([*(logits.flatten() for logits in logits_of_steps), values.cpu().flatten()])


CASES = {
    "equal lengths": (None, [0, 1, 2]),
    "unequal lengths": ([12, 5, 9], [2, 0, 1]),
    "other unequal lengths": ([3, 12, 7], [1, 1, 0]),
    "one adapter": (None, [1, 1, 1]),
}


@pytest.mark.parametrize("context", [CONTEXT, 15, 12], ids=["within", "sliding later", "sliding"])
def test_a_batch_of_the_same_shape_takes_its_own_adapters_and_lengths(context: int) -> None:
    decoders = {
        device: Decoder([model.predictor for model in models(device, 3)], models(device)[0].tokenizer)
        for device in ("cpu", "cuda")
    }
    for _ in range(2):
        for lengths, adapter_of in CASES.values():
            values, expected = (logits_of(decoders[name], lengths, adapter_of, context, 7) for name in ("cuda", "cpu"))
            torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)


def test_graphs_are_recorded_once_for_a_shape() -> None:
    simcuda = pytest.importorskip("simcuda")
    several = models("cuda", 3)
    decoder, captures = Decoder([model.predictor for model in several], several[0].tokenizer), []
    for name, horizon in (("equal lengths", 6), ("one adapter", 6), ("equal lengths", 9), ("equal lengths", 6)):
        with simcuda.watching() as watch:
            logits_of(decoder, *CASES[name], CONTEXT, horizon)
        captures.append(watch.counts["captures"])
    assert captures == [2, 0, 2, 0]


def test_changed_weights_are_recorded_anew() -> None:
    on_device, on_cpu = models("cuda", 1), models("cpu", 1)
    before = sampled(on_device, 1)
    for adapted in (on_device, on_cpu):
        adapted[0].predictor.get_base_model().transformer[0].ffn.w1.weight.data.mul_(1.5)
    after = sampled(on_device, 1)
    assert not np.allclose(after, before, rtol=1e-4)
    np.testing.assert_allclose(after, sampled(on_cpu, 1), rtol=1e-4)


def test_what_is_kept_for_a_model_goes_with_it() -> None:
    gc.collect()
    before = torch.cuda.memory_allocated()
    several = models("cuda")
    sampled(several, 1)
    assert torch.cuda.memory_allocated() > before
    del several
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_only_the_latest_few_shapes_are_kept() -> None:
    several = models("cuda")
    for horizon in range(3, 12):
        sampled(several, 1, horizon=horizon)
    assert len(generate._cache) == generate._CACHED_BATCHES


def test_no_more_is_kept_than_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "_limit", lambda _: 1)
    expected = sampled(models("cpu"), 1)
    np.testing.assert_allclose(sampled(models("cuda"), 1), expected, rtol=1e-4)
    assert not generate._cache


def sampled_in_turn(stack: Sequence[KronosModel], without_graphs: AbstractContextManager[object]) -> None:
    expected = sampled(models("cpu", 2), 2)
    with without_graphs:
        np.testing.assert_allclose(sampled(stack, 2), expected, rtol=1e-4)
    np.testing.assert_allclose(sampled(stack, 2), expected, rtol=1e-4)


def test_where_captures_are_refused_the_numbers_are_the_same() -> None:
    several = models("cuda", 2)
    sampled_in_turn(several, pytest.importorskip("simcuda").refuse_capture())
    assert generate._cache, "the refusal was remembered"


def test_graphs_can_be_turned_off() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "REPLAYED", ())
        sampled_in_turn(models("cuda", 2), nullcontext())
        assert not generate._cache


def test_threads_sample_as_one_does() -> None:
    several, expected = models("cuda", 3), sampled(models("cpu", 3), 3)
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(sampled(several, 3))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for values in results:
        np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_bf16_gives_forecasts() -> None:
    paths = sampled(models("cuda", 2), 2, precision="bf16")
    assert np.isfinite(paths).all()
    assert 0.5 < paths[..., 3].mean() / sampled(models("cpu", 2), 2)[..., 3].mean() < 2


def test_what_is_waited_for_depends_neither_on_the_horizon_nor_on_the_number_of_adapters() -> None:
    simcuda = pytest.importorskip("simcuda")
    counts = set()
    for adapters in (1, 2, 5):
        several = models("cuda", adapters)
        for horizon in (4, 12):
            sampled(several, adapters, horizon=horizon)
            with simcuda.watching() as watch:
                sampled(several, adapters, horizon=horizon)
            counts.add(sum(watch.syncs.values()))
    assert len(counts) == 1, counts
    assert max(counts) <= 12, watch.syncs


def test_the_kernels_of_a_step_outside_its_graphs_are_few() -> None:
    simcuda = pytest.importorskip("simcuda")
    several, kernels = models("cuda", 2), []
    for horizon in (4, 12):
        sampled(several, 2, horizon=horizon)
        with simcuda.watching() as watch:
            sampled(several, 2, horizon=horizon)
        kernels.append(watch.counts["kernels"])
    assert (kernels[1] - kernels[0]) / 8 <= 40
