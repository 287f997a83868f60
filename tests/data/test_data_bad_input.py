"""Each bad file gets every one of its problems named: file, line, column, rule, value."""

from __future__ import annotations

from pathlib import Path

import pytest
from market_files import HEADER, daily_frame, write_frame, write_lines

from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.ingest import read_bars, read_folder
from kronos_pipeline.errors import DataError

GOOD = ("2024-01-02,10,12,9,11,100", "2024-01-03,11,13,10,12,200", "2024-01-04,12,14,11,13,300")


def problems_of(file: CsvFile) -> list[str]:
    """Return the problems, without the folder's name."""
    with pytest.raises(DataError) as caught:
        read_bars(file)
    assert caught.value.ticker == file.ticker
    return [str(problem).replace(f"{file.path.parent}/", "") for problem in caught.value.problems]


def with_line(tmp_path: Path, line: str) -> CsvFile:
    return write_lines(tmp_path, "ACME", *GOOD, line, "2024-01-08,13,15,12,14,400")


def test_a_good_file_has_no_problem(tmp_path: Path) -> None:
    assert len(read_bars(with_line(tmp_path, "2024-01-05,12,14,11,13,0"))) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("2024-01-05,ten,14,11,13,1", "ACME.csv:5: Open: must be a number (found 'ten')"),
        ("2024-01-05,12,14,11,,1", "ACME.csv:5: Close: has no value"),
        ("2024-01-05,12,14,11,NaN,1", "ACME.csv:5: Close: has no value (found 'NaN')"),
        ("2024-01-05,12,inf,11,13,1", "ACME.csv:5: High: must be a finite number (found 'inf')"),
        ("2024-01-05,12,14,-inf,13,1", "ACME.csv:5: Low: must be a finite number (found '-inf')"),
        ("2024-01-05,12,14,0,13,1", "ACME.csv:5: Low: must be above 0 (found '0')"),
        ("2024-01-05,12,14,11,-13,1", "ACME.csv:5: Close: must be above 0 (found '-13')"),
        ("2024-01-05,12,10,11,13,1", "ACME.csv:5: High: is below the low, open or close of its bar (found '10')"),
        ("2024-01-05,12,12.5,11,13,1", "ACME.csv:5: High: is below the low, open or close of its bar (found '12.5')"),
        ("2024-01-05,12,14,12.5,13,1", "ACME.csv:5: Low: is above the open or close of its bar (found '12.5')"),
        ("2024-01-05,12,14,11,13,-1", "ACME.csv:5: Volume: must not be negative (found '-1')"),
        ("2024-01-05,12,14,11,13,many", "ACME.csv:5: Volume: must be a number (found 'many')"),
        ("2024-01-05,12,14,11,13,1e308", "ACME.csv:5: Volume: times the price is more than a number can hold"),
        ('2024-01-05,12,14,11,13,"1,000"', "ACME.csv:5: Volume: can be 1000 or 1.000 (found"),
        ("2024-01-05,1_2,14,11,13,1", "ACME.csv:5: Open: must be a number (found '1_2')"),
        ("someday,12,14,11,13,1", "ACME.csv:5: Date: no time that can be read"),
        ("2024-02-30,12,14,11,13,1", "ACME.csv:5: Date: no time that can be read"),
        (",12,14,11,13,1", "ACME.csv:5: Date: no time that can be read"),
        (
            "2024-01-04,12,14,11,13,1",
            "ACME.csv:5: Date: is the same time as in line 4, with other values (found '2024-01-04'); keep one of",
        ),
        ("2024-01-05,12,14,11,13", "ACME.csv:5: 5 cells where the header has 6"),
        ("2024-01-05,12,14,11,13,1,7", "ACME.csv:5: 7 cells where the header has 6"),
        ('2024-01-05,12,14,11,13,"1', "ACME.csv:5: no CSV that can be read"),
    ],
)
def test_a_bad_line_is_named_with_its_column_rule_and_value(tmp_path: Path, line: str, problem: str) -> None:
    [message] = problems_of(with_line(tmp_path, line))
    assert message.startswith(problem)


def test_every_bad_line_is_reported_at_once_in_file_order(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path,
        "ACME",
        "2024-01-02,ten,12,9,11,100",
        "2024-01-03,11,13,10,-12,-200",
        "not a day,12,14,11,13,300",
        "",
        "2024-01-03,12,nan,11,13,300",
        "2024-01-08,13,12,12,14,400",
        "2024-01-09,13,15,12,14,400",
        "2024-01-09,13,15,12,14,500",
    )

    assert [problem.split(" (found")[0].split(";")[0] for problem in problems_of(file)] == [
        "ACME.csv:2: Open: must be a number",
        "ACME.csv:3: Close: must be above 0",
        "ACME.csv:3: Volume: must not be negative",
        "ACME.csv:4: Date: no time that can be read",
        "ACME.csv:6: High: has no value",
        "ACME.csv:7: High: is below the low, open or close of its bar",
        "ACME.csv:9: Date: is the same time as in line 8, with other values",
    ]


def test_a_rule_that_thousands_of_lines_break_is_told_once(tmp_path: Path) -> None:
    [problem] = problems_of(write_frame(tmp_path, "ACME", daily_frame(3000).assign(Close="?")))

    assert problem.startswith("ACME.csv:2: Close: must be a number in 3,000 lines, first in 2, 3, 4 (found '?')")


def test_lines_are_those_of_the_file_in_a_reversed_file_with_blank_lines_and_line_breaks_of_any_kind(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ACME.csv"
    rows = [
        "2024-01-05,10,12,9,11,100",
        "",
        "2024-01-04,11,13,10,zero,200",
        " , , , , , ",
        "2024-01-03,12,14,11,13,300",
    ]
    path.write_bytes("\r\n".join([HEADER, *rows]).encode())

    [problem] = problems_of(CsvFile("ACME", path))
    assert problem.startswith("ACME.csv:4: Close: must be a number (found 'zero')")


def test_a_repeated_time_in_a_newest_first_file_is_the_only_problem(tmp_path: Path) -> None:
    file = write_lines(tmp_path, "ACME", *reversed((*GOOD, "2024-01-04,12,14,11,13,301", "2024-01-05,12,14,11,13,1")))

    [problem] = problems_of(file)

    assert problem.startswith("ACME.csv:4: Date: is the same time as in line 3")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "ACME.csv: the file is empty"),
        (b"\xef\xbb\xbf", "ACME.csv: the file is empty"),
        (b"Date,Open,High,Low,Close,Volume\n", "ACME.csv: a header alone, without a bar"),
        (b"Date,Open,High,Low,Close\n,,,,\n", "ACME.csv: a header alone, without a bar"),
        (
            b"Date,Open,High,Low\n2024-01-02,1,2,1\n",
            "ACME.csv:1: close: there is no such column (the columns are Date, ",
        ),
        (b"When,Open,High,Low,Close\n2024-01-02,1,2,1,1\n", "ACME.csv:1: no time column; call it date or time, or say"),
        (
            b"Date,Open,High,Low,Close,close\n2024-01-02,1,2,1,1,2\n",
            "ACME.csv:1: close: 2 columns for it (Close, close)",
        ),
        (
            b"Date,Open,High,Low,Close\n2024-01-02,1,2,1,1\n# \x98\x81\xff,1,2,1,1\n",
            "ACME.csv:3: the file is not UTF-8",
        ),
        (
            b"\xef\xbb\xbfDate,Open,High,Low,Close\n\xff024-01-02,1,2,1,1\n",
            "ACME.csv:2: the file is not UTF-8 (byte 0xff)",
        ),
        ("Date,Open,High,Low,Close\n".encode("utf-16"), "ACME.csv: a header alone, without a bar"),
        (
            b"2024-01-02,1,2,1,1\n2024-01-03,1,2,1,1\n",
            "ACME.csv:1: no header; write the names of the columns into line 1",
        ),
        (b"<!DOCTYPE html><html></html>", "ACME.csv: the file is a web page, not a CSV"),
        (b'{"Error Message": "no such symbol"}', "ACME.csv: the file is JSON, not a CSV"),
        (b"PK\x03\x04\x00\x00\x08\x00", "ACME.csv: the file is binary"),
    ],
)
def test_a_file_that_is_no_csv_of_bars_is_refused_as_a_whole(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "ACME.csv"
    path.write_bytes(content)

    [message] = problems_of(CsvFile("ACME", path))

    assert message.startswith(problem)


def test_a_file_that_vanished_is_refused(tmp_path: Path) -> None:
    [problem] = problems_of(CsvFile("ACME", tmp_path / "ACME.csv"))
    assert problem == "ACME.csv: the file cannot be read (No such file or directory)"


def test_one_bad_ticker_among_good_ones_leaves_the_good_ones_as_they_are(tmp_path: Path) -> None:
    frames = {f"T{number}": daily_frame(50, seed=number) for number in range(5)}
    for ticker, frame in frames.items():
        write_frame(tmp_path / ticker, ticker, frame)
    separate = {ticker: read_bars(CsvFile(ticker, tmp_path / ticker / f"{ticker}.csv")) for ticker in frames}
    write_frame(tmp_path / "T2", "T2", frames["T2"].assign(Low=lambda frame: frame["High"] + 1))
    write_frame(tmp_path / "other", "t4", frames["T4"].assign(Volume=1))

    good, bad = read_folder(tmp_path)

    assert list(good) == ["T0", "T1", "T3"]
    assert all(good[ticker].content_hash == separate[ticker].content_hash for ticker in good)
    assert list(bad) == ["T2", "T4"]
    assert {(problem.column, problem.lines, problem.count) for problem in bad["T2"].problems} == {
        ("High", (2, 3, 4), 50),
        ("Low", (2, 3, 4), 50),
    }
    assert "more than one file" in str(bad["T4"])


def test_a_second_symbol_in_the_middle_of_a_file_is_a_problem_with_its_line(tmp_path: Path) -> None:
    days = daily_frame(900)["Date"].dt.strftime("%Y-%m-%d")
    lines = [f"{day},{'ZZB' if row == 400 else 'ZZA'},10,11,9,10.5,1000" for row, day in enumerate(days)]
    write_lines(tmp_path, "ACME", *lines, header="Date,Symbol,Open,High,Low,Close,Volume")

    _, errors = read_folder(tmp_path)

    assert "ACME.csv:402: Symbol: another symbol than ZZA of the lines before" in str(errors["ACME"])
