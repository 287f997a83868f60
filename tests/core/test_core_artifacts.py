from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kronos_pipeline.artifacts import (
    ArtifactLayout,
    check_writable,
    file_hash,
    package_versions,
    publish_folder,
    read_json,
    read_parquet,
    text_hash,
    write_file,
    write_json,
    write_manifest,
    write_parquet,
)
from kronos_pipeline.errors import ArtifactError

ROOT = Path(__file__).resolve().parents[2]
NAMED = [
    ArtifactLayout.bars,
    ArtifactLayout.windows,
    ArtifactLayout.adapter,
    ArtifactLayout.state,
    ArtifactLayout.ticker_metrics,
    ArtifactLayout.ticker_forecasts,
    ArtifactLayout.plot,
]


class BrokenOffError(Exception):
    """Error that ends a write in these tests."""


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def publish(path: Path, text: str) -> None:
    with publish_folder(path) as folder:
        (folder / "weights").write_text(text)
        (folder / "base").mkdir()
        (folder / "base" / "weights").write_text(text)


def read_published(path: Path) -> tuple[str, str]:
    return (path / "weights").read_text(), (path / "base" / "weights").read_text()


# Layout


@pytest.mark.parametrize("place", NAMED, ids=lambda place: place.__name__)
@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "/etc/passwd", "", ".", "..", ".versions", "AAPL\n", "a\\b", "a\0b"]
)
def test_a_name_that_could_leave_its_folder_is_refused(
    place: Callable[[ArtifactLayout, str], Path], name: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="cannot name a file"):
        place(ArtifactLayout(tmp_path), name)


@pytest.mark.parametrize("place", NAMED, ids=lambda place: place.__name__)
def test_symbols_that_look_alike_have_places_of_their_own(
    place: Callable[[ArtifactLayout, str], Path], tmp_path: Path
) -> None:
    symbols = ["AAPL", "AAPL-B", "AAPL.B", "AAPL_B", "^GSPC", "EURUSD=X", "BRK.B", "BRK-B", "A..B"]
    places = {place(ArtifactLayout(tmp_path), symbol) for symbol in symbols}
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
    places = fixed + [place(layout, "AAPL") for place in NAMED]
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
    place = tmp_path / folder
    attempts: list[Callable[[], object]] = [
        lambda: check_writable(place),
        lambda: write_json(place / "file.json", {}),
        lambda: publish(place / "AAPL", "x"),
    ]
    for attempt in attempts:
        with pytest.raises(ArtifactError) as caught:
            attempt()
        message = str(caught.value)
        assert str(place) in message
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
    write_parquet(tmp_path / "file.parquet", frame, manifest)
    read, note = read_parquet(tmp_path / "file.parquet")
    pd.testing.assert_frame_equal(read, frame.reset_index(drop=True))
    assert note == {"ticker": "ÄÖ", "seed": 3, "nested": {"bars": [1, 2]}}


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
def test_a_missing_or_damaged_parquet_file_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    write_parquet(path, pd.DataFrame({"a": range(1000)}), {})
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"a,b\n1,2\n"}[damage])
    with pytest.raises(ArtifactError, match=r"file\.parquet cannot be read .*make it again"):
        read_parquet(path)


def test_a_parquet_file_of_somebody_elses_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "file.parquet")
    with pytest.raises(ArtifactError, match=r"file\.parquet has no manifest"):
        read_parquet(tmp_path / "file.parquet")


# Published folders


def test_a_published_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "adapters" / "AAPL"
    for text in ("one", "two"):
        publish(path, text)
        assert read_published(path) == (text, text)
    assert path.is_symlink()
    assert not path.readlink().is_absolute(), "an output folder can be moved"


def test_a_moved_output_folder_still_has_its_artifacts(tmp_path: Path) -> None:
    publish(tmp_path / "out" / "adapters" / "AAPL", "one")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert read_published(tmp_path / "moved" / "adapters" / "AAPL") == ("one", "one")


@pytest.mark.parametrize("error", [BrokenOffError, KeyboardInterrupt, SystemExit])
def test_a_publication_that_fails_leaves_the_last_good_one_and_no_rest(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "AAPL"
    publish(path, "old")
    before = names_below(tmp_path)
    with pytest.raises(error), publish_folder(path) as folder:  # noqa: PT012 - the whole block is tested
        (folder / "weights").write_text("half")
        raise error
    assert read_published(path) == ("old", "old")
    assert names_below(tmp_path) == before


def test_a_first_publication_that_fails_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    with pytest.raises(BrokenOffError), publish_folder(tmp_path / "AAPL"):
        raise BrokenOffError
    assert not (tmp_path / "AAPL").exists()
    assert names_below(tmp_path) == [".versions"]


def test_nothing_is_to_be_seen_before_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "AAPL"
    with publish_folder(path) as folder:
        (folder / "weights").write_text("new")
        assert not path.exists()
    assert (path / "weights").read_text() == "new"


@pytest.mark.slow
def test_a_reader_sees_the_old_or_the_new_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "AAPL"
    publish(path, "0")
    seen: list[tuple[str, str]] = []
    done, has_read = threading.Event(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(read_published(path.resolve()))
            has_read.set()

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for number in range(1, 30):
            publish(path, str(number))
            has_read.clear()
            has_read.wait(10)
        done.set()
        reader.result()
    assert all(first == second for first, second in seen)
    assert len(set(seen)) > 10


def test_a_killed_publication_leaves_the_last_good_one(tmp_path: Path) -> None:
    path = tmp_path / "AAPL"
    publish(path, "old")
    script = """
import os, signal, sys
from pathlib import Path
from kronos_pipeline.artifacts import publish_folder
with publish_folder(Path(sys.argv[1])) as folder:
    (folder / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT)
    assert result.returncode == -signal.SIGKILL
    assert read_published(path) == ("old", "old")
    for text in ("new", "newer"):
        publish(path, text)
        assert read_published(path) == (text, text)
    assert len(list((tmp_path / ".versions").iterdir())) == 2, "what the killed one left is gone"


def test_the_newest_and_the_one_before_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "AAPL"
    publish(path, "one")
    first = path.resolve()
    publish(path, "two")
    assert read_published(first) == ("one", "one"), "readers may have it open"
    publish(path, "three")
    assert not first.exists()
    assert len(list((tmp_path / ".versions").iterdir())) == 2


def test_pruning_leaves_the_versions_of_similar_names_alone(tmp_path: Path) -> None:
    others = ["AAPL-B", "AAPL-20260102T030405", "AAPL.B", "AAP", "^AAPL", "A=PL"]
    for name in others:
        publish(tmp_path / name, name)
    for number in range(4):
        publish(tmp_path / "AAPL", str(number))
    assert {name: read_published(tmp_path / name) for name in others} == {name: (name, name) for name in others}
    assert len(list((tmp_path / ".versions").iterdir())) == len(others) + 2


def test_two_that_publish_the_same_name_at_a_time_both_end_with_a_whole_folder(tmp_path: Path) -> None:
    path = tmp_path / "AAPL"
    with publish_folder(path) as slow:
        (slow / "weights").write_text("slow")
        publish(path, "fast")
        assert read_published(path) == ("fast", "fast")
    assert (path / "weights").read_text() == "slow"
    publish(path, "later")
    assert read_published(path) == ("later", "later")


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "AAPL"
    path.mkdir()
    (path / "precious").write_text("mine")
    with pytest.raises(ArtifactError, match=r"AAPL is in the way"), publish_folder(path):
        pytest.fail("nothing is made before the check")
    assert (path / "precious").read_text() == "mine"


def test_a_link_whose_version_was_deleted_is_mended_by_the_next_publication(tmp_path: Path) -> None:
    path = tmp_path / "AAPL"
    path.symlink_to(".versions/gone")
    publish(path, "new")
    assert read_published(path) == ("new", "new")


# Manifests and hashes


def test_a_manifest_holds_the_hash_of_every_other_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "weights").write_bytes(b"abc")
    (tmp_path / "base" / "weights").write_bytes(b"")
    write_manifest(tmp_path, {"seed": 1})
    write_manifest(tmp_path, {"seed": 2})
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "seed": 2,
        "files": {
            "base/weights": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "weights": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        },
    }
    assert file_hash(tmp_path / "weights") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_hash_of_texts_knows_where_one_ends_and_the_next_begins() -> None:
    hashes = {text_hash("ab", "c"), text_hash("a", "bc"), text_hash("abc"), text_hash("abc", ""), text_hash("c", "ab")}
    assert len(hashes) == 5
    assert text_hash("ab", "c") == text_hash("ab", "c")


def test_packages_that_shape_a_result_are_named() -> None:
    assert {"torch", "pandas", "peft"} <= package_versions().keys()
