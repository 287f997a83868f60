"""Time sampling beside upstream's `predict_batch`, and one call for many tickers beside one call per ticker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sktime.libs.kronos import KronosPredictor as UpstreamPredictor

from kronos_pipeline import KronosPredictor
from kronos_pipeline.model.decode.sample import sample_paths
from kronos_pipeline.model.loading import KronosModel
from speed.cases import Case, Repeats, SamplingShape
from speed.machine import Machine
from speed.models import PAIRS, Series, adapted, random_model, random_series
from speed.table import Goal, Report, Table, megabytes, number, percent, seconds
from speed.timing import Sample, alternate, peak_of, ratio, time_of, timed, times
from speed.work import REACHED, cached_sampling, floor, reached, repeated_sampling, total

SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": 0}
_UPSTREAM, _SWITCHED, _PATHS, _HALF = "upstream", "KronosPredictor", "sample_paths", "sample_paths, bf16"
_BOUND = 0.8
"""Share of the memory bandwidth that reaches a goal on a CPU, whatever the ratio."""


def rivals(model: KronosModel, series: Series, paths: int) -> dict[str, Callable[[], object]]:
    """Return the ways to sample, upstream's first; all return the same number of paths."""
    past, ahead = series.stamps
    frames, horizon = series.frames, series.horizon

    def predict(predictor: UpstreamPredictor | KronosPredictor) -> Callable[[], object]:
        settings: dict[str, Any] = {
            "T": SAMPLING["temperature"],
            "top_p": SAMPLING["top_p"],
            "sample_count": paths,
            "verbose": False,
        }
        return lambda: predictor.predict_batch(*frames, horizon, **settings)

    def sample(precision: str) -> Callable[[], object]:
        return lambda: sample_paths(model, series.history, past, ahead, paths=paths, precision=precision, **SAMPLING)

    arguments = (model.predictor, model.tokenizer, str(model.device))
    return {
        _UPSTREAM: predict(UpstreamPredictor(*arguments)),
        _SWITCHED: predict(KronosPredictor(*arguments)),
        _PATHS: sample("fp32"),
        _HALF: sample("bf16"),
    }


def beside_upstream(machine: Machine, *, size: str, cases: Sequence[Case], repeats: Repeats) -> Report:
    """Measure each case in each way.

    Args:
        machine: device of the model, and its limits.
        size: size of the model.
        cases: sizes of the samplings.
        repeats: repeats of each way; `within` holds for all cases together.
    """
    model = random_model(size, machine.device)
    rows: list[list[str]] = []
    goals: list[Goal] = []
    for case in cases:
        for warm_up in rivals(model, random_series(case.series, case.bars, 2), case.paths).values():
            warm_up()
        methods = rivals(model, random_series(case.series, case.bars, case.horizon), case.paths)
        runs = {name: timed(method, machine.device) for name, method in methods.items()}
        samples = alternate(runs, replace(repeats, within=repeats.within / len(cases)))
        rows += [_row(machine, size, case, name, samples) for name in samples]
        goals.append(_goal(machine, size, case, samples))
    columns = ("series x paths, bars", "way", "time", "times", *REACHED, "of the limit", "peak memory")
    notes = [
        "times: upstream's time divided by the way's time, round by round; median and range. GFLOP/s and GB/s: "
        "operations and bytes (weights, cached keys and values) by formula, divided by the time. Shares are of the "
        "machine's measured limits, and of the data sheet's peak if the card is known. of the limit: the shortest "
        "possible time of a cached sampling on this machine, divided by the time. peak memory: above the memory held "
        "before the call.",
    ]
    title = f"Sampling with Kronos-{size}, {machine.device.type}, top-p {SAMPLING['top_p']}"
    return Report([Table(title, columns, rows, notes)], goals)


def _row(machine: Machine, size: str, case: Case, name: str, samples: dict[str, list[Sample]]) -> list[str]:
    sample, precision = samples[name], "bf16" if name == _HALF else "fp32"
    shape = (PAIRS[size], case.series, case.paths, case.bars, case.horizon)
    cached = cached_sampling(*shape, precision)
    time, work = time_of(sample).median, total(repeated_sampling(*shape) if name == _UPSTREAM else cached)
    return [
        case.name,
        name,
        time_of(sample).text(seconds),
        times(samples[_UPSTREAM], sample),
        *reached(work, time, machine, precision),
        percent(floor(cached, machine, precision) / time),
        megabytes(peak_of(sample)),
    ]


def _goal(machine: Machine, size: str, case: Case, samples: dict[str, list[Sample]]) -> Goal:
    """Judge the goal by `KronosPredictor`'s default on a CPU, and by bf16, the choice of `auto`, on CUDA."""
    cuda = machine.device.type == "cuda"
    sample = samples[_HALF if cuda else _SWITCHED]
    speedup = ratio(samples[_UPSTREAM], sample)
    bytes_read = total(cached_sampling(PAIRS[size], case.series, case.paths, case.bars, case.horizon)).bytes
    share = bytes_read / time_of(sample).median / machine.bandwidth
    wanted, measured = f"{case.goal:g} times", f"{times(samples[_UPSTREAM], sample)} times"
    if not cuda:
        wanted, measured = f"{wanted}, or {percent(_BOUND)} of the bandwidth", f"{measured}, {percent(share)}"
    reached = speedup.median >= case.goal or (not cuda and share >= _BOUND)
    return Goal(f"sampling {case.name}, Kronos-{size}, {machine.device.type}", wanted, measured, reached)


def many_tickers(machine: Machine, *, size: str, shape: SamplingShape, repeats: Repeats) -> Report:
    """Time the forecasts of many tickers, each with its own adapter: one call per ticker, and one call for all.

    Args:
        machine: device of the models.
        size: size of the base model.
        shape: size of the sampling; a series is a ticker.
        repeats: repeats of each way.
    """
    series = random_series(shape.series, shape.bars, shape.horizon)
    past, ahead = series.stamps
    models = adapted(random_model(size, machine.device), shape.series)
    settings = {"paths": shape.paths, **SAMPLING}

    def one_by_one() -> None:
        for ticker, model in enumerate(models):
            rows = slice(ticker, ticker + 1)
            sample_paths(model, series.history[rows], past[rows], ahead[rows], **settings)

    def together() -> None:
        sample_paths(models, series.history, past, ahead, **settings)

    runs = {"one by one": timed(one_by_one, machine.device), "in one call": timed(together, machine.device)}
    together()
    samples = alternate(runs, repeats)
    rows = [
        [
            name,
            time_of(sample).text(seconds),
            number(shape.series / time_of(sample).median),
            times(samples["one by one"], sample),
            megabytes(peak_of(sample)),
        ]
        for name, sample in samples.items()
    ]
    title = (
        f"Forecasts of {shape.series} tickers, an adapter each, Kronos-{size}: {shape.paths} paths, "
        f"{shape.bars} + {shape.horizon} bars"
    )
    return Report([Table(title, ("way", "time", "tickers/s", "times", "peak memory"), rows)])
