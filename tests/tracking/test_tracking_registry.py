"""The champion of a registered model: promotion, refusal, rollback, and the reason on the version."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from registered_models import BAD, aliases, evidence, number, promotion

from kronos_pipeline.evaluation.scoring.gate import Decision, decide
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.store import TrackingError

pytestmark = pytest.mark.slow


def refusal(champion: pd.DataFrame | None = None) -> Decision:
    return decide(evidence(BAD), "adapter", champion=champion, gate="strict")


def test_the_gates_decision_makes_the_champion_and_its_words_stay_on_the_version(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    decided = promotion()
    assert decided.promote
    registry.record_decision(name, register(), decided)

    champion = registry.champion(name)
    assert champion is not None
    assert champion.aliases == ("champion",), "a champion challenges nobody"
    tags = {key: champion.tags[key] for key in ("promoted", "gate", "reason", "verdict.naive", "verdict.base")}
    assert tags == {
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
    champions = [number(registry.rollback(name, f"no. {step}")) for step in range(4)]
    assert champions == [3, 2, 1, None]
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


@pytest.mark.parametrize(
    ("version_number", "message"),
    [
        (9, r"has no version 9\. Its versions are 1\."),
        (None, r"has no challenger to promote\. Its versions are 1\."),
        (1, r"version 1 is the champion already"),
    ],
)
def test_what_cannot_be_promoted_is_told_and_the_champion_stays(
    registry: Registry, name: str, register: Callable[[], int], version_number: int | None, message: str
) -> None:
    registry.record_decision(name, register(), promotion())
    with pytest.raises(TrackingError, match=message):
        registry.promote(name, version_number, "please")
    assert aliases(registry, name) == {1: ("champion",)}
    assert registry.version(name, 1).tags["decided_by"] == "gate"


def test_a_model_that_is_not_there_has_no_champion_and_the_message_names_those_that_are(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    register()
    assert registry.champion("kronos-NONE") is None
    with pytest.raises(TrackingError, match=f"kronos-NONE has no challenger to promote. The registered .*{name}"):
        registry.promote("kronos-NONE", None, "please")


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
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    start = time.monotonic()
    unreachable = Registry(Tracker(address, tmp_path))
    uses: list[Callable[[], object]] = [
        lambda: unreachable.champion("kronos-AAPL"),
        lambda: unreachable.promote("kronos-AAPL", None, "please"),
        lambda: unreachable.record_decision("kronos-AAPL", 1, promotion()),
    ]
    for use in uses:
        with pytest.raises(TrackingError, match=f"{address} cannot be used"):
            use()
    assert time.monotonic() - start < 30


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
