"""Many series in one call: of unequal length, of several adapters, in parts, with all paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from price_frames import COLUMNS, assert_forecast, batch_of, candles, sharp_predictor, sharp_tokenizer
from sktime.libs.kronos import KronosPredictor as Upstream

from kronos_pipeline import KronosPredictor
from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.decode import sample
from kronos_pipeline.model.decode.decoder import Decoder
from kronos_pipeline.model.predictor import sampling

HORIZON, PATHS = 5, 3
LENGTHS = (20, 31, 1, 12)
DFS = [candles(bars, seed, price) for seed, (bars, price) in enumerate(zip(LENGTHS, (3.0, 60, 9, 2e4), strict=True))]
BATCH = batch_of(DFS, HORIZON)
TOKENIZER = sharp_tokenizer()


def predictor(**settings: Any) -> KronosPredictor:
    return KronosPredictor(sharp_predictor(), TOKENIZER, "cpu", **settings)


@pytest.mark.slow
@pytest.mark.parametrize("context", [512, 31, 25, 14, 5])
def test_series_of_unequal_length_are_forecast_as_each_alone(context: int) -> None:
    forecasts = predictor(max_context=context).predict_batch(*BATCH, top_k=1, verbose=False)
    upstream = Upstream(sharp_predictor(), TOKENIZER, max_context=context)
    for number, forecast in enumerate(forecasts):
        expected = upstream.predict(*BATCH.single(number), top_k=1, verbose=False)
        assert_forecast(forecast, expected, DFS[number])


def test_no_series_give_no_forecasts() -> None:
    ours = predictor()
    before = torch.get_rng_state()
    assert ours.predict_batch([], [], [], HORIZON) == []
    assert ours.sample_batch((), (), (), HORIZON) == []
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_gives_every_path_of_which_predict_gives_the_mean() -> None:
    ours, settings = predictor(), dict[str, Any](sample_count=PATHS, seed=4, verbose=False)
    sampled, means = ours.sample_batch(*BATCH, **settings), ours.predict_batch(*BATCH, **settings)
    for number, (paths, mean) in enumerate(zip(sampled, means, strict=True)):
        assert list(paths.columns) == COLUMNS
        assert list(paths.index.names) == ["path", "timestamps"]
        assert len(paths) == PATHS * HORIZON
        assert (paths.dtypes == np.float32).all()
        for path in range(PATHS):
            assert paths.loc[path].index.equals(mean.index)
        assert_forecast(paths.groupby("timestamps").mean().astype(np.float32), mean, DFS[number])
        assert number == 2 or paths["close"].groupby("timestamps").std().max() > 0  # the one of one bar never moves
    single = ours.sample(*BATCH.single(0), **settings)
    pd.testing.assert_frame_equal(
        single.groupby("timestamps").mean(), ours.predict(*BATCH.single(0), **settings), rtol=1e-6, check_freq=False
    )


def test_a_path_is_what_upstream_samples_for_it() -> None:
    torch.manual_seed(8)
    sampled = predictor().sample(*BATCH.single(1), sample_count=1, verbose=False)
    torch.manual_seed(8)
    expected = Upstream(sharp_predictor(), TOKENIZER, "cpu").predict(*BATCH.single(1), verbose=False)
    assert_forecast(pd.DataFrame(sampled.loc[0]), expected, DFS[1])


@pytest.mark.parametrize("method", ["predict", "sample"])
def test_a_seed_is_manual_seed_without_the_global_generator(method: str) -> None:
    forecast = getattr(predictor(), method)
    torch.manual_seed(21)
    expected = forecast(*BATCH.single(0), verbose=False)
    before = torch.get_rng_state()
    pd.testing.assert_frame_equal(forecast(*BATCH.single(0), verbose=False, seed=21), expected)
    generator = torch.Generator().manual_seed(21)
    pd.testing.assert_frame_equal(forecast(*BATCH.single(0), verbose=False, generator=generator), expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert not np.allclose(forecast(*BATCH.single(0), verbose=False, seed=22), expected)
    assert not np.allclose(forecast(*BATCH.single(0), verbose=False, generator=generator), expected)


def test_more_rows_than_torch_draws_at_once_are_drawn_as_by_several_calls(
    monkeypatch: pytest.MonkeyPatch, decoded_batches: list[tuple[int, int]]
) -> None:
    dfs = [candles(20, seed) for seed in range(5)]
    _, past, ahead, _ = batch_of(dfs, HORIZON)
    settings: dict[str, Any] = {"sample_count": PATHS, "verbose": False}
    upstream, ours = Upstream(sharp_predictor(), TOKENIZER, "cpu"), predictor()
    torch.manual_seed(2)
    expected = [
        forecast
        for part in (slice(0, 2), slice(2, 4), slice(4, 5))
        for forecast in upstream.predict_batch(dfs[part], past[part], ahead[part], HORIZON, **settings)
    ]
    after = torch.get_rng_state()
    monkeypatch.setattr(sampling, "ROWS_PER_DRAW", 2 * PATHS + 1)
    decoded_batches.clear()
    torch.manual_seed(2)
    for df, forecast, wanted in zip(
        dfs, ours.predict_batch(dfs, past, ahead, HORIZON, **settings), expected, strict=True
    ):
        assert_forecast(forecast, wanted, df)
    assert torch.equal(torch.get_rng_state(), after)
    assert decoded_batches == [(2, PATHS), (2, PATHS), (1, PATHS)]


def assert_as_before(forecasts: list[pd.DataFrame], expected: list[pd.DataFrame]) -> None:
    for df, forecast, wanted in zip(DFS, forecasts, expected, strict=True):
        assert_forecast(forecast, wanted, df)


@pytest.mark.parametrize(("fits", "parts"), [(4, [(4, 3)]), (2, [(2, 3), (2, 3)]), (0, [(1, 1)] * 12)])
def test_batches_are_as_large_as_the_memory_allows_and_change_nothing(
    fits: int, parts: list[tuple[int, int]], decoded_batches: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Decoder(sharp_predictor(), TOKENIZER).estimate_bytes(fits, PATHS, max(LENGTHS), HORIZON) if fits else 1
    ours, settings = predictor(), dict[str, Any](sample_count=PATHS, verbose=False)
    torch.manual_seed(2)
    expected = ours.predict_batch(*BATCH, **settings)
    after = torch.get_rng_state()
    decoded_batches.clear()
    monkeypatch.setattr(sample, "memory_budget", lambda _: room)
    torch.manual_seed(2)
    assert_as_before(ours.predict_batch(*BATCH, **settings), expected)
    assert decoded_batches == parts
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB)"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "mps", "python"],
)
def test_a_batch_that_runs_out_of_memory_is_halved_and_tried_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, settings = predictor(), dict[str, Any](sample_count=PATHS)
    torch.manual_seed(2)
    expected = ours.predict_batch(*BATCH, **settings)
    after, progress = torch.get_rng_state(), last_line(capsys)
    decode, batches, done = Decoder.decode, [], []

    def small(self: Decoder, known: Any, drawn: Any, **settings: Any) -> Any:
        series, paths, _ = drawn[0].shape
        batches.append((series, paths))
        if series * paths > 2:
            raise error
        done.append(series * paths)
        return decode(self, known, drawn, **settings)

    monkeypatch.setattr(Decoder, "decode", small)
    torch.manual_seed(2)
    assert_as_before(ours.predict_batch(*BATCH, **settings), expected)
    assert batches[:3] == [(4, 3), (2, 3), (1, 3)]
    assert max(done) == 2
    assert sum(done) == len(DFS) * PATHS
    assert torch.equal(torch.get_rng_state(), after)
    assert last_line(capsys) == progress


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the printed progress without the times."""
    return capsys.readouterr().err.rpartition("\r")[2].split("[")[0]


@pytest.mark.parametrize(
    ("error", "series", "error_type", "message"),
    [
        (RuntimeError("shapes differ"), 4, RuntimeError, "shapes differ"),
        (MemoryError(), 1, ModelError, "one path of one series needs more memory than this machine has free"),
    ],
    ids=["another", "memory"],
)
def test_an_error_that_smaller_batches_do_not_help_is_told(
    error: Exception, series: int, error_type: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    ours = predictor()
    monkeypatch.setattr(Decoder, "generate", broken)
    before = torch.get_rng_state()
    with pytest.raises(error_type, match=message):
        ours.predict_batch(*BATCH.rows(range(series)), verbose=False)
    assert torch.equal(torch.get_rng_state(), before)
