"""The tickers of a folder: its files, their names and their columns of symbols."""

from __future__ import annotations

from pathlib import Path

import pytest

from kronos_pipeline.config import ReadingSettings
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


def test_links_within_the_folder_are_followed_and_a_link_back_up_does_not_loop(tmp_path: Path) -> None:
    touch(tmp_path, "real/.store/IBM.csv", "real/.more/MSFT.csv", "real/AAPL.csv")
    (tmp_path / "data").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "IBM.csv").symlink_to(".store/IBM.csv")
    (tmp_path / "real" / "more").symlink_to(tmp_path / "data" / ".more")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "data")

    folder = find_csv_files(tmp_path / "data")

    assert (list(folder.files), folder.problems) == (["AAPL", "IBM", "MSFT"], {})


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


@pytest.mark.parametrize("name", ["bad\udcff", "bad \udcff name"])
def test_a_name_of_bytes_that_are_no_text_can_be_printed(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "MSFT.csv")
    path = Path(f"{tmp_path}/{name}.csv")
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


def test_one_file_in_place_of_a_folder_is_a_ticker(tmp_path: Path) -> None:
    touch(tmp_path, "AAPL.csv", "MSFT.csv")

    folder = find_csv_files(tmp_path / "AAPL.csv")

    assert list(folder.files) == ["AAPL"]
    with pytest.raises(DataError, match=r"AAPL.csv: no CSV for the ticker 'MSFT' here; there are: AAPL"):
        folder.file("MSFT")


def test_one_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "AAPL.xlsx")

    with pytest.raises(DataError, match=r"AAPL.xlsx: a .xlsx file is not read; save the table as CSV"):
        find_csv_files(tmp_path / "AAPL.xlsx")


def test_a_folder_without_a_csv_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "deep/er/table.xlsx")
    with pytest.raises(DataError, match="no CSV in this folder or below it"):
        find_csv_files(tmp_path)
    with pytest.raises(DataError, match=r"2 other files not read: 1 .txt, 1 .xlsx; save a table as CSV"):
        find_csv_files(tmp_path)


def test_other_files_are_counted_in_one_sentence(tmp_path: Path) -> None:
    touch(tmp_path, "AAPL.csv", "MSFT.xlsx", "a/IBM.parquet", "a/META.parquet", "notes.txt", "README.md", ".cache")

    folder = find_csv_files(tmp_path)

    assert list(folder.files) == ["AAPL"]
    assert folder.notes == ("4 other files not read: 2 .parquet, 1 .txt, 1 .xlsx; save a table as CSV",)


BARS = "Date,Open,High,Low,Close,Volume\n2024-01-02,10,11,9,10.5,1000\n2024-01-03,10.5,12,10,11,900\n"


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        BARS,
        BARS.replace(",", "\t"),
        "20240102 170000;1.1;1.2;1.05;1.15;0\n",
        "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>\nAAPL.US,D,20240102,000000,10,11,9,10.5,100\n",
    ],
)
def test_a_txt_file_is_read_if_its_first_lines_hold_a_bar(tmp_path: Path, text: str) -> None:
    write(tmp_path, **{"AAPL.txt": text, "notes.txt": "bought 3 shares, sold 2, on 2024-01-02\n"})

    folder = find_csv_files(tmp_path)

    assert list(folder.files) == ["AAPL"]
    assert folder.notes == ("1 other file not read: 1 .txt; save a table as CSV",)


def test_tsv_and_csv_txt_files_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "AAPL.tsv", "MSFT.csv.txt")

    folder = find_csv_files(tmp_path)

    assert list(folder.files) == ["AAPL", "MSFT"]
    assert folder.files["MSFT"].notes == ("the name MSFT.csv.txt is read as MSFT",)


def test_a_symbol_that_is_read_from_a_longer_name_is_noted(tmp_path: Path) -> None:
    touch(tmp_path, "BATS_ZZS, 1D.csv", "$ZZW.csv", "Z.csv")

    files = find_csv_files(tmp_path).files

    assert {ticker: file.notes for ticker, file in files.items()} == {
        "Z": (),
        "ZZS": ("the name BATS_ZZS, 1D.csv is read as ZZS",),
        "ZZW": ("the name $ZZW.csv is read as ZZW",),
    }


def test_a_name_that_may_hold_several_symbols_is_refused_with_them(tmp_path: Path) -> None:
    touch(tmp_path, "S&P 500 Historical Data.csv")

    [problem] = find_csv_files(tmp_path).problems.values()

    assert "makes no symbol but may hold several (S&P, 500): rename it to the symbol alone" in str(problem)


def test_files_of_periods_are_one_ticker_oldest_first(tmp_path: Path) -> None:
    touch(tmp_path, "b/ZZUSDT-1h-2023-12.csv", "a/ZZUSDT-1h-2024-01.csv", "ZZUSDT-1h-2023-11.csv")

    [file] = find_csv_files(tmp_path).files.values()

    assert file.ticker == "ZZUSDT"
    assert [path.stem[-7:] for path in file.paths] == ["2023-11", "2023-12", "2024-01"]
    assert file.notes == (
        "3 files are the parts of ZZUSDT, as their names say: ZZUSDT-1h-2023-11.csv, ZZUSDT-1h-2023-12.csv, "
        "ZZUSDT-1h-2024-01.csv",
    )


def test_one_file_of_a_period_is_its_symbol(tmp_path: Path) -> None:
    touch(tmp_path, "EURUSD_2023.csv")

    [file] = find_csv_files(tmp_path).files.values()

    assert file.ticker == "EURUSD"
    assert file.notes == ("the name EURUSD_2023.csv is read as EURUSD, 2023",)


@pytest.mark.parametrize(
    ("names", "tickers"),
    [
        (["ZAE_1d.csv", "ZAE_1wk.csv"], ["ZAE_1D", "ZAE_1WK"]),
        (["ZZUSDT-1h-2023-11.csv", "ZZUSDT-1h-2023-12.csv", "ZZUSDT-1d-2023-11.csv"], ["ZZUSDT-1D", "ZZUSDT-1H"]),
        (["BATS_ZZS, 1D.csv", "BATS_ZZS, 60.csv"], ["ZZS_1D", "ZZS_60"]),
        (["EURUSD_M5.csv", "EURUSD_H1_2022_2023.csv"], ["EURUSD_H1", "EURUSD_M5"]),
    ],
)
def test_two_intervals_of_a_symbol_are_two_tickers_and_a_note(
    tmp_path: Path, names: list[str], tickers: list[str]
) -> None:
    touch(tmp_path, *names, "MSFT.csv")

    folder = find_csv_files(tmp_path)

    assert sorted(folder.files) == sorted([*tickers, "MSFT"])
    [note] = folder.notes
    assert note.startswith(f"{tickers[0]}, {tickers[1]} look like intervals of one symbol")


@pytest.mark.parametrize(
    "names",
    [
        ["ZZS.csv", "BATS_ZZS, 1D.csv"],
        ["ZZUSDT.csv", "ZZUSDT-1h-2023-11.csv"],
        ["Binance_ZZUSDT_2023.csv", "Kraken_ZZUSDT_2024.csv"],
        ["zzu.csv", "zzu (1).csv"],
        ["EURUSD_M5.csv", "EURUSD_M5_2023.csv"],
        ["EURUSD_M5.csv", "EURUSD_M5_2023.csv", "EURUSD_H1.csv"],
    ],
)
def test_two_files_for_the_symbol_in_their_names_are_a_problem_with_both(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)

    [problem] = find_csv_files(tmp_path).problems.values()

    assert "more than one file for the symbol" in str(problem)
    assert str(problem).count(".csv") == 3


def test_copies_to_the_byte_are_read_once(tmp_path: Path) -> None:
    write(tmp_path, **{"ZZU.csv": BARS, "ZZU (1).csv": BARS})

    folder = find_csv_files(tmp_path)

    assert folder.problems == {}
    assert folder.files["ZZU"].notes[-1] == "copies to the byte, left out: ZZU (1).csv"


def long_file(folder: Path, symbols: list[str], *, name: str = "all", header: str = "Symbol") -> None:
    days = [f"2024-01-{day:02}" for day in range(2, 12)]
    rows = [f"{day},{symbol},10,11,9,10.5,1000" for symbol in symbols for day in days]
    write(folder, **{f"{name}.csv": "\n".join([f"Date,{header},Open,High,Low,Close,Volume", *rows]) + "\n"})


def test_a_file_of_several_symbols_is_a_ticker_for_each(tmp_path: Path) -> None:
    long_file(tmp_path, ["ZZA", "zzb", "ZZ/USD", "BATS:ZZS", "$ZZW"])

    files = find_csv_files(tmp_path).files

    assert {ticker: file.symbol for ticker, file in files.items()} == {
        "ZZA": "ZZA",
        "ZZB": "zzb",
        "ZZS": "BATS:ZZS",
        "ZZUSD": "ZZ/USD",
        "ZZW": "$ZZW",
    }
    assert files["ZZA"].notes == ("one of 5 tickers in its file, by the column of symbols",)
    assert files["ZZUSD"].notes == ("one of 5 tickers in its file, by the column of symbols, written ZZ/USD",)


@pytest.mark.parametrize(
    ("symbols", "problem"),
    [
        (["ZZA", "ZZB", "S&P 500"], "the symbol 'S&P 500' of some lines makes no ticker"),
        (["ZZA", "ZZB", "../ZZC"], "the symbol '../ZZC' of some lines makes no ticker"),
        (["ZZA", "ZZB", ""], "no symbol in some lines"),
        (["ZZA", "ZZB", "ZZ/USD", "ZZUSD"], "'ZZ/USD', 'ZZUSD' are one ticker, ZZUSD; write them alike"),
    ],
)
def test_a_symbol_that_makes_no_ticker_is_a_problem_and_the_others_go_on(
    tmp_path: Path, symbols: list[str], problem: str
) -> None:
    long_file(tmp_path, symbols)

    folder = find_csv_files(tmp_path)

    assert list(folder.files) == ["ZZA", "ZZB"]
    [error] = folder.problems.values()
    assert problem in str(error)


def test_a_symbol_with_a_file_of_its_own_beside_a_file_of_several_is_a_problem(tmp_path: Path) -> None:
    long_file(tmp_path, ["ZZA", "ZZB"])
    write(tmp_path, **{"ZZB.csv": BARS})

    folder = find_csv_files(tmp_path)

    assert list(folder.files) == ["ZZA"]
    assert "more than one file for the symbol ZZB" in str(folder.problems["ZZB"])


@pytest.mark.parametrize("name", ["ZZA", "zza_2024"])
def test_a_file_of_one_symbol_keeps_the_symbol_of_its_name(tmp_path: Path, name: str) -> None:
    long_file(tmp_path, ["ZZ-A"], name=name)

    [file] = find_csv_files(tmp_path).files.values()

    assert (file.ticker, file.symbol) == ("ZZA", None)
    assert not any("column of symbols" in note for note in file.notes)


def test_another_symbol_in_the_column_than_in_the_name_is_a_note(tmp_path: Path) -> None:
    long_file(tmp_path, ["ZZB"], name="ZZA")

    [file] = find_csv_files(tmp_path).files.values()

    assert file.ticker == "ZZA"
    assert file.notes == ("the ticker is ZZA, by the file's name, and not ZZB, as its column of symbols says",)


def test_the_column_of_symbols_names_a_file_whose_name_does_not(tmp_path: Path) -> None:
    long_file(tmp_path, ["ZZA"], name="my own data")

    assert list(find_csv_files(tmp_path).files) == ["ZZA"]


def test_the_settings_name_the_column_of_symbols(tmp_path: Path) -> None:
    long_file(tmp_path, ["ZZA", "ZZB"], header="Wertpapier")

    assert list(find_csv_files(tmp_path).files) == ["ALL"]
    assert list(find_csv_files(tmp_path, ReadingSettings(columns=["symbol=Wertpapier"])).files) == ["ZZA", "ZZB"]


def test_files_of_periods_with_several_symbols_are_parts_of_each(tmp_path: Path) -> None:
    long_file(tmp_path, ["ZZA", "ZZB"], name="all_2023")
    long_file(tmp_path, ["ZZB", "ZZC"], name="all_2024")

    files = find_csv_files(tmp_path).files

    assert {ticker: [path.stem for path in file.paths] for ticker, file in files.items()} == {
        "ZZA": ["all_2023"],
        "ZZB": ["all_2023", "all_2024"],
        "ZZC": ["all_2024"],
    }


@pytest.mark.parametrize("names", [["2024-01-03", "2024-01-02"], ["20240103", "20240102"]])
def test_files_of_dates_with_a_column_of_symbols_are_parts_of_each_symbol(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        long_file(tmp_path, ["ZZA", "ZZB"], name=name)

    folder = find_csv_files(tmp_path)

    assert folder.problems == {}
    parts = {ticker: [path.stem for path in file.paths] for ticker, file in folder.files.items()}
    assert parts == {"ZZA": sorted(names), "ZZB": sorted(names)}
    assert "2 files are the parts of ZZA" in folder.files["ZZA"].notes[-1]
