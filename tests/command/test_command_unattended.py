"""Nights of an unattended machine in any order: bars come, trainings are killed, files are damaged, people promote.

After each step the published artifacts are whole and the ledger has lost no row; without further faults a forecast
comes at the end. `make nights HISTORIES=100` looks for new histories.
"""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
from fault_scenarios import TICKER, read_result
from faulty_commands import Fault, FaultyCommands, Outcome, compiler
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from market_files import daily_frame, write_frame
from safetensors import safe_open
from small_trainings import small_flags
from tiny_models import save_tiny_base

pytestmark = [pytest.mark.slow, pytest.mark.skipif(compiler() is None, reason="needs a C compiler")]

ALL_BARS = daily_frame(150)
FIRST_BARS = 120
HALF_A_DAY = 12 * 60 * 60


class World:
    """A folder with data, outputs, base model and the process of the commands, for all histories of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place, self.data = folder, folder / "place", folder / "data"
        self.flags = small_flags(save_tiny_base(folder / "base"), epochs=1, evaluations_per_epoch=1)
        self.commands = FaultyCommands(self.place, folder)
        write_frame(self.data, TICKER, ALL_BARS.head(FIRST_BARS))
        for command in (self.train(folder / "warm"), self.forecast(folder / "warm")):
            self.commands.warm_up(command)
        trained = self.commands.run(self.train(self.place / "out"))
        assert trained.exit_code == 0, trained.printed
        self.template = shutil.move(self.place / "out", folder / "template")

    def folders(self, output: Path) -> list[str]:
        """Return the flags of both folders."""
        return ["--data-dir", str(self.data), "--output-dir", str(output)]

    def forecast(self, output: Path) -> list[str]:
        """Return the command that forecasts."""
        return ["forecast", TICKER, *self.folders(output), "--device", "cpu", "--eval-samples", "3"]

    def train(self, output: Path, seed: int = 0) -> list[str]:
        """Return the command that trains."""
        lora = ["--adapter", "lora", "--adapter-name", TICKER, "--seed", str(seed)]
        return ["train", *self.flags, *self.folders(output), *lora]


class UnattendedMachine(RuleBasedStateMachine):
    """One history; the state is in files, as it is for users."""

    world: ClassVar[World]
    histories: ClassVar[int] = 0

    @initialize()
    def start(self) -> None:
        """Begin with a trained adapter."""
        UnattendedMachine.histories += 1
        self.say("begins")
        self.output, self.bars, self.seed, self.moves = self.world.place / "out", FIRST_BARS, 0, 0
        self.damaged = False
        self.ledger: set[str] = set()
        shutil.rmtree(self.world.place, ignore_errors=True)
        self.world.place.mkdir()
        shutil.copytree(self.world.template, self.output, symlinks=True)
        write_frame(self.world.data, TICKER, ALL_BARS.head(self.bars))

    @precondition(lambda self: self.bars <= len(ALL_BARS) - 5)
    @rule(count=st.integers(1, 5))
    def bars_arrive(self, count: int) -> None:
        """Append bars to the CSV."""
        self.bars += count
        write_frame(self.world.data, TICKER, ALL_BARS.head(self.bars))

    @rule(seed=st.integers(0, 1))
    def other_settings(self, seed: int) -> None:
        """Change a setting that shapes weights."""
        self.seed = seed

    @rule()
    def train(self) -> None:
        """Train to the end."""
        self.run(self.world.train(self.output, self.seed))

    @rule(place=st.floats(0, 1), fault=st.sampled_from((Fault.KILL, Fault.FULL_DISK, Fault.IO_ERROR)))
    def train_with_fault(self, place: float, fault: Fault) -> None:
        """Let a call of a training fail."""
        self.run(self.world.train(self.output, self.seed), fault, 1 + int(1400 * place))

    @rule()
    def promote(self) -> None:
        """Promote the challenger, or the newest version."""
        self.run(["promote", TICKER, "--output-dir", str(self.output)])

    @rule()
    def roll_back(self) -> None:
        """Restore the champion before."""
        self.run(["rollback", TICKER, "--output-dir", str(self.output)])

    @rule(fault=st.sampled_from((Fault.NONE, Fault.KILL)), place=st.floats(0, 1))
    def forecast(self, fault: Fault, place: float) -> None:
        """Forecast the next bars."""
        self.run(self.world.forecast(self.output), fault, 1 + int(40 * place) if fault else 0)

    @rule(choice=st.integers(0, 1000), place=st.floats(0, 0.999))
    def damage_a_file(self, choice: int, place: float) -> None:
        """Flip a bit of a file."""
        files = sorted(path for path in self.output.rglob("*") if _can_be_damaged(path.relative_to(self.output), path))
        path = files[choice % len(files)]
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1 << choice % 8
        path.write_bytes(content)
        self.damaged = True
        self.say(f"a bit of {path.relative_to(self.output)} flips")

    @rule()
    def move_the_output(self) -> None:
        """Rename the output folder."""
        self.moves += 1
        self.output = self.output.rename(self.world.place / f"out-{self.moves}")
        self.say(f"the output is now {self.output.name}")

    @rule(half_days=st.integers(-2, 60))
    def clock_jumps(self, half_days: int) -> None:
        """Set the clock of all later commands."""
        self.world.commands.clock_offset = half_days * HALF_A_DAY

    @invariant()
    def published_models_are_whole(self) -> None:
        """The adapter that a reader would open has weights and a configuration."""
        if not self.damaged:
            with safe_open(self.output / "adapters" / TICKER / "adapter_model.safetensors", "pt") as weights:
                assert list(weights.keys())

    @invariant()
    def the_ledger_loses_nothing(self) -> None:
        """Each issue of a forecast is kept."""
        names = {path.name for path in (self.output / "ledger").glob("*/*.parquet")}
        assert self.ledger <= names
        self.ledger = names

    def teardown(self) -> None:
        """Without more faults, the machine trains and forecasts."""
        if not hasattr(self, "output"):
            return
        self.world.commands.clock_offset = 0
        for command in (self.world.train(self.output, self.seed), self.world.forecast(self.output)):
            outcome = self.world.commands.run(command)
            assert outcome.exit_code == 0, outcome.printed
        assert read_result(self.output).runs.get("RUNNING", 0) == 0
        forecast = pd.read_parquet(self.output / "forecasts" / f"{TICKER}.parquet")
        assert forecast["ds"].min() > ALL_BARS["Date"].iloc[self.bars - 1]
        self.say("ends with a forecast")

    def say(self, what: str) -> None:
        """Print a line, for who watches."""
        print(f"{datetime.now():%H:%M:%S} history {self.histories}: {what}", flush=True)

    def run(self, command: list[str], fault: Fault = Fault.NONE, nth: int = 0) -> Outcome:
        """Run a command; it ends well, with a sentence, or by the kill."""
        outcome = self.world.commands.run(command, fault, nth)
        met = f", {fault.name} at {outcome.where}" if outcome.failed else ""
        self.say(f"{command[0]} ends with {outcome.exit_code}{met}")
        assert "Traceback" not in outcome.printed, outcome.printed
        assert outcome.exit_code in ((0, 2, -9) if fault is Fault.KILL else (0, 2)), outcome.printed
        assert outcome.exit_code != 2 or "error: " in outcome.printed
        return outcome


def _can_be_damaged(relative: Path, path: Path) -> bool:
    """Tell whether a file is one that the project writes and reads, with bytes to damage; the store has other tests."""
    return path.is_file() and path.stat().st_size > 0 and not relative.parts[0].startswith(("mlflow.db", "ledger"))


def test_a_forecast_comes_after_any_history(tmp_path: Path) -> None:
    UnattendedMachine.world = World(tmp_path)
    histories = settings(
        max_examples=int(os.environ.get("HISTORIES", "2")),
        stateful_step_count=8,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],  # a shorter history would take many trainings to find
    )
    try:
        run_state_machine_as_test(UnattendedMachine, settings=histories)
    finally:
        UnattendedMachine.world.commands.close()
