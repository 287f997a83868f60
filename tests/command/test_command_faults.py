"""Promises that hold when a call to the file system fails, on a sample of calls; `make faults` tries all."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fault_scenarios import Scenario, Scenarios
from faulty_commands import Fault, compiler

pytestmark = [pytest.mark.slow, pytest.mark.skipif(compiler() is None, reason="needs a C compiler")]

SAMPLE = (
    (Fault.KILL, "train", r"write /state/\w+/\.state\.pt"),
    (Fault.KILL, "train", r"rename\w* /adapters/ACME"),
    (Fault.KILL, "train", r"fdatasync /mlflow\.db$"),
    (Fault.FULL_DISK, "train", r"write /metrics/\.ACME\.json"),
    (Fault.FULL_DISK, "train", r"pwrite64 /mlflow\.db-journal"),
    (Fault.KILL, "promote", r"fdatasync /mlflow\.db$"),
    (Fault.KILL, "rollback", r"fdatasync /mlflow\.db$"),
    (Fault.KILL, "forecast", r"write /ledger/"),
    (Fault.IO_ERROR, "forecast", r"write /forecasts/"),
)
"""A fault, the command that meets it, and a pattern of the call."""


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenarios]:
    made = Scenarios(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def made(scenarios: Scenarios) -> dict[str, Scenario]:
    return {scenario.name: scenario for scenario in scenarios.make(("train", "promote", "forecast", "rollback"))}


@pytest.mark.parametrize(("fault", "command", "call"), SAMPLE)
def test_artifacts_stay_whole_and_the_same_command_ends_as_without_the_fault(
    scenarios: Scenarios, made: dict[str, Scenario], fault: Fault, command: str, call: str
) -> None:
    scenario = made[command]
    numbers = [number for number, name in enumerate(scenario.calls, start=1) if re.match(call, name)]
    assert numbers, f"{command} makes no call {call}"
    assert scenarios.play(scenario, fault, numbers[len(numbers) // 2]) == []
