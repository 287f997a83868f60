"""A training picks its device, locks it, and several trainings use several devices."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from small_trainings import simulated_windows, small_flags, small_recipe

from kronos_pipeline import KronosTrainer, run_training
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.model.devices import has_native_bf16, pick_device
from kronos_pipeline.training.devices import acquire_device, device_locks, pick_precision

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
FIRST = torch.device("cuda:0")


def held_elsewhere(device: torch.device) -> FileLock:
    """Hold the lock of a device, as another process does."""
    lock = FileLock(device_locks(device)[0].lock_file)
    lock.acquire(timeout=0)
    return lock


class StillFullError(Exception):
    """Error that ends a wait."""


def stop_waiting(line: str) -> None:
    assert line == "adapters/AAPL: waiting for the first of 2 trainings on cuda:0"
    raise StillFullError


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_cuda_device_has_an_index(name: str) -> None:
    assert pick_device(name) == FIRST


def test_bf16_by_emulation_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(2, 2)
    assert pick_precision("auto", FIRST, layer) == ("bf16" if has_native_bf16(FIRST) else "fp32")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert pick_precision("auto", FIRST, layer) == "fp32"


@TWO
def test_auto_takes_a_gpu_that_no_other_training_holds(tiny_base: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_base, device="auto")
    first = KronosTrainer(recipe, tmp_path, say=lambda _: None)
    assert first.device == FIRST
    with pytest.raises(Timeout):
        held_elsewhere(first.device)
    del first
    gc.collect()
    other = held_elsewhere(FIRST)
    second = KronosTrainer(recipe, tmp_path, say=lambda _: None)
    assert second.device == torch.device("cuda:1")
    assert second.train_checkpoint(simulated_windows(recipe)).summary["device"].startswith("cuda:1 ")
    other.release()


@TWO
def test_auto_waits_for_the_first_gpu_that_is_free(tiny_base: Path, tmp_path: Path) -> None:
    others = [held_elsewhere(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    messages: list[str] = []

    def release(line: str) -> None:
        messages.append(line)
        others[1].release()

    trainer = KronosTrainer(small_recipe(tiny_base, device="auto"), tmp_path, say=release)
    assert trainer.device == torch.device("cuda:1")
    assert messages == [f"other trainings hold all {len(others)} GPUs; waiting for the first that is free"]
    for other in others:
        other.release()


def test_a_gpu_takes_as_many_trainings_at_once_as_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRONOS_TRAININGS_PER_GPU", "2")
    first, second = (FileLock(lock.lock_file) for lock in device_locks(FIRST))
    with first.acquire(timeout=0):
        taken = acquire_device(FIRST, "adapters/AAPL", pytest.fail)
        with pytest.raises(Timeout):
            second.acquire(timeout=0)
        again = acquire_device(FIRST, "adapters/AAPL", pytest.fail)
        assert again is taken
        again.release()
        taken.release()
        with second.acquire(timeout=0), pytest.raises(StillFullError):
            acquire_device(FIRST, "adapters/AAPL", stop_waiting)
    monkeypatch.setenv("KRONOS_TRAININGS_PER_GPU", "0")
    with pytest.raises(SettingsError, match="KRONOS_TRAININGS_PER_GPU is '0', and a whole number from 1 to 64"):
        device_locks(FIRST)


def test_a_lock_is_that_of_the_physical_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    named = device_locks(torch.device("cuda:3"))[0].lock_file
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-1f/2")
    assert device_locks(FIRST)[0].lock_file == named
    assert Path(device_locks(torch.device("cuda:1"))[0].lock_file).name.endswith("-GPU-1f-2.lock")


def test_more_processes_than_gpus_are_told(tiny_base: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    gpus = torch.cuda.device_count()
    for name, value in {"WORLD_SIZE": gpus + 1, "LOCAL_WORLD_SIZE": gpus + 1, "RANK": 0, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    recipe = small_recipe(tiny_base, device="cuda")
    with pytest.raises(SettingsError, match=rf"torchrun started {gpus + 1} processes .*--nproc_per_node {gpus}\.$"):
        KronosTrainer(recipe, tmp_path)
    write_simulated(tmp_path / "data", tickers=["AAPL"], bars=130)
    flags = small_flags(tiny_base, data_dir=tmp_path / "data", output_dir=tmp_path / "out", device="auto")
    assert run_training.main(flags) == 2
    assert capsys.readouterr().err.count("--nproc_per_node") == 1
