"""Signals to a command: the state of a training is saved where they strike, and nothing is half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from small_trainings import small_flags

from kronos_pipeline import run_training
from kronos_pipeline.cli import run_entry
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.evaluation.reports import tables
from kronos_pipeline.tracking import store
from kronos_pipeline.training import checkpoint
from kronos_pipeline.training.callback import Callback
from kronos_pipeline.training.host_copy import state_to_host

pytestmark = pytest.mark.slow

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
INTERRUPT_AN_IMPORT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.nn":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from kronos_pipeline import run_training
sys.exit(run_training.main(sys.argv[1:]))
"""


class Run:
    """The plain command over two simulated tickers, which train jointly."""

    def __init__(self, base: Path, folder: Path, store: str) -> None:
        self.folder, self.store = folder, store
        self.flags = small_flags(
            base, data_dir=folder / "data", output_dir=folder / "out", save_steps=5, validation_days=12
        )
        write_simulated(folder / "data", tickers=["AAPL", "MSFT"], bars=130)

    def __call__(self, *flags: str) -> int:
        return run_training.main([*self.flags, *flags])

    def runs(self) -> list[str]:
        client = MlflowClient(self.store)
        (experiment,) = [found for found in client.search_experiments() if found.name == store.EXPERIMENT]
        return sorted(run.info.status for run in client.search_runs([experiment.experiment_id]))

    def left_over(self) -> list[Path]:
        return [path for path in (self.folder / "out").rglob("*") if path.name.endswith(".tmp")]


@pytest.fixture(autouse=True)
def signals_arrive() -> Iterator[None]:
    """Let the signals arrive in a suite that was started to ignore them, in the background or by `nohup`."""
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tiny_base: Path, tmp_path: Path, clean_mlflow_store: str) -> Run:
    return Run(tiny_base, tmp_path, clean_mlflow_store)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    def on_step_end(_: Callback, done: int) -> None:
        if done == step:
            monkeypatch.undo()
            act()

    monkeypatch.setattr(Callback, "on_step_end", on_step_end)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted((folder / "adapters").glob("*/adapter.pt"))}


def test_an_interrupted_training_says_what_is_saved_and_ends_as_if_nothing_had_been(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for step, (number, exit_code) in zip((3, 6, 8), SIGNALS.items(), strict=True):
        with monkeypatch.context() as patch:
            at_step(patch, step, partial(signal.raise_signal, number))
            assert run("--adapter", "lora") == exit_code
        assert capsys.readouterr().err == (
            f"interrupted: the state of adapters/AAPL, MSFT at step {step} of 12 is saved; "
            "the same command goes on from there\n"
        )
        assert set(run.runs()) == {"KILLED"}
        assert run.left_over() == []
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    assert run("--adapter", "lora") == 0
    assert "resuming from step 8" in capsys.readouterr().out
    assert "RUNNING" not in run.runs()
    interrupted = bytes_of(tmp_path / "out")
    assert run("--adapter", "lora") == 0
    assert bytes_of(tmp_path / "out") == interrupted


def test_a_second_signal_during_the_saving_ends_at_once_and_leaves_the_state_before(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = state_to_host

    def interrupt_again(state: dict[str, Any]) -> dict[str, Any]:
        if state["state"]["step"] == 7:
            signal.raise_signal(signal.SIGINT)
        return copy(state)

    monkeypatch.setattr(checkpoint, "state_to_host", interrupt_again)
    with monkeypatch.context() as patch:
        at_step(patch, 7, partial(signal.raise_signal, signal.SIGINT))
        assert run() == 130
    assert "is saved" not in capsys.readouterr().err
    assert run.left_over() == []
    assert run() == 0
    assert "resuming from step 5" in capsys.readouterr().out


def test_a_hangup_that_is_ignored_stays_ignored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(Callback, "on_step_end", lambda *_: signal.raise_signal(signal.SIGHUP))
        assert run() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_the_evaluation_keeps_the_training(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tables, "save_leaderboard", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert run() == 143
    captured = capsys.readouterr()
    assert captured.err == "interrupted: what had ended is kept; the same command goes on from there\n"
    assert run.runs() == ["FINISHED"]
    assert run.left_over() == []
    trained = (tmp_path / "out/checkpoints/best_model").resolve()
    assert run() == 0
    assert (tmp_path / "out/checkpoints/best_model").resolve() == trained


def test_a_signal_that_a_library_turns_into_its_own_error_still_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "interrupted_library.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "except BaseException as error:\n"
        "    raise ImportError('initialization failed') from error\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run_entry("interrupted_library") == 143
    assert capsys.readouterr().err.startswith("interrupted: ")


def test_ctrl_c_while_packages_load_shows_no_traceback(run: Run) -> None:
    arguments = [sys.executable, "-c", INTERRUPT_AN_IMPORT, *run.flags]
    result = subprocess.run(arguments, capture_output=True, text=True, env=os.environ, check=False)
    assert result.returncode == 130
    assert result.stderr == "interrupted: what had ended is kept; the same command goes on from there\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such call")
def test_a_process_ends_with_its_parent_that_is_killed() -> None:
    child = "from kronos_pipeline.signals import end_with_parent; end_with_parent(); print(flush=True); input()"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    command = [sys.executable, "-c", parent, child]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.read(1) == b"\n"
        started.kill()
        assert started.stdout.read() == b""  # the child, which waits for its input, holds the other end until it ends
