"""The champion of a registered model: promotion, refusal, rollback, and the reason on the version."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from registered_models import BAD, CHAMPION, aliases, evidence, make_old, number, promotion, promotions

from kronos_pipeline.evaluation.scoring.gate import Decision, decide
from kronos_pipeline.evaluation.scoring.targets import TARGETS
from kronos_pipeline.tracking.recipes_tried import Tried, add_recipe
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.store import TrackingError
from kronos_pipeline.tracking.stored_registry import fetch_registered_models, read_registered_models
from kronos_pipeline.tracking.version import Version
from kronos_pipeline.tracking.version_page import beaten_rivals, describe

pytestmark = pytest.mark.slow


def refusal(champion: pd.DataFrame | None = None) -> Decision:
    return decide(evidence(BAD), "adapter", champion=champion, gate="strict")


def test_the_gates_decision_makes_the_champion_and_its_words_stay_on_the_version(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    decided = promotion()
    assert decided.promote
    registry.record_decision(name, register(), promotions())

    champion = registry.champion(name)
    assert champion is not None
    assert champion.aliases == CHAMPION, "the champion of every target challenges nobody"
    for target in TARGETS:
        tags = {key: champion.tags[f"{key}.{target}"] for key in ("promoted", "decided_by", "reason")}
        assert tags == {"promoted": "yes", "decided_by": "gate", "reason": decided.reason}
        assert champion.tags[f"verdict.{target}"] == "better than naive, base"
        assert beaten_rivals(champion, target) == ["base", "naive"]
    description = str(MlflowClient(registry.uri).get_model_version(name, "1").description)
    assert description.startswith("Promoted to champion of mean, distribution and volatility\n\n")
    assert f"Mean, distribution and volatility: {decided.reason}" in description


def test_a_version_is_champion_of_what_it_was_promoted_for_and_the_best_distribution_serves(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    for targets in (("volatility",), ("mean",), ("distribution",)):
        registry.record_decision(name, register(), {**dict.fromkeys(TARGETS, refusal()), **promotions(*targets)})
        assert number(registry.champion(name)) == len(registry.versions(name)), "distribution, mean, volatility"
    assert aliases(registry, name) == {
        1: ("champion-volatility",),
        2: ("champion-mean",),
        3: ("challenger", "champion", "champion-distribution"),
    }
    assert {target: version.number for target, version in registry.champions(name).items()} == {
        "mean": 2,
        "distribution": 3,
        "volatility": 1,
    }
    assert number(registry.champion(name, "volatility")) == 1
    for stored in (read_registered_models(registry.uri), fetch_registered_models(registry.uri)):
        assert stored is not None
        assert stored[name].champions.numbers == {"mean": 2, "distribution": 3, "volatility": 1}
        assert [version.aliases for version in stored[name].versions] == list(aliases(registry, name).values())
        assert stored[name].versions[1].decision("promoted", "mean") == "yes"
    last = registry.version(name, 3)
    assert [last.decision("promoted", target) for target in TARGETS] == ["no", "yes", "no"]
    description = str(MlflowClient(registry.uri).get_model_version(name, "3").description)
    assert f"Mean and volatility: {refusal().reason}\n\nDistribution: {promotion().reason}" in description

    assert registry.rollback(name, "bad", ["distribution"]).champions == {"distribution": None}
    assert number(registry.champion(name)) == 2, "the mean's champion serves without one of the distribution"
    assert number(registry.champion(name, "volatility")) == 1
    with pytest.raises(TrackingError, match="has no champion of distribution to roll back"):
        registry.rollback(name, "again", ["distribution"])


def test_a_version_that_is_not_promoted_says_why_and_the_champion_stays(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    registry.record_decision(name, register(), promotions())
    champion = registry.champion(name)
    assert champion is not None
    decided = refusal(registry.evidence(champion))
    assert not decided.promote
    registry.record_decision(name, register(), {"mean": decided})

    assert aliases(registry, name) == {1: CHAMPION, 2: ("challenger",)}
    loser = registry.version(name, 2)
    assert (loser.tags["promoted.mean"], loser.tags["reason.mean"]) == ("no", decided.reason)
    assert loser.tags["verdict.mean"] == "worse than naive, base, champion"


def test_champions_are_rolled_back_in_the_order_in_which_they_came(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    for _ in range(3):
        registry.record_decision(name, register(), promotions())
    assert number(registry.promote(name, 1, "the first was best")) == 1
    assert number(registry.champion(name)) == 1
    for step, expected in enumerate((3, 2, 1, None)):
        restored = registry.rollback(name, f"no. {step}").champions
        assert {target: number(version) for target, version in restored.items()} == dict.fromkeys(TARGETS, expected)
        assert number(registry.champion(name)) == expected
    with pytest.raises(TrackingError, match=r"has no champion to roll back. Its versions are 1, 2, 3"):
        registry.rollback(name, "again")


def test_a_champion_that_was_rolled_back_is_the_challenger_again(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    registry.record_decision(name, register(), promotions())
    assert registry.rollback(name, "to try it").champions == dict.fromkeys(TARGETS)
    assert aliases(registry, name) == {1: ("challenger",)}
    assert number(registry.promote(name, None, "it was good after all")) == 1
    assert aliases(registry, name) == {1: CHAMPION}


def test_each_target_has_its_own_former_champions(registry: Registry, name: str, register: Callable[[], int]) -> None:
    registry.record_decision(name, register(), promotions())
    registry.record_decision(name, register(), promotions("distribution"))
    registry.record_decision(name, register(), promotions("mean"))
    restored = registry.rollback(name, "bad").champions
    assert {target: number(version) for target, version in restored.items()} == {
        "mean": 1,
        "distribution": 1,
        "volatility": None,
    }


def test_a_person_decides_and_their_words_are_kept(registry: Registry, name: str, register: Callable[[], int]) -> None:
    decided = refusal()
    registry.record_decision(name, register(), dict.fromkeys(TARGETS, decided))
    champion = registry.promote(name, None, "I know of the merger", ["mean"])
    assert aliases(registry, name) == {1: ("challenger", "champion", "champion-mean")}
    tags = {key: champion.decision(key, "mean") for key in ("decided_by", "promoted", "reason", "gate_reason")}
    assert tags == {
        "decided_by": "person",
        "promoted": "yes",
        "reason": "I know of the merger",
        "gate_reason": decided.reason,
    }
    assert champion.decision("promoted", "volatility") == "no"
    registry.promote(name, None, "for the rest too")
    version = registry.version(name, 1)
    assert version.aliases == CHAMPION
    assert version.decision("reason", "mean") == "I know of the merger", "that was decided already"
    registry.rollback(name, "the merger is off")
    version = registry.version(name, 1)
    assert (version.tags["promoted.mean"], version.tags["reason.mean"]) == ("rolled back", "the merger is off")


def test_champions_made_before_there_were_targets_count_for_the_mean_or_if_a_person_made_them_for_all(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    for _ in range(3):
        register()
    make_old(registry, name, ["person", "gate", "gate"])
    assert {target: version.number for target, version in registry.champions(name).items()} == {"mean": 3}
    champion = registry.champion(name)
    assert champion is not None
    assert (champion.number, champion.decision("reason", "mean")) == (3, "old reason 3")
    assert aliases(registry, name) == {3: ("champion",)}, "reading writes nothing"

    registry.record_decision(name, register(), promotions("volatility"))
    assert aliases(registry, name) == {
        3: ("champion", "champion-mean"),
        4: ("challenger", "champion-volatility"),
    }
    restored = [registry.rollback(name, "bad", ["mean"]).champions["mean"] for _ in range(3)]
    assert list(map(number, restored)) == [2, 1, None]
    assert number(registry.champion(name)) == 4


def test_a_person_s_champion_of_before_counts_for_every_target(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    register(), register()
    make_old(registry, name, ["person", "person"])
    assert set(registry.champions(name)) == set(TARGETS)
    restored = registry.rollback(name, "bad").champions
    assert {target: number(version) for target, version in restored.items()} == dict.fromkeys(TARGETS, 1)
    assert aliases(registry, name) == {1: CHAMPION, 2: ("challenger",)}


def test_a_description_is_no_longer_than_every_database_holds(name: str) -> None:
    tags = {f"reason.{target}": f"{target} {'is better ' * 250}" for target in TARGETS}
    version = Version(name, 1, "run", (), {"measured": "yes", **tags}, datetime.now(UTC))
    assert len(describe(version)) == 5000


def test_recipes_on_the_same_cutoffs_are_counted(registry: Registry, name: str) -> None:
    def tried(recipe: str, first: str, last: str) -> str:
        return str(registry.record_recipe(name, recipe, pd.Timestamp(first), pd.Timestamp(last)))

    assert tried("a", "2024-01-01", "2024-02-01") == "the 1st recipe tried on these cutoffs"
    assert tried("b", "2024-01-15", "2024-02-15") == "the 2nd recipe tried on these cutoffs"
    assert tried("b", "2024-01-20", "2024-02-20") == "the 2nd recipe tried on these cutoffs", "the same recipe again"
    assert tried("a", "2024-01-02", "2024-02-02") == "the 1st of 2 recipes tried on these cutoffs"
    assert tried("c", "2024-06-01", "2024-07-01") == "the 1st recipe tried on these cutoffs", "no other on these"
    assert registry.versions(name) == [], "a recipe that was only backtested has no version"


def test_the_newest_recipes_are_kept_in_tags_that_every_database_holds() -> None:
    first, last = pd.Timestamp("2025-01-01 09:30"), pd.Timestamp("2025-02-01 15:30")
    tags: dict[str, str] = {}
    for recipe in range(502):
        changed, tried = add_recipe(tags, f"{recipe:016x}", first, last)
        tags |= changed
    assert str(tried) == "the 500th recipe tried on these cutoffs"
    assert max(map(len, tags.values())) < 5000
    assert add_recipe(tags, f"{1:016x}", first, last)[1] == Tried(500, 500), "it was forgotten"
    assert add_recipe(tags, f"{400:016x}", first, last) == ({}, Tried(399, 500))


def test_recipes_that_an_earlier_version_kept_in_one_tag_are_known(registry: Registry, name: str) -> None:
    first, last = pd.Timestamp("2025-01-01"), pd.Timestamp("2025-02-01")
    rows = [[f"{recipe:016x}", first.isoformat(), last.isoformat()] for recipe in range(70)]
    registry._store.set_tag(name, "recipes_tried", json.dumps(rows))
    assert registry.record_recipe(name, "new", first, last) == Tried(71, 71)
    assert registry.record_recipe(name, f"{65:016x}", first, last) == Tried(66, 71)


def test_a_rollback_passes_over_a_version_that_was_deleted(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    for _ in range(3):
        registry.record_decision(name, register(), promotions())
    MlflowClient(registry.uri).delete_model_version(name, "2")
    assert number(registry.rollback(name, "bad").champions["mean"]) == 1


def test_a_champion_that_was_set_in_mlflow_itself_can_be_rolled_back_too(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    registry.record_decision(name, register(), promotions())
    register()
    MlflowClient(registry.uri).set_registered_model_alias(name, "champion", "2")
    assert {target: version.number for target, version in registry.champions(name).items()} == dict.fromkeys(TARGETS, 2)
    registry.record_decision(name, register(), promotions())
    assert number(registry.rollback(name, "bad").champions["mean"]) == 2


def test_what_cannot_be_promoted_is_told_and_the_champion_stays(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    registry.record_decision(name, register(), promotions())
    with pytest.raises(TrackingError, match=r"has no version 9\. Its versions are 1\."):
        registry.promote(name, 9, "please")
    assert aliases(registry, name) == {1: CHAMPION}


@pytest.mark.parametrize("version_number", [None, 1])
def test_a_champion_that_is_promoted_again_keeps_the_reason_of_its_decision(
    registry: Registry, name: str, register: Callable[[], int], version_number: int | None
) -> None:
    registry.record_decision(name, register(), promotions())
    assert registry.promote(name, version_number, "please").number == 1
    assert aliases(registry, name) == {1: CHAMPION}
    assert registry.version(name, 1).tags["decided_by.mean"] == "gate"


def test_a_model_that_is_not_there_has_no_champion_and_the_message_names_those_that_are(
    registry: Registry, name: str, register: Callable[[], int]
) -> None:
    register()
    assert registry.champion("kronos-NONE") is None
    assert name in registry.names()
    named = r"kronos-NONE has no measured version to promote\. The registered models are kronos-T\d"
    with pytest.raises(TrackingError, match=named):
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
    registry.record_decision(name, register(), promotions())
    arrived = register()
    with monkeypatch.context() as patch:
        patch.setattr(registry._store, "_client", Failing(MlflowClient(registry.uri), method))
        with pytest.raises(TrackingError, match="the store is away"):
            registry.record_decision(name, arrived, promotions())
    assert number(registry.champion(name)) == (arrived if reason_kept else 1), "the first write of the change counts"
    assert ("reason.mean" in registry.version(name, arrived).tags) is reason_kept
    registry.record_decision(name, arrived, promotions())
    assert number(registry.champion(name)) == 2
    assert number(registry.rollback(name, "bad").champions["mean"]) == 1
    assert registry.rollback(name, "bad").champions["mean"] is None, (
        "the interruption left the first in the history once"
    )


def test_a_registry_that_cannot_be_reached_is_an_error_and_not_a_model_without_a_champion(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    start = time.monotonic()
    unreachable = Registry(Tracker(address, tmp_path))
    uses: list[Callable[[], object]] = [
        lambda: unreachable.champion("kronos-AAPL"),
        lambda: unreachable.promote("kronos-AAPL", None, "please"),
        lambda: unreachable.record_decision("kronos-AAPL", 1, promotions()),
    ]
    for use in uses:
        with pytest.raises(TrackingError, match=f"{address} cannot be used"):
            use()
    assert time.monotonic() - start < 60


def test_only_the_trackers_own_store_is_used(
    registry: Registry, name: str, register: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow looks up some addresses in its own default store, which it makes in the working directory."""
    monkeypatch.chdir(tmp_path)
    registry.record_decision(name, register(), promotions())
    champion = registry.champion(name)
    assert champion is not None
    registry.evidence(champion)
    registry.fetch(champion, tmp_path / "fetched")
    assert [path.name for path in tmp_path.iterdir()] == ["fetched"]
