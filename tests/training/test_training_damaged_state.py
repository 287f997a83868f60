"""Damaged files of saved states: they are set aside by name, and touch no other training."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_trainings import KillAtStep, Killed
from small_trainings import simulated_windows, small_recipe

from kronos_pipeline import KronosTrainer
from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.training import state_file
from kronos_pipeline.training.checkpoint import ResumeState, locked
from kronos_pipeline.training.publish import TrainingResult


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda run: run.write_bytes(run.read_bytes()[:20]),
    "empty": lambda run: run.write_bytes(b""),
    "a list": lambda run: run.write_text("[]"),
    "no parts": lambda run: run.write_text("{}"),
    "wrong types": lambda run: run.write_text('{"artifact": 5, "parts": [], "artifacts": 7}'),
    "binary": lambda run: run.write_bytes(bytes(range(256))),
    "nested deeply": lambda run: run.write_text("[" * 100_000),
    "a folder": put_folder,
}


def begin(layout: ArtifactLayout, name: str, messages: list[str], **parts: Any) -> ResumeState:
    state = ResumeState(layout, f"adapters/{name}", parts)
    with locked([state], torch.device("cpu"), messages.append):
        state.begin(messages.append)
    return state


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_set_aside_by_name_and_stops_no_training(tmp_path: Path, damage: str) -> None:
    layout = ArtifactLayout(tmp_path)
    other = begin(layout, "MSFT", [], rows=1)
    run = other.folder / "run.json"
    DAMAGES[damage](run)
    messages: list[str] = []
    begin(layout, "AAPL", messages, rows=1).finish(keep_mark=False)
    (message,) = messages
    assert message.startswith(f"{run} is damaged (")
    assert "it is now run.json.damaged" in message
    assert run.with_name("run.json.damaged").exists()
    assert not run.exists()
    begin(layout, "MSFT", messages, rows=1)
    assert len(messages) == 1  # its own training writes the record anew
    assert run.is_file()


def test_a_record_that_cannot_be_renamed_is_named_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = ArtifactLayout(tmp_path)
    run = begin(layout, "MSFT", []).folder / "run.json"
    run.write_text("[]")

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "replace", refuse)
    messages: list[str] = []
    with locked([ResumeState(layout, "adapters/AAPL", {})], torch.device("cpu"), messages.append):
        pass
    assert messages == [
        f"{run} is damaged (it holds no JSON object): it cannot be renamed (Permission denied); "
        "a new record is made when its training runs again."
    ]


def test_a_folder_in_the_place_of_a_lock_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "state/.adapters-AAPL.lock").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"adapters/AAPL: its lock .* cannot be opened .*remove it"):
        begin(ArtifactLayout(tmp_path), "AAPL", [])


def test_no_flipped_bit_of_a_state_goes_unnoticed(tmp_path: Path) -> None:
    state = {"weights": torch.arange(300.0), "step": 7}
    state_file.save_state(tmp_path, {**state, "step": 6})
    state_file.save_state(tmp_path, state)
    path = tmp_path / "state.pt"
    whole, generator = path.read_bytes(), random.Random(0)
    for _ in range(40):
        damaged, bit = bytearray(whole), generator.randrange(8 * len(whole))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        loaded, reasons = state_file.load_state(tmp_path)
        assert loaded is not None
        assert (loaded["step"], list(reasons)) == (6, [path])
    path.write_bytes(whole)
    loaded, reasons = state_file.load_state(tmp_path)
    assert loaded is not None
    assert (loaded["step"], reasons) == (7, {})
    assert loaded["weights"].equal(state["weights"])


def test_two_states_are_kept_and_a_full_disk_leaves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = ResumeState(ArtifactLayout(tmp_path), "adapters/AAPL", {})
    messages: list[str] = []
    for step in range(5):
        assert state.save({"step": step}, messages.append)
    assert {path.name for path in state.folder.iterdir()} == {"state.pt", "state.previous.pt"}
    assert messages == []
    save = torch.save

    def fill(*arguments: Any) -> None:
        save(*arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", fill)
    for step in (5, 6):
        assert not state.save({"step": step}, messages.append)
    monkeypatch.undo()
    assert "No space left on device" in messages[0]
    assert messages[0].endswith("The training goes on; the state before it is kept.")
    assert state.load(messages.append) == {"step": 4}
    assert state.save({"step": 7}, messages.append)
    assert state.load(messages.append) == {"step": 7}


@pytest.fixture(scope="module")
def whole(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    recipe = small_recipe(tiny_base, save_steps=3)
    trainer = KronosTrainer(recipe, tmp_path_factory.mktemp("whole"), say=lambda _: None)
    return trainer.train_adapter(simulated_windows(recipe), "AAPL")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damaged", "resumed_from", "then"),
    [
        (("state.pt",), 3, "resumes from the state before it"),
        (("state.pt", "state.previous.pt"), 0, "starts anew"),
        (("run.json",), 6, "a new record is made"),
    ],
)
def test_a_damaged_state_falls_back_and_ends_with_the_same_bytes(
    tiny_base: Path, tmp_path: Path, whole: TrainingResult, damaged: tuple[str, ...], resumed_from: int, then: str
) -> None:
    recipe = small_recipe(tiny_base, save_steps=3)
    windows = simulated_windows(recipe)
    with pytest.raises(Killed):
        KronosTrainer(recipe, tmp_path, say=lambda _: None).train_adapter(windows, "AAPL", listener=KillAtStep(7))
    (folder,) = {run.parent for run in (tmp_path / "state").glob("*/run.json")}
    for name in damaged:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 128
        (folder / name).write_bytes(content)
    messages: list[str] = []
    result = KronosTrainer(recipe, tmp_path, say=messages.append).train_adapter(windows, "AAPL")
    assert sum(then in line and f"{damaged[0]} is damaged" in line for line in messages) == 1
    assert result.summary["resumed_from_step"] == resumed_from
    for file in ("adapter_model.safetensors", "adapter.pt"):
        assert (result.folder / file).read_bytes() == (whole.folder / file).read_bytes()
    assert list((tmp_path / "state").glob("*/*")) == []


@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8])
def test_a_state_that_cannot_be_written_is_named_with_the_reason_at_each_write(
    nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_file.save_state(tmp_path, {"step": 5, "weights": torch.arange(50_000)})
    writes = 0

    def write(digest: state_file._Digest, content: bytes) -> int:
        nonlocal writes
        writes += 1
        if writes == nth:
            raise OSError(errno.EIO, "Input/output error")
        return digest._file.write(content)

    monkeypatch.setattr(state_file._Digest, "write", write)
    with pytest.raises(ArtifactError, match=r"state.pt cannot be written \(Input/output error\)"):
        state_file.save_state(tmp_path, {"step": 6, "weights": torch.arange(50_000)})
    loaded, _ = state_file.load_state(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 5
