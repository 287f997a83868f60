"""A pytest plugin that records how long tests take, in the file that the `slow` marks rest on.

`make durations` writes `tests/durations.json`: the processor seconds of each test function, over the calls of all its
cases and the processes that they start. Processor time hardly depends on what else the machine does. A test that is not
in the file takes less than `LEAST` seconds. The run fails if a test took longer than `SLOW` without the mark.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parent / "durations.json"
SLOW = 0.5
"""Seconds above which a test function is marked `slow`."""
LEAST = 0.1
"""Seconds below which a test function is not listed."""
_PROPERTY = "processor seconds"


def function_of(case: str) -> str:
    """Return the id of a test function, from the id of one of its cases."""
    return case.partition("[")[0]


def load_durations() -> dict[str, float]:
    """Read the recorded seconds by test function."""
    durations: dict[str, float] = json.loads(FILE.read_text())
    return durations


def is_defined(function: str) -> bool:
    """Whether the file of a test function's id has the function."""
    file, *_, name = function.split("::")
    path = FILE.parent.parent / file
    return path.exists() and f"def {name}(" in path.read_text()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store-durations", action="store_true", help=f"record the durations in tests/{FILE.name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that take longest first, so that two processes that share the files end together."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for function, duration in load_durations().items():
        seconds[function.partition("::")[0]] += duration
    items.sort(key=lambda item: -seconds[item.nodeid.partition("::")[0]])


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("store_durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    start = _processor_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append((_PROPERTY, _processor_seconds() - start))


class Recorder:
    """The sums of a run, in the process that receives the reports of all workers."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._marked: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            seconds: Any = dict(report.user_properties)[_PROPERTY]
            self._seconds[function_of(report.nodeid)] += seconds
            if "slow" in report.keywords:
                self._marked.add(function_of(report.nodeid))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._unmarked() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        known = load_durations() if FILE.exists() else {}
        others = {name: known[name] for name in known if name not in self._seconds and is_defined(name)}
        new = {name: round(seconds, 2) for name, seconds in self._seconds.items() if seconds >= LEAST}
        FILE.write_text(json.dumps(others | new, indent=1, sort_keys=True) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for name in self._unmarked():
            terminalreporter.write_line(f"mark this test slow: {name} ({self._seconds[name]:.2f} s)", red=True)

    def _unmarked(self) -> list[str]:
        return [name for name, seconds in self._seconds.items() if seconds > SLOW and name not in self._marked]


def _processor_seconds() -> float:
    """Sum the user and system time of this process and of its ended children."""
    return sum(os.times()[:4])
