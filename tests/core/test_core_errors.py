from __future__ import annotations

import pytest

from kronos_pipeline.errors import ArtifactError, DataError, KronosError, ModelError, Problem, SettingsError


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("ACME.csv", "the file is empty"), "ACME.csv: the file is empty"),
        (Problem("ACME.csv", "an empty line", line=7), "ACME.csv:7: an empty line"),
        (Problem("ACME.csv", "missing", column="Close"), "ACME.csv: Close: missing"),
        (
            Problem("ACME.csv", "a price must be above 0", line=42, column="Close", value="-1"),
            "ACME.csv:42: Close: a price must be above 0 (found '-1')",
        ),
        (Problem("ACME.csv", "no number", line=2, column="Open", value=""), "ACME.csv:2: Open: no number (found '')"),
    ],
)
def test_a_problem_says_where_what_and_what_was_found(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_data_error_tells_every_problem_on_a_line_of_its_own_in_order() -> None:
    problems = [Problem("A.csv", "second", line=2), Problem("A.csv", "first", line=1)]
    error = DataError(problems, ticker="A")
    assert str(error) == "A.csv:2: second\nA.csv:1: first"
    assert (error.problems, error.ticker) == (tuple(problems), "A")


def test_a_data_error_takes_one_problem_as_it_is() -> None:
    error = DataError(Problem("A.csv", "empty"))
    assert (error.problems, error.ticker) == ((Problem("A.csv", "empty"),), None)


@pytest.mark.parametrize("kind", [SettingsError, ModelError, ArtifactError, DataError])
def test_each_kind_is_caught_as_one_family(kind: type[Exception]) -> None:
    assert issubclass(kind, KronosError)
