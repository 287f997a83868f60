"""The folder is the list of tickers."""

from __future__ import annotations

from pathlib import Path

import pytest

from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_csvs_at_any_depth_are_found_and_their_upper_cased_names_are_the_symbols(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "msft.csv",
        "a/b/AAPL.CSV",
        "a/readme.txt",
        "^GSPC/^GSPC.csv",
        "EURUSD=X.csv",
        "BRK.B.csv",
        "BRK-B.csv",
    )

    folder = find_csv_files(tmp_path)

    assert list(folder.files) == ["AAPL", "BRK-B", "BRK.B", "EURUSD=X", "MSFT", "^GSPC"]
    assert folder.files["MSFT"].name == str(tmp_path / "msft.csv")
    assert folder.problems == {}


def test_a_tickers_own_folder_works_like_a_folder_of_tickers(tmp_path: Path) -> None:
    touch(tmp_path, "AAPL/AAPL.csv", "MSFT/MSFT.csv")

    assert list(find_csv_files(tmp_path / "AAPL").files) == ["AAPL"]


def test_linked_folders_are_followed_and_a_link_back_up_does_not_loop(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/IBM.csv", "data/AAPL.csv")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "up").symlink_to(tmp_path / "data")

    assert list(find_csv_files(tmp_path / "data").files) == ["AAPL", "IBM"]


def test_two_files_for_one_symbol_are_its_problem_and_the_others_go_on(tmp_path: Path) -> None:
    touch(tmp_path, "a/AAPL.csv", "b/aapl.csv", "MSFT.csv")

    folder = find_csv_files(tmp_path)

    assert list(folder.files) == ["MSFT"]
    message = str(folder.problems["AAPL"])
    assert "more than one file for the symbol AAPL" in message
    assert "a/AAPL.csv" in message
    assert "b/aapl.csv" in message


@pytest.mark.parametrize("name", ["BAD NAME", ".hidden", "a$b", "straße", "x" * 65])
def test_a_name_that_makes_no_symbol_is_named_with_what_is_allowed(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}.csv", "MSFT.csv")

    folder = find_csv_files(tmp_path)

    assert list(folder.files) == ["MSFT"]
    assert "letters, digits and .-_^= only" in str(folder.problems[f"{name}.csv"])


def test_a_name_of_bytes_that_are_no_text_can_be_printed(tmp_path: Path) -> None:
    touch(tmp_path, "MSFT.csv")
    path = Path(str(tmp_path) + "/bad\udcff.csv")
    try:
        path.touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes text names alone")

    [problem] = find_csv_files(tmp_path).problems.values()

    assert "bad" in str(problem).encode("utf-8").decode()


@pytest.mark.parametrize("symbol", ["../../x", "NOPE", ""])
def test_a_symbol_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, symbol: str) -> None:
    touch(tmp_path, "AAPL.csv")

    with pytest.raises(DataError, match=r"no CSV for the ticker .* there are: AAPL") as caught:
        find_csv_files(tmp_path).file(symbol)

    assert caught.value.ticker == symbol


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder; say where the CSVs are with --data-dir"):
        find_csv_files(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "AAPL.csv")
    with pytest.raises(DataError, match=r"AAPL.csv: this is a file; give --data-dir the folder"):
        find_csv_files(tmp_path / "AAPL.csv")


def test_a_folder_without_a_csv_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "deep/er/table.xlsx")
    with pytest.raises(DataError, match="no CSV in this folder or below it"):
        find_csv_files(tmp_path)
