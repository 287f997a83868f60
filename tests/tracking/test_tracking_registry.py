"""Adapters and checkpoints as versions of registered models: the content of a version, the champion and the reason."""

from __future__ import annotations

import json
import socket
import time
import zipfile
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from registered_models import base_of, evidence, made_adapter, made_checkpoint
from safetensors.numpy import load_file
from small_trainings import small_recipe

from kronos_pipeline.artifacts import MANIFEST
from kronos_pipeline.config import NAME, Recipe
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.scoring.gate import Decision, decide
from kronos_pipeline.tracking.registry import Registry, Version, registered_name
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.store import TrackingError

pytestmark = pytest.mark.slow

GOOD = {"naive": 1.0, "base": 1.0, "adapter": 0.5}
BAD = {"naive": 1.0, "base": 1.0, "adapter": 1.5}
SCORES = {"holdout/adapter/mae": 0.5}
_numbers = count()


@pytest.fixture(scope="module")
def recipe(tiny_base: Path) -> Recipe:
    return small_recipe(tiny_base)


@pytest.fixture(scope="module")
def adapter(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_adapter(tmp_path_factory.mktemp("adapter") / "AAPL", recipe)


@pytest.fixture(scope="module")
def tracker(own_mlflow_store: str, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(own_mlflow_store, tmp_path_factory.mktemp("output"))


@pytest.fixture(scope="module")
def run_id(tracker: Tracker) -> str:
    with tracker.training_run("adapter AAPL", Recipe()) as run:
        pass
    return run.run_id


@pytest.fixture
def registry(tracker: Tracker) -> Registry:
    return Registry(tracker)


@pytest.fixture
def name() -> str:
    """Return a registered model that no other test uses."""
    return registered_name(f"T{next(_numbers)}")


@pytest.fixture
def register(registry: Registry, adapter: Path, name: str, run_id: str) -> Callable[[], int]:
    def one() -> int:
        return registry.register(adapter, name, run_id, predictions=evidence(GOOD), metrics=SCORES)

    return one


@cache
def promotion() -> Decision:
    return decide(evidence(GOOD), "adapter", champion=None, gate="strict")


def refusal(champion: pd.DataFrame | None = None) -> Decision:
    return decide(evidence(BAD), "adapter", champion=champion, gate="strict")


def aliases(registry: Registry, name: str) -> dict[int, tuple[str, ...]]:
    return {version.number: version.aliases for version in registry.versions(name) if version.aliases}


def number(version: Version | None) -> int | None:
    return None if version is None else version.number


def files_of(registry: Registry, name: str, version: int) -> Path:
    """Return the folder in which MLflow keeps a version's files."""
    uri = MlflowClient(registry.uri).get_model_version_download_uri(name, str(version))
    return Path(uri.removeprefix("file://"))


def test_a_version_says_what_it_is_and_arrives_as_challenger(
    registry: Registry, adapter: Path, name: str, run_id: str, recipe: Recipe
) -> None:
    tags = {"dagster.partition": "AAPL"}
    arrived = registry.register(adapter, name, run_id, predictions=evidence(GOOD), metrics=SCORES, tags=tags)

    version = registry.version(name, arrived)
    assert (version.number, version.run_id, version.aliases, version.measured) == (1, run_id, ("challenger",), True)
    told = {key: version.tags[key] for key in ("kind", "trained_on", "base_hash", "dagster.partition")}
    base_hash = base_of(recipe).weights_hash
    assert told == {"kind": "adapter", "trained_on": "AAPL", "base_hash": base_hash, "dagster.partition": "AAPL"}
    assert (version.covers("AAPL"), version.covers("AAP")) == (True, False)
    assert registry.champion(name) is None


def test_the_next_version_is_the_challenger(registry: Registry, name: str, register: Callable[[], int]) -> None:
    assert [register(), register()] == [1, 2]
    assert aliases(registry, name) == {2: ("challenger",)}


def test_a_version_holds_the_adapter_and_its_evidence_but_neither_its_base_nor_a_pickle(
    registry: Registry, adapter: Path, name: str, run_id: str, tmp_path: Path
) -> None:
    assert zipfile.is_zipfile(adapter / "adapter.pt"), "PyTorch's own file is a zip with a pickle in it"
    predictions = evidence(GOOD)
    version = registry.version(name, registry.register(adapter, name, run_id, predictions=predictions, metrics=SCORES))

    folder = registry.fetch(version, tmp_path)
    assert (folder / MANIFEST).read_bytes() == (adapter / MANIFEST).read_bytes()
    kept, ours = (load_file(path / "adapter_model.safetensors") for path in (folder, adapter))
    assert kept.keys() == ours.keys()
    assert all((kept[key] == ours[key]).all() for key in ours)
    pd.testing.assert_frame_equal(registry.evidence(version), predictions)

    place = files_of(registry, name, 1)
    files = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
    assert not any(name.endswith("model.safetensors") and "adapter_model" not in name for name in files)
    assert not any(zipfile.is_zipfile(path) or path.read_bytes()[:1] == b"\x80" for path in files.values())
    assert "served_model.py" in files


def test_mlflow_shows_signature_input_example_and_metrics(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    register()
    place = files_of(registry, name, 1)
    logged = MlflowClient(registry.uri).get_logged_model(place.parent.name)
    assert logged.status == "READY"
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": name, "version": 1}]
    assert {metric.key: metric.value for metric in logged.metrics or []} == SCORES
    text = (place / "MLmodel").read_text()
    for column in ("timestamps", "open", "close", "volume", "lo_50", "hi_90"):
        assert f'"name": "{column}"' in text.replace("\n   ", "")
    example = json.loads((place / "input_example.json").read_text())
    assert len(example["data"]) == 16, "as many bars as the lookback"


@pytest.mark.parametrize("ticker", ["^GSPC", "EURUSD=X", "BRK.B"])
def test_any_symbol_can_be_registered_and_found(
    registry: Registry, adapter: Path, run_id: str, ticker: str, tmp_path: Path
) -> None:
    own = registered_name(ticker)
    first = registry.register(adapter, own, run_id, predictions=evidence(GOOD), metrics={})
    registry.record_decision(own, first, promotion())
    champion = registry.champion(own)
    assert champion is not None
    assert (champion.name, champion.number) == (f"kronos-{ticker}", 1)
    assert registry.fetch(champion, tmp_path).is_dir()
    assert own in registry.names()
    registry.register_refit(adapter, own, run_id, refit_of=1)
    assert number(registry.refit_of(champion)) == 2


def test_an_adapter_called_all_and_the_checkpoint_do_not_meet(
    registry: Registry, adapter: Path, recipe: Recipe, run_id: str, tmp_path: Path
) -> None:
    checkpoint = made_checkpoint(tmp_path / "checkpoint", recipe, ["AAPL", "MSFT"])
    for folder, own in ((checkpoint, None), (adapter, "all"), (adapter, "ALL")):
        registry.register(folder, registered_name(own), run_id, predictions=evidence(GOOD), metrics={})
    kinds = {own: [version.tags["kind"] for version in registry.versions(own)] for own in registry.names()}
    assert kinds["kronos-all"] == ["checkpoint"]
    assert kinds["kronos-all~adapter"] == kinds["kronos-ALL~adapter"] == ["adapter"]
    [version] = registry.versions("kronos-all")
    assert version.covers("MSFT")
    assert (registry.fetch(version, tmp_path / "fetched") / "model.safetensors").is_file()


@settings(max_examples=30)
@given(st.lists(st.from_regex(NAME, fullmatch=True), min_size=1, unique_by=str.casefold))
def test_no_two_adapters_share_a_registered_model_and_none_the_checkpoints(adapters: list[str]) -> None:
    """Registered names differ in more than case, so a store that ignores case keeps them apart."""
    names = [registered_name(one).casefold() for one in (*adapters, None)]
    assert len(set(names)) == len(names)


def test_the_gates_decision_makes_the_champion_and_its_words_stay_on_the_version(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    decided = promotion()
    assert decided.promote
    registry.record_decision(name, register(), decided)

    champion = registry.champion(name)
    assert champion is not None
    assert champion.aliases == ("champion",), "a champion challenges nobody"
    words = {key: champion.tags[key] for key in ("promoted", "gate", "reason", "verdict.naive", "verdict.base")}
    assert words == {
        "promoted": "yes",
        "gate": "strict",
        "reason": decided.reason,
        "verdict.naive": "better",
        "verdict.base": "better",
    }
    assert json.loads(champion.tags["comparisons"])["naive"]["cutoffs"] == 12
    assert MlflowClient(registry.uri).get_model_version(name, "1").description == decided.reason


def test_a_version_that_is_not_promoted_says_why_and_the_champion_stays(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    registry.record_decision(name, register(), promotion())
    champion = registry.champion(name)
    assert champion is not None
    decided = refusal(registry.evidence(champion))
    assert not decided.promote
    registry.record_decision(name, register(), decided)

    assert aliases(registry, name) == {1: ("champion",), 2: ("challenger",)}
    loser = registry.version(name, 2)
    assert (loser.tags["promoted"], loser.tags["reason"]) == ("no", decided.reason)
    assert loser.tags["verdict.champion"] == "worse"


def test_champions_are_rolled_back_in_the_order_in_which_they_came(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    for _ in range(3):
        registry.record_decision(name, register(), promotion())
    assert number(registry.promote(name, 1, "the first was best")) == 1
    found = [number(registry.rollback(name, f"no. {step}")) for step in range(4)]
    assert found == [3, 2, 1, None]
    assert registry.champion(name) is None
    with pytest.raises(TrackingError, match=r"has no champion to roll back. Its versions are 1, 2, 3"):
        registry.rollback(name, "again")


def test_a_person_decides_and_their_words_are_kept(registry: Registry, name: str, register: Callable[[], int]) -> None:
    decided = refusal()
    registry.record_decision(name, register(), decided)
    champion = registry.promote(name, None, "I know of the merger")
    assert aliases(registry, name) == {1: ("champion",)}
    words = {key: champion.tags[key] for key in ("decided_by", "promoted", "reason", "gate_reason")}
    assert words == {
        "decided_by": "person",
        "promoted": "yes",
        "reason": "I know of the merger",
        "gate_reason": decided.reason,
    }
    registry.rollback(name, "the merger is off")
    tags = registry.version(name, 1).tags
    assert (tags["promoted"], tags["reason"]) == ("rolled back", "the merger is off")


def test_a_rollback_passes_over_a_version_that_was_deleted(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    for _ in range(3):
        registry.record_decision(name, register(), promotion())
    MlflowClient(registry.uri).delete_model_version(name, "2")
    assert number(registry.rollback(name, "bad")) == 1


def test_a_champion_that_was_set_in_mlflow_itself_can_be_rolled_back_too(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    registry.record_decision(name, register(), promotion())
    register()
    MlflowClient(registry.uri).set_registered_model_alias(name, "champion", "2")
    registry.record_decision(name, register(), promotion())
    assert number(registry.rollback(name, "bad")) == 2


def test_a_refit_is_labelled_and_never_champion(
    registry: Registry, adapter: Path, name: str, run_id: str, register: Callable[[], int]
) -> None:
    registry.record_decision(name, register(), promotion())
    first, second = (registry.register_refit(adapter, name, run_id, refit_of=1) for _ in range(2))
    assert aliases(registry, name) == {1: ("champion",), second: ("refit",)}
    champion = registry.champion(name)
    assert champion is not None
    refit = registry.refit_of(champion)
    assert refit is not None
    assert (refit.number, refit.measured, refit.tags["measured"]) == (second, False, "no")
    assert number(registry.refit_of(registry.version(name, first))) is None
    for use in (
        lambda: registry.promote(name, second, "it is newer"),
        lambda: registry.record_decision(name, second, promotion()),
        lambda: registry.evidence(refit),
    ):
        with pytest.raises(TrackingError, match=f"version {second} was not itself measured.*refit of version 1: promo"):
            use()
    assert aliases(registry, name) == {1: ("champion",), second: ("refit",)}


def test_a_refit_of_nothing_is_refused_and_leaves_nothing(
    registry: Registry, adapter: Path, name: str, run_id: str
) -> None:
    with pytest.raises(TrackingError, match=f"{name} has no version 7"):
        registry.register_refit(adapter, name, run_id, refit_of=7)
    assert registry.versions(name) == []


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (9, r"has no version 9\. Its versions are 1\."),
        (None, r"has no challenger to promote\. Its versions are 1\."),
        (1, r"version 1 is the champion already"),
    ],
)
def test_what_cannot_be_promoted_is_told_and_the_champion_stays(
    registry: Registry, name: str, register: Callable[[], int], which: int | None, message: str
) -> None:
    registry.record_decision(name, register(), promotion())
    with pytest.raises(TrackingError, match=message):
        registry.promote(name, which, "please")
    assert aliases(registry, name) == {1: ("champion",)}
    assert registry.version(name, 1).tags["decided_by"] == "gate"


def test_a_model_that_is_not_there_has_no_champion_and_the_message_names_those_that_are(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    register()
    assert registry.champion("kronos-NONE") is None
    with pytest.raises(TrackingError, match=f"kronos-NONE has no challenger to promote. The registered .*{name}"):
        registry.promote("kronos-NONE", None, "please")


def test_what_is_no_training_is_not_registered(
    registry: Registry, adapter: Path, name: str, run_id: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read"):
        registry.register(tmp_path, name, run_id, predictions=evidence(GOOD), metrics={})
    with pytest.raises(ArtifactError, match="has no column mean"):
        registry.register(adapter, name, run_id, predictions=evidence(GOOD).drop(columns="mean"), metrics={})
    with pytest.raises(TrackingError, match="0123456789abcdef0123456789abcdef"):
        registry.register(adapter, name, "0123456789abcdef" * 2, predictions=evidence(GOOD), metrics={})
    assert registry.versions(name) == []


def test_files_that_are_gone_are_told_with_the_version(
    registry: Registry, name: str, register: Callable[[], int], tmp_path: Path
) -> None:
    version = registry.version(name, register())
    place = files_of(registry, name, 1)
    place.rename(place.with_name("moved"))
    for use in (lambda: registry.evidence(version), lambda: registry.fetch(version, tmp_path)):
        with pytest.raises(TrackingError, match=f"The files of {name} version 1 cannot be fetched"):
            use()


def test_evidence_that_is_damaged_is_told(registry: Registry, name: str, register: Callable[[], int]) -> None:
    version = registry.version(name, register())
    place = files_of(registry, name, 1)
    (place / "evidence.parquet").write_bytes(b"nothing")
    with pytest.raises(TrackingError, match=f"The evidence of {name} version 1 is damaged"):
        registry.evidence(version)


class Failing:
    """Client with a store that fails at the first call of one method."""

    def __init__(self, client: MlflowClient, method: str) -> None:
        self._client, self._method = client, method

    def __getattr__(self, called: str) -> Any:
        if called == self._method:
            raise MlflowException("the store is away")
        return getattr(self._client, called)


@pytest.mark.parametrize(
    ("method", "reason_kept"), [("set_model_version_tag", False), ("set_registered_model_alias", True)]
)
def test_a_store_that_goes_away_while_the_gate_decides_leaves_no_champion_without_a_reason(
    registry: Registry,
    name: str,
    register: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    reason_kept: bool,
) -> None:
    registry.record_decision(name, register(), promotion())
    arrived = register()
    with monkeypatch.context() as patch:
        patch.setattr(registry._store, "_client", Failing(MlflowClient(registry.uri), method))
        with pytest.raises(TrackingError, match="the store is away"):
            registry.record_decision(name, arrived, promotion())
    assert number(registry.champion(name)) == 1
    assert ("reason" in registry.version(name, arrived).tags) is reason_kept
    registry.record_decision(name, arrived, promotion())
    assert number(registry.champion(name)) == 2
    assert number(registry.rollback(name, "bad")) == 1


def test_a_registry_that_cannot_be_reached_is_an_error_and_not_a_model_without_a_champion(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    begun = time.monotonic()
    away = Registry(Tracker(address, tmp_path))
    uses: list[Callable[[], object]] = [
        lambda: away.champion("kronos-AAPL"),
        lambda: away.promote("kronos-AAPL", None, "please"),
        lambda: away.record_decision("kronos-AAPL", 1, promotion()),
    ]
    for use in uses:
        with pytest.raises(TrackingError, match=f"{address} cannot be used"):
            use()
    assert time.monotonic() - begun < 30


def test_only_the_trackers_own_store_is_used(
    registry: Registry, name: str, register: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow looks up some addresses in its own default store, which it makes in the working directory."""
    monkeypatch.chdir(tmp_path)
    registry.record_decision(name, register(), promotion())
    champion = registry.champion(name)
    assert champion is not None
    registry.evidence(champion)
    registry.fetch(champion, tmp_path / "fetched")
    assert [path.name for path in tmp_path.iterdir()] == ["fetched"]
