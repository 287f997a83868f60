"""A training step: its waits, its inputs, and its distribution over processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_trainings import simulated_windows, small_recipe
from tiny_models import tiny_predictor, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from kronos_pipeline.config import Recipe
from kronos_pipeline.model.losses import token_loss
from kronos_pipeline.training.dataset import KronosMultiTickerDataset, TrainingData
from kronos_pipeline.training.devices import new_accelerator
from kronos_pipeline.training.loop import TrainingLoop, batch_weight, batches_of, epoch_order, eval_steps
from kronos_pipeline.training.microbatch import Microbatch

CPU = torch.device("cpu")


class Calls(TorchDispatchMode):
    """Counter of PyTorch operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch annotates no dispatch mode
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def optimisation_of(recipe: Recipe, predictor: Any) -> TrainingLoop:
    windows = simulated_windows(recipe)
    data = TrainingData(
        *(KronosMultiTickerDataset(windows, split, tiny_tokenizer()) for split in ("train", "selection"))
    )
    microbatch = Microbatch(recipe.batch_size, "windows", CPU, print)
    return TrainingLoop(predictor, data, recipe, new_accelerator(recipe, CPU, recipe.precision), microbatch)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_number_is_fetched_from_the_device_within_a_step(tiny_base: Path, precision: str) -> None:
    optimisation = optimisation_of(small_recipe(tiny_base, precision=precision, grad_accum_steps=2), tiny_predictor())
    steps = list(optimisation._steps_of(0, 0))[:2]
    with Calls() as calls:
        for batches in steps:
            optimisation._step(batches)
    assert calls.names.count("_fused_adamw_") == 2 * len(steps)  # with and without weight decay
    assert not {"_local_scalar_dense", "item", "nonzero", "is_nonzero"} & set(calls.names)
    with Calls() as calls:
        optimisation._read_loss()
    assert "_local_scalar_dense" in calls.names


def test_a_step_is_pytorchs_own_on_the_same_windows(tiny_base: Path) -> None:
    recipe = small_recipe(tiny_base, precision="fp32", max_grad_norm=0.1, weight_decay=0.1)
    predictor, reference = tiny_predictor(dropout=False).train(), tiny_predictor(dropout=False).train()
    optimisation = optimisation_of(recipe, predictor)
    groups = [[p for p in reference.parameters() if (p.ndim >= 2) is decayed] for decayed in (True, False)]
    rates = zip(groups, (0.1, 0.0), strict=True)
    adamw = torch.optim.AdamW(
        [{"params": parameters, "weight_decay": rate} for parameters, rate in rates], lr=recipe.peak_learning_rate
    )
    adamw.param_groups[0]["lr"] = adamw.param_groups[1]["lr"] = optimisation._schedule.get_last_lr()[0]
    (part, *_), *_ = optimisation._steps_of(0, 0)
    optimisation._step([part])
    batch = optimisation._train.batch(part.windows)
    token_loss(reference, **batch, first_target=recipe.lookback).backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
    adamw.step()
    for (name, parameter), expected in zip(predictor.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-7, msg=name)


@given(
    windows=st.integers(1, 90), batch_size=st.integers(1, 12), accumulated=st.integers(1, 3), count=st.integers(1, 4)
)
def test_processes_share_a_step(windows: int, batch_size: int, accumulated: int, count: int) -> None:
    order = epoch_order(3, 1, windows)
    assert sorted(order.tolist()) == list(range(windows))
    for step in order.split(batch_size * accumulated * count):
        shares = [batches_of(step, batch_size, process, count) for process in range(count)]
        assert len({len(batches) for batches in shares}) == 1
        assert all(1 <= len(batch) <= batch_size for batches in shares for batch in batches)
        assert set(torch.cat([batch for batches in shares for batch in batches]).tolist()) == set(step.tolist())
        for number, batch in enumerate(step.split(batch_size * count)):
            losses = [shares[process][number].double().mean() for process in range(count)]
            weights = [batch_weight(len(batch), process, count) for process in range(count)]
            mean = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / count
            assert mean == pytest.approx(batch.double().mean()), "the gradients of processes are averaged"


def test_one_process_takes_the_windows_in_their_order() -> None:
    step = epoch_order(0, 0, 40)
    assert torch.equal(torch.cat(batches_of(step, 16)), step)
    assert [len(batch) for batch in batches_of(step, 16)] == [16, 16, 8]


@given(steps=st.integers(1, 60), looks=st.integers(1, 9))
def test_the_last_step_of_an_epoch_is_looked_at(steps: int, looks: int) -> None:
    points = eval_steps(Recipe(evaluations_per_epoch=looks), steps)
    assert max(points) == steps
    assert min(points) >= 1
    assert len(points) == min(looks, steps)
