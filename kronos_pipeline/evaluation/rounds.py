"""Evaluations side by side: each asks for rolls and waits, and what all wait for is sampled in a few large calls.

    AAPL   fit --ask--.        .--answer--> fit --ask--.        .--answer--> score
    MSFT   fit --ask---> call -+--answer--> fit --ask---> call -+--answer--> score
    TSLA   fit --ask--'        '--answer--> fit --ask--'        '--answer--> score

One that asks is a generator: it yields rolls, is sent their paths, and returns what it makes of them. So what is asked
for, the sampling and the scoring are apart, and yet each evaluation reads from top to bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

from kronos_pipeline.errors import KronosError
from kronos_pipeline.evaluation.forecasting.batching import Rolls, SampledRolls, Sampler, sample

K = TypeVar("K")
T = TypeVar("T")
Asking = Generator[Sequence[Rolls], Sequence[SampledRolls], T]
"""Asks for rolls, any number of times; returns a `T`."""

AT_ONCE = 64
"""Evaluations that wait together, at most: each holds its models."""
BARS = 2**20
"""Sampled bars that are asked for before no further evaluation begins; some 100 MB."""


def together(
    jobs: Mapping[K, Asking[T]], *, sampler: Sampler | None = None, at_once: int = AT_ONCE
) -> Iterator[tuple[K, T | KronosError]]:
    """Run evaluations side by side; one that fails leaves the others as they are.

    Memory is bounded, however many there are: the next ones begin as others end.

    Args:
        jobs: by name, such as the ticker; none of them begun.
        sampler: what samples, `sample_paths` by default.
        at_once: how many are under way at once, at most.

    Yields:
        Each name with what the evaluation returned or the error that ended it, as they end.
    """
    asked: dict[K, Sequence[Rolls]] = {}

    def go_on(name: K, step: Callable[[], Sequence[Rolls]]) -> Iterator[tuple[K, T | KronosError]]:
        try:
            asked[name] = step()
        except StopIteration as end:
            yield name, end.value
        except KronosError as error:
            yield name, error

    coming = iter(jobs.items())
    while True:
        while len(asked) < at_once and _bars(asked) < BARS and (begun := next(coming, None)):
            yield from go_on(begun[0], partial(next, begun[1]))
        if not asked:
            return
        waiting, asked = asked, {}
        found = iter(sample([one for rolls in waiting.values() for one in rolls], sampler))
        for name, rolls in waiting.items():
            answers = list(islice(found, len(rolls)))
            errors = [one for one in answers if isinstance(one, KronosError)]
            paths = [one for one in answers if not isinstance(one, KronosError)]
            job = jobs[name]
            yield from go_on(name, partial(job.throw, errors[0]) if errors else partial(job.send, paths))


def side_by_side(jobs: Mapping[K, Asking[T]]) -> Asking[dict[K, T]]:
    """Several as one, which asks for what all of them ask for; the first error ends it."""
    asked: dict[K, Sequence[Rolls]] = {}
    ended: dict[K, T] = {}

    def go_on(name: K, step: Callable[[], Sequence[Rolls]]) -> None:
        try:
            asked[name] = step()
        except StopIteration as end:
            ended[name] = end.value

    for name, job in jobs.items():
        go_on(name, partial(next, job))
    while asked:
        waiting, asked = asked, {}
        answers = iter((yield [one for rolls in waiting.values() for one in rolls]))
        for name, rolls in waiting.items():
            go_on(name, partial(jobs[name].send, list(islice(answers, len(rolls)))))
    return {name: ended[name] for name in jobs}


def alone(job: Asking[T], sampler: Sampler | None = None) -> T:
    """Run one evaluation.

    Raises:
        KronosError: what ended it.
    """
    ((_, found),) = together({"": job}, sampler=sampler)
    return good(found)


def good(found: T | KronosError) -> T:
    """What was found, or its error raised."""
    if isinstance(found, KronosError):
        raise found
    return found


def _bars(asked: Mapping[K, Sequence[Rolls]]) -> int:
    return sum(one.bars for rolls in asked.values() for one in rolls)
