"""Machines that publish at once, in every order: a publication wins or is refused, and a reader sees whole versions."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_folders import machine, train, weights

from kronos_pipeline.artifact_store.exchange import SharedFolder
from kronos_pipeline.artifact_store.objects import ChangedError, ObjectStore
from kronos_pipeline.artifacts import ArtifactLayout, check_folder, read_json

Step = tuple[str, int]


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(["train", "deliver", "fetch", "command"]), st.integers(0, 1)), max_size=9))
@settings(max_examples=20)
def test_in_any_order_the_pointer_names_the_last_publication_that_was_not_refused(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"memory://{uuid.uuid4().hex}"
        machines = [machine(Path(folder) / str(number), url) for number in range(2)]
        published, made = None, dict[int, str]()
        for number, (step, who) in enumerate(steps):
            one = machines[who]
            if step in ("train", "command"):
                if step == "command":
                    _fetch(one)
                made[who] = f"{who} {number}"
                train(one.root, "AAPL", made[who])
            if step in ("deliver", "command") and who in made:
                result = one.deliver()
                if "adapters/AAPL" in result.delivered:
                    published = weights(one.root, "AAPL")
                for error in result.errors.values():
                    assert "published another version" in str(error)
                    assert published not in (None, weights(one.root, "AAPL"))
            if step == "fetch":
                _fetch(one)
        reader = machine(Path(folder) / "reader", url)
        assert not reader.fetch().errors
        if published is None:
            assert not (reader.root / "adapters").exists()
        else:
            assert weights(reader.root, "AAPL") == published
            assert read_json(ArtifactLayout(reader.root).ticker_metrics("AAPL"))["text"] == published
            check_folder(reader.root / "adapters" / "AAPL")


def _fetch(one: SharedFolder) -> None:
    errors = one.fetch().errors
    for error in errors.values():
        assert "--keep store" in str(error)  # a folder that had a model before it met the store's


@pytest.mark.parametrize("moment", ["before the upload", "before the pointer"])
def test_a_machine_that_publishes_while_another_uploads_wins(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    a, b = (machine(tmp_path / name, url) for name in "ab")
    train(a.root, "AAPL", "of a")
    train(b.root, "AAPL", "of b")
    method = "upload" if moment == "before the upload" else "replace"
    _interrupt(monkeypatch, method, lambda: b.deliver())
    [error] = a.deliver().errors.values()
    assert "published another version" in str(error)
    a.fetch(keep="store")
    assert weights(a.root, "AAPL") == "of b"


def test_artifacts_of_other_kinds_that_are_published_meanwhile_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    a, b = (machine(tmp_path / name, url) for name in "ab")
    train(a.root, "AAPL", "of a")
    ArtifactLayout(b.root).bars("AAPL").parent.mkdir()
    ArtifactLayout(b.root).bars("AAPL").write_bytes(b"bars")
    _interrupt(monkeypatch, "replace", lambda: b.deliver())
    assert not a.deliver().errors
    reader = machine(tmp_path / "reader", url)
    reader.fetch()
    assert weights(reader.root, "AAPL") == "of a"
    assert ArtifactLayout(reader.root).bars("AAPL").read_bytes() == b"bars"


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_an_object_is_replaced_only_as_it_was_read(tmp_path: Path, scheme: str) -> None:
    store = ObjectStore(f"{scheme}://{tmp_path}/store")
    tag = store.replace("pointers/AAPL.json", b"1", None)
    with pytest.raises(ChangedError):
        store.replace("pointers/AAPL.json", b"2", None)
    newer = store.replace("pointers/AAPL.json", b"2", tag)
    with pytest.raises(ChangedError):
        store.replace("pointers/AAPL.json", b"3", tag)
    assert store.read("pointers/AAPL.json") == (b"2", newer)


def _interrupt(monkeypatch: pytest.MonkeyPatch, method: str, work: Callable[[], object]) -> None:
    """Let another machine work before the next call of a method of the store."""
    original = getattr(ObjectStore, method)
    waiting = [work]

    def interrupted(self: ObjectStore, *arguments: object) -> object:
        while waiting:
            waiting.pop()()
        return original(self, *arguments)

    monkeypatch.setattr(ObjectStore, method, interrupted)
