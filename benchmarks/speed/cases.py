"""Sizes of the benchmarks and goals of sampling; plain data, without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingShape:
    """Size of a sampling: series, paths per series, bars of context, bars ahead."""

    series: int
    paths: int
    bars: int
    horizon: int

    @property
    def name(self) -> str:
        """The shape as tables show it, such as "8 x 4, 64 + 30"."""
        return f"{self.series} x {self.paths}, {self.bars} + {self.horizon}"


@dataclass(frozen=True)
class Case(SamplingShape):
    """Size of a sampling, and `goal`, the promised speed-up over upstream."""

    goal: float


@dataclass(frozen=True)
class FineTune:
    """A full fine-tune.

    Attributes:
        size: size of the model.
        batch: windows per step.
        steps: steps of a training.
    """

    size: str
    batch: int
    steps: int


@dataclass(frozen=True)
class AdapterTraining:
    """A joint training of several adapters.

    Attributes:
        size: size of the base model.
        adapters: number of adapters that train jointly.
        batch: windows per step of an adapter.
        steps: steps per adapter.
    """

    size: str
    adapters: int
    batch: int
    steps: int


@dataclass(frozen=True)
class Repeats:
    """How often rivals run.

    Attributes:
        rounds: maximum of repeats of each rival.
        within: seconds after which no further round begins; the first always runs.
    """

    rounds: int
    within: float = float("inf")


CPU_CASES = (Case(1, 4, 64, 30, 12), Case(8, 4, 64, 30, 30), Case(4, 2, 400, 30, 40))
CUDA_CASES = (Case(1, 4, 64, 30, 15), Case(8, 4, 64, 30, 15), Case(4, 2, 400, 30, 15), Case(64, 32, 64, 30, 15))
QUICK_CASES = (Case(1, 2, 16, 4, 2), Case(2, 2, 16, 4, 2))
