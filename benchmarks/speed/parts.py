"""The parts of the GPU benchmark and their sizes.

Each part has its own imports, so that a missing package fails one part alone. Parts with a goal come first, in case the
time is up before the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speed.cases import (
    CUDA_CASES,
    QUICK_CASES,
    AdapterTraining,
    Case,
    FineTune,
    Repeats,
    SamplingShape,
)
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
        measure: yields reports; with its flag `quick`, of a tiny model and without repeats.
        limit: seconds after which the process is ended; about twice the expected time on an H100.
    """

    measure: Callable[[Machine, bool], Iterator[Report]]
    limit: float


@dataclass(frozen=True)
class _Sizes:
    """Sizes of all parts."""

    model: str
    cases: tuple[Case, ...]
    profiled: Case
    sampling: Repeats
    fine_tune: FineTune
    fine_tunes: Repeats
    adapters: AdapterTraining
    adapter_trainings: Repeats
    launches: tuple[FineTune, AdapterTraining]
    tickers: SamplingShape
    forecasts: Repeats
    profiled_batch: int
    cost: AdapterTraining
    cost_series: int


_QUICK = _Sizes(
    model="nano",
    cases=QUICK_CASES,
    profiled=QUICK_CASES[0],
    sampling=Repeats(1),
    fine_tune=FineTune("nano", batch=4, steps=3),
    fine_tunes=Repeats(1),
    adapters=AdapterTraining("nano", 3, batch=4, steps=2),
    adapter_trainings=Repeats(1),
    launches=(FineTune("nano", batch=4, steps=2), AdapterTraining("nano", 2, batch=2, steps=2)),
    tickers=SamplingShape(3, 2, 16, 3),
    forecasts=Repeats(1),
    profiled_batch=2,
    cost=AdapterTraining("nano", 2, batch=4, steps=2),
    cost_series=2,
)
_FULL = _Sizes(
    model="small",
    cases=CUDA_CASES,
    profiled=CUDA_CASES[1],
    sampling=Repeats(5, 15),
    fine_tune=FineTune("small", batch=64, steps=90),
    fine_tunes=Repeats(3, 50),
    adapters=AdapterTraining("small", 32, batch=16, steps=200),
    adapter_trainings=Repeats(2, 80),
    launches=(FineTune("small", batch=64, steps=4), AdapterTraining("small", 32, batch=16, steps=4)),
    tickers=SamplingShape(64, 32, 64, 30),
    forecasts=Repeats(3),
    profiled_batch=64,
    cost=AdapterTraining("small", 32, batch=16, steps=50),
    cost_series=128,
)


def _sizes(quick: bool) -> _Sizes:
    return _QUICK if quick else _FULL


def _sampling(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.decoding import beside_upstream

    sizes = _sizes(quick)
    for case in sizes.cases:
        yield beside_upstream(machine, size=sizes.model, cases=[case], repeats=sizes.sampling)


def _training(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.training import beside_upstream

    sizes = _sizes(quick)
    yield beside_upstream(machine, sizes.fine_tune, sizes.fine_tunes, goal=8)


def _adapters(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.adapters import beside_peft

    sizes = _sizes(quick)
    yield beside_peft(machine, sizes.adapters, sizes.adapter_trainings, alone=2, goal=20)


def _launches(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.launches import reports

    sizes = _sizes(quick)
    return reports(machine, sizes.profiled, *sizes.launches)


def _tickers(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.decoding import many_tickers

    sizes = _sizes(quick)
    yield many_tickers(machine, size=sizes.model, shape=sizes.tickers, repeats=sizes.forecasts)


def _profile(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed import profile

    sizes = _sizes(quick)
    yield Report([profile.of_sampling(machine.device, size=sizes.model, case=sizes.profiled)])
    yield Report([profile.of_training(machine.device, size=sizes.model, batch=sizes.profiled_batch)])


def _cost(machine: Machine, quick: bool) -> Iterator[Report]:
    from speed.cost import table

    sizes = _sizes(quick)
    yield Report([table(machine, sizes.cost, series=sizes.cost_series, csv=None)])


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
