"""Sizes of the sampling benchmarks and their goals; plain data, without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Size of a sampling, and `goal`, the promised speed-up over upstream."""

    series: int
    paths: int
    bars: int
    horizon: int
    goal: float

    @property
    def name(self) -> str:
        return f"{self.series} x {self.paths}, {self.bars} + {self.horizon}"


CPU_CASES = (Case(1, 4, 64, 30, 12), Case(8, 4, 64, 30, 30), Case(4, 2, 400, 30, 40))
CUDA_CASES = (Case(1, 4, 64, 30, 15), Case(8, 4, 64, 30, 15), Case(4, 2, 400, 30, 15), Case(64, 32, 64, 30, 15))
QUICK_CASES = (Case(1, 2, 16, 4, 2), Case(2, 2, 16, 4, 2))
