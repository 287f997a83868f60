"""The number format of a training: the best of the device, or the requested format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kronos_pipeline.errors import SettingsError
from kronos_pipeline.training.devices import cpu_has_bf16, pick_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LARGE, SMALL = nn.Linear(2000, 2000, bias=False), nn.Linear(100, 100)


@pytest.mark.parametrize(
    ("capabilities", "predictor", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, LARGE, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, LARGE, "bf16"),
        ({"avx512_bf16": True}, SMALL, "fp32"),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, LARGE, "fp32"),
        ({}, LARGE, "fp32"),
    ],
)
def test_auto_asks_the_cpu_and_leaves_small_models_exact(
    capabilities: dict[str, bool], predictor: nn.Module, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert pick_precision("auto", CPU, predictor) == expected


def test_auto_is_exact_on_a_gpu_of_another_kind() -> None:
    assert pick_precision("auto", torch.device("mps"), LARGE) == "fp32"


def test_a_version_of_pytorch_that_cannot_tell_counts_as_a_cpu_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not cpu_has_bf16()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_is_asked_for_is_taken(precision: str) -> None:
    assert pick_precision(precision, CUDA, SMALL) == precision


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        pick_precision("fp16", CPU, LARGE)
