"""If a GPU's memory runs out, sampling continues in smaller parts, or an error names the work and the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from price_frames import candles, sharp_predictor, sharp_tokenizer, times, with_lora

from kronos_pipeline import KronosPredictor
from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.decode import generate, memory, weight_cache
from kronos_pipeline.model.decode.decoder import Decoder
from kronos_pipeline.model.modules import copy_sharing_weights
from kronos_pipeline.model.predictor.adapters import load_adapters

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

HORIZON, SERIES, PATHS = 6, 4, 3
TOLD = r"needs more memory than cuda:0 has free: \d+\.\d+ of \d+\.\d GB\. Free memory there"


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    generate.release_graphs()
    weight_cache.release_weights()
    yield
    torch.cuda.empty_cache()


def predictor() -> KronosPredictor:
    return KronosPredictor(sharp_predictor(), sharp_tokenizer(), "cuda")


def sampled(kronos: KronosPredictor, series: int = SERIES) -> np.ndarray:
    past, ahead = times(30, HORIZON)
    arguments = [candles(30, seed) for seed in range(series)], [past] * series, [ahead] * series, HORIZON
    return np.stack(
        [paths.to_numpy() for paths in kronos.sample_batch(*arguments, sample_count=PATHS, seed=1, verbose=False)]
    )


def test_a_part_that_runs_out_of_memory_is_halved(decoded_batches: list[tuple[int, int]]) -> None:
    simcuda = pytest.importorskip("simcuda")
    kronos = predictor()
    expected = sampled(kronos)
    decoded_batches.clear()
    for after in (60, 200, 400):
        generate.release_graphs()
        with simcuda.inject_oom(after=after):
            np.testing.assert_allclose(sampled(kronos), expected, rtol=1e-4)
    assert (SERIES // 2, PATHS) in decoded_batches


def test_kept_graphs_go_before_the_work_is_halved(decoded_batches: list[tuple[int, int]]) -> None:
    simcuda = pytest.importorskip("simcuda")
    kronos = predictor()
    expected = sampled(kronos)
    sampled(kronos, 2)  # keeps a batch of another shape, which is of no use to the next call
    decoded_batches.clear()
    fails, begin = [True], generate.StaticStep.set_step

    def once(self: generate.StaticStep, step: int) -> None:
        if fails.pop() if fails else False:
            raise torch.OutOfMemoryError("CUDA out of memory")
        begin(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate.StaticStep, "set_step", once)
        np.testing.assert_allclose(sampled(kronos), expected, rtol=1e-4)
    assert decoded_batches == [(SERIES, PATHS), (SERIES, PATHS)]
    assert simcuda.counts()["emptied"] > 0


def test_a_part_that_keeps_failing_is_halved_though_each_try_keeps_graphs(
    decoded_batches: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kronos, decode = predictor(), Decoder.decode
    expected = sampled(kronos)

    def short_of_memory(self: Decoder, known: Any, drawn: Any, **settings: Any) -> Any:
        if len(drawn[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, known, drawn, **settings)

    monkeypatch.setattr(Decoder, "decode", short_of_memory)
    decoded_batches.clear()
    np.testing.assert_allclose(sampled(kronos), expected, rtol=1e-4)
    assert [series for series, _ in decoded_batches] == [4, 4, 2, 1, 1, 1, 1]


def test_a_gpu_that_others_have_filled_is_told_at_once(decoded_batches: list[tuple[int, int]]) -> None:
    simcuda = pytest.importorskip("simcuda")
    kronos = predictor()
    expected = sampled(kronos)
    decoded_batches.clear()
    with (
        simcuda.occupy(torch.cuda.get_device_properties(0).total_memory / 2**30),
        pytest.raises(ModelError, match=TOLD),
    ):
        sampled(kronos)
    assert len(decoded_batches) <= 20
    np.testing.assert_allclose(sampled(kronos), expected, rtol=1e-4)


def test_parts_are_as_small_as_what_others_leave_free() -> None:
    simcuda = pytest.importorskip("simcuda")
    kronos, device = predictor(), torch.device("cuda")
    _, total = torch.cuda.mem_get_info()
    before = memory.memory_budget(device)
    with simcuda.occupy(total / 2**30 * 0.75):
        assert memory.memory_budget(device) < 0.3 * before
        sampled(kronos)
    with simcuda.occupy(total / 2**30):
        assert memory.memory_budget(device) == memory._LEAST


@pytest.mark.parametrize("after", [0, 3])
def test_packing_that_runs_out_of_memory_is_tried_again_without_what_is_kept(after: int) -> None:
    simcuda = pytest.importorskip("simcuda")
    other = predictor()
    sampled(other)
    model, tokenizer = sharp_predictor().to("cuda"), sharp_tokenizer().to("cuda")
    assert len(weight_cache._cache) > 2
    with simcuda.inject_oom(after=after):
        Decoder(model, tokenizer)
    assert len(weight_cache._cache) == 2


def test_packing_that_finds_no_memory_is_told() -> None:
    simcuda = pytest.importorskip("simcuda")
    model, tokenizer = sharp_predictor().to("cuda"), sharp_tokenizer().to("cuda")
    everything = torch.cuda.get_device_properties(0).total_memory / 2**30
    with simcuda.occupy(everything), pytest.raises(ModelError, match=f"Packing the model's weights .*{TOLD}"):
        Decoder(model, tokenizer)


def test_a_model_that_finds_no_memory_is_told_and_stays_where_it_was() -> None:
    simcuda = pytest.importorskip("simcuda")
    model, tokenizer = sharp_predictor(), sharp_tokenizer()
    everything = torch.cuda.get_device_properties(0).total_memory / 2**30
    with simcuda.occupy(everything), pytest.raises(ModelError, match=f"The model {TOLD}"):
        KronosPredictor(model, tokenizer, "cuda")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    adapter = with_lora(copy_sharing_weights(model))
    kronos = KronosPredictor(model, tokenizer, "cuda")
    with simcuda.occupy(everything), pytest.raises(ModelError, match=f"The adapter a {TOLD}"):
        load_adapters({"a": adapter}, kronos.model, kronos.tokenizer, memory.DeviceMover(torch.device("cuda:0")))


def test_adapters_that_share_a_base_share_it_on_the_gpu_and_are_decoded_together(
    decoded_batches: list[tuple[int, int]],
) -> None:
    model = sharp_predictor()
    adapters = {name: with_lora(copy_sharing_weights(model), seed) for seed, name in enumerate("abc")}
    past, ahead = times(30, HORIZON)
    arguments = [candles(30)] * SERIES, [past] * SERIES, [ahead] * SERIES, HORIZON
    settings: dict[str, Any] = {"adapters": [*"abc", None], "top_k": 1, "verbose": False}
    expected = KronosPredictor(model, sharp_tokenizer(), "cpu", adapters=adapters).predict_batch(*arguments, **settings)
    kronos = KronosPredictor(model, sharp_tokenizer(), "cuda", adapters=adapters)
    decoded_batches.clear()
    forecasts = kronos.predict_batch(*arguments, **settings)
    assert decoded_batches == [(SERIES, 1)]
    for forecast, reference in zip(forecasts, expected, strict=True):
        np.testing.assert_allclose(forecast, reference, rtol=1e-3)
    base: Any = kronos.model
    loaded: list[Any] = list(kronos.adapters.values())
    assert {adapter.get_base_model().norm.weight.data_ptr() for adapter in loaded} == {base.norm.weight.data_ptr()}
