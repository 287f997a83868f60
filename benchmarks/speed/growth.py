"""Measure scaling: sampling over paths, tickers, lookback and model size; training over model size; CSVs over bars."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from math import log
from pathlib import Path
from typing import TypeVar

import torch

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.model.decode.sample import sample_paths
from kronos_pipeline.pipeline.ingest import read_tickers
from speed.cases import SamplingShape
from speed.decoding import SAMPLING
from speed.models import random_model, random_series, random_windows
from speed.table import Table, number, seconds
from speed.timing import Spread, timed
from speed.training import recipe, trainer_run

T = TypeVar("T")


@dataclass(frozen=True)
class Growth:
    """Seconds of a task over the values of one quantity.

    Attributes:
        what: the task.
        grows: name of the quantity.
        at: values of the quantity.
        taken: seconds at each value, median and range.
        labels: names of the values, or empty.
    """

    what: str
    grows: str
    at: Sequence[float]
    taken: Sequence[Spread]
    labels: Sequence[str] = ()


def growths(device: torch.device, *, size: str, quick: bool, rounds: int) -> list[Growth]:
    """Measure all growths.

    Args:
        device: device of the models.
        size: size of the model where another quantity grows.
        quick: measure few and small values.
        rounds: repeats of each point.
    """

    def few(values: tuple[T, ...]) -> tuple[T, ...]:
        return values[:2] if quick else values

    horizon, batch, steps = (3, 2, 2) if quick else (30, 16, 6)
    sizes = few(("nano", "mini", "small", "base"))
    parameters = [
        sum(weight.numel() for weight in random_model(name, device).predictor.parameters()) / 1e6 for name in sizes
    ]

    def sampled(what: str, grows: str, values: Sequence[int], shape: Callable[[int], SamplingShape]) -> Growth:
        spreads = [_sampling(device, size, shape(value), rounds) for value in values]
        return Growth(what, grows, values, spreads)

    return [
        sampled(
            f"sampling 1 ticker, 64 + {horizon} bars",
            "paths",
            few((1, 4, 16, 64, 256)),
            lambda paths: SamplingShape(1, paths, 64, horizon),
        ),
        sampled(
            f"sampling 4 paths, 64 + {horizon} bars",
            "tickers",
            few((1, 4, 16, 64)),
            lambda series: SamplingShape(series, 4, 64, horizon),
        ),
        sampled(
            f"sampling 4 tickers x 4 paths, + {horizon} bars",
            "lookback",
            few((30, 60, 120, 240, 480)),
            lambda bars: SamplingShape(4, 4, bars, horizon),
        ),
        Growth(
            f"sampling 4 tickers x 4 paths, 64 + {horizon} bars",
            "million parameters",
            parameters,
            [_sampling(device, name, SamplingShape(4, 4, 64, horizon), rounds) for name in sizes],
            sizes,
        ),
        Growth(
            f"a training step, {batch} windows of 95 bars",
            "million parameters",
            parameters,
            [_step(name, device, batch, steps) for name in sizes],
            sizes,
        ),
        *(
            _reading((300, 600), (2, 4), rounds)
            if quick
            else _reading((500, 1000, 2500, 5000, 10000), (10, 50, 250), rounds)
        ),
    ]


def table(growths: Sequence[Growth]) -> Table:
    """Return a table with a row per point; its last column is the exponent of growth since the point before.

    An exponent of 1 is growth in proportion.
    """
    rows = []
    for growth in growths:
        for index, (size, spread) in enumerate(zip(growth.at, growth.taken, strict=True)):
            label = f" ({growth.labels[index]})" if growth.labels else ""
            rows.append(
                [growth.what, f"{number(size)} {growth.grows}{label}", spread.text(seconds), _exponent(growth, index)]
            )
    return Table("How cost grows", ("task", "size", "seconds", "exponent since the row above"), rows)


def plot(growths: Sequence[Growth], path: Path) -> None:
    """Draw a panel per growth with logarithmic axes and a line of proportional growth."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    columns = 4
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    axes = list(figure.subplots(2, columns).flat)
    for growth, axis in zip(growths, axes, strict=False):
        medians = [spread.median for spread in growth.taken]
        reach = [
            [spread.median - spread.low for spread in growth.taken],
            [spread.high - spread.median for spread in growth.taken],
        ]
        axis.errorbar(growth.at, medians, yerr=reach, marker="o", color="#1f5fa8", capsize=3)
        axis.plot(growth.at, [medians[0] * size / growth.at[0] for size in growth.at], ":", color="#888888")
        axis.set(xscale="log", yscale="log", xlabel=growth.grows, ylabel="seconds", title=growth.what)
        names = [f"{name}\n{number(size)}" for name, size in zip(growth.labels, growth.at, strict=False)]
        axis.set_xticks(growth.at, names or [f"{size:g}" for size in growth.at])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.minorticks_off()
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
    for axis in axes[len(growths) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def _exponent(growth: Growth, index: int) -> str:
    if not index:
        return ""
    factor = growth.at[index] / growth.at[index - 1]
    return f"{log(growth.taken[index].median / growth.taken[index - 1].median) / log(factor):.2f}"


def _sampling(device: torch.device, size: str, shape: SamplingShape, rounds: int) -> Spread:
    model, series = random_model(size, device), random_series(shape.series, shape.bars, shape.horizon)
    past, ahead = series.stamps
    run = timed(lambda: sample_paths(model, series.history, past, ahead, paths=shape.paths, **SAMPLING), device)
    run()
    return Spread.of([run().seconds for _ in range(rounds)])


def _step(size: str, device: torch.device, batch: int, steps: int) -> Spread:
    settings = recipe(size, device, batch)
    windows = random_windows(settings, ["SIM"], batch * steps)
    return Spread.of([trainer_run(random_model(size, device), windows, settings)().seconds])


def _reading(bars: Sequence[int], tickers: Sequence[int], rounds: int) -> list[Growth]:
    count, length = tickers[0], bars[min(2, len(bars) - 1)]
    return [
        Growth(f"{count} CSVs to bars and windows", "bars", bars, [read(count, each, rounds) for each in bars]),
        Growth(f"CSVs of {length:,} bars", "tickers", tickers, [read(each, length, rounds) for each in tickers]),
    ]


def read(tickers: int, bars: int, rounds: int) -> Spread:
    """Measure the seconds from a folder of simulated CSVs to stored bars and windows, each round in a new folder."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_simulated(data, tickers=[f"T{number}" for number in range(tickers)], bars=bars)
        for round_number in range(rounds):
            output = Path(folder) / f"out-{round_number}"
            settings = {"model_name": "kronos-nano", "data_dir": str(data), "output_dir": str(output)}
            config = KronosTrainingConfig.model_validate(settings)
            with redirect_stdout(StringIO()):
                run = timed(partial(read_tickers, config, ArtifactLayout(output)), _CPU)
                seconds.append(run().seconds)
    return Spread.of(seconds)


_CPU = torch.device("cpu")
