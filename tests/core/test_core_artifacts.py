"""The layout of the output folder, and atomic writes of JSON, parquet and other files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published_folders import BrokenOffError, names_below, publish

from kronos_pipeline.artifacts import (
    PARQUET_MANIFEST,
    ArtifactLayout,
    read_json,
    read_parquet,
    write_json,
    write_parquet,
)
from kronos_pipeline.atomic_writes import check_writable, write_file
from kronos_pipeline.errors import ArtifactError

NAMED = [
    ArtifactLayout.bars,
    ArtifactLayout.windows,
    ArtifactLayout.adapter,
    ArtifactLayout.state,
    ArtifactLayout.ticker_metrics,
    ArtifactLayout.ticker_forecasts,
    ArtifactLayout.plot,
]


# Layout


@pytest.mark.parametrize("path_of", NAMED, ids=lambda place: place.__name__)
@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "/etc/passwd", "", ".", "..", ".versions", "AAPL\n", "a\\b", "a\0b"]
)
def test_a_name_that_could_leave_its_folder_is_refused(
    path_of: Callable[[ArtifactLayout, str], Path], name: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="cannot name a file"):
        path_of(ArtifactLayout(tmp_path), name)


@pytest.mark.parametrize("path_of", NAMED, ids=lambda place: place.__name__)
def test_symbols_that_look_alike_have_places_of_their_own(
    path_of: Callable[[ArtifactLayout, str], Path], tmp_path: Path
) -> None:
    symbols = ["AAPL", "AAPL-B", "AAPL.B", "AAPL_B", "^GSPC", "EURUSD=X", "BRK.B", "BRK-B", "A..B"]
    places = {path_of(ArtifactLayout(tmp_path), symbol) for symbol in symbols}
    assert len(places) == len(symbols)
    assert len({path.parent for path in places}) == 1


def test_nothing_in_the_layout_shares_a_path(tmp_path: Path) -> None:
    layout = ArtifactLayout(tmp_path)
    fixed = [
        layout.best_checkpoint,
        layout.last_checkpoint,
        layout.evaluation,
        layout.forecasts,
        layout.mlflow_database,
        layout.mlflow_artifacts,
    ]
    places = fixed + [path_of(layout, "AAPL") for path_of in NAMED]
    assert len(set(places)) == len(places)
    assert all(path.is_relative_to(tmp_path) for path in places)


# Files


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "file"
    for content in (b"one", b"two"):
        write_file(path, methodcaller("write", content))
        assert path.read_bytes() == content
    assert names_below(path.parent) == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, lambda handle: handle.write(b"old"))

    def break_off(handle: Any) -> None:
        handle.write(b"half of the n")
        assert path.read_bytes() == b"old"
        raise BrokenOffError

    with pytest.raises(BrokenOffError):
        write_file(path, break_off)
    assert path.read_bytes() == b"old"
    assert names_below(tmp_path) == ["file"]


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    def fill_disk(_: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match=r"file cannot be written \(No space left on device\)"):
        write_file(tmp_path / "file", fill_disk)
    assert names_below(tmp_path) == []


@pytest.mark.parametrize("folder", ["taken", "taken/below"])
def test_a_folder_that_cannot_be_made_is_named(folder: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    target = tmp_path / folder
    attempts: list[Callable[[], object]] = [
        lambda: check_writable(target),
        lambda: write_json(target / "file.json", {}),
        lambda: publish(target / "AAPL", "x"),
    ]
    for attempt in attempts:
        with pytest.raises(ArtifactError) as caught:
            attempt()
        message = str(caught.value)
        assert str(target) in message
        assert "cannot be written (" in message
        assert "--output-dir" in message
    assert (tmp_path / "taken").read_text() == "a file where a folder should be"


def test_a_folder_that_takes_no_files_is_told_before_work_starts() -> None:
    with pytest.raises(ArtifactError, match=r"/proc cannot be written"):
        check_writable(Path("/proc"))


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert names_below(tmp_path) == ["a", "a/b"]


# JSON and parquet


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    content = {
        "integer": np.int64(3),
        "single": np.float32(0.5),
        "flag": np.bool_(True),
        "path": Path("a/b"),
        "time": datetime(2026, 1, 2, tzinfo=UTC),
        "day": date(2026, 1, 2),
        "text": "Ä",
        "nothing": None,
    }
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == {
        "integer": 3,
        "single": 0.5,
        "flag": True,
        "path": "a/b",
        "time": "2026-01-02 00:00:00+00:00",
        "day": "2026-01-02",
        "text": "Ä",
        "nothing": None,
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), np.float64("-inf")], ids=repr)
def test_what_json_has_no_number_for_is_refused_and_the_old_file_stays(value: float, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"mae": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"mae": value})
    assert read_json(path) == {"mae": 1.0}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_parquet(tmp_path / "file.parquet", pd.DataFrame({"a": [1]}), {"mae": value})


def test_an_object_that_json_has_nothing_for_is_a_mistake_not_a_text(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no place in a JSON artifact"):
        write_json(tmp_path / "file.json", {"model": object()})
    assert names_below(tmp_path) == []


@pytest.mark.parametrize("content", [None, b"", b'{"half": ', b"\xff\xfe"])
def test_a_missing_or_damaged_json_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"file\.json cannot be read .*make it again"):
        read_json(path)


def test_a_frame_and_its_manifest_come_back_as_they_were(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "timestamps": pd.date_range("2026-01-02 09:30", periods=2, freq="1ns"),
            "close": [1.5, float("nan")],
            "start": np.array([1, 2], dtype=np.int32),
            "split": ["train", "holdout"],
        },
        index=[7, 9],
    )
    manifest = {"ticker": "ÄÖ", "seed": np.int64(3), "nested": {"bars": [1, 2]}}
    path = tmp_path / "lr=3" / "file.parquet"  # no column of a partition
    write_parquet(path, frame, manifest)
    read, note = read_parquet(path)
    pd.testing.assert_frame_equal(read, frame.reset_index(drop=True))
    assert note == {"ticker": "ÄÖ", "seed": 3, "nested": {"bars": [1, 2]}}


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
def test_a_missing_or_damaged_parquet_file_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    write_parquet(path, pd.DataFrame({"a": range(1000)}), {})
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"a,b\n1,2\n"}[damage])
    with pytest.raises(ArtifactError, match=r"file\.parquet cannot be read .*make it again"):
        read_parquet(path)


def test_a_parquet_file_of_somebody_elses_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "file.parquet")
    with pytest.raises(ArtifactError, match=r"file\.parquet has no manifest"):
        read_parquet(tmp_path / "file.parquet")


def test_a_text_that_many_rows_of_a_parquet_file_share_is_refused_before_it_is_read(tmp_path: Path) -> None:
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["a" * 2**20]))
    path = tmp_path / "file.parquet"
    pq.write_table(pa.table({"text": shared}).replace_schema_metadata({PARQUET_MANIFEST: b"{}"}), path)
    assert path.stat().st_size < 2**20
    with pytest.raises(ArtifactError, match="texts of 10,485,760,000 bytes, too many for a file of"):
        read_parquet(path)


def test_names_that_repeat_in_many_rows_are_read(tmp_path: Path) -> None:
    names = ["AAPL", "MSFT"] * 100_000
    write_parquet(tmp_path / "file.parquet", pd.DataFrame({"unique_id": names, "y": 1.0}), {})
    frame, _ = read_parquet(tmp_path / "file.parquet")
    assert frame["unique_id"].tolist() == names
