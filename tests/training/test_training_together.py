"""Joint training equals training alone: weights, losses by step, early stopping and files."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_trainings import KillAtStep, Killed
from safetensors.torch import load_file
from small_trainings import simulated_bars, small_recipe
from tiny_models import save_tiny_base

from kronos_pipeline import KronosTrainer
from kronos_pipeline.artifacts import read_json
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.errors import DataError, ModelError, SettingsError
from kronos_pipeline.model.lora import load_adapter
from kronos_pipeline.model.losses import token_losses
from kronos_pipeline.training.callback import Callback
from kronos_pipeline.training.dataset import KronosMultiTickerDataset
from kronos_pipeline.training.multi_lora.forward import BatchedForward
from kronos_pipeline.training.multi_lora.loop import MultiLoraLoop
from kronos_pipeline.training.plan import TrainingJob
from kronos_pipeline.training.publish import TrainingResult

pytestmark = pytest.mark.slow

BARS = {"AAPL": 130, "MSFT": 171, "NVDA": 118}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base model without dropout, so that no random numbers are drawn."""
    return save_tiny_base(tmp_path_factory.mktemp("base"), dropout=False)


def recipe_of(base: Path, **changes: Any) -> Recipe:
    return small_recipe(base, **{"adapter_dropout": 0.0, "learning_rate": 1e-2, "epochs": 3, **changes})


def windows_of(recipe: Recipe) -> dict[str, WindowSet]:
    return {ticker: build_windows(simulated_bars(ticker, bars), recipe) for ticker, bars in BARS.items()}


def trainer_of(recipe: Recipe, output: Path, say: Any = lambda _: None) -> KronosTrainer:
    return KronosTrainer(recipe, output, say=say)


def together(recipe: Recipe, output: Path) -> dict[str, TrainingResult]:
    jobs = [TrainingJob(name, [windows]) for name, windows in windows_of(recipe).items()]
    results = trainer_of(recipe, output).train_adapters(jobs)
    assert all(isinstance(result, TrainingResult) for result in results), results
    return dict(zip(BARS, results, strict=True))  # type: ignore[arg-type]


def alone(recipe: Recipe, output: Path) -> dict[str, TrainingResult]:
    trainer = trainer_of(recipe, output)
    return {name: trainer.train_adapter([windows], name) for name, windows in windows_of(recipe).items()}


def weights_of(result: TrainingResult) -> dict[str, torch.Tensor]:
    return load_file(result.folder / "adapter_model.safetensors")


def assert_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(weights, expected, rtol=2e-3, atol=1e-4)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated and clipped": {"grad_accum_steps": 2, "batch_size": 7, "max_grad_norm": 0.01},
    "averaged embeddings": {"average_decay": 0.9, "adapter_targets": ["month_embed", "day_embed"], "weight_decay": 0.1},
    "stops early": {"patience": 1, "evaluations_per_epoch": 6, "epochs": 8},
}


@pytest.mark.parametrize("case", list(CASES))
def test_each_ends_as_it_does_alone(base: Path, tmp_path: Path, case: str) -> None:
    recipe = recipe_of(base, **CASES[case])
    joint, single = together(recipe, tmp_path / "together"), alone(recipe, tmp_path / "alone")
    assert len({result.summary["steps"] for result in single.values()}) > 1
    assert any(result.summary["stopped_early"] for result in single.values()) is (case == "stops early")
    for name in BARS:
        result, reference = joint[name], single[name]
        assert_close(weights_of(result), weights_of(reference))
        for column in result.history.columns.drop("windows_per_second"):
            assert result.history[column].to_numpy() == pytest.approx(
                reference.history[column].to_numpy(), 1e-4, nan_ok=True
            )
        assert (result.summary["together"], reference.summary["together"]) == (len(BARS), 1)
        same = set(result.summary) - {"seconds", "windows_per_second", "selection_loss", "together"}
        assert {key: result.summary[key] for key in same} == {key: reference.summary[key] for key in same}


def test_in_bfloat16_each_ends_near_where_it_does_alone(base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(base, precision="bf16", learning_rate=1e-3, epochs=1)
    joint, single = together(recipe, tmp_path / "together"), alone(recipe, tmp_path / "alone")
    for name in BARS:
        losses, others = (results[name].history["selection_loss"].to_numpy() for results in (joint, single))
        assert losses == pytest.approx(others, 2e-3, nan_ok=True)


def test_each_is_a_plain_adapter_whose_manifest_names_its_company(base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(base, epochs=1)
    results = together(recipe, tmp_path / "together")
    lone = alone(recipe, tmp_path / "alone")["AAPL"]
    assert {path.name for path in results["AAPL"].folder.iterdir()} == {path.name for path in lone.folder.iterdir()}
    assert read_json(results["AAPL"].folder / "manifest.json")["together"] == ["MSFT", "NVDA"]
    assert read_json(lone.folder / "manifest.json")["together"] == []
    base_model = trainer_of(recipe, tmp_path).base
    loaded = load_adapter(results["MSFT"].folder, base_model).predictor
    data = KronosMultiTickerDataset([windows_of(recipe)["MSFT"]], "selection", base_model.tokenizer)
    with torch.no_grad():
        losses = token_losses(loaded, **data.batch(range(len(data))), first_target=data.lookback)
    assert float(losses.double().mean()) == pytest.approx(results["MSFT"].summary["selection_loss"], rel=1e-5)


def test_a_bad_ticker_fails_by_name_and_the_others_go_on(base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(base, epochs=1)
    good = windows_of(recipe)
    empty = replace(good["NVDA"], rows=good["NVDA"].rows[good["NVDA"].rows["split"] != "selection"])
    jobs = [TrainingJob("BAD", [empty]), *(TrainingJob(name, [windows]) for name, windows in good.items())]
    ended: list[str] = []
    results = trainer_of(recipe, tmp_path).train_adapters(jobs, on_end=lambda job, _: ended.append(job.name))
    assert isinstance(results[0], DataError)
    assert "selection" in str(results[0])
    assert [type(result) for result in results[1:]] == [TrainingResult] * 3
    assert ended == ["BAD", "NVDA", "AAPL", "MSFT"]  # as they end


def test_one_whose_loss_is_no_number_leaves_the_numbers_of_the_others(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(base)
    expected = together(recipe, tmp_path / "whole")
    update, jobs = MultiLoraLoop._update, [TrainingJob(name, [windows]) for name, windows in windows_of(recipe).items()]

    def set_nan(self: MultiLoraLoop, rates: Any) -> None:
        update(self, rates)
        self._weights.data[0] = math.nan  # NVDA, which has the fewest windows

    monkeypatch.setattr(MultiLoraLoop, "_update", set_nan)
    aapl, msft, nvda = trainer_of(recipe, tmp_path / "spoilt").train_adapters(jobs)
    assert isinstance(nvda, ModelError)
    assert "lower --learning-rate" in str(nvda)
    for name, result in {"AAPL": aapl, "MSFT": msft}.items():
        assert isinstance(result, TrainingResult)
        assert_close(weights_of(result), weights_of(expected[name]))


def test_where_memory_lacks_fewer_go_at_a_time_and_the_numbers_stay(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(base, epochs=1)
    expected = together(recipe, tmp_path / "whole")
    losses = BatchedForward.losses

    def short_of_memory(self: BatchedForward, adapters: torch.Tensor, *rest: Any) -> Any:
        if len(adapters) > 1:
            raise torch.OutOfMemoryError
        return losses(self, adapters, *rest)

    monkeypatch.setattr(BatchedForward, "losses", short_of_memory)
    messages: list[str] = []
    jobs = [TrainingJob(name, [windows]) for name, windows in windows_of(recipe).items()]
    results = trainer_of(recipe, tmp_path / "short", messages.append).train_adapters(jobs)
    assert any("out of memory; 1 adapter at a time" in line for line in messages)
    for name, result in zip(BARS, results, strict=True):
        assert isinstance(result, TrainingResult)
        assert_close(weights_of(result), weights_of(expected[name]))


@pytest.fixture(scope="module")
def complete(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingResult]:
    """Train a group without an interruption, with dropout."""
    return together(small_recipe(tiny_base, save_steps=3), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("one_run", [True, False])
@pytest.mark.parametrize(("died", "saved"), [(7, 6), (11, 10), (13, 12)])  # at 10 NVDA has ended, at 12 AAPL too
def test_a_group_that_died_ends_with_the_same_bytes(
    tiny_base: Path, complete: dict[str, TrainingResult], tmp_path: Path, died: int, saved: int, one_run: bool
) -> None:
    recipe = small_recipe(tiny_base, save_steps=3)  # with dropout

    def train(say: Any = lambda _: None, listener: Callback | None = None) -> list[Any]:
        jobs = [TrainingJob(name, [windows], listener=listener) for name, windows in windows_of(recipe).items()]
        trainer = trainer_of(recipe, tmp_path, say)
        with trainer.one_run() if one_run else nullcontext():
            return trainer.train_adapters(jobs)

    with pytest.raises(Killed):
        train(listener=KillAtStep(died))
    messages: list[str] = []
    resumed = train(messages.append)
    assert any(line.endswith(f"resuming from step {saved}") for line in messages)
    for result, uninterrupted in zip(resumed, complete.values(), strict=True):
        assert (result.folder / "adapter.pt").read_bytes() == (uninterrupted.folder / "adapter.pt").read_bytes()
        for column in ("step", "train_loss", "selection_loss", "learning_rate"):
            assert result.history[column].to_numpy() == pytest.approx(
                uninterrupted.history[column].to_numpy(), 1e-12, nan_ok=True
            )
    assert list((tmp_path / "state").glob("*/*")) == []


def test_another_group_with_one_of_them_drops_the_state_of_the_first(tiny_base: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_base, save_steps=3)
    jobs = [TrainingJob(name, [windows], listener=KillAtStep(4)) for name, windows in windows_of(recipe).items()]
    with pytest.raises(Killed):
        trainer_of(recipe, tmp_path).train_adapters(jobs)
    (left,) = (tmp_path / "state").glob("*/state.pt")
    trainer_of(recipe, tmp_path).train_adapters([replace(job, listener=None) for job in jobs[:2]])
    assert not left.exists()


def test_jobs_begin_with_their_group_and_may_have_roots_of_their_own(base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(base, epochs=1, adapters_together=2)
    order: list[str] = []

    def on_start(job: TrainingJob) -> TrainingJob:
        order.append(f"begin {job.windows[0].ticker}")
        return replace(job, mlflow_run=f"run of {job.windows[0].ticker}")

    jobs = [TrainingJob("same", [windows], root=tmp_path / name) for name, windows in windows_of(recipe).items()]
    results = trainer_of(recipe, tmp_path / "own").train_adapters(
        jobs, on_start=on_start, on_end=lambda job, _: order.append(f"end {job.mlflow_run}")
    )
    assert order == [
        *("begin NVDA", "begin AAPL", "end run of NVDA", "end run of AAPL"),
        *("begin MSFT", "end run of MSFT"),
    ]
    for name, result in zip(BARS, results, strict=True):
        assert isinstance(result, TrainingResult)
        assert result.folder == tmp_path / name / "adapters" / "same"
        assert read_json(result.folder / "manifest.json")["mlflow_run"] == f"run of {name}"


def test_two_adapters_of_one_folder_are_refused(base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(base)
    aapl, msft, _ = windows_of(recipe).values()
    with pytest.raises(SettingsError, match=r"Two adapters would be .*AAPL"):
        trainer_of(recipe, tmp_path).train_adapters([TrainingJob("AAPL", [aapl]), TrainingJob("AAPL", [msft])])
