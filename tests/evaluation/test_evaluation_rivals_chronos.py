"""The Chronos-2 rival, on a tiny random model: pinned or local weights, no later bar, errors that say what to do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from price_walks import FIVE_DAYS, cutoffs, random_walk, walk_bars
from safetensors.torch import load_file, save_file
from tiny_chronos import LEVELS, save_tiny_chronos

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.errors import ModelError, SettingsError
from kronos_pipeline.evaluation.leakage_test import with_noise
from kronos_pipeline.evaluation.rivals.chronos import (
    REVISION,
    ChronosModel,
    find_chronos,
    load_chronos,
    sample_chronos,
)

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chronos(tmp_path_factory.mktemp("chronos"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ChronosModel:
    return load_chronos(f"chronos={folder}", CPU)


def sample(model: ChronosModel, windows: WindowSet, recipe: Recipe = FIVE_DAYS) -> np.ndarray:
    return sample_chronos(model, windows, cutoffs(windows)[0], recipe)


def test_its_paths_have_the_models_quantiles_of_the_close(model: ChronosModel) -> None:
    windows = random_walk(0)
    many = FIVE_DAYS.model_copy(update={"eval_samples": 4000})
    origin = int(cutoffs(windows)[0][0])
    closes = sample(model, windows, many)[0]
    close = windows.bars.frame["close"].to_numpy()
    history = torch.from_numpy(np.log(close[: origin + 1] / close[origin])).float()
    (quantiles,), _ = model.pipeline.predict_quantiles([history], prediction_length=5, quantile_levels=LEVELS)
    sample_quantiles = np.quantile(np.log(closes / close[origin]), [0.1, 0.5, 0.9], axis=0).T
    width = float(np.ptp(quantiles.numpy()))
    np.testing.assert_allclose(sample_quantiles, np.sort(quantiles[0].numpy())[:, [2, 6, 10]], atol=0.04 * width)


def test_equal_input_gives_equal_paths_and_another_seed_gives_others(model: ChronosModel) -> None:
    windows = random_walk(0)
    paths = sample(model, windows)
    assert paths.shape == (12, 500, 5)
    np.testing.assert_array_equal(sample(model, windows), paths)
    assert not np.array_equal(sample(model, windows, FIVE_DAYS.model_copy(update={"seed": 1})), paths)


@pytest.mark.parametrize("place", [0, 5, 11])
def test_no_path_knows_a_bar_after_its_cutoff(model: ChronosModel, place: int) -> None:
    windows = random_walk(0)
    first_noise = int(cutoffs(windows)[0][place]) + 1
    keeping = FIVE_DAYS.model_copy(update={"keep_jumps": True})
    noisy = build_windows(with_noise(windows.bars, first_noise, seed=5), keeping)
    np.testing.assert_array_equal(sample(model, noisy)[: place + 1], sample(model, windows)[: place + 1])


def test_short_and_nearly_constant_series_and_long_horizons_give_finite_paths(model: ChronosModel) -> None:
    short = FIVE_DAYS.model_copy(update={"lookback": 2, "validation_bars": 4, "selection_bars": 8})
    nearly_constant = np.zeros(199)
    nearly_constant[::16] = 0.01
    long = FIVE_DAYS.model_copy(update={"horizon": 30})
    for windows, recipe in (
        (random_walk(0, bars=24, recipe=short), short),
        (build_windows(walk_bars(nearly_constant), FIVE_DAYS), FIVE_DAYS),
        (random_walk(0, recipe=long), long),
    ):
        closes = sample(model, windows, recipe)
        assert np.isfinite(closes).all()
        assert (closes > 0).all()


def test_a_name_is_the_published_commit_a_folder_or_a_repository_with_its_commit(folder: Path) -> None:
    assert (find_chronos("chronos").repository, find_chronos("chronos").revision) == ("amazon/chronos-2", REVISION)
    assert find_chronos(f"chronos={folder}").folder == folder
    assert find_chronos(f"chronos=some.one/model@{'a' * 40}").revision == "a" * 40
    for unpinned in ("chronos=amazon/chronos-2", "chronos=/no/such/folder", "chronos="):
        with pytest.raises(ModelError, match="owner/name@<40 hex digits>"):
            find_chronos(unpinned)


def test_without_a_network_and_cache_there_are_three_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"not in this machine's cache.*chronos=<folder>.*hf download .*leave chronos"):
        load_chronos(f"chronos=nobody/nothing@{'b' * 40}", CPU)


def test_pickles_are_not_read_and_missing_tensors_are_not_filled_with_random_numbers(
    folder: Path, tmp_path: Path
) -> None:
    pickled = Path(shutil.copytree(folder, tmp_path / "pickled"))
    weights = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        load_chronos(f"chronos={pickled}", CPU)

    first = next(iter(weights))
    incomplete = Path(shutil.copytree(folder, tmp_path / "incomplete"))
    save_file({name: value for name, value in weights.items() if name != first}, incomplete / "model.safetensors")
    with pytest.raises(ModelError, match=rf"does not fit its config.json: {first}"):
        load_chronos(f"chronos={incomplete}", CPU)

    cut = Path(shutil.copytree(folder, tmp_path / "cut"))
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="holds no readable Chronos-2 model"):
        load_chronos(f"chronos={cut}", CPU)


def test_a_model_of_another_architecture_is_named(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["T5ForConditionalGeneration"]}))
    with pytest.raises(ModelError, match="T5ForConditionalGeneration, and Chronos2Model is needed"):
        load_chronos(f"chronos={other}", CPU)


def test_a_missing_extra_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "chronos", None)
    with pytest.raises(SettingsError, match=r"needs the package chronos-forecasting.*pip install -e '\.\[chronos\]'"):
        load_chronos(f"chronos={folder}", CPU)
