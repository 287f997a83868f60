"""Errors as Dagster failures: a sentence, and a table of every problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg

from kronos_pipeline.artifact_store.objects import StoreAwayError
from kronos_pipeline.errors import DataError, KronosError, Problem, enumerate_some
from kronos_pipeline.leases import LeaseError
from kronos_pipeline.orchestration.setting_names import name_settings

_COLUMNS = ("ticker", "file", "line", "column", "rule", "value", "count", "lines")
_NUMBERS = ("line", "count")
_SHOWN = 200
_NAMED = 10
_RETRIES, _RETRY_SECONDS = 2, 20.0
NO_TICKER = ""
"""The key of an error that belongs to no single ticker, in a mapping of errors by ticker."""


def make_failure(asset: str, errors: Mapping[str, Exception]) -> dg.Failure:
    """Return a failure that names the tickers and shows every problem.

    Args:
        asset: the asset that failed, such as "windows".
        errors: the errors, by ticker.

    Returns:
        A failure that Dagster retries only if every error is transient, such as an unreachable MLflow server.
    """
    return dg.Failure(
        description=failure_message(asset, errors),
        metadata={"problems": problem_table(errors)},
        allow_retries=all(_is_transient(error) for error in errors.values()),
    )


def failure_message(asset: str, errors: Mapping[str, Exception]) -> str:
    """Return a line with the failed asset and its tickers, then a line for each of the first problems."""
    tickers = [ticker for ticker in errors if ticker != NO_TICKER]
    names = enumerate_some(tickers, _NAMED)
    lines = [line for error in errors.values() for line in name_settings(str(error)).splitlines()]
    more = [f"... and {len(lines) - _NAMED} more problems; the table has them"] if len(lines) > _NAMED else []
    return "\n".join([f"{asset} failed" + (f" for {names}:" if names else ":"), *lines[:_NAMED], *more])


def problem_table(errors: Mapping[str, Exception]) -> dg.TableMetadataValue:
    """Return a table of the first few hundred problems: a row for each rule that lines of a column break."""
    records = [
        dg.TableRecord(
            {
                "ticker": ticker,
                "file": problem.file,
                "line": problem.line,
                "column": problem.column,
                "rule": name_settings(problem.rule),
                "value": problem.value,
                "count": problem.count,
                "lines": ", ".join(map(str, problem.lines)),
            }
        )
        for ticker, error in errors.items()
        for problem in _problems(ticker, error)
    ]
    columns = [dg.TableColumn(name, "int" if name in _NUMBERS else "string") for name in _COLUMNS]
    return dg.MetadataValue.table(records[:_SHOWN], dg.TableSchema(columns))


def read_problem_table(table: dg.TableMetadataValue) -> list[Problem]:
    """Return the problems of a `problem_table`."""
    return [_problem(record.data) for record in table.records]


def _problem(record: Mapping[str, Any]) -> Problem:
    fields = {name: record[name] for name in ("file", "rule", "line", "column", "value")}
    # Tables of earlier versions have a row per line.
    lines = tuple(map(int, (record.get("lines") or "").replace(",", " ").split()))
    return Problem(**fields, lines=lines, count=record.get("count", 1))


@contextmanager
def as_failure(asset: str) -> Iterator[None]:
    """Turn a `KronosError` of the block into a Dagster failure, and retry the step after a transient error.

    Transient errors are an unreachable store, a full GPU, and others that are no `KronosError`. A `dagster.RetryPolicy`
    would retry an interrupt too: a run that a person terminates would train on.
    """
    try:
        try:
            yield
        except KronosError as error:
            # Without the cause, or the UI and the terminal would show its stack trace, which tells a user nothing.
            raise make_failure(asset, {getattr(error, "ticker", None) or NO_TICKER: error}) from None
    except dg.DagsterExecutionInterruptedError as interrupt:
        for note in getattr(interrupt, "__notes__", ()):
            dg.get_dagster_logger().warning(f"Interrupted: {note}; the next run goes on from there.")
        raise
    except (dg.RetryRequested, dg.DagsterError):
        raise
    except Exception as error:
        if isinstance(error, dg.Failure) and not error.allow_retries:
            raise
        raise dg.RetryRequested(_RETRIES, _RETRY_SECONDS) from error


def _problems(ticker: str, error: Exception) -> tuple[Problem, ...]:
    return error.problems if isinstance(error, DataError) else (Problem(file=ticker, rule=str(error)),)


def _is_transient(error: Exception) -> bool:
    from kronos_pipeline.tracking.store import TrackingError

    return isinstance(error, TrackingError | LeaseError | StoreAwayError)
