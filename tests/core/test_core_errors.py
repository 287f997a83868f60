from __future__ import annotations

import pytest

from kronos_pipeline.errors import (
    ArtifactError,
    DataError,
    KronosError,
    ModelError,
    Problem,
    SettingsError,
    group_messages,
)


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
        (Problem("ACME.csv", "no time; write it", 2, "Date", "?"), "ACME.csv:2: Date: no time (found '?'); write it"),
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


def test_a_rule_that_many_lines_of_a_column_break_is_told_once_with_its_first_lines_and_their_number() -> None:
    problems = [Problem("A.csv", "a thousands separator; write 1234", line, "Open", "1,234") for line in range(2, 402)]
    others = [Problem("A.csv", "a thousands separator; write 1234", 3, "Low"), Problem("B.csv", "must be above 0", 2)]
    [many, low, other] = DataError([*reversed(problems), *others]).problems
    assert str(many) == (
        "A.csv:2: Open: a thousands separator in 400 lines, first in 2, 3, 4 (found '1,234'); write 1234"
    )
    assert (low, other) == tuple(others)


def test_a_problem_of_a_few_lines_names_them_all() -> None:
    [problem] = DataError([Problem("A.csv", "must be above 0", line, "Low", "0") for line in (7, 5)]).problems
    assert str(problem) == "A.csv:5: Low: must be above 0 in lines 5, 7 (found '0')"


def test_problems_that_are_told_once_are_merged_with_further_lines() -> None:
    def lines(first: int, last: int) -> list[Problem]:
        return [Problem("A.csv", "must be above 0", line, "Low") for line in range(first, last)]

    first, second = DataError(lines(2, 20)), DataError(lines(20, 50))
    assert DataError([*first.problems, *second.problems]).problems == DataError(lines(2, 50)).problems


def test_problems_of_whole_files_are_not_merged_and_the_same_problem_twice_is_one() -> None:
    problems = [Problem("A.csv", "no time", value=column) for column in ("Day", "Hour")]
    assert DataError([*problems, *problems]).problems == tuple(problems)
    line = Problem("A.csv", "5 cells where the header has 6", 7)
    assert DataError([line, line]).problems == (line,)


@pytest.mark.parametrize("kind", [SettingsError, ModelError, ArtifactError, DataError])
def test_each_kind_is_caught_as_one_family(kind: type[Exception]) -> None:
    assert issubclass(kind, KronosError)


def test_messages_of_one_cause_are_one_line_and_the_most_frequent_comes_first() -> None:
    messages = [("A", "no week."), ("B", "no volume"), ("C", "no volume"), ("D", "212 days"), ("E", "99 days")]
    assert group_messages(messages) == ["B, C: no volume", "D, E: 212 days (D; the others likewise)", "A: no week."]
    many = [(ticker, "left out") for ticker in "ABCDE"]
    assert group_messages(many) == ["5 tickers, A, B, C and 2 more: left out"]
