"""Measure the ingestion of CSVs: milliseconds per ticker by stage on one core, and of a second run without changes.

    python benchmarks/data.py                                     # 1,000 tickers of 2,500 bars
    python benchmarks/data.py --quick                             # a few tickers, a smoke test

The benchmark times the steps of `kronos train` before the training, with clocks around their functions. The CSVs are
simulated. Ten symbols each have the same bars, because simulation takes longer than reading. The rival is pyarrow's CSV
reader, which turns the same files into columns of numbers and checks nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow.csv import ReadOptions, read_csv
from speed.cases import Repeats
from speed.table import Goal, Report, Table, megabytes, percent
from speed.timing import Spread, alternate, peak_of, timed, times

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.data import bars, doctor, ingest, windows
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.pipeline.ingest import read_tickers

GOAL = 10.0
"""Maximum of milliseconds per ticker."""
SAME_BARS = 10
"""Number of symbols with the same simulated bars."""
STAGES: dict[str, tuple[Any, str]] = {
    "read and split": (ingest, "read_csv_table"),
    "numbers": (ingest, "parse_numbers"),
    "times": (ingest, "parse_time_columns"),
    "rows": (ingest, "_prepare"),
    "validate": (ingest, "_validate"),
    "bar times": (ingest, "arrange_bars"),
    "frame and hash": (ingest, "make_bars"),
    "flags": (ingest, "find_flags"),
    "windows": (doctor, "build_all_windows"),
    "write bars": (bars, "save_bars"),
    "write windows": (windows, "save_windows"),
    "flush to the disk": (os, "fsync"),
}
REST = "folder, report, printing"


class Clocks:
    """Measure the own time of functions: the time of a function inside another counts for the inner function alone.

    Attributes:
        seconds: processor time of all threads, by stage.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._here = threading.local()

    @contextlib.contextmanager
    def around(self, stages: Mapping[str, tuple[Any, str]]) -> Iterator[None]:
        """Set clocks around functions of modules, and take them off again."""
        before = [(module, name, getattr(module, name)) for module, name in stages.values()]
        for stage, (module, name, function) in zip(stages, before, strict=True):
            setattr(module, name, self._clocked(stage, function))
        try:
            yield
        finally:
            for module, name, function in before:
                setattr(module, name, function)

    def _clocked(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*arguments: Any, **options: Any) -> Any:
            outside = getattr(self._here, "inner", 0.0)
            self._here.inner = 0.0
            start = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                seconds = time.thread_time() - start
                self.seconds[stage] += seconds - self._here.inner
                self._here.inner = outside + seconds

        return clocked


def report(quick: bool) -> Report:
    """Measure the ingestion by stage, and compare it with a second run and with pyarrow's reader."""
    tickers, bars_each, rounds = (20, 300, 2) if quick else (1000, 2500, 3)
    with tempfile.TemporaryDirectory() as folder, _one_core():
        data = Path(folder) / "data"
        _write(data, tickers, bars_each)
        return _measured(data, Path(folder) / "out", tickers, bars_each, rounds)


def _write(data: Path, tickers: int, bars_each: int) -> None:
    for path in write_simulated(
        data, tickers=[f"S{number:03}" for number in range(tickers // SAME_BARS)], bars=bars_each
    ):
        for copy in range(1, SAME_BARS):
            shutil.copy(path, data / f"{path.stem}-{copy}.csv")


def _measured(data: Path, out: Path, tickers: int, bars_each: int, rounds: int) -> Report:
    config = KronosTrainingConfig(data_dir=str(data), output_dir=str(out), model_name="kronos-nano")
    csvs = sorted(data.rglob("*.csv"))
    clocks: list[Clocks] = []
    processor: list[float] = []

    def first() -> None:
        shutil.rmtree(out, ignore_errors=True)
        clocks.append(Clocks())
        start = time.process_time()
        with clocks[-1].around(STAGES):
            second()
        processor.append(time.process_time() - start)

    def second() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            read_tickers(config, ArtifactLayout(out))

    def arrow() -> None:
        for path in csvs:
            read_csv(path, ReadOptions(use_threads=False))

    first()  # warm-up: imports, and the files into the system's cache
    clocks.clear()
    processor.clear()
    names = ("CSV to stored bars and windows", "the same again, no CSV changed", "pyarrow's CSV reader")
    rivals = (first, second, arrow)
    cpu = torch.device("cpu")
    samples = alternate({name: timed(run, cpu) for name, run in zip(names, rivals, strict=True)}, Repeats(rounds))

    def per_ticker(seconds: Sequence[float]) -> str:
        return Spread.of([1000 * second / tickers for second in seconds]).text(lambda value: f"{value:.2f}")

    by_stage: dict[str, list[float]] = {stage: [clock.seconds[stage] for clock in clocks] for stage in STAGES}
    by_stage[REST] = [total - sum(clock.seconds.values()) for total, clock in zip(processor, clocks, strict=True)]
    rows = [[stage, per_ticker(seconds), percent(sum(seconds) / sum(processor))] for stage, seconds in by_stage.items()]
    totals = [sample.seconds for sample in samples[names[0]]]
    rows += [["in all", per_ticker(processor), percent(1)], ["by the wall clock", per_ticker(totals), ""]]
    size = f"{tickers:,} tickers of {bars_each:,} bars, one core"
    stages = Table(
        f"CSV to stored bars and windows: {size}", ("stage", "ms of the processor per ticker", "share"), rows
    )
    comparison = Table(
        f"Reading CSVs: {size}",
        ("task", "ms per ticker", "times as long as pyarrow's", "peak memory"),
        [
            [
                name,
                per_ticker([sample.seconds for sample in readings]),
                times(readings, samples[names[2]]),
                megabytes(peak_of(readings)),
            ]
            for name, readings in samples.items()
        ],
        [f"{SAME_BARS} symbols each have the same bars. pyarrow {pa.__version__} makes columns and checks nothing."],
    )
    best = Spread.of([1000 * total / tickers for total in totals]).median
    goal = Goal("CSV to stored bars and windows, per ticker", f"{GOAL:.0f} ms", f"{best:.1f} ms", best <= GOAL)
    return Report([stages, comparison], [goal] if bars_each == 2500 else [])


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Restrict this process and Arrow to one core, if the system allows it."""
    threads = pa.cpu_count()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    pa.set_cpu_count(1)
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        pa.set_cpu_count(threads)
        if cores:
            os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and short tickers")
    print(report(parser.parse_args().quick).text())
