from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_trainings import simulated_bars, simulated_windows, small_recipe

from kronos_pipeline import KronosMultiTickerDataset
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.data.normalisation import lookback_statistics, normalise
from kronos_pipeline.data.windows import build_windows
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.model import tokens as tokens_module
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.training import dataset as dataset_module


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> KronosModel:
    return load_base(find_base_model(str(tiny_base)), torch.device("cpu"))


def test_an_item_is_its_windows_tokens_and_stamps(tiny_base: Path, base: KronosModel) -> None:
    recipe = small_recipe(tiny_base)
    windows = simulated_windows(recipe, ["AAPL", "MSFT"])
    data = KronosMultiTickerDataset(windows, "train", base.tokenizer)
    counts = [ticker.counts()["train"] for ticker in windows]
    assert len(data) == sum(counts)
    assert (data.tickers, data.lookback, data.window) == (["AAPL", "MSFT"], 16, 22)
    for index, windows_of_ticker, row in ((3, windows[0], 3), (counts[0] + 5, windows[1], 5)):
        start = int(windows_of_ticker.of_split("train")["start"].iloc[row])
        bars = windows_of_ticker.bars.values[start : start + 22]
        mean, std = lookback_statistics(bars[:16])
        with torch.no_grad():
            s1, s2 = base.tokenizer.encode(torch.from_numpy(normalise(bars, mean, std))[None], half=True)
        item = data[index]
        assert item["s1"].tolist() == s1[0].tolist()
        assert item["s2"].tolist() == s2[0].tolist()
        stamps = windows_of_ticker.bars.frame["timestamps"].iloc[start : start + 22]
        assert item["stamps"][:, 3].tolist() == stamps.dt.day.tolist()
        assert item["stamps"][:, 4].tolist() == stamps.dt.month.tolist()


def test_a_batch_is_its_items(tiny_base: Path, base: KronosModel) -> None:
    data = KronosMultiTickerDataset(simulated_windows(small_recipe(tiny_base)), "train", base.tokenizer)
    batch = data.batch([4, 0, 9])
    for name in ("s1", "s2", "stamps"):
        torch.testing.assert_close(batch[name], torch.stack([data[index][name] for index in (4, 0, 9)]))


def test_many_tokens_lie_on_the_disk_and_are_the_same(
    tiny_base: Path, base: KronosModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = simulated_windows(small_recipe(tiny_base))
    in_memory = KronosMultiTickerDataset(windows, "train", base.tokenizer)
    monkeypatch.setattr(dataset_module, "_ON_DISK_ABOVE", 0)
    on_disk = KronosMultiTickerDataset(windows, "train", base.tokenizer, folder=tmp_path)
    assert (tmp_path / "tokens-train.npy").stat().st_size == pytest.approx(2 * 2 * len(in_memory) * 22, abs=256)
    every = range(len(in_memory))
    torch.testing.assert_close(on_disk.batch(every), in_memory.batch(every))


def test_windows_are_encoded_in_full_batches_whatever_their_ticker(
    tiny_base: Path, base: KronosModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = simulated_windows(small_recipe(tiny_base), ["AAPL", "MSFT", "XOM"])
    at_once = KronosMultiTickerDataset(windows, "train", base.tokenizer)
    monkeypatch.setattr(tokens_module, "_BARS_ON_A_CPU", 50 * 22)
    sizes: list[int] = []
    encode = base.tokenizer.encode

    def counted(bars: torch.Tensor, half: bool) -> tuple[torch.Tensor, ...]:
        sizes.append(len(bars))
        tokens: tuple[torch.Tensor, ...] = encode(bars, half=half)
        return tokens

    monkeypatch.setattr(base.tokenizer, "encode", counted)
    data = KronosMultiTickerDataset(windows, "train", base.tokenizer)
    assert sizes == [50] * (len(data) // 50) + [len(data) % 50]
    torch.testing.assert_close(data.batch(range(len(data))), at_once.batch(range(len(data))))


@pytest.mark.slow
def test_memory_beside_the_tokens_does_not_grow_with_the_windows(
    tiny_base: Path, base: KronosModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "_ON_DISK_ABOVE", 0)
    monkeypatch.setattr(tokens_module, "_BARS_ON_A_CPU", 64 * 22)
    recipe = small_recipe(tiny_base)
    windows = simulated_windows(recipe, [f"T{number}" for number in range(24)])
    KronosMultiTickerDataset(windows[:1], "train", base.tokenizer, folder=tmp_path / "first")  # made once
    peaks = {}
    for tickers in (3, 24):
        tracemalloc.start()
        data = KronosMultiTickerDataset(windows[:tickers], "train", base.tokenizer, folder=tmp_path / str(tickers))
        peaks[tickers] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    all_bars = len(data) * 22 * 6 * 4
    assert peaks[24] - peaks[3] < all_bars / 8  # stamps and offsets alone: a byte or so beside each of 24 floats


def test_a_batch_is_compact_until_it_is_embedded(tiny_base: Path, base: KronosModel) -> None:
    batch = KronosMultiTickerDataset(simulated_windows(small_recipe(tiny_base)), "train", base.tokenizer).batch([1, 2])
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "s1": torch.int16,
        "s2": torch.int16,
        "stamps": torch.uint8,
    }


@pytest.mark.parametrize(
    ("needed", "free", "expected"), [(20 * 2**30, 80, True), (21 * 2**30, 80, False), (20 * 2**30, 79, False)]
)
def test_tokens_stay_on_a_gpu_where_they_take_no_large_share_of_what_is_free(
    needed: int, free: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * 2**30, 80 * 2**30))
    assert dataset_module._has_room(torch.device("cuda:0"), needed) is expected


def test_the_holdout_and_mixed_windows_are_refused(tiny_base: Path, base: KronosModel) -> None:
    recipe = small_recipe(tiny_base)
    with pytest.raises(SettingsError, match="not 'holdout'"):
        KronosMultiTickerDataset(simulated_windows(recipe), "holdout", base.tokenizer)
    mixed = simulated_windows(recipe) + simulated_windows(small_recipe(tiny_base, lookback=12), ["MSFT"])
    with pytest.raises(SettingsError, match="differ in lookback or horizon"):
        KronosMultiTickerDataset(mixed, "train", base.tokenizer)


@pytest.mark.slow
@settings(max_examples=12)
@given(changed=st.integers(20, 103), factor=st.floats(0.5, 2))
def test_no_token_before_a_bar_changes_with_it(tiny_base: Path, base: KronosModel, changed: int, factor: float) -> None:
    recipe = small_recipe(tiny_base, keep_jumps=True)
    bars = simulated_bars()
    frame = bars.frame.copy()
    prices = ["open", "high", "low", "close"]
    frame.loc[frame.index == changed, prices] *= factor
    before, after = (
        KronosMultiTickerDataset([build_windows(version, recipe)], "train", base.tokenizer)
        for version in (bars, make_bars("AAPL", frame, source="x"))
    )
    starts = build_windows(bars, recipe).of_split("train")["start"].to_numpy()
    for index, start in enumerate(starts):
        position = changed - int(start)
        if position >= recipe.lookback:  # a target bar: its lookback, and the targets before it, may not know it
            known = slice(0, min(position, 22))
            np.testing.assert_array_equal(before[index]["s1"][known], after[index]["s1"][known])
            np.testing.assert_array_equal(before[index]["s2"][known], after[index]["s2"][known])
