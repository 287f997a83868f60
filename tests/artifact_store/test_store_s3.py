"""The store on S3, by a local server: conditional writes, damage, refusals, and a server that goes away."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from shared_folders import check_conditions, machine, train, weights

from kronos_pipeline.artifact_store.cleaning import unused_versions
from kronos_pipeline.artifact_store.objects import ObjectStore, StoreAwayError, StoreError, open_store
from kronos_pipeline.artifacts import check_folder

if TYPE_CHECKING:
    from moto_server import MotoServer

pytestmark = pytest.mark.slow


@pytest.fixture
def url(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    return moto.new_url()


def test_a_pointer_is_replaced_only_as_it_was_read(url: str) -> None:
    store = open_store(url)
    newer = check_conditions(store)
    assert store.tags("pointers/") == {"pointers/AAPL.json": newer}


def test_two_machines_share_a_bucket_and_the_second_of_two_is_refused(tmp_path: Path, url: str) -> None:
    a, b = machine(tmp_path / "a", url), machine(tmp_path / "b", url)
    train(a.root, "AAPL", "one")
    assert not a.deliver().errors
    b.fetch()
    check_folder(b.root / "adapters" / "AAPL")
    assert weights(b.root, "AAPL") == "one"
    train(a.root, "AAPL", "of a")
    train(b.root, "AAPL", "of b")
    assert not a.deliver().errors
    [error] = b.deliver().errors.values()
    assert "published another version" in str(error)
    for text in ("1", "2", "3"):
        train(a.root, "AAPL", text)
        a.deliver()
    removals = unused_versions(a, "rule", datetime.now(UTC) + timedelta(days=3))
    for removal in removals:
        removal.delete()
    assert removals
    b.fetch()
    assert weights(b.root, "AAPL") == "3"


def test_many_tickers_are_asked_for_by_one_listing(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = machine(tmp_path / "a", url), machine(tmp_path / "b", url)
    tickers = [f"T{number}" for number in range(20)]
    for ticker in tickers:
        train(a.root, ticker, ticker)
    a.deliver()
    b.fetch(tickers)
    read: list[str] = []
    original = ObjectStore.read

    def recording(self: ObjectStore, key: str) -> tuple[bytes, str]:
        read.append(key)
        return original(self, key)

    monkeypatch.setattr(ObjectStore, "read", recording)
    b.fetch(tickers)
    assert read == []
    train(a.root, "T7", "new")
    a.deliver()
    read.clear()
    b.fetch(tickers)
    assert weights(b.root, "T7") == "new"
    assert {key for key in read if key.startswith("pointers/")} == {"pointers/T7.json"}


def test_a_damaged_and_a_missing_object_are_refused_by_name(tmp_path: Path, url: str, moto: MotoServer) -> None:
    a, b = machine(tmp_path / "a", url), machine(tmp_path / "b", url)
    for ticker in ("AAPL", "META"):
        train(a.root, ticker, ticker)
    a.deliver()
    prefix = url.removeprefix("s3://shared/")
    listed = moto.client().list_objects_v2(Bucket="shared", Prefix=f"{prefix}/versions/adapters/")["Contents"]
    [aapl] = [one["Key"] for one in listed if "AAPL" in one["Key"] and one["Key"].endswith("/weights")]
    [meta] = [one["Key"] for one in listed if "META" in one["Key"] and one["Key"].endswith("/weights")]
    moto.client().put_object(Bucket="shared", Key=aapl, Body=b"AAPM")
    moto.client().delete_object(Bucket="shared", Key=meta)
    errors = b.fetch().errors
    assert aapl in str(errors["AAPL"])
    assert meta in str(errors["META"])
    assert not a.deliver(["AAPL", "META"], "folder").errors
    assert not b.fetch().errors
    assert weights(b.root, "META") == "META"


def test_a_bucket_that_is_missing_is_an_error_with_a_remedy_and_without_secrets(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreError, match=r"NoSuchBucket.*mend KRONOS_ARTIFACT_STORE") as raised:
        machine(tmp_path / "a", url.replace("shared", "absent"))
    assert "SECRETSECRET" not in str(raised.value)
    assert not isinstance(raised.value, StoreAwayError)


def test_missing_credentials_are_an_error(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreError, match="credentials"):
        machine(tmp_path / "a", url)


def test_a_server_that_does_not_answer_is_away_and_not_asked_again_at_once(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreAwayError, match="cannot be reached"):
        machine(tmp_path / "a", url)
    monkeypatch.setattr("upath.UPath.fs", None)
    with pytest.raises(StoreAwayError, match="cannot be reached"):
        machine(tmp_path / "a", url)


def test_a_store_that_ignores_conditional_writes_is_refused(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.s3.responses import S3Response

    original = S3Response.put_object

    def ignoring(self: S3Response) -> object:
        self.headers = {key: value for key, value in self.headers.items() if not key.lower().startswith("if-")}
        return original(self)

    monkeypatch.setattr(S3Response, "put_object", ignoring)
    with pytest.raises(StoreError, match="ignores conditions of writes"):
        machine(tmp_path / "a", url)
