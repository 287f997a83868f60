"""Published folders, their manifests and hashes: whole or absent, whatever ends a publication."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from published_folders import BrokenOffError, names_below, publish, read_published

from kronos_pipeline.artifacts import package_versions, read_json, write_manifest
from kronos_pipeline.atomic_writes import publish_folder
from kronos_pipeline.checksums import file_hash, text_hash
from kronos_pipeline.errors import ArtifactError

ROOT = Path(__file__).resolve().parents[2]


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


def test_whichever_call_of_a_publication_fails_the_name_leads_to_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk may be noticed only as the new link, which is in place, is flushed."""
    calls = 0

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **settings: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= first_failed:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*arguments, **settings)

        return counted

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(Path, "symlink_to", failing(Path.symlink_to))
    monkeypatch.setattr(Path, "replace", failing(Path.replace))
    ends = []
    for first_failed in count(1):
        path = tmp_path / f"A{first_failed}"
        calls = -1000
        publish(path, "old")
        calls = 0
        with suppress(ArtifactError):
            publish(path, "new")
        ends.append(read_published(path))
        assert not list(tmp_path.glob(".A*")), "no rest of a link stays"
        if calls < first_failed:
            break
    assert set(ends) == {("old", "old"), ("new", "new")}
    assert ends[-2:] == [("new", "new")] * 2, "the last call flushes the link, which is in place"


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
    contents: list[tuple[str, str]] = []
    done, has_read = threading.Event(), threading.Event()

    def read() -> None:
        while not done.is_set():
            contents.append(read_published(path.resolve()))
            has_read.set()

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for number in range(1, 30):
            publish(path, str(number))
            has_read.clear()
            has_read.wait(60)
        done.set()
        reader.result()
    assert all(first == second for first, second in contents)
    assert len(set(contents)) > 10


@pytest.mark.slow
def test_a_killed_publication_leaves_the_last_good_one(tmp_path: Path) -> None:
    path = tmp_path / "AAPL"
    publish(path, "old")
    script = """
import os, signal, sys
from pathlib import Path
from kronos_pipeline.atomic_writes import publish_folder
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
    assert read_json(tmp_path / "manifest.json") == {
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
