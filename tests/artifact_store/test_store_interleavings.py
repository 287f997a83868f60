"""Machines that publish at once, in every order: a publication wins or is refused, and a reader sees whole versions."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killed_trainings import Killed
from shared_folders import check_conditions, machine, train, weights

from kronos_pipeline.artifact_store.exchange import SharedFolder
from kronos_pipeline.artifact_store.objects import ObjectStore
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
    check_conditions(store)


def test_a_delivery_that_is_killed_at_any_call_publishes_all_or_nothing_and_the_next_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in count():
        url = f"memory://{uuid.uuid4().hex}"
        a, reader = (machine(tmp_path / f"{name}{number}", url) for name in ("a", "reader"))
        train(a.root, "AAPL", "one")
        ended = _killed_at(number, monkeypatch, a.deliver)
        assert not reader.fetch().errors
        assert ArtifactLayout(reader.root).ticker_metrics("AAPL").exists() == (reader.root / "adapters").exists()
        assert not a.deliver().errors
        reader.fetch()
        assert weights(reader.root, "AAPL") == "one"
        if ended:
            break
    assert number >= 5


def test_a_fetch_that_is_killed_at_any_call_leaves_whole_artifacts_and_the_next_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    a = machine(tmp_path / "a", url)
    train(a.root, "AAPL", "one")
    a.deliver()
    for number in count():
        reader = machine(tmp_path / f"reader{number}", url)
        ended = _killed_at(number, monkeypatch, reader.fetch)
        if (reader.root / "adapters" / "AAPL").exists():
            check_folder(reader.root / "adapters" / "AAPL")
        assert not reader.deliver().errors
        assert not reader.fetch().errors
        assert weights(reader.root, "AAPL") == "one"
        assert read_json(ArtifactLayout(reader.root).ticker_metrics("AAPL"))["text"] == "one"
        if ended:
            break
    assert number >= 5


def _killed_at(number: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> bool:
    """Work until the call of the store with a number, which does its part and is killed; return whether it ended."""
    calls = count()

    def killing(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            result = original(*arguments)
            if next(calls) == number:
                raise Killed
            return result

        return call

    with monkeypatch.context() as killed:
        for method in ("read", "replace", "upload", "download", "tags", "keys"):
            killed.setattr(ObjectStore, method, killing(getattr(ObjectStore, method)))
        try:
            work()
        except Killed:
            return False
    return True


def _interrupt(monkeypatch: pytest.MonkeyPatch, method: str, work: Callable[[], object]) -> None:
    """Let another machine work before the next call of a method of the store."""
    original = getattr(ObjectStore, method)
    waiting = [work]

    def interrupted(self: ObjectStore, *arguments: object) -> object:
        while waiting:
            waiting.pop()()
        return original(self, *arguments)

    monkeypatch.setattr(ObjectStore, method, interrupted)
