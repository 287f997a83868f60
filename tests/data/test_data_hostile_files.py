"""Hostile files end with a sentence that shows nothing of other files, before much time or memory is spent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from market_files import HEADER, NOW, daily_frame, write_frame

from kronos_pipeline.data import csv_content, data_folder, dialect
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.data.ingest import read_bars, read_folder
from kronos_pipeline.errors import DataError

FIRST_LINE = "a line that only its owner may read"
BAR = "2024-01-02,1,2,0.5,1.5,10"


def refusal_of(folder: Path, content: bytes) -> str:
    """Return the refusal of a CSV with this content."""
    (folder / "ACME.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_bars(CsvFile("ACME", folder / "ACME.csv"), now=NOW)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


@pytest.mark.parametrize("name", ["ACME.csv", "ACME.csv.txt", "ACME.txt", "below/ACME.csv"])
def test_a_link_out_of_the_data_folder_is_refused_and_shows_nothing_of_its_target(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "shadow"
    secret.write_text(f"{FIRST_LINE}\n{BAR}\n")
    write_frame(tmp_path / "data", "GOOD", daily_frame(30))
    path = tmp_path / "data" / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(secret)

    bars, errors = read_folder(tmp_path / "data", now=NOW)

    assert list(bars) == ["GOOD"]
    assert "only its owner" not in str(errors)
    if name != "ACME.txt":
        assert str(errors["ACME"]).endswith(
            "a link that leads out of the data folder is not followed; put a copy of the file here"
        )
        with pytest.raises(DataError, match="leads out of the data folder"):
            find_csv_files(tmp_path / "data").file("ACME")


def test_a_linked_folder_outside_is_not_searched_and_named(tmp_path: Path) -> None:
    write_frame(tmp_path / "elsewhere", "IBM", daily_frame(30))
    write_frame(tmp_path / "data", "GOOD", daily_frame(30))
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    folder = find_csv_files(tmp_path / "data")
    assert list(folder.files) == ["GOOD"]
    assert "folders outside, behind links, are not searched: more" in folder.notes


def test_a_folder_of_links_that_lead_out_has_problems_and_no_bars(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ACME.csv").symlink_to("/etc/hostname")
    bars, errors = read_folder(tmp_path / "data", now=NOW)
    assert (bars, list(errors)) == ({}, ["ACME"])


def test_pipes_and_links_to_nothing_are_refused_without_waiting(tmp_path: Path) -> None:
    write_frame(tmp_path, "GOOD", daily_frame(30))
    os.mkfifo(tmp_path / "PIPE.csv")
    os.mkfifo(tmp_path / "PIPE.txt")
    (tmp_path / "GONE.csv").symlink_to(tmp_path / "nothing.csv")

    bars, errors = read_folder(tmp_path, now=NOW)

    assert (list(bars), list(errors)) == (["GOOD"], ["GONE", "PIPE"])
    assert "no file that can be read, but a pipe, a device or a link to nothing" in str(errors["PIPE"])
    with pytest.raises(DataError, match="it is a pipe or a device, and no file"):
        read_bars(CsvFile("PIPE", tmp_path / "PIPE.csv"), now=NOW)


def test_a_sparse_file_of_a_terabyte_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "ACME.csv"
    path.write_text(f"{HEADER}\n{BAR}\n")
    os.truncate(path, 1 << 40)
    bars, errors = read_folder(tmp_path, now=NOW)
    assert bars == {}
    assert "the file has 1,099,511,627,776 bytes, and 1,073,741,824 is the limit; split it by period" in str(errors)


def test_marks_that_a_terminal_obeys_are_not_printed(tmp_path: Path) -> None:
    mark = "\x1b[2J"
    content = f"Date{mark},Open,High,Low,Close,Volume\n{BAR}\n{mark},1,2,0.5,1.5,10\n"
    assert refusal_of(tmp_path, content.encode()).isprintable()
    lines = [f"{HEADER},{mark}", *(f"2024-01-0{day},1,2,0.5,1.5,10,{mark}" for day in range(2, 6)), ""]
    (tmp_path / "ACME.csv").write_text("\n".join(lines))
    [note] = read_bars(CsvFile("ACME", tmp_path / "ACME.csv"), now=NOW).notes
    assert note == "columns that are ignored: \\x1b[2J"
    lines = ["Symbol,Date,Open,High,Low,Close", f"A,{BAR}"[:-3], f"\u202e{mark},{BAR}"[:-3], ""]
    (tmp_path / "ACME.csv").write_text("\n".join(lines))
    _, errors = read_folder(tmp_path, now=NOW)
    assert all(text.isprintable() for ticker, error in errors.items() for text in (ticker, str(error)))


@pytest.mark.parametrize("head", [HEADER, ""])
def test_a_line_of_commas_is_refused_before_it_is_split(tmp_path: Path, head: str) -> None:
    content = head.encode() + b"," * (csv_content.LONGEST_LINE + 1) + f"\n{BAR}\n".encode()
    assert "ACME.csv:1: the line has more than 262,144 bytes" in refusal_of(tmp_path, content)
    content = f"{HEADER}\r\n{BAR}\r\n".encode() + b"1" * (csv_content.LONGEST_LINE + 1)
    assert "ACME.csv:3: the line has more than 262,144 bytes" in refusal_of(tmp_path, content)


def test_a_file_of_blank_lines_is_empty(tmp_path: Path) -> None:
    assert "the file is empty" in refusal_of(tmp_path, b" \n" * 13)


def test_a_row_of_many_cells_is_refused(tmp_path: Path) -> None:
    content = HEADER + "," * 20_000 + f"\n{BAR}\n"
    assert "a row of more than 10,000 cells" in refusal_of(tmp_path, content.encode())


def test_a_file_of_more_lines_or_characters_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_content, "MOST_LINES", 100)
    assert "the file has 200 lines, and 100 is the limit" in refusal_of(tmp_path, b"\n" * 200)
    monkeypatch.setattr(dialect, "_MOST_CHARACTERS", 100)
    quoted = '"' + BAR.replace(",", '","') + '"'
    content = f"{HEADER}\n{quoted}\n{quoted}\n{quoted}\n"
    assert "can have 100 characters at most" in refusal_of(tmp_path, content.encode())


def test_a_folder_of_more_files_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_folder, "MOST_FILES", 3)
    for ticker in "ABCD":
        (tmp_path / f"{ticker}.csv").touch()
    with pytest.raises(DataError, match="more than 3 files here and below"):
        find_csv_files(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        '"' + "," * 200_000,
        '"' * 200_000,
        '""' * 100_000 + ",",
        "-" * 200_000,
        " " * 200_000 + "x",
        "1" * 200_000,
        "1,," * 60_000,
        "=" * 100_000 + '"' * 100_000,
        "Jan " * 50_000,
        "12:" * 60_000,
    ],
    ids=lambda line: repr(line[:6]),
)
@pytest.mark.parametrize("place", ["alone", "as header", "as row", "as cell"])
def test_no_long_line_takes_long(tmp_path: Path, line: str, place: str) -> None:
    contents = {
        "alone": line,
        "as header": f"{line}\n{BAR}\n{BAR}\n",
        "as row": f"{HEADER}\n{BAR}\n{line}\n",
        "as cell": f"{HEADER}\n{line},1,2,0.5,1.5,10\n2024-01-03,{line},2,0.5,1.5,10\n",
    }
    assert "ACME.csv" in refusal_of(tmp_path, contents[place].encode())
