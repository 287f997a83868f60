"""Machines with an output folder each: what one publishes the others fetch, and nothing is lost or half read."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from shared_folders import flip, machine, train, use_store, weights

from kronos_pipeline.artifact_store.cleaning import forget, unused_versions
from kronos_pipeline.artifact_store.exchange import SharedFolder
from kronos_pipeline.artifact_store.objects import StoreError
from kronos_pipeline.artifact_store.sharing import shared_artifacts, shared_training
from kronos_pipeline.artifacts import ArtifactLayout, check_folder, read_json, write_json


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def machines(tmp_path: Path, url: str) -> tuple[SharedFolder, SharedFolder]:
    return machine(tmp_path / "a", url), machine(tmp_path / "b", url)


def test_a_machine_fetches_what_another_made_with_the_same_bytes(machines: tuple[SharedFolder, SharedFolder]) -> None:
    a, b = machines
    train(a.root, "AAPL", "one")
    write_json(ArtifactLayout(a.root).adapter("AAPL") / "sampling" / "AAPL.json", {"temperature": 1})
    write_json(ArtifactLayout(a.root).evaluation, {"model": "adapter"})
    assert not a.deliver().errors
    assert set(b.fetch(["AAPL"]).fetched) == set(a.deliver(["AAPL"]).delivered) | {
        "adapters/AAPL",
        "adapters/AAPL/sampling/AAPL.json",
        "metrics/AAPL.json",
        "metrics/evaluation.json",
    }
    check_folder(b.root / "adapters" / "AAPL")
    for path in (file for file in a.root.rglob("*") if file.is_file() and ".artifact_store" not in file.parts):
        assert (b.root / path.relative_to(a.root)).read_bytes() == path.read_bytes()
    assert b.fetch().fetched == [] == b.deliver().delivered


def test_only_the_tickers_of_the_command_are_fetched(machines: tuple[SharedFolder, SharedFolder]) -> None:
    a, b = machines
    for ticker in ("AAPL", "META", "XOM"):
        train(a.root, ticker, ticker)
    a.deliver()
    b.fetch(["META", "NONE"])
    assert sorted(path.name for path in (b.root / "adapters").glob("[!.]*")) == ["META"]
    b.fetch()
    assert weights(b.root, "XOM") == "XOM"


def test_of_two_that_publish_at_once_the_second_is_told_who_was_first_and_loses_nothing(
    machines: tuple[SharedFolder, SharedFolder],
) -> None:
    a, b = machines
    train(a.root, "AAPL", "of a")
    train(b.root, "AAPL", "of b")
    a.deliver()
    [error] = b.deliver().errors.values()
    assert isinstance(error, StoreError)
    for part in ("adapters/AAPL", ", process ", "UTC, published another version", "kronos sync AAPL --keep folder"):
        assert part in str(error)
    assert weights(b.root, "AAPL") == "of b"
    assert read_json(ArtifactLayout(b.root).ticker_metrics("AAPL"))["text"] == "of b"
    assert weights(a.root, "AAPL") == "of a"


def test_the_next_command_of_the_second_goes_on_from_the_first_and_says_so(
    machines: tuple[SharedFolder, SharedFolder],
) -> None:
    a, b = machines
    train(a.root, "AAPL", "old")
    a.deliver()
    b.fetch()
    train(a.root, "AAPL", "of a")
    train(b.root, "AAPL", "of b")
    a.deliver()
    assert b.deliver().errors
    fetched = b.fetch(["AAPL"])
    [note] = fetched.notes
    assert weights(b.root, "AAPL") == "of a"
    kept = Path(note.rpartition("stays in ")[2].rstrip("."))
    assert (kept / "weights").read_text() == "of b"
    assert not b.deliver().errors


def test_a_user_can_choose_between_two_versions(machines: tuple[SharedFolder, SharedFolder]) -> None:
    a, b = machines
    train(a.root, "AAPL", "of a")
    train(b.root, "AAPL", "of b")
    a.deliver()
    [error] = b.fetch(["AAPL"]).errors.values()
    assert "--keep store" in str(error)
    assert not b.fetch(["AAPL"], "folder").errors
    assert not b.deliver(["AAPL"], "folder").errors
    a.fetch()
    assert weights(a.root, "AAPL") == "of b"
    assert read_json(ArtifactLayout(a.root).ticker_metrics("AAPL"))["text"] == "of b"


def test_two_commands_on_one_ticker_keep_the_artifacts_of_both(machines: tuple[SharedFolder, SharedFolder]) -> None:
    a, b = machines
    train(a.root, "AAPL", "one")
    a.deliver()
    b.fetch()
    train(a.root, "AAPL", "two")
    write_json(ArtifactLayout(b.root).track_record("AAPL"), {"of": "b"})
    a.deliver()
    assert not b.deliver().errors
    for one in (a, b):
        one.fetch()
        assert weights(one.root, "AAPL") == "two"
        assert read_json(ArtifactLayout(one.root).track_record("AAPL"))["of"] == "b"


@pytest.mark.parametrize("damage", ["flip", "remove"])
@pytest.mark.parametrize("part", ["versions/adapters/AAPL", "versions/metrics/AAPL.json", "pointers/AAPL.json"])
def test_damage_in_the_store_is_refused_by_name_and_other_tickers_go_on(
    machines: tuple[SharedFolder, SharedFolder], tmp_path: Path, part: str, damage: str
) -> None:
    a, b = machines
    for ticker in ("AAPL", "META"):
        train(a.root, ticker, ticker)
    a.deliver()
    target = tmp_path / "store" / part
    target = target if target.is_file() else next(path for path in sorted(target.rglob("*")) if path.is_file())
    flip(target) if damage == "flip" else target.unlink()
    fetched = b.fetch()
    assert weights(b.root, "META") == "META"
    if part.startswith("pointers") and damage == "remove":
        return  # a ticker that no pointer names was never published
    [error] = fetched.errors.values()
    assert target.as_posix().removeprefix(f"{tmp_path}/store/") in str(error)
    assert "kronos sync AAPL --keep folder" in str(error)
    assert not (b.root / "adapters" / "AAPL" / "weights").exists() or weights(b.root, "AAPL") == "AAPL"
    if part.startswith("pointers"):
        target.unlink()  # the remedy of the message
    assert not a.deliver(["AAPL"], "folder").errors
    assert not b.fetch().errors
    assert weights(b.root, "AAPL") == "AAPL"


@pytest.mark.parametrize("had", [True, False])
def test_a_new_training_replaces_a_version_that_is_damaged_in_the_store(
    machines: tuple[SharedFolder, SharedFolder], tmp_path: Path, had: bool
) -> None:
    a, b = machines
    if had:
        train(a.root, "AAPL", "old")
        a.deliver()
        b.fetch()
    train(a.root, "AAPL", "one")
    a.deliver()
    for path in (tmp_path / "store" / "versions" / "adapters").rglob("weights"):
        flip(path)
    assert b.fetch(["AAPL"]).errors
    assert not had or weights(b.root, "AAPL") == "old"
    train(b.root, "AAPL", "two")
    assert not b.deliver().errors
    assert not a.fetch().errors
    assert weights(a.root, "AAPL") == "two"


def test_a_damaged_artifact_of_this_machine_does_not_reach_the_store(
    machines: tuple[SharedFolder, SharedFolder],
) -> None:
    a, b = machines
    train(a.root, "AAPL", "one")
    flip(a.root / "adapters" / "AAPL" / "weights")
    [error] = a.deliver().errors.values()
    assert "was edited or damaged" in str(error)
    assert b.fetch().fetched == []


def test_an_artifact_that_is_removed_from_the_folder_is_fetched_again(
    machines: tuple[SharedFolder, SharedFolder],
) -> None:
    a, _ = machines
    train(a.root, "AAPL", "one")
    a.deliver()
    shutil.rmtree(a.root / "adapters")
    ArtifactLayout(a.root).ticker_metrics("AAPL").unlink()
    a.fetch(["AAPL"])
    assert weights(a.root, "AAPL") == "one"
    assert ArtifactLayout(a.root).ticker_metrics("AAPL").is_file()


@pytest.mark.parametrize(
    "name", ["../outside.json", "mlflow.db", "adapters/META", "metrics/AAPL.json/../../x", "state/AAPL/run.json"]
)
def test_a_pointer_that_names_a_file_outside_its_ticker_is_refused(
    machines: tuple[SharedFolder, SharedFolder], tmp_path: Path, name: str
) -> None:
    a, b = machines
    train(a.root, "AAPL", "one")
    a.deliver()
    path = tmp_path / "store" / "pointers" / "AAPL.json"
    content = read_json(path)
    content["artifacts"][name] = content["artifacts"]["metrics/AAPL.json"]
    write_json(path, content)
    before = list(tmp_path.rglob("*"))
    [error] = b.fetch(["AAPL"]).errors.values()
    assert "is no artifact of AAPL" in str(error)
    assert [
        path for path in sorted(tmp_path.rglob("*")) if path not in before and "b/.artifact_store" not in str(path)
    ] == []


def test_clean_deletes_old_versions_and_never_the_current_or_the_newest(
    machines: tuple[SharedFolder, SharedFolder],
) -> None:
    a, b = machines
    for text in ("1", "2", "3", "4", "5"):
        train(a.root, "AAPL", text)
        a.deliver()
    now = datetime.now(UTC)
    assert unused_versions(a, "rule", now) == []
    removals = unused_versions(a, "rule", now + timedelta(days=3))
    for removal in removals:
        removal.delete()
    assert len([removal for removal in removals if "adapters/AAPL" in removal.name]) == 3
    assert unused_versions(a, "rule", now + timedelta(days=3)) == []
    b.fetch()
    assert weights(b.root, "AAPL") == "5"


def test_an_artifact_that_clean_deletes_does_not_come_back(machines: tuple[SharedFolder, SharedFolder]) -> None:
    a, b = machines
    train(a.root, "AAPL", "one")
    a.deliver()
    ArtifactLayout(a.root).ticker_metrics("AAPL").unlink()
    forget(a, "metrics/AAPL.json")
    for one in (a, b):
        one.fetch()
        assert not ArtifactLayout(one.root).ticker_metrics("AAPL").exists()
        assert weights(one.root, "AAPL") == "one"


def test_work_goes_on_while_the_store_is_away_and_is_delivered_later(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_store(monkeypatch, url)
    lines: list[str] = []
    with shared_artifacts(tmp_path / "a", ["AAPL"], lines.append):
        pass
    store = (tmp_path / "store").rename(tmp_path / "unmounted")
    with shared_artifacts(tmp_path / "a", ["AAPL"], lines.append):
        train(tmp_path / "a", "AAPL", "one")
    assert not (tmp_path / "store").exists()
    assert len(lines) == 2
    assert "cannot be reached" in lines[0]
    assert "2 artifacts wait" in lines[1]
    store.rename(tmp_path / "store")
    with shared_artifacts(tmp_path / "a", ["META"], lines.append):
        pass
    with shared_artifacts(tmp_path / "a", ["AAPL"], lines.append):
        pass
    b = machine(tmp_path / "b", url)
    b.fetch()
    assert weights(b.root, "AAPL") == "one"


@pytest.mark.parametrize(
    "address", ["s3://user:secret@bucket/x", "http://host/x", "bucket", "s3://", "s3://bucket?key=secret", "/folder"]
)
def test_an_invalid_address_is_refused_without_its_password(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_store(monkeypatch, address)
    with pytest.raises(StoreError, match="KRONOS_ARTIFACT_STORE") as raised, shared_artifacts(tmp_path):
        pass
    assert "secret" not in str(raised.value)


def test_a_machine_that_waited_for_a_lock_has_what_the_holder_trained(
    machines: tuple[SharedFolder, SharedFolder], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = machines
    use_store(monkeypatch, url)
    with shared_artifacts(a.root, ["AAPL"]), shared_artifacts(b.root, ["AAPL"]):
        with shared_training(a.root, ["AAPL"]):
            train(a.root, "AAPL", "one")
        with shared_training(b.root, ["AAPL"]):
            assert weights(b.root, "AAPL") == "one"
    link = [(one.root / "adapters" / "AAPL").lstat().st_mtime for one in (a, b)]
    assert abs(link[0] - link[1]) < 5  # the age of a training is that of its publication


def test_a_training_beside_a_shared_folder_stays_on_its_machine(
    machines: tuple[SharedFolder, SharedFolder], tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_store(monkeypatch, url)
    with shared_artifacts(machines[0].root), shared_training(tmp_path / "fold", ["AAPL"]):
        train(tmp_path / "fold", "AAPL", "of a fold")
    assert machines[1].fetch().fetched == []


def test_locks_hold_for_all_machines_that_share_a_store(machines: tuple[SharedFolder, SharedFolder]) -> None:
    a, b = machines
    assert (a.root / ".folder_id").read_text() == (b.root / ".folder_id").read_text()
