"""A state is copied to the host in a few transfers, on a full device too."""

from __future__ import annotations

import pytest
import torch

from kronos_pipeline.training.host_copy import state_to_host

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def make_state() -> dict[str, object]:
    numbers = [torch.arange(size, device="cuda", dtype=torch.float32).view(-1, 2) for size in (2, 4, 6)]
    return {"weights": dict(enumerate(numbers)), "steps": [(torch.tensor(3, device="cuda"), 7)], "host": torch.ones(2)}


def assert_equal(copied: dict[str, object], state: dict[str, object]) -> None:
    torch.testing.assert_close(copied["weights"], {name: x.cpu() for name, x in state["weights"].items()})  # type: ignore[attr-defined]
    assert copied["steps"] == [(torch.tensor(3), 7)]
    assert copied["host"] is state["host"]


def test_a_state_is_copied_in_a_transfer_for_each_type() -> None:
    simcuda = pytest.importorskip("simcuda")
    state = make_state()
    with simcuda.watching() as watch:
        copied = state_to_host(state)
    assert sum(watch.syncs.values()) == 2  # float32 and int64
    assert_equal(copied, state)


def test_a_state_is_copied_where_the_device_has_no_room_to_gather_it() -> None:
    simcuda = pytest.importorskip("simcuda")
    state = make_state()
    with simcuda.inject_oom():
        copied = state_to_host(state)
    assert_equal(copied, state)
