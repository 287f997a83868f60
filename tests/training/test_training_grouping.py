"""The number of adapters that train jointly, by settings and total memory of the device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import Recipe
from kronos_pipeline.training.checkpoint import ResumeState
from kronos_pipeline.training.multi_lora.group import adapters_per_pass, group_by_length, group_size, separate_reason
from kronos_pipeline.training.single import PreparedTraining

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = SimpleNamespace(n_layers=8, d_model=512, ff_dim=1024, s1_bits=10, s2_bits=10)
WIDTH = 600_000


def recipe_of(**changes: Any) -> Recipe:
    return Recipe(**{"model_name": "NeoQuasar/Kronos-small", **changes})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    def of(gigabytes: float) -> None:
        properties = SimpleNamespace(total_memory=int(gigabytes * 1e9))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)

    return of


def test_a_large_gpu_takes_the_adapters_of_the_goal_at_once_and_a_small_one_fewer(gpu: Any) -> None:
    counts = []
    for gigabytes in (0.1, 8, 24, 80):
        gpu(gigabytes)
        counts.append(adapters_per_pass(SMALL, WIDTH, recipe_of(), "bf16", CUDA))
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] >= 20
    assert adapters_per_pass(SMALL, WIDTH, recipe_of(batch_size=16), "bf16", CUDA) >= 32  # as in the benchmark
    assert adapters_per_pass(SMALL, WIDTH, recipe_of(), "fp32", CUDA) < counts[-1]
    assert adapters_per_pass(SMALL, WIDTH, recipe_of(batch_size=128), "bf16", CUDA) < counts[-1]


def test_a_pass_is_smaller_where_others_hold_most_of_the_gpu(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(80)

    def of_free(gigabytes: float) -> int:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(gigabytes * 1e9), int(80e9)))
        return adapters_per_pass(SMALL, WIDTH, recipe_of(), "bf16", CUDA, shared=True)

    unshared = adapters_per_pass(SMALL, WIDTH, recipe_of(), "bf16", CUDA)
    assert of_free(75) == of_free(45) == unshared
    assert 1 <= of_free(10) <= unshared / 3


def test_a_pass_on_a_cpu_is_short() -> None:
    assert adapters_per_pass(SMALL, WIDTH, recipe_of(batch_size=64), "fp32", CPU) == 1
    assert adapters_per_pass(SMALL, WIDTH, recipe_of(batch_size=8), "fp32", CPU) > 1


@pytest.mark.parametrize(
    ("changes", "precision", "processes", "reason"),
    [
        ({}, "fp16", 1, "float16 scales the loss of all by one number"),
        ({}, "fp32", 2, "several processes share each"),
        ({"torch_compile": True}, "fp32", 1, "the model is compiled"),
        ({"freeze_backbone": False, "adapters_together": 8}, "fp32", 1, "the base is trained with each"),
        ({"adapters_together": 8}, "bf16", 1, None),
    ],
)
def test_what_cannot_be_shared_trains_alone_and_says_why(
    changes: dict[str, Any], precision: str, processes: int, reason: str | None
) -> None:
    assert separate_reason(recipe_of(**changes), precision, processes) == reason


def test_otherwise_the_setting_counts_or_the_memory() -> None:
    assert group_size(recipe_of(), 40, CUDA) == 40
    assert group_size(recipe_of(), 2, CPU) > 2
    assert group_size(recipe_of(adapters_together=5), 40, CUDA) == 5
    assert group_size(recipe_of(adapters_together=1), 40, CUDA) == 1


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 50)), max_size=30), st.integers(1, 8))
def test_groups_hold_every_training_once_and_like_with_like(sizes: list[tuple[int, int]], most: int) -> None:
    def prepared(number: int, lookback: int, count: int) -> PreparedTraining:
        windows: Any = SimpleNamespace(lookback=lookback, horizon=5, counts=lambda: {"train": count})
        state = ResumeState(ArtifactLayout(Path("x")), f"adapters/{number}", {})
        return PreparedTraining(True, Path(str(number)), state, [windows])

    trainings = [prepared(number, *size) for number, size in enumerate(sizes)]
    groups = group_by_length(trainings, most)
    assert sorted(training.target for group in groups for training in group) == sorted(
        training.target for training in trainings
    )
    assert all(1 <= len(group) <= most for group in groups)
    assert all(len({training.windows[0].lookback for training in group}) == 1 for group in groups)
    assert groups == group_by_length(trainings, most)
    if most > 1:
        for group in groups:
            assert [training.count("train") for training in group] == sorted(
                training.count("train") for training in group
            )
