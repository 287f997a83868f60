from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small_trainings import simulated_bars, simulated_windows, small_recipe

from kronos_pipeline import KronosTrainer
from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.checksums import file_hash
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.errors import DataError, ModelError, SettingsError
from kronos_pipeline.model.loading import load_checkpoint
from kronos_pipeline.model.lora import load_adapter
from kronos_pipeline.model.losses import token_losses
from kronos_pipeline.model.upstream import Kronos
from kronos_pipeline.training.callback import Callback
from kronos_pipeline.training.dataset import KronosMultiTickerDataset
from kronos_pipeline.training.plan import TrainingJob
from kronos_pipeline.training.preflight import Estimate
from kronos_pipeline.training.publish import TrainingResult


def quiet(_: str) -> None:
    """Log function that discards messages."""


def trainer_of(recipe: Recipe, output: Path) -> KronosTrainer:
    return KronosTrainer(recipe, output, say=quiet)


def selection_loss(model: Any, windows: list[WindowSet], tokenizer: Any) -> float:
    data = KronosMultiTickerDataset(windows, "selection", tokenizer)
    with torch.no_grad():
        losses = token_losses(model, **data.batch(range(len(data))), first_target=data.lookback)
    return float(losses.double().mean())


def adapter_bytes(result: TrainingResult) -> bytes:
    return (result.folder / "adapter_model.safetensors").read_bytes()


def test_a_checkpoint_is_upstreams_own_and_what_was_measured(tiny_base: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_base)
    windows = simulated_windows(recipe, ["AAPL", "MSFT"])
    trainer = trainer_of(recipe, tmp_path)
    result = trainer.train_checkpoint(windows)
    layout = ArtifactLayout(tmp_path)
    assert result.folder == layout.best_checkpoint
    loaded = load_checkpoint(result.folder, trainer.base)
    assert selection_loss(loaded.predictor, windows, trainer.base.tokenizer) == pytest.approx(
        result.summary["selection_loss"], rel=1e-6
    )
    upstreams = Kronos.from_pretrained(str(result.folder)).eval()
    assert selection_loss(upstreams, windows, trainer.base.tokenizer) == pytest.approx(
        result.summary["selection_loss"], rel=1e-6
    )
    assert (layout.last_checkpoint / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_checkpoint_over_different_intervals_is_refused_unless_it_is_allowed(tiny_base: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_base, validation_bars=12, selection_bars=14, epochs=1)
    hourly = simulated_bars("BTCUSD").frame
    hourly["timestamps"] = pd.date_range("2024-01-01", periods=len(hourly), freq="h")
    bars = [simulated_bars("AAPL"), simulated_bars("MSFT"), make_bars("BTCUSD", hourly, source="BTCUSD.csv")]
    windows = [build_windows(each, recipe) for each in bars]

    for train in (
        trainer_of(recipe, tmp_path).train_checkpoint,
        lambda each: trainer_of(recipe, tmp_path).refit(each, None),
    ):
        with pytest.raises(SettingsError, match=r"\(1 h: BTCUSD; 1 day: AAPL, MSFT\).* --mix-intervals"):
            train(windows)
    assert trainer_of(recipe, tmp_path).train_adapter(windows, "ALL").folder.is_dir()
    allowed = recipe.model_copy(update={"mix_intervals": True})
    assert trainer_of(allowed, tmp_path).train_checkpoint(windows).folder.is_dir()


@pytest.mark.slow
def test_the_base_model_stays_as_it_is(tiny_base: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_base)
    trainer = trainer_of(recipe, tmp_path)
    before = {name: value.clone() for name, value in trainer.base.predictor.state_dict().items()}
    windows = simulated_windows(recipe)
    trainer.train_checkpoint(windows)
    trainer.train_adapter(windows, "AAPL")
    assert all(torch.equal(value, before[name]) for name, value in trainer.base.predictor.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 0], ids=["alone", "jointly"])
def test_a_training_tells_the_loss_of_the_untouched_model_and_whether_it_helped(
    tiny_base: Path, tmp_path: Path, together: int
) -> None:
    helpful = small_recipe(tiny_base, learning_rate=1e-2, adapters_together=together)
    windows = simulated_windows(helpful, ["AAPL", "MSFT"])
    jobs = [TrainingJob(ticker.ticker, (ticker,)) for ticker in windows]
    trainer = trainer_of(helpful, tmp_path / "helped")
    for job, result in zip(jobs, trainer.train(jobs), strict=True):
        assert isinstance(result, TrainingResult)
        untouched = selection_loss(trainer.base.predictor, list(job.windows), trainer.base.tokenizer)
        first = result.history.iloc[0]
        assert (first["step"], first["epoch"], np.isnan(first["train_loss"])) == (0, 0, True)
        assert first["selection_loss"] == result.summary["untouched_loss"] == pytest.approx(untouched, rel=1e-5)
        assert result.summary["note"] is None
    idle = small_recipe(tiny_base, learning_rate=1e-30, adapters_together=together)
    for result in trainer_of(idle, tmp_path / "idle").train(jobs):
        assert isinstance(result, TrainingResult)
        assert result.summary["note"] == "no better than the untouched model on the selection block"
        assert result.summary["selection_loss"] >= result.summary["untouched_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [True, False])
def test_an_adapter_reloads_to_what_was_measured(tiny_base: Path, tmp_path: Path, freeze: bool) -> None:
    recipe = small_recipe(tiny_base, freeze_backbone=freeze, learning_rate=1e-2)
    windows = simulated_windows(recipe)
    trainer = trainer_of(recipe, tmp_path)
    result = trainer.train_adapter(windows, "AAPL")
    loaded = load_adapter(result.folder, trainer.base)
    assert selection_loss(loaded.predictor, windows, trainer.base.tokenizer) == pytest.approx(
        result.summary["selection_loss"], rel=1e-5
    )
    untouched = selection_loss(trainer.base.predictor, windows, trainer.base.tokenizer)
    assert abs(untouched - result.summary["selection_loss"]) > 1e-3
    assert (result.folder / "base").is_dir() is not freeze
    trained, total = result.summary["trained_parameters"], result.summary["total_parameters"]
    assert trained < total / 2 if freeze else trained > total / 2


def test_the_manifest_says_what_made_it(tiny_base: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_base, seed=7)
    windows = simulated_windows(recipe)
    result = trainer_of(recipe, tmp_path).train_adapter(windows, "AAPL", mlflow_run="abc")
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["data"] == {"AAPL": windows[0].bars.content_hash}
    assert manifest["config"]["learning_rate"] == recipe.learning_rate
    assert (manifest["peak_learning_rate"], manifest["used_lookback"]) == (1e-4, recipe.lookback)
    assert (manifest["seed"], manifest["mlflow_run"], manifest["artifact"]) == (7, "abc", "adapters/AAPL")
    stamps = windows[0].bars.frame["timestamps"]
    assert pd.Timestamp(manifest["seen_until"]["AAPL"]) == stamps.iloc[windows[0].holdout_start - 1]
    assert manifest["packages"]["torch"] == version("torch")
    weights = result.folder / "adapter_model.safetensors"
    assert manifest["files"]["adapter_model.safetensors"] == file_hash(weights)
    assert manifest["training"] == result.summary


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tiny_base: Path, tmp_path: Path) -> None:
    weights = [
        adapter_bytes(trainer_of(recipe, tmp_path / name).train_adapter(simulated_windows(recipe), "AAPL"))
        for name, recipe in {
            "one": small_recipe(tiny_base),
            "two": small_recipe(tiny_base),
            "other": small_recipe(tiny_base, seed=1),
        }.items()
    ]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.slow
def test_no_bar_of_the_holdout_changes_a_byte(tiny_base: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_base)
    bars = simulated_bars()
    frame = bars.frame.copy()
    holdout = frame.index[-recipe.validation_days :]
    noise = np.random.default_rng(0).uniform(1000, 2000, len(holdout))
    for column in ("open", "high", "low", "close", "volume", "amount"):
        frame.loc[holdout, column] = noise
    real, noisy = (
        adapter_bytes(trainer_of(recipe, tmp_path / name).train_adapter([build_windows(bars_of, recipe)], "AAPL"))
        for name, bars_of in (("real", bars), ("noise", make_bars("AAPL", frame, source="noise")))
    )
    assert real == noisy


def test_a_long_training_on_a_cpu_is_said_to_be_slow_and_how_long_it_takes() -> None:
    def said(seconds: float, device: str) -> str:
        estimate = Estimate(9000, 300, 846, seconds, 600 * 2**20)
        return estimate.describe("NeoQuasar/Kronos-small", torch.device(device))

    slow = said(4 * 3600, "cpu")
    assert "about 4.0 h at most on cpu, 600 MB of disk" in slow
    assert "NeoQuasar/Kronos-small on a CPU is slow" in slow
    assert "slow" not in said(60, "cpu") + said(4 * 3600, "cuda")


@pytest.mark.slow
def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    from tiny_models import save_tiny_base

    base = save_tiny_base(tmp_path / "base", dropout=False)
    results = {}
    for name, sizes in {"one": (16, 1), "two": (8, 2)}.items():
        recipe = small_recipe(
            base, batch_size=sizes[0], grad_accum_steps=sizes[1], adapter_dropout=0, learning_rate=1e-3
        )
        results[name] = trainer_of(recipe, tmp_path / name).train_adapter(simulated_windows(recipe, bars=144), "AAPL")
    assert results["one"].summary["steps"] == results["two"].summary["steps"]
    first, second = (load_file(results[name].folder / "adapter_model.safetensors") for name in results)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_averaged_weights_lag_behind_the_plain_ones(tiny_base: Path, tmp_path: Path) -> None:
    norms = {}
    for decay in (0.0, 0.99):
        recipe = small_recipe(tiny_base, average_decay=decay, learning_rate=1e-2, epochs=1)
        result = trainer_of(recipe, tmp_path / str(decay)).train_adapter(simulated_windows(recipe), "AAPL")
        # LoRA's second matrix begins at 0.
        tensors = load_file(result.folder / "adapter_model.safetensors")
        norms[decay] = sum(float(value.abs().sum()) for name, value in tensors.items() if "lora_B" in name)
    assert 0 < norms[0.99] < norms[0.0]


def test_training_stops_when_looks_bring_nothing_and_keeps_the_best(tiny_base: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_base, epochs=30, learning_rate=0.3, patience=2, evaluations_per_epoch=4)
    windows = simulated_windows(recipe)
    trainer = trainer_of(recipe, tmp_path)
    result = trainer.train_checkpoint(windows)
    assert result.summary["stopped_early"]
    looks = result.history[result.history["step"] > 0].dropna(subset=["selection_loss"])
    assert result.summary["selection_loss"] == looks["selection_loss"].min()
    assert result.summary["best_step"] == looks["step"].iloc[-3]
    best = load_checkpoint(result.folder, trainer.base).predictor
    assert selection_loss(best, windows, trainer.base.tokenizer) == pytest.approx(
        looks["selection_loss"].min(), rel=1e-5
    )


def test_a_listener_is_told_steps_losses_rate_and_speed(tiny_base: Path, tmp_path: Path) -> None:
    class Steps(Callback):
        def __init__(self) -> None:
            self.steps: dict[int, Mapping[str, float]] = {}
            self.ended: list[int] = []

        def on_step_end(self, step: int) -> None:
            self.ended.append(step)

        def on_log(self, step: int, values: Mapping[str, float]) -> None:
            self.steps[step] = values

    listener = Steps()
    recipe = small_recipe(tiny_base)
    result = trainer_of(recipe, tmp_path).train_adapter(simulated_windows(recipe), "AAPL", listener=listener)
    assert listener.ended == list(range(1, result.summary["steps"] + 1))
    assert list(listener.steps) == result.history["step"].tolist()
    values = listener.steps[result.summary["best_step"]]
    assert values["selection_loss"] == result.summary["selection_loss"]
    assert values["learning_rate"] > 0
    assert values["windows_per_second"] > 0


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_training_and_leaves_the_last_good_adapter(
    tiny_base: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(tiny_base)
    windows = simulated_windows(recipe)
    good = adapter_bytes(trainer_of(recipe, tmp_path).train_adapter(windows, "AAPL"))
    wild = small_recipe(tiny_base, learning_rate=1e30, max_grad_norm=1e30, freeze_backbone=False)
    with pytest.raises(ModelError, match=r"The loss is (nan|inf) at step \d+; lower --learning-rate"):
        trainer_of(wild, tmp_path).train_adapter(windows, "AAPL")
    assert (tmp_path / "adapters/AAPL/adapter_model.safetensors").read_bytes() == good


def test_a_split_without_windows_is_an_error_and_no_loss_of_zero(tiny_base: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_base)
    (windows,) = simulated_windows(recipe)
    empty = WindowSet(
        windows.bars,
        windows.lookback,
        windows.horizon,
        windows.rows[windows.rows["split"] != "selection"],
        windows.stamps,
        {},
        windows.selection_start,
        windows.holdout_start,
    )
    with pytest.raises(DataError, match="no window is left for the selection split"):
        trainer_of(recipe, tmp_path).train_adapter([empty], "AAPL")
    with pytest.raises(SettingsError, match="no ticker"):
        trainer_of(recipe, tmp_path).train_checkpoint([])


def test_what_training_will_take_is_said_before_it_starts(tiny_base: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    recipe = small_recipe(tiny_base)
    KronosTrainer(recipe, tmp_path, say=messages.append).train_adapter(simulated_windows(recipe), "AAPL")
    assert any("training and 9 selection windows" in line and "MB of disk" in line for line in messages[:1])
    assert any("loss" in line and "windows/s" in line for line in messages)


@pytest.mark.slow
def test_both_precisions_train_to_nearly_the_same(tiny_base: Path, tmp_path: Path) -> None:
    results = {}
    for precision in ("bf16", "fp32"):
        recipe = small_recipe(tiny_base, precision=precision, epochs=1, learning_rate=1e-3)
        results[precision] = trainer_of(recipe, tmp_path / precision).train_adapter(simulated_windows(recipe), "AAPL")
    rough, exact = results["bf16"], results["fp32"]
    assert adapter_bytes(rough) != adapter_bytes(exact)
    assert (rough.summary["precision"], exact.summary["precision"]) == ("bf16", "fp32")
    assert rough.summary["selection_loss"] == pytest.approx(exact.summary["selection_loss"], abs=0.01)
