"""What is shown of a failure: one sentence, and a table of every problem found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from kronos_pipeline.errors import DataError, KronosError, Problem, enumerate_some

_COLUMNS = ("ticker", "file", "line", "column", "rule", "value")
_SHOWN = 200
_NAMED = 10
WHOLE = ""
"""The name that an error which is no single ticker's has in a mapping of errors by ticker."""


def make_failure(what: str, errors: Mapping[str, Exception]) -> dg.Failure:
    """A failure that names the tickers and shows every problem.

    Args:
        what: what could not be made, such as "windows".
        errors: what was wrong, by ticker.

    Returns:
        A failure which is retried only where every error may pass by itself, as that of an MLflow server that is away.
    """
    return dg.Failure(
        description=describe(what, errors),
        metadata={"problems": problem_table(errors)},
        allow_retries=all(_may_pass(error) for error in errors.values()),
    )


def describe(what: str, errors: Mapping[str, Exception]) -> str:
    """One line of what failed for whom, then a line for each of the first problems."""
    tickers = [ticker for ticker in errors if ticker != WHOLE]
    names = enumerate_some(tickers, _NAMED)
    lines = [line for error in errors.values() for line in str(error).splitlines()]
    more = [f"... and {len(lines) - _NAMED} more problems; the table has them"] if len(lines) > _NAMED else []
    return "\n".join([f"{what} failed" + (f" for {names}:" if names else ":"), *lines[:_NAMED], *more])


def problem_table(errors: Mapping[str, Exception]) -> dg.TableMetadataValue:
    """File, line, column, rule and value of each problem, by ticker, the first few hundred of them."""
    records = [
        dg.TableRecord(
            {
                "ticker": ticker,
                "file": problem.file,
                "line": problem.line,
                "column": problem.column,
                "rule": problem.rule,
                "value": problem.value,
            }
        )
        for ticker, error in errors.items()
        for problem in _problems(ticker, error)
    ]
    columns = [dg.TableColumn(name, "int" if name == "line" else "string") for name in _COLUMNS]
    return dg.MetadataValue.table(records[:_SHOWN], dg.TableSchema(columns))


def read_problem_table(table: dg.TableMetadataValue) -> list[Problem]:
    """The problems that a `problem_table` shows."""
    fields = ("file", "rule", "line", "column", "value")
    return [Problem(**{field: record.data[field] for field in fields}) for record in table.records]  # type: ignore[arg-type]


@contextmanager
def failures_of(what: str) -> Iterator[None]:
    """Turn a `KronosError` of the block into a failure; other errors pass, and the asset's retry policy sees them."""
    try:
        yield
    except KronosError as error:
        raise make_failure(what, {getattr(error, "ticker", None) or WHOLE: error}) from error


def _problems(ticker: str, error: Exception) -> tuple[Problem, ...]:
    return error.problems if isinstance(error, DataError) else (Problem(file=ticker, rule=str(error)),)


def _may_pass(error: Exception) -> bool:
    from kronos_pipeline.tracking.store import TrackingError

    return isinstance(error, TrackingError)
