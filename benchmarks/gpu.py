"""How fast are sampling and training on a GPU, beside upstream and a plain PEFT loop on the same one?

    python benchmarks/gpu.py                                    # `make bench-gpu`: under eight minutes on an H100
    python benchmarks/gpu.py --write docs/performance.md        # the same, put into the document
    python benchmarks/gpu.py --device cpu --quick               # the same code at a tiny size, where there is no GPU

It needs torch, peft, accelerate and sktime, and neither dagster nor mlflow nor a network: models have the published
sizes and random weights, bars are simulated. What only CUDA can tell reads "not measured" elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from speed import adapters, cost, decoding, profile, training
from speed.machine import Machine, limits, measure
from speed.table import Goal, Report, Table, goal_table, put

_SECONDS = 420.0
"""After which no further part begins; none takes a minute and a half on an H100."""
GOALS = (
    *(Goal(f"sampling {case.name}, Kronos-small, cuda", f"{case.goal:g} times") for case in decoding.CUDA_CASES),
    Goal("full fine-tune of Kronos-small, cuda", "8 times"),
    Goal("32 adapters of Kronos-small, cuda", "20 times"),
)


def main() -> None:
    """Run the parts and print their tables as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny models and few repeats: no figures to quote")
    parser.add_argument("--write", type=Path, help="Markdown file whose place 'gpu' gets the tables")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu --quick tries the script out.")

    if options.quick:
        print("A smoke test: tiny models and few repeats, no figure of which is one to quote.\n", file=sys.stderr)
    began = time.monotonic()
    machine = measure(device, quick=options.quick)
    reports = [Report([limits(machine)])]
    print(reports[0].text(), flush=True)
    for name, part in PARTS.items():
        late = time.monotonic() - began > _SECONDS
        reports.append(_not_measured(name, "the time was up") if late else _tried(name, part, machine, options.quick))
        print(reports[-1].text(), flush=True)
    found = {goal.what: goal for report in reports for goal in report.goals}
    reports.append(Report([goal_table([found.get(goal.what, goal) for goal in GOALS])]))
    print(reports[-1].text(), flush=True)
    if options.write is not None:
        put(options.write, "gpu", "\n".join(report.text() for report in reports))


def _tried(name: str, part: Callable[[Machine, bool], Report], machine: Machine, quick: bool) -> Report:
    """A part that the device's memory is too small for leaves the others their turn."""
    try:
        return part(machine, quick)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return _not_measured(name, "the memory did not suffice")


def _not_measured(name: str, why: str) -> Report:
    return Report([Table(name, ("part", "found"), [[name, f"not measured: {why}"]])])


def _sampling(machine: Machine, quick: bool) -> Report:
    if quick:
        return decoding.beside_upstream(machine, size="nano", cases=decoding.QUICK_CASES, rounds=2, within=5)
    return decoding.beside_upstream(machine, size="small", cases=decoding.CUDA_CASES, rounds=5, within=60)


def _tickers(machine: Machine, quick: bool) -> Report:
    if quick:
        return decoding.many_tickers(machine, size="nano", tickers=3, paths=2, bars=16, horizon=3, rounds=2)
    return decoding.many_tickers(machine, size="small", tickers=64, paths=32, bars=64, horizon=30, rounds=3)


def _training(machine: Machine, quick: bool) -> Report:
    if quick:
        return training.beside_upstream(machine, size="nano", batch=4, steps=3, rounds=2, within=5, goal=8)
    return training.beside_upstream(machine, size="small", batch=64, steps=90, rounds=3, within=60, goal=8)


def _adapters(machine: Machine, quick: bool) -> Report:
    if quick:
        return adapters.beside_peft(
            machine, size="nano", adapters=3, alone=2, batch=4, steps=2, rounds=2, within=5, goal=20
        )
    return adapters.beside_peft(
        machine, size="small", adapters=32, alone=2, batch=16, steps=200, rounds=2, within=100, goal=20
    )


def _profile(machine: Machine, quick: bool) -> Report:
    size, case = ("nano", decoding.QUICK_CASES[0]) if quick else ("small", decoding.CUDA_CASES[1])
    return Report(
        [
            profile.of_sampling(machine.device, size=size, case=case),
            profile.of_training(machine.device, size=size, batch=2 if quick else 64),
        ]
    )


def _cost(machine: Machine, quick: bool) -> Report:
    if quick:
        few: dict[str, Any] = {"size": "nano", "adapters": 2, "batch": 4, "steps": 2, "series": 2}
    else:
        few = {"size": "small", "adapters": 32, "batch": 16, "steps": 50, "series": 128}
    return Report([cost.table(machine, csv=None, **few)])


PARTS: dict[str, Callable[[Machine, bool], Report]] = {
    "sampling": _sampling,
    "many tickers": _tickers,
    "full fine-tune": _training,
    "adapters": _adapters,
    "profile": _profile,
    "cost": _cost,
}


if __name__ == "__main__":
    main()
