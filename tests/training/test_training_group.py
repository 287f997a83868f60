"""Joint training of adapters with errors, interrupts and little memory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_trainings import simulated_windows, small_recipe

from kronos_pipeline import KronosTrainer
from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.errors import ModelError
from kronos_pipeline.training import preflight
from kronos_pipeline.training.checkpoint import ResumeState, group_state
from kronos_pipeline.training.dataset import TrainingData
from kronos_pipeline.training.loop import TrainingLoop
from kronos_pipeline.training.multi_lora import forward
from kronos_pipeline.training.multi_lora.loop import MultiLoraLoop
from kronos_pipeline.training.plan import TrainingJob


def test_a_timing_that_runs_out_of_memory_is_tried_with_half_the_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    batch_sizes: list[int] = []

    def seconds(*_: Any, batch_size: int, **__: Any) -> float:
        batch_sizes.append(batch_size)
        if batch_size > 16:
            raise torch.OutOfMemoryError("no room")
        return 7.0

    monkeypatch.setattr(preflight, "expected_seconds", seconds)
    multi_lora: Any = SimpleNamespace(serving=lambda *_, **__: nullcontext(), predictor=None)
    recipe: Any = SimpleNamespace(batch_size=8, epochs=1, evaluations_per_epoch=1)
    train: Any = range(5000)
    selection: Any = range(10)
    messages: list[str] = []
    batched = forward.BatchedForward(multi_lora, torch.device("cpu"), "fp32", 8, messages.append)
    assert batched.expected_seconds(torch.zeros(3), TrainingData(train, selection), recipe) == 7.0
    assert batch_sizes == [64, 32, 16]
    assert len(messages) == 2


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 2])
def test_where_the_memory_lacks_for_one_each_adapter_is_named(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(MultiLoraLoop if most > 1 else TrainingLoop, "run", none)
    recipe = small_recipe(tiny_base, adapters_together=most)
    jobs = [TrainingJob(ticker.ticker, [ticker]) for ticker in simulated_windows(recipe, ("AAPL", "MSFT"))]
    ended = KronosTrainer(recipe, tmp_path, say=lambda _: None).train_adapters(jobs)
    assert [type(error) for error in ended] == [ModelError, ModelError]
    for error, name in zip(ended, ("AAPL", "MSFT"), strict=True):
        assert str(error).startswith(f"The training of adapters/{name} needs more memory than this machine has free. ")


def test_a_group_with_other_members_says_who_came_and_who_went(tmp_path: Path) -> None:
    layout = ArtifactLayout(tmp_path)
    messages: list[str] = []
    first, second, third = (ResumeState(layout, f"adapters/{name}", {"rows": name}) for name in ("AA", "BB", "CC"))
    group_state(layout, [first, second], messages.append).save({"members": []}, messages.append)
    group_state(layout, [first, third], messages.append)
    assert messages == ["starting anew: the adapters that train together have changed: CC came, BB went"]
