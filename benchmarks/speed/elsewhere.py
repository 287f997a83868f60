"""The parts that are commands of their own: `benchmarks/data.py` and `benchmarks/startup.py`.

Each has `report(quick: bool) -> Report`, with a `Table` or more from `speed.table` and the goals that it checks.
"""

from __future__ import annotations

from pathlib import Path

from speed.machine import Machine
from speed.table import Report


def data(_: Machine, quick: bool, __: Path | None) -> Report:
    """From CSVs to stored bars and windows, by stage."""
    from data import report

    return report(quick)


def start_up(_: Machine, quick: bool, __: Path | None) -> Report:
    """What a user waits for before anything begins, by stage."""
    from startup import report

    return report(quick)
