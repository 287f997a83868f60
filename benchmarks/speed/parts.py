"""The parts of the GPU benchmark and their sizes.

Each part has its own imports, so that a missing package fails one part alone. Parts with a goal come first, in case the
time is up before the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speed.cases import CUDA_CASES, QUICK_CASES
from speed.table import Goal, Report

if TYPE_CHECKING:
    from speed.machine import Machine

GOALS = (
    *(Goal(f"sampling {case.name}, Kronos-small, cuda", f"{case.goal:g} times") for case in CUDA_CASES),
    Goal("full fine-tune of Kronos-small, cuda", "8 times"),
    Goal("32 adapters of Kronos-small, cuda", "20 times"),
)


@dataclass(frozen=True)
class Part:
    """A part of the benchmark, measured in a process of its own.

    Attributes:
        measure: yields reports; with its flag `quick`, of a tiny model and few repeats.
        limit: seconds after which the process is ended; about twice the expected time on an H100.
    """

    measure: Callable[[Machine, bool], Iterator[Report]]
    limit: float


def _sampling(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.decoding import beside_upstream

    for case in QUICK_CASES if quick else CUDA_CASES:
        if quick:
            yield beside_upstream(machine, size="nano", cases=[case], rounds=2, within=3)
        else:
            yield beside_upstream(machine, size="small", cases=[case], rounds=5, within=15)


def _training(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.training import beside_upstream

    if quick:
        yield beside_upstream(machine, size="nano", batch=4, steps=3, rounds=2, within=5, goal=8)
    else:
        yield beside_upstream(machine, size="small", batch=64, steps=90, rounds=3, within=50, goal=8)


def _adapters(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.adapters import beside_peft

    if quick:
        few: dict[str, Any] = {"size": "nano", "adapters": 3, "batch": 4, "steps": 2, "within": 5}
    else:
        few = {"size": "small", "adapters": 32, "batch": 16, "steps": 200, "within": 80}
    yield beside_peft(machine, alone=2, rounds=2, goal=20, **few)


def _launches(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.launches import reports

    if quick:
        return reports(machine, size="nano", case=QUICK_CASES[0], batch=4, jobs=2, rows=2, steps=2)
    return reports(machine, size="small", case=CUDA_CASES[1], batch=64, jobs=32, rows=16, steps=4)


def _tickers(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.decoding import many_tickers

    if quick:
        yield many_tickers(machine, size="nano", tickers=3, paths=2, bars=16, horizon=3, rounds=2)
    else:
        yield many_tickers(machine, size="small", tickers=64, paths=32, bars=64, horizon=30, rounds=3)


def _profile(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed import profile

    size, case, batch = ("nano", QUICK_CASES[0], 2) if quick else ("small", CUDA_CASES[1], 64)
    yield Report([profile.of_sampling(machine.device, size=size, case=case)])
    yield Report([profile.of_training(machine.device, size=size, batch=batch)])


def _cost(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.cost import table

    if quick:
        few: dict[str, Any] = {"size": "nano", "adapters": 2, "batch": 4, "steps": 2, "series": 2}
    else:
        few = {"size": "small", "adapters": 32, "batch": 16, "steps": 50, "series": 128}
    yield Report([table(machine, csv=None, **few)])


def _machine(machine: Machine, _: bool) -> Iterator[Report]:
    from speed.machine import limits

    yield Report([limits(machine)])


MACHINE = "machine"
"""The part that measures the limits; the other parts read them."""
PARTS = {
    MACHINE: Part(_machine, 45),
    "sampling": Part(_sampling, 130),
    "full fine-tune": Part(_training, 100),
    "adapters": Part(_adapters, 130),
    "launches": Part(_launches, 80),
    "many tickers": Part(_tickers, 60),
    "profile": Part(_profile, 45),
    "cost": Part(_cost, 60),
}
