"""Measure the speed of every step that a user waits for, beside its alternative and the machine's limits.

    python benchmarks/bench.py                                    # `make bench`: a quarter of an hour on two cores
    python benchmarks/bench.py --write docs/performance.md        # the same, put into the document
    python benchmarks/bench.py --only decoding training
    python benchmarks/bench.py --quick                            # tiny models, a smoke test

Models have the published sizes and random weights, and bars are simulated: the benchmark downloads nothing. Rivals take
turns in one process. Run no other program meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from speed import adapters, cost, decoding, growth, profile, training
from speed.cases import CPU_CASES, QUICK_CASES
from speed.elsewhere import data, start_up
from speed.machine import Machine, limits, measure
from speed.table import Goal, Report, goal_table, put

PLOT = "images/performance.png"


def main() -> None:
    """Run the parts and print the tables of each when it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="tiny models and few repeats: seconds, no figures to quote"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--write", type=Path, help="Markdown file: write the tables between its markers, and the plot")
    options = parser.parse_args()

    if options.quick:
        print("A smoke test with tiny models and few repeats: do not quote its figures.\n", file=sys.stderr)
    machine = measure(torch.device("cpu"), quick=options.quick)
    _tell("machine", Report([limits(machine)]), options.write)
    goals: list[Goal] = []
    for name in options.only:
        began = time.monotonic()
        report = PARTS[name](machine, options.quick, options.write)
        goals += report.goals
        _tell(name, report, options.write)
        print(f"({name}: {time.monotonic() - began:.0f} s)\n", flush=True)
    if options.only == list(PARTS):
        _tell("goals", Report([goal_table(goals)]), options.write)


def _tell(section: str, report: Report, document: Path | None) -> None:
    print(report.text(), flush=True)
    if document is not None:
        put(document, section, report.text())


def _decoding(machine: Machine, quick: bool, _: Path | None) -> Report:
    if quick:
        return decoding.beside_upstream(machine, size="nano", cases=QUICK_CASES, rounds=2, within=5)
    return decoding.beside_upstream(machine, size="small", cases=CPU_CASES, rounds=3, within=330)


def _tickers(machine: Machine, quick: bool, _: Path | None) -> Report:
    if quick:
        return decoding.many_tickers(machine, size="nano", tickers=3, paths=2, bars=16, horizon=3, rounds=2)
    return decoding.many_tickers(machine, size="small", tickers=32, paths=8, bars=64, horizon=30, rounds=3)


def _training(machine: Machine, quick: bool, _: Path | None) -> Report:
    if quick:
        return training.beside_upstream(machine, size="nano", batch=4, steps=3, rounds=2, within=5, goal=2)
    return training.beside_upstream(machine, size="small", batch=16, steps=12, rounds=3, within=110, goal=2)


def _adapters(machine: Machine, quick: bool, _: Path | None) -> Report:
    if quick:
        return adapters.beside_peft(
            machine, size="nano", adapters=3, alone=2, batch=4, steps=2, rounds=2, within=5, goal=None
        )
    few: dict[str, Any] = {"batch": 16, "rounds": 3, "goal": None, "start": adapters.start_up()}
    nano = adapters.beside_peft(machine, size="nano", adapters=16, alone=8, steps=12, within=40, **few)
    small = adapters.beside_peft(machine, size="small", adapters=4, alone=2, steps=4, within=80, **few)
    return Report([*nano.tables, *small.tables])


def _growth(machine: Machine, quick: bool, document: Path | None) -> Report:
    found = growth.growths(machine.device, size="nano" if quick else "small", quick=quick, rounds=1 if quick else 2)
    if document is not None:
        path = document.parent / PLOT
        path.parent.mkdir(exist_ok=True)
        growth.plot(found, path)
    return Report([growth.table(found)])


def _profile(machine: Machine, quick: bool, _: Path | None) -> Report:
    size, cases = ("nano", QUICK_CASES[:1]) if quick else ("small", CPU_CASES[:2])
    samplings = [profile.of_sampling(machine.device, size=size, case=case) for case in cases]
    return Report([*samplings, profile.of_training(machine.device, size=size, batch=2 if quick else 16)])


def _cost(machine: Machine, quick: bool, _: Path | None) -> Report:
    tickers, bars = (2, 500) if quick else (100, 2500)
    csv = growth.read(tickers, bars, rounds=1).median / tickers
    if quick:
        few: dict[str, Any] = {"size": "nano", "adapters": 2, "batch": 4, "steps": 2, "series": 2}
    else:
        few = {"size": "small", "adapters": 4, "batch": 16, "steps": 2, "series": 32}
    return Report([cost.table(machine, csv=csv, **few), cost.on_paper("small")])


PARTS: dict[str, Callable[[Machine, bool, Path | None], Report]] = {
    "decoding": _decoding,
    "tickers": _tickers,
    "training": _training,
    "adapters": _adapters,
    "data": data,
    "start-up": start_up,
    "growth": _growth,
    "profile": _profile,
    "cost": _cost,
}


if __name__ == "__main__":
    main()
