"""Pretraining on simulated bars, the embedded base model, and its adaptation to a ticker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kronos_pipeline.artifacts import read_json
from kronos_pipeline.base_models import NANO_FOLDER, find_base_model
from kronos_pipeline.checksums import file_hash
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.data.simulate import SHIPPED_TICKERS, Dynamics, simulate_ticker
from kronos_pipeline.data.windows import build_windows
from kronos_pipeline.errors import ArtifactError, SettingsError
from kronos_pipeline.evaluation.forecasting.holdout_table import predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.predictions import point_table
from kronos_pipeline.model.decode.sample import sample_paths
from kronos_pipeline.model.loading import load_base
from kronos_pipeline.model.lora import load_adapter
from kronos_pipeline.training.pretrain import run
from kronos_pipeline.training.pretrain.data import PretrainingBars, random_dynamics
from kronos_pipeline.training.pretrain.run import pretrain
from kronos_pipeline.training.pretrain.settings import PretrainSettings
from kronos_pipeline.training.trainer import KronosTrainer

CPU = torch.device("cpu")
FIELDS = ("minute", "hour", "weekday", "day", "month")
TINY = PretrainSettings(
    lookback=16,
    horizon=4,
    context=64,
    tickers=12,
    bars=60,
    token_bits=4,
    tokenizer_size=16,
    predictor_size=16,
    predictor_layers=1,
    batch_size=16,
    tokenizer_steps=100,
    predictor_steps=100,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return a tiny base model, and the messages of its pretraining."""
    folder = tmp_path_factory.mktemp("tiny")
    messages: list[str] = []
    pretrain(folder, TINY, report=messages.append)
    return folder, messages


@pytest.mark.slow
def test_what_is_pretrained_works_wherever_a_base_model_s_name_does(tiny: tuple[Path, list[str]]) -> None:
    folder, messages = tiny
    base = load_base(find_base_model(str(folder)), CPU)
    assert base.context == 64
    assert (base.predictor.s1_bits, base.tokenizer.s2_bits) == (4, 4)
    assert any(line.startswith("tokenizer: step 100 of 100") for line in messages)
    assert any(line.startswith("predictor: step 100 of 100") for line in messages)


@pytest.mark.slow
def test_each_folder_says_what_made_it(tiny: tuple[Path, list[str]]) -> None:
    for part, result in (("tokenizer", "reconstruction_error_in_stds"), ("predictor", "unseen_loss")):
        manifest = read_json(tiny[0] / part / "manifest.json")
        assert manifest["settings"] == TINY.model_dump()
        assert manifest["files"]["model.safetensors"] == file_hash(tiny[0] / part / "model.safetensors")
        assert manifest["context"] == 64
        assert "simulated bars alone" in manifest["note"]
        assert result in manifest["results"]


def test_pretraining_learns(tiny: tuple[Path, list[str]], tmp_path: Path) -> None:
    pretrain(tmp_path, TINY.model_copy(update={"tokenizer_steps": 1, "predictor_steps": 1}), report=lambda _: None)
    trained, fresh = (
        read_json(folder / "tokenizer" / "manifest.json")["results"]["reconstruction_error_in_stds"]["close"]
        for folder in (tiny[0], tmp_path)
    )
    assert trained < 0.8 * fresh
    # A model that knows nothing is at log(16) nats per token of 4 bits.
    assert read_json(tiny[0] / "predictor" / "manifest.json")["results"]["unseen_loss"] < 0.8 * np.log(16)


@pytest.mark.slow
def test_the_same_settings_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    short = TINY.model_copy(update={"tokenizer_steps": 5, "predictor_steps": 5})
    hashes = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        pretrain(folder, short.model_copy(update={"seed": seed}), report=lambda _: None)
        hashes.append([file_hash(folder / part / "model.safetensors") for part in ("tokenizer", "predictor")])
    assert hashes[0] == hashes[1]
    assert hashes[0][0] != hashes[2][0]
    assert hashes[0][1] != hashes[2][1]


@pytest.mark.slow
def test_a_pretraining_that_is_stopped_as_it_writes_leaves_the_former_base_model_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = TINY.model_copy(update={"tokenizer_steps": 1, "predictor_steps": 1})
    folder = tmp_path / "mine"
    pretrain(folder, short, report=lambda _: None)
    former = {path: file_hash(path) for path in folder.rglob("*.safetensors")}

    def stop(folder: Path, _: object) -> None:
        if folder.name == "predictor":
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(folder, short.model_copy(update={"seed": 1}), report=lambda _: None)
    assert len(former) == 2
    assert {path: file_hash(path) for path in folder.rglob("*.safetensors")} == former
    load_base(find_base_model(str(folder)), CPU)


def test_a_folder_that_no_pretraining_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is in the way; move it, or choose another --output"):
        pretrain(tmp_path, TINY, report=lambda _: pytest.fail("it began"))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("setting", "value"), [("bars", 20), ("context", 19)])
def test_a_window_that_has_no_room_is_an_error(tmp_path: Path, setting: str, value: int) -> None:
    with pytest.raises(SettingsError, match=f"--{setting}"):
        pretrain(tmp_path, TINY.model_copy(update={setting: value}), report=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_windows_to_pretrain_on_are_normalised_by_their_lookback_and_vary_in_time() -> None:
    bars = PretrainingBars(seed=3, tickers=60, bars=200)
    batch = bars.batch(np.random.default_rng(0), 200, 64, 30)
    assert batch.bars.shape == (200, 95, 6)
    assert np.allclose(batch.bars[:, :64, 3].mean(axis=1), 0, atol=0.02)
    assert np.abs(batch.bars).max() <= 5
    minutes, hours, weekdays, days, months = (set(np.unique(batch.stamps[..., field])) for field in range(5))
    assert len(minutes) > 4
    assert len(hours) == 24
    assert len(weekdays) == 7
    assert days == set(range(1, 32))
    assert months == set(range(1, 13))


def test_tickers_to_pretrain_on_differ_and_some_are_random_walks_without_a_pattern() -> None:
    tickers = [random_dynamics(np.random.default_rng(seed)) for seed in range(200)]
    assert any(ticker.deviation == 0 for ticker in tickers)
    assert any(ticker.month_drift == 0 for ticker in tickers)
    assert any(ticker.month_drift > 0.2 * ticker.step for ticker in tickers)
    assert max(ticker.decay for ticker in tickers) > 0.95
    assert min(ticker.decay for ticker in tickers) < 0.7


def test_no_shipped_ticker_is_among_those_to_pretrain_on() -> None:
    pretrained = {round(float(row[0, 3]), 6) for row in PretrainingBars(0, 50, 95).values}
    shipped = {round(float(simulate_ticker([2026, *name.encode()], 95).values[0, 3]), 6) for name in SHIPPED_TICKERS}
    assert pretrained.isdisjoint(shipped)


def test_the_embedded_base_model_is_small_and_honest() -> None:
    files = [NANO_FOLDER / part / "model.safetensors" for part in ("predictor", "tokenizer")]
    assert sum(file.stat().st_size for file in files) <= 5_000_000
    for file in files:
        manifest = read_json(file.parent / "manifest.json")
        assert manifest["files"]["model.safetensors"] == file_hash(file)
        assert manifest["trained_window"] == 95
        assert "no forecaster of real markets" in manifest["note"]
    assert find_base_model("kronos-nano").demo


@pytest.mark.slow
def test_the_embedded_base_model_is_no_worse_than_naive_on_random_walks() -> None:
    base = load_base(find_base_model("kronos-nano"), CPU)
    walks = [
        simulate_ticker([5, seed], 94, dynamics=Dynamics(walk=0.01, deviation=0.0, month_drift=0.0, day_drift=0.0))
        for seed in range(32)
    ]
    values = np.stack([walk.values for walk in walks])
    stamps = np.stack(
        [np.stack([getattr(walk.timestamps, field) for field in FIELDS], axis=1) for walk in walks]
    ).astype(np.uint8)
    paths = sample_paths(
        base, values[:, :64], stamps[:, :64], stamps[:, 64:], paths=16, temperature=1.0, top_p=1.0, seed=0
    )
    real, last = np.log(values[:, 64:, 3]), np.log(values[:, 63, 3])[:, None]
    closes = np.log(paths[..., 3])
    assert np.abs(closes.mean(axis=1) - real).mean() < 1.1 * np.abs(last - real).mean()
    # Calibrated: the paths spread about as far as the real closes move.
    spread, move = (closes - last[:, None]).std(), (real - last).std()
    assert 0.6 < spread / move < 1.6


@pytest.mark.slow
def test_adapting_to_a_ticker_beats_the_untouched_base_and_naive_on_its_holdout(tmp_path: Path) -> None:
    recipe = Recipe(
        model_name="kronos-nano",
        adapter="lora",
        adapter_targets=["month_embed", "day_embed"],
        learning_rate=1e-2,
        average_decay=0.9,
        stride=2,
        epochs=3,
        evaluations_per_epoch=1,
        validation_days=240,
        eval_samples=16,
        device="cpu",
    )
    simulated = simulate_ticker(2, 2000)
    windows = build_windows(make_bars("SIM", simulated.frame(), source="simulated"), recipe)
    base = load_base(find_base_model("kronos-nano"), CPU)
    result = KronosTrainer(recipe, tmp_path, base=base, say=lambda _: None).train_adapter([windows], "SIM")
    models = {"base": base, "adapter": load_adapter(result.folder, base)}
    samplings = dict.fromkeys(models, plain_sampling(recipe))
    forecasts = point_table(predict(windows, models, samplings, recipe).predictions)
    errors = {name: (forecasts[name] - forecasts["y"]).abs().mean() for name in ("naive", *models)}
    assert errors["adapter"] < 0.85 * errors["base"]
    assert errors["adapter"] < 0.85 * errors["naive"]
