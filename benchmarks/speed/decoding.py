"""Sampling beside upstream's `predict_batch`, and many tickers in one call beside one call each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sktime.libs.kronos import KronosPredictor as UpstreamPredictor

from kronos_pipeline import KronosPredictor
from kronos_pipeline.model.decoding import sample_paths
from kronos_pipeline.model.loading import KronosModel
from speed.machine import Machine
from speed.models import PAIRS, Series, random_model, random_series
from speed.table import NOT_MEASURED, Table, megabytes, number, percent, seconds
from speed.timing import Sample, alternate, peak_of, ratio, time_of, timed
from speed.work import cached_sampling, floor, repeated_sampling, total

TOP_P, TEMPERATURE = 0.9, 1.0
_UPSTREAM, _SWITCHED, _PATHS, _HALF = "upstream", "KronosPredictor", "sample_paths", "sample_paths, bf16"


@dataclass(frozen=True)
class Case:
    """How much is sampled, and how many times as fast as upstream it is meant to be."""

    series: int
    paths: int
    bars: int
    horizon: int
    goal: float | None

    @property
    def name(self) -> str:
        return f"{self.series} x {self.paths}, {self.bars} + {self.horizon}"


CPU_CASES = (Case(1, 4, 64, 30, 12), Case(8, 4, 64, 30, 30), Case(4, 2, 400, 30, 40))
CUDA_CASES = (Case(1, 4, 64, 30, 15), Case(8, 4, 64, 30, 15), Case(4, 2, 400, 30, 15), Case(64, 32, 64, 30, 15))
QUICK_CASES = (Case(1, 2, 16, 4, None), Case(2, 2, 16, 4, None))


def rivals(model: KronosModel, series: Series, paths: int) -> dict[str, Callable[[], object]]:
    """The ways to sample, upstream's first; each gives the same number of futures."""
    past, ahead = series.stamps
    frames, horizon = series.frames, series.horizon

    def predict(predictor: UpstreamPredictor | KronosPredictor) -> Callable[[], object]:
        settings = {"T": TEMPERATURE, "top_p": TOP_P, "sample_count": paths, "verbose": False}
        return lambda: predictor.predict_batch(*frames, horizon, **settings)

    def sample(precision: str) -> Callable[[], object]:
        settings = {"paths": paths, "temperature": TEMPERATURE, "top_p": TOP_P, "seed": 0, "precision": precision}
        return lambda: sample_paths(model, series.history, past, ahead, **settings)

    arguments = (model.predictor, model.tokenizer, str(model.device))
    return {
        _UPSTREAM: predict(UpstreamPredictor(*arguments)),
        _SWITCHED: predict(KronosPredictor(*arguments)),
        _PATHS: sample("fp32"),
        _HALF: sample("bf16"),
    }


def beside_upstream(machine: Machine, *, size: str, cases: tuple[Case, ...], rounds: int, within: float) -> Table:
    """Each case in each way.

    Args:
        machine: where, and its limits.
        size: of the model.
        cases: what is sampled.
        rounds: repeats of each way, at most.
        within: seconds for all cases together, after which no further round begins.
    """
    model, pair = random_model(size, machine.device), PAIRS[size]
    rows = []
    for case in cases:
        shape = (pair, case.series, case.paths, case.bars, case.horizon)
        short = rivals(model, random_series(case.series, case.bars, 2), case.paths)
        for warm_up in short.values():
            warm_up()
        ways = rivals(model, random_series(case.series, case.bars, case.horizon), case.paths)
        runs = {name: timed(way, machine.device) for name, way in ways.items()}
        samples = alternate(runs, rounds, within / len(cases))
        for name, taken in samples.items():
            precision = "bf16" if name == _HALF else "fp32"
            cached = cached_sampling(*shape, precision)
            phases = repeated_sampling(*shape) if name == _UPSTREAM else cached
            rows.append(_row(case, name, samples[_UPSTREAM], taken, phases, floor(cached, machine, precision), machine))
    columns = ("series x paths, bars", "way", "seconds", "times", "goal", "GFLOP/s", "GB/s", "of floor", "peak memory")
    notes = [
        "times: upstream's seconds by the way's own, round by round, median and range. GFLOP/s and GB/s: what the way "
        "has to compute and to read by formula, weights and cached keys and values, in the time that it took. "
        "of floor: the least time that a sampling with a cache could take on this machine, by the time that it took. "
        f"GB/s are bounded by {number(machine.bandwidth / 1e9)} here. peak memory: above what was held before the call.",
    ]
    title = f"Sampling with Kronos-{size}, {machine.device.type}, top-p {TOP_P}"
    return Table(title, columns, rows, notes)


def _row(
    case: Case,
    name: str,
    upstream: list[Sample],
    taken: list[Sample],
    phases: list,
    least: float,
    machine: Machine,
) -> list[str]:
    time, work = time_of(taken).median, total(phases)
    mine = name != _UPSTREAM
    return [
        case.name,
        name,
        time_of(taken).text(seconds),
        ratio(upstream, taken).text(lambda value: f"{value:.1f}") if mine else "1",
        f"{case.goal:g}" if mine and case.goal is not None else "",
        number(work.flop / time / 1e9),
        number(work.bytes / time / 1e9),
        percent(least / time) if mine else "",
        megabytes(peak_of(taken)),
    ]


def many_tickers(
    machine: Machine, *, size: str, tickers: int, paths: int, bars: int, horizon: int, rounds: int
) -> Table:
    """Forecasts of many tickers: a call each, and all in one, as an evaluation makes them."""
    model, series = random_model(size, machine.device), random_series(tickers, bars, horizon)
    past, ahead = series.stamps
    settings = {"paths": paths, "temperature": TEMPERATURE, "top_p": TOP_P, "seed": 0}

    def one_by_one() -> None:
        for ticker in range(tickers):
            one = slice(ticker, ticker + 1)
            sample_paths(model, series.history[one], past[one], ahead[one], **settings)

    def together() -> None:
        sample_paths(model, series.history, past, ahead, **settings)

    runs = {"one by one": timed(one_by_one, machine.device), "in one call": timed(together, machine.device)}
    together()
    samples = alternate(runs, rounds)
    rows = [
        [
            name,
            time_of(taken).text(seconds),
            number(tickers / time_of(taken).median),
            ratio(samples["one by one"], taken).text(lambda value: f"{value:.1f}"),
            megabytes(peak_of(taken)),
        ]
        for name, taken in samples.items()
    ]
    title = f"Forecasts of {tickers} tickers with Kronos-{size}: {paths} paths, {bars} + {horizon} bars"
    return Table(title, ("way", "seconds", "tickers/s", "times", "peak memory"), rows)
