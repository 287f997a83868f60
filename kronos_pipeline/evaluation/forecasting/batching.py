"""Dynamic batching of evaluations.

Each evaluation is a generator (`ForecastJob`) that yields forecast requests; `run_jobs` merges the pending requests of
all jobs into few calls of the sampler.

    AAPL   fit --request--.        .--paths--> fit --request--.        .--paths--> score
    MSFT   fit --request---> call -+--paths--> fit --request---> call -+--paths--> score
    TSLA   fit --request--'        '--paths--> fit --request--'        '--paths--> score

A job yields requests, receives their sampled paths, and returns its result. So request, sampling and scoring are
separate, and each evaluation still reads from top to bottom.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kronos_pipeline.checksums import text_hash
from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.errors import KronosError, ModelError
from kronos_pipeline.evaluation.forecasting.ensemble import Ensemble, count_models
from kronos_pipeline.evaluation.provenance import sampling_precision

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.evaluation.forecasting.ensemble import Forecaster
    from kronos_pipeline.evaluation.forecasting.forecast_progress import ForecastProgress
    from kronos_pipeline.evaluation.forecasting.sampling import Sampling
    from kronos_pipeline.model.loading import KronosModel

K = TypeVar("K")
T = TypeVar("T")

Sampler = Callable[..., np.ndarray]
"""Has the signature of `model.decode.sample.sample_paths`: a model, a temperature, a top-p and a seed per series;
returns (series, paths, horizon, features) in price units."""

MAX_JOBS = 64
"""Maximum number of jobs in progress; each job holds its models."""
MAX_PENDING_BARS = 2**20
"""Number of requested bars from which on no further job starts; some 100 MB."""


@dataclass(frozen=True)
class ForecastRequest:
    """Forecasts that one model shall make from some cutoffs of one ticker.

    Each forecast knows the real bars up to its cutoff, and never another forecast. All models draw a ticker's paths
    with the same random numbers, so that a difference between two forecasts is a difference between their models.

    Attributes:
        ticker: the symbol; the random numbers of the paths depend on it.
        history: the known bars of each forecast, (cutoffs, bars, 6), in the file's units.
        past: stamp features of the known bars, (cutoffs, bars, 5).
        ahead: stamp features of the bars to forecast, (cutoffs, horizon, 5).
        model: the model that forecasts, or an ensemble, whose models draw the recipe's number of paths each.
        sampling: temperature, top-p and the position of s2.
        recipe: paths per forecast, seed and number format.
    """

    ticker: str
    history: NDArray[np.float64]
    past: NDArray[np.uint8]
    ahead: NDArray[np.uint8]
    model: Forecaster
    sampling: Sampling
    recipe: Recipe

    @property
    def bars(self) -> int:
        """Number of bars to sample."""
        horizon: int = self.ahead.shape[1]
        return len(self.history) * self.recipe.eval_samples * horizon * count_models(self.model)

    @property
    def of_members(self) -> list[ForecastRequest]:
        """A request per model of an ensemble, with the model's own seed; the request itself for a single model."""
        if not isinstance(self.model, Ensemble):
            return [self]
        return [
            replace(self, model=model, recipe=self.recipe.model_copy(update={"seed": seed}))
            for seed, model in self.model.members.items()
        ]

    @property
    def shared_settings(self) -> dict[str, Any]:
        """Settings that all series of one sampler call share."""
        return {
            "paths": self.recipe.eval_samples,
            "s2_position": self.sampling.s2_position,
            "precision": self.recipe.precision,
        }


@dataclass(frozen=True)
class SamplePaths:
    """The sampled paths of one request.

    Attributes:
        values: valid candles in the file's units, (cutoffs, paths, horizon, 6). If a forecast ends before its horizon,
            the bars after its end have no meaning.
        mended: number of sampled bars that were no valid candles and were repaired.
        bars: number of sampled bars.
        seconds: wall time of the sampling; of a call for several requests the share of this request's bars.
    """

    values: NDArray[np.float64]
    mended: int
    bars: int
    seconds: float = 0.0

    @property
    def closes(self) -> NDArray[np.float64]:
        """Closes, (cutoffs, paths, horizon)."""
        return self.values[..., FEATURES.index("close")]


ForecastJob = Generator[Sequence[ForecastRequest], Sequence[SamplePaths], T]
"""A generator that yields requests, any number of times, receives their paths, and returns a `T`."""


def forecast_request(
    windows: WindowSet, origins: np.ndarray, ends: np.ndarray, model: Forecaster, recipe: Recipe, sampling: Sampling
) -> ForecastRequest:
    """Build the request for forecasts from some cutoffs of a ticker.

    The stamps ahead are the ticker's own, as the calendar is known in advance. If a forecast ends before its horizon,
    its last stamp is repeated, so that a forecast never reads later stamps.

    Args:
        windows: the ticker's windows.
        origins: index of the last known bar of each forecast, (cutoffs,).
        ends: index of the bar after the last requested bar of each forecast, (cutoffs,).
        model: model to sample from.
        recipe: its horizon, and the settings of `ForecastRequest`.
        sampling: see `ForecastRequest`.
    """
    values = windows.bars.frame[list(FEATURES)].to_numpy(np.float64)
    past = origins[:, None] + np.arange(1 - windows.lookback, 1)
    ahead = np.minimum(origins[:, None] + np.arange(1, recipe.horizon + 1), ends[:, None] - 1)
    stamps = windows.stamps
    return ForecastRequest(windows.ticker, values[past], stamps[past], stamps[ahead], model, sampling, recipe)


def run_jobs(
    jobs: Mapping[K, ForecastJob[T]],
    *,
    sampler: Sampler | None = None,
    max_jobs: int = MAX_JOBS,
    progress: ForecastProgress | None = None,
) -> Iterator[tuple[K, T | KronosError]]:
    """Run jobs concurrently and sample their pending requests together; a failing job does not affect the others.

    Memory is bounded for any number of jobs: a further job starts when another job ends.

    Args:
        jobs: jobs that have not started, by a name such as the ticker.
        sampler: the sampler, `sample_paths` by default.
        max_jobs: maximum number of jobs in progress.
        progress: is shown, and receives the sampled bars and the ended jobs.

    Yields:
        Each name with the result of its job or the error that ended the job, in the order in which the jobs end.
    """
    pending: dict[K, Sequence[ForecastRequest]] = {}

    def advance(name: K, step: Callable[[], Sequence[ForecastRequest]]) -> Iterator[tuple[K, T | KronosError]]:
        try:
            pending[name] = step()
            return
        except StopIteration as end:
            result = end.value
        except KronosError as error:
            result = error
        if progress:
            progress.end_ticker()
        yield name, result

    def sample(requests: Sequence[ForecastRequest]) -> list[SamplePaths | KronosError]:
        if progress is None:
            return sample_requests(requests, sampler)
        with progress.sampling(sum(request.bars for request in requests)):
            return sample_requests(requests, sampler or partial(_sample_paths, on_bars=progress.advance))

    queue = iter(jobs.items())
    with ExitStack() as shown:
        if progress:
            shown.enter_context(progress)
        while True:
            while len(pending) < max_jobs and _count_bars(pending) < MAX_PENDING_BARS and (entry := next(queue, None)):
                yield from advance(entry[0], partial(next, entry[1]))
            if not pending:
                return
            waiting, pending = pending, {}
            answers = iter(sample([request for requests in waiting.values() for request in requests]))
            for name, requests in waiting.items():
                results = list(islice(answers, len(requests)))
                errors = [result for result in results if isinstance(result, KronosError)]
                paths = [result for result in results if not isinstance(result, KronosError)]
                job = jobs[name]
                yield from advance(name, partial(job.throw, errors[0]) if errors else partial(job.send, paths))


def gather_jobs(jobs: Mapping[K, ForecastJob[T]]) -> ForecastJob[dict[K, T]]:
    """Combine jobs into one job that yields the pending requests of all of them; the first error ends it."""
    pending: dict[K, Sequence[ForecastRequest]] = {}
    results: dict[K, T] = {}

    def advance(name: K, step: Callable[[], Sequence[ForecastRequest]]) -> None:
        try:
            pending[name] = step()
        except StopIteration as end:
            results[name] = end.value

    for name, job in jobs.items():
        advance(name, partial(next, job))
    while pending:
        waiting, pending = pending, {}
        answers = iter((yield [request for requests in waiting.values() for request in requests]))
        for name, requests in waiting.items():
            advance(name, partial(jobs[name].send, list(islice(answers, len(requests)))))
    return {name: results[name] for name in jobs}


def run_job(job: ForecastJob[T], sampler: Sampler | None = None) -> T:
    """Run one job and return its result.

    Raises:
        KronosError: the error that ended the job.
    """
    ((_, result),) = run_jobs({"": job}, sampler=sampler)
    return unwrap(result)


def unwrap(result: T | KronosError) -> T:
    """Return a result, or raise it if it is an error."""
    if isinstance(result, KronosError):
        raise result
    return result


def sample_requests(
    requests: Sequence[ForecastRequest], sampler: Sampler | None = None
) -> list[SamplePaths | KronosError]:
    """Sample requests of any tickers and models in as few calls as their lengths and settings allow.

    Args:
        requests: the requests.
        sampler: the sampler, `sample_paths` by default.

    Returns:
        For each request its paths, or the reason that there are none: the model gives numbers that are not finite, or
        cannot forecast so many bars.
    """
    parts = [request.of_members for request in requests]
    answers = iter(_sample_each(list(chain.from_iterable(parts)), sampler or _sample_paths))
    return [_pool(list(islice(answers, len(of_members)))) for of_members in parts]


def _pool(results: Sequence[SamplePaths | KronosError]) -> SamplePaths | KronosError:
    """Put the paths of the models of one request together; the first error, if a model has none."""
    if errors := [result for result in results if isinstance(result, KronosError)]:
        return errors[0]
    paths = [result for result in results if not isinstance(result, KronosError)]
    if len(paths) == 1:
        return paths[0]
    values = np.concatenate([of_model.values for of_model in paths], axis=1)
    return SamplePaths(
        values,
        sum(of_model.mended for of_model in paths),
        sum(of_model.bars for of_model in paths),
        sum(of_model.seconds for of_model in paths),
    )


def _sample_each(requests: Sequence[ForecastRequest], sampler: Sampler) -> list[SamplePaths | KronosError]:
    """Sample requests of single models."""
    batches: dict[tuple[Any, ...], list[int]] = {}
    for index, request in enumerate(requests):
        lengths = request.history.shape[1], request.ahead.shape[1]
        batches.setdefault((*lengths, *request.shared_settings.values()), []).append(index)
    results: dict[int, SamplePaths | KronosError] = {}
    for indices in batches.values():
        batch = [requests[index] for index in indices]
        results |= zip(indices, _sample_batch(batch, sampler), strict=True)
    return [results[index] for index in range(len(requests))]


def sampling_seed(seed: int, ticker: str) -> int:
    """Return the seed of a ticker's paths, below 2**32: equal for every model and in every process, unlike `hash`."""
    return int(text_hash(str(seed), ticker)[:8], 16)


def _sample_batch(requests: Sequence[ForecastRequest], sampler: Sampler) -> list[SamplePaths | KronosError]:
    """Sample requests of equal lengths and settings in one call; if it fails, bisect until the failing one is alone."""
    series = [
        (request, sampling_seed(request.recipe.seed, request.ticker)) for request in requests for _ in request.history
    ]
    began = time.perf_counter()
    try:
        values = sampler(
            [request.model for request, _ in series],
            *(
                np.concatenate([getattr(request, name) for request in requests])
                for name in ("history", "past", "ahead")
            ),
            temperature=np.array([request.sampling.temperature for request, _ in series]),
            top_p=np.array([request.sampling.top_p for request, _ in series]),
            seed=[seed for _, seed in series],
            **requests[0].shared_settings,
        )
    except KronosError as error:
        if len(requests) == 1:
            return [error]
        half = len(requests) // 2
        return _sample_batch(requests[:half], sampler) + _sample_batch(requests[half:], sampler)
    per_bar = (time.perf_counter() - began) / max(sum(request.bars for request in requests), 1)
    parts = np.split(values, np.cumsum([len(request.history) for request in requests])[:-1])
    return [
        _valid_paths(request.ticker, part, per_bar * request.bars)
        for request, part in zip(requests, parts, strict=True)
    ]


def _valid_paths(ticker: str, values: NDArray[Any], seconds: float) -> SamplePaths | ModelError:
    finite = np.isfinite(values).all(axis=-1)
    if bad := int((~finite).sum()):
        return ModelError(
            f"The model's forecasts of {ticker} are not finite numbers in {bad} of {finite.size} sampled bars; train "
            "it again with a lower --learning-rate, or with --precision fp32."
        )
    repaired, count = repair_candles(values)
    return SamplePaths(repaired, count, repaired[..., 0].size, seconds)


def _sample_paths(models: Sequence[KronosModel], *series: np.ndarray, precision: str, **settings: Any) -> np.ndarray:
    from kronos_pipeline.model.decode.sample import sample_paths  # imports torch

    return sample_paths(models, *series, precision=sampling_precision(precision, models[0].device), **settings)


def _count_bars(pending: Mapping[K, Sequence[ForecastRequest]]) -> int:
    return sum(request.bars for requests in pending.values() for request in requests)


_OPEN, _HIGH, _LOW, _CLOSE = (FEATURES.index(price) for price in ("open", "high", "low", "close"))
_AMOUNTS = slice(FEATURES.index("volume"), None)


def repair_candles(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Widen each bar's range to hold its open and close, and raise a negative volume or amount to 0.

    Open and close stay as they are, so no forecast of a close changes.

    Args:
        values: bars, (..., 6), finite; they are not changed.

    Returns:
        The repaired bars, with low <= min(open, close), high >= max(open, close), volume >= 0 and amount >= 0; and the
        number of repaired bars.
    """
    repaired = np.array(values, np.float64)
    body = repaired[..., [_OPEN, _CLOSE]]
    repaired[..., _HIGH] = np.maximum(repaired[..., _HIGH], body.max(axis=-1))
    repaired[..., _LOW] = np.minimum(repaired[..., _LOW], body.min(axis=-1))
    repaired[..., _AMOUNTS] = np.maximum(repaired[..., _AMOUNTS], 0.0)
    return repaired, int((repaired != values).any(axis=-1).sum())
