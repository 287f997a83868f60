"""The parts that are separate commands too: `benchmarks/data.py` and `benchmarks/startup.py`.

Each has a function `report(quick: bool) -> Report`, which returns tables and the goals that it checks.
"""

from __future__ import annotations

from pathlib import Path

from speed.machine import Machine
from speed.table import Report


def data(_: Machine, quick: bool, __: Path | None) -> Report:
    """Measure the ingestion of CSVs by stage."""
    from data import report

    return report(quick)


def start_up(_: Machine, quick: bool, __: Path | None) -> Report:
    """Measure the start-up of commands and of a training, by stage."""
    from startup import report

    return report(quick)
