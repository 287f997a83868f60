"""A recorded graph gives the function's result on its device, and a refusal has no side effects."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from kronos_pipeline.model.cuda_graphs import record, warm_up

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
DEVICES = ["cuda", pytest.param("cuda:1", marks=TWO)]


def filled(device: str, value: float = 1.0) -> Tensor:
    return torch.full((3,), value, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_replay_computes_from_what_the_inputs_hold_now(device: str) -> None:
    inputs = filled(device)
    before = torch.cuda.current_device(), torch.cuda.current_stream(), torch.cuda.current_stream(device)
    recording = record(lambda: inputs * 2 + 1, inputs.device)
    assert recording is not None
    for value in (3.0, 5.0):
        inputs.fill_(value)
        recording.replay()
        assert recording.outputs.tolist() == [2 * value + 1] * 3
    assert before == (
        torch.cuda.current_device(),
        torch.cuda.current_stream(),
        torch.cuda.current_stream(inputs.device),
    )


def test_warm_up_calls_are_real_calls() -> None:
    total, scratch = filled("cuda", 0.0), filled("cuda")
    assert warm_up(lambda: total.add_(1), total.device) is total
    calls: list[int] = []

    def counted() -> Tensor:
        calls.append(1)
        return torch.add(total, 1, out=scratch)

    assert record(counted, total.device, warm_ups=2) is not None
    assert len(calls) == 3
    assert total.tolist() == [1.0] * 3


def test_graphs_that_share_a_pool_run_one_after_the_other() -> None:
    inputs = filled("cuda")
    first = record(lambda: (inputs * 2).exp(), inputs.device)
    assert first is not None
    copy = torch.empty_like(inputs)
    second = record(lambda: (copy * 3).log(), inputs.device, share=first)
    assert second is not None
    for value in (0.5, 2.0):
        inputs.fill_(value)
        first.replay()
        copy.copy_(first.outputs)
        second.replay()
        torch.testing.assert_close(second.outputs.cpu(), ((inputs.cpu() * 2).exp() * 3).log())


def usable(device: str = "cuda") -> bool:
    """Return whether a device draws random numbers, frees memory and records graphs."""
    torch.cuda.empty_cache()
    inputs = torch.rand(3, device=device)
    recording = record(lambda: inputs + 1, inputs.device)
    assert recording is not None
    recording.replay()
    return torch.equal(recording.outputs.cpu(), inputs.cpu() + 1)


@pytest.mark.parametrize("device", DEVICES)
def test_a_function_that_waits_for_the_device_is_not_recorded(device: str) -> None:
    inputs = filled(device)
    stream = torch.cuda.current_stream(inputs.device)
    assert record(lambda: inputs * float(inputs.sum()), inputs.device) is None
    assert torch.cuda.current_stream(inputs.device) == stream
    assert usable(device)


def test_a_capture_that_cuda_refuses_gives_no_recording() -> None:
    simcuda = pytest.importorskip("simcuda")
    inputs = filled("cuda")
    with simcuda.refuse_capture():
        assert record(lambda: inputs + 1, inputs.device) is None
    assert usable()


def test_an_error_of_the_function_itself_is_raised() -> None:
    inputs, calls = filled("cuda"), []

    def fails_when_captured() -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("of the function")
        return inputs + 1

    with pytest.raises(ValueError, match="of the function"):
        record(fails_when_captured, inputs.device)
    assert usable()


def test_running_out_of_memory_is_raised() -> None:
    simcuda = pytest.importorskip("simcuda")
    inputs = filled("cuda")
    with simcuda.inject_oom(after=1), pytest.raises(torch.OutOfMemoryError):  # one: the warm-up call
        record(lambda: inputs + 1, inputs.device)
    assert usable()


def test_threads_record_one_after_the_other() -> None:
    inputs = [filled("cuda", number) for number in range(4)]
    outputs: list[list[float]] = [[] for _ in inputs]
    barrier = threading.Barrier(len(inputs))

    def work(number: int) -> None:
        barrier.wait()
        recording = record(lambda: inputs[number] + 10, inputs[number].device)
        barrier.wait()
        assert recording is not None
        recording.replay()
        outputs[number] = recording.outputs.tolist()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == [[number + 10.0] * 3 for number in range(4)]
