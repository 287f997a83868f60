"""Both ways to split a CSV give the same cells with the same lines."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos_pipeline.data import csv_columns
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.csv_table import CsvTable, read_csv_table

HEADER = ["Date", "Open", "High", "Low", "Close", "note"]
SHARED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Of characters that mean something to a reader of CSVs, of numbers or of text.
cells = st.text("019.-e_ \t\u00a0\x1cé;'#|", max_size=6)
prices = st.decimals("0.01", "99999", places=2).map(str)
rows = st.lists(st.tuples(st.dates().map(str), *[prices] * 4, cells), min_size=1, max_size=8)


def table_of(folder: Path, content: bytes) -> CsvTable:
    path = folder / "ACME.csv"
    path.write_bytes(content)
    return read_csv_table(CsvFile("ACME", path))


def texts(table: CsvTable) -> dict[str, list[str]]:
    return {
        key: pa.array(column, pa.string()).to_pylist() for key, column in {**table.time_cells, **table.cells}.items()
    }


@pytest.mark.slow
@SHARED
@given(rows, st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["", "\ufeff"]), st.integers(0, 2))
def test_a_plain_file_has_the_cells_of_the_same_file_with_quotes(
    tmp_path: Path, body: list[tuple[str, ...]], end: str, mark: str, ends: int
) -> None:
    plain = mark + end.join(",".join(row) for row in (HEADER, *body)) + ends * end
    quoted = io.StringIO(newline="")
    csv.writer(quoted, quoting=csv.QUOTE_ALL, lineterminator=end).writerows([HEADER, *body])

    table = table_of(tmp_path, plain.encode())
    other = table_of(tmp_path, (mark + quoted.getvalue()).encode())

    assert texts(table) == texts(other)
    assert list(zip(*texts(table).values(), strict=True)) == [row[:5] for row in body]
    assert list(table.lines) == list(other.lines) == list(range(2, len(body) + 2))
    assert (table.names, table.ignored) == (other.names, other.ignored)


@SHARED
@given(rows, st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["", " ", " , ,", ",,,,,"])), max_size=4))
def test_lines_are_those_of_the_file_whatever_blank_ones_are_between(
    tmp_path: Path, body: list[tuple[str, ...]], blanks: list[tuple[int, str]]
) -> None:
    lines = [",".join(row) for row in body]
    for row_number, blank in blanks:
        lines.insert(min(row_number, len(lines)), blank)
    table = table_of(tmp_path, "\n".join([",".join(HEADER), *lines]).encode())

    rows_by_line = dict(zip(table.lines, zip(*texts(table).values(), strict=True), strict=True))

    assert rows_by_line == {
        number: tuple(line.split(",")[:5]) for number, line in enumerate(lines, 2) if line.replace(",", "").strip()
    }


def test_a_plain_file_is_split_without_the_csv_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_columns, "read_sheet", lambda *_: pytest.fail("split row by row"))
    table = table_of(tmp_path, b"Date,Open,High,Low,Close\n2024-01-02,1,2,1,1\n")
    assert texts(table)["high"] == ["2"]


def test_the_table_tells_contents_apart(tmp_path: Path) -> None:
    content = b"Date,Open,High,Low,Close\n2024-01-02,1,2,1,1\n"
    hashes = [table_of(tmp_path, text).content_hash for text in (content, content + b"\n", content)]
    assert hashes[0] == hashes[2] != hashes[1]
