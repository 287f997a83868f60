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

import torch
from speed import adapters, cost, decoding, growth, profile, training
from speed.cases import CPU_CASES, QUICK_CASES, AdapterTraining, FineTune, Repeats, SamplingShape
from speed.elsewhere import data, start_up
from speed.machine import Machine, limits, measure
from speed.table import Goal, Report, goal_table, put

PLOT = "images/performance.png"


def main() -> None:
    """Run the parts and print the tables of each when it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models and no repeats: seconds, no figures to quote")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--write", type=Path, help="Markdown file: write the tables between its markers, and the plot")
    options = parser.parse_args()

    if options.quick:
        print("A smoke test with tiny models and few repeats: do not quote its figures.\n", file=sys.stderr)
    machine = measure(torch.device("cpu"), quick=options.quick)
    _tell("machine", Report([limits(machine)]), options.write)
    goals: list[Goal] = []
    for name in options.only:
        start = time.monotonic()
        report = PARTS[name](machine, options.quick, options.write)
        goals += report.goals
        _tell(name, report, options.write)
        print(f"({name}: {time.monotonic() - start:.0f} s)\n", flush=True)
    if options.only == list(PARTS):
        _tell("goals", Report([goal_table(goals)]), options.write)


def _tell(section: str, report: Report, document: Path | None) -> None:
    print(report.text(), flush=True)
    if document is not None:
        put(document, section, report.text())


def _decoding(machine: Machine, quick: bool, _: Path | None) -> Report:
    if quick:
        return decoding.beside_upstream(machine, size="nano", cases=QUICK_CASES, repeats=Repeats(1))
    return decoding.beside_upstream(machine, size="small", cases=CPU_CASES, repeats=Repeats(3, 330))


def _tickers(machine: Machine, quick: bool, _: Path | None) -> Report:
    if quick:
        return decoding.many_tickers(machine, size="nano", shape=SamplingShape(3, 2, 16, 3), repeats=Repeats(1))
    return decoding.many_tickers(machine, size="small", shape=SamplingShape(32, 8, 64, 30), repeats=Repeats(3))


def _training(machine: Machine, quick: bool, _: Path | None) -> Report:
    if quick:
        return training.beside_upstream(machine, FineTune("nano", batch=4, steps=3), Repeats(1), goal=2)
    return training.beside_upstream(machine, FineTune("small", batch=16, steps=12), Repeats(3, 110), goal=2)


def _adapters(machine: Machine, quick: bool, _: Path | None) -> Report:
    if quick:
        run = AdapterTraining("nano", 3, batch=4, steps=2)
        return adapters.beside_peft(machine, run, Repeats(1), alone=2, goal=None)
    start = adapters.start_up()
    run = AdapterTraining("nano", 16, batch=16, steps=12)
    nano = adapters.beside_peft(machine, run, Repeats(3, 40), alone=8, goal=None, start=start)
    run = AdapterTraining("small", 4, batch=16, steps=4)
    small = adapters.beside_peft(machine, run, Repeats(3, 80), alone=2, goal=None, start=start)
    return Report([*nano.tables, *small.tables])


def _growth(machine: Machine, quick: bool, document: Path | None) -> Report:
    measured = growth.growths(machine.device, size="nano" if quick else "small", quick=quick, rounds=1 if quick else 2)
    if document is not None:
        path = document.parent / PLOT
        path.parent.mkdir(exist_ok=True)
        growth.plot(measured, path)
    return Report([growth.table(measured)])


def _profile(machine: Machine, quick: bool, _: Path | None) -> Report:
    size, cases = ("nano", QUICK_CASES[:1]) if quick else ("small", CPU_CASES[:2])
    samplings = [profile.of_sampling(machine.device, size=size, case=case) for case in cases]
    return Report([*samplings, profile.of_training(machine.device, size=size, batch=2 if quick else 16)])


def _cost(machine: Machine, quick: bool, _: Path | None) -> Report:
    tickers, bars = (2, 500) if quick else (100, 2500)
    csv = growth.read(tickers, bars, rounds=1).median / tickers
    if quick:
        run, series = AdapterTraining("nano", 2, batch=4, steps=2), 2
    else:
        run, series = AdapterTraining("small", 4, batch=16, steps=2), 32
    return Report([cost.table(machine, run, series=series, csv=csv), cost.on_paper("small")])


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
