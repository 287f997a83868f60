"""Changes of champions that are cut off before any of their writes to the store: completed once, and never doubled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupted_writes import Interrupted, content_of, interrupt_before
from mlflow import MlflowClient
from registered_models import BAD, GOOD, evidence, make_old, number, promotions

from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.scoring.gate import decide
from kronos_pipeline.evaluation.scoring.targets import TARGETS, Target
from kronos_pipeline.tracking.champions import CHANGE, HISTORY, SERVED
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.store import TrackingError, sqlite_path
from kronos_pipeline.tracking.stored_registry import read_registered_models

pytestmark = pytest.mark.slow

NAME = "kronos-AAPL"
ALIAS = "set_registered_model_alias"
Command = Callable[[Registry], object]


def roll_back(registry: Registry) -> object:
    return registry.rollback(NAME, "worse than it looked")


def roll_back_the_mean(registry: Registry) -> object:
    return registry.rollback(NAME, "a poor mean", ["mean"])


def promote(registry: Registry) -> object:
    return registry.promote(NAME, None, "I know of the merger")


def decide_by_gate(registry: Registry) -> object:
    refused = decide(evidence(BAD), "adapter", champion=None, gate="strict")
    return registry.record_decision(NAME, 4, {**promotions("mean", "distribution"), "volatility": refused})


COMMANDS: dict[Command, int] = {roll_back: 1, roll_back_the_mean: 1, promote: 2, decide_by_gate: 2}
"""Commands, and the step between the writes that are tried: a change by the gate or a person ends like a rollback."""


@pytest.fixture(scope="module")
def template(adapter: Path, empty_mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of a model with four versions: each was champion of every target but the last."""
    path = Path(shutil.copy(empty_mlflow_store, tmp_path_factory.mktemp("template") / "mlflow.db"))
    registry = open_registry(path)
    with registry._tracker.training_run("made", Recipe()) as run:
        pass
    for _ in range(4):
        made = registry.register(adapter, NAME, run.run_id, evidence=EvidenceTable(evidence(GOOD)), metrics={})
        if made < 4:
            registry.record_decision(NAME, made, promotions())
    return path


@pytest.fixture
def registry(template: Path, tmp_path: Path) -> Registry:
    return open_registry(Path(shutil.copy(template, tmp_path / "mlflow.db")))


@pytest.fixture
def restore(registry: Registry, template: Path) -> Callable[[], object]:
    """Return a function that makes the store again what the template is; to open another store takes longer."""
    return lambda: shutil.copyfile(template, sqlite_path(registry.uri))


def open_registry(path: Path) -> Registry:
    return Registry(Tracker(f"sqlite:///{path}", path.parent / "out"))


def writes_of(registry: Registry, command: Command) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        writes = interrupt_before(patch, 0)
        command(registry)
    return writes


def cut_off(registry: Registry, command: Command, write: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_before(patch, write)
        with pytest.raises(Interrupted):
            command(registry)


def numbers_of(registry: Registry) -> dict[Target, int]:
    return {target: version.number for target, version in registry.champions(NAME).items()}


def decisive(writes: list[str]) -> list[int]:
    """Return the numbers of the writes, without the inner ones of a row of tags of a version."""
    return [
        place
        for place, write in enumerate(writes, start=1)
        if write != "set_model_version_tag" or writes[place - 2 : place + 1] != 3 * [write]
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_change_that_is_cut_off_before_any_write_is_completed_once_by_the_same_command(
    command: Command, registry: Registry, restore: Callable[[], object]
) -> None:
    before = numbers_of(registry)
    writes = writes_of(registry, command)
    after, expected = numbers_of(registry), content_of(registry, NAME)
    for write in decisive(writes)[:: COMMANDS[command]]:
        restore()
        cut_off(registry, command, write)
        where = f"{write}: {writes[write - 1]}"
        stored = read_registered_models(registry.uri)
        assert stored is not None
        assert stored[NAME].champions.numbers == numbers_of(registry), "all readers see the same"
        assert numbers_of(registry) in (before, after), where
        command(registry)
        assert content_of(registry, NAME) == expected, where


@pytest.mark.parametrize(
    ("command", "other"), [(roll_back, promote), (promote, roll_back), (decide_by_gate, roll_back_the_mean)]
)
def test_another_command_completes_the_change_and_then_does_its_own(
    command: Command,
    other: Command,
    registry: Registry,
    restore: Callable[[], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    writes = writes_of(registry, command)
    other(registry)
    expected = content_of(registry, NAME)
    restore()
    cut_off(registry, command, writes.index(ALIAS) + 2)
    other(registry)
    assert content_of(registry, NAME) == expected
    assert " was interrupted, and is completed now." in caplog.text


def test_a_rollback_of_a_registry_of_an_earlier_version_is_not_doubled_either(
    registry: Registry, restore: Callable[[], object]
) -> None:
    def make_template_old() -> None:
        client = MlflowClient(registry.uri)
        for alias in ("champion-mean", "champion-distribution", "champion-volatility"):
            client.delete_registered_model_alias(NAME, alias)
        for tag in (HISTORY, SERVED):
            client.delete_registered_model_tag(NAME, tag)
        make_old(registry, NAME, ["person"] * 3)
        assert numbers_of(registry) == dict.fromkeys(TARGETS, 3)

    make_template_old()
    writes = writes_of(registry, roll_back)
    assert numbers_of(registry) == dict.fromkeys(TARGETS, 2)
    expected = content_of(registry, NAME)
    restore()
    make_template_old()
    for write in (writes.index(ALIAS) + 2, 3):  # the completion, too, is cut off between two aliases
        cut_off(registry, roll_back, write)
        assert numbers_of(registry) == dict.fromkeys(TARGETS, 2)
    roll_back(registry)
    assert content_of(registry, NAME) == expected


@pytest.fixture
def interrupted(registry: Registry, restore: Callable[[], object]) -> Registry:
    """Return a registry whose rollback from version 3 to version 2 was cut off after its first alias."""
    writes = writes_of(registry, roll_back)
    restore()
    cut_off(registry, roll_back, writes.index(ALIAS) + 2)
    return registry


def test_a_rollback_that_is_completed_says_so_and_the_next_goes_one_step_further(interrupted: Registry) -> None:
    completed = interrupted.rollback(NAME, "in other words")
    assert completed.completed is not None
    assert completed.completed.reason == "worse than it looked"
    assert interrupted.version(NAME, 3).decision("reason", "mean") == "worse than it looked"
    assert {target: number(version) for target, version in completed.champions.items()} == dict.fromkeys(TARGETS, 2)
    further = interrupted.rollback(NAME, "in other words")
    assert further.completed is None
    assert numbers_of(interrupted) == dict.fromkeys(TARGETS, 1)


def test_an_alias_that_a_person_changes_meanwhile_counts(interrupted: Registry) -> None:
    client = MlflowClient(interrupted.uri)
    client.set_registered_model_alias(NAME, "champion-volatility", "4")
    assert numbers_of(interrupted) == {"mean": 2, "distribution": 2, "volatility": 4}
    client.set_registered_model_alias(NAME, "champion", "1")
    assert numbers_of(interrupted) == dict.fromkeys(TARGETS, 1)
    roll_back(interrupted)
    assert numbers_of(interrupted) == dict.fromkeys(TARGETS, 1)
    assert CHANGE not in interrupted._store.tags(NAME)


@pytest.mark.parametrize(("deleted", "champion"), [(3, 2), (2, 1)])
def test_a_version_that_a_person_deletes_meanwhile_is_passed_over(
    deleted: int, champion: int, interrupted: Registry
) -> None:
    MlflowClient(interrupted.uri).delete_model_version(NAME, str(deleted))
    assert numbers_of(interrupted) == dict.fromkeys(TARGETS, champion)
    roll_back(interrupted)
    assert numbers_of(interrupted) == dict.fromkeys(TARGETS, champion)


def test_the_tag_of_a_change_that_a_person_edits_counts_for_nothing(registry: Registry) -> None:
    for edited in ("", "[]", '{"kind": "rollback"}'):
        MlflowClient(registry.uri).set_registered_model_tag(NAME, CHANGE, edited)
        assert numbers_of(registry) == dict.fromkeys(TARGETS, 3)
    roll_back(registry)
    assert numbers_of(registry) == dict.fromkeys(TARGETS, 2)
    assert CHANGE not in registry._store.tags(NAME)


def test_a_reason_that_is_too_long_changes_nothing(registry: Registry) -> None:
    before = content_of(registry, NAME)
    with pytest.raises(TrackingError, match=r"The reason is too long for the registry: shorten it by \d+ characters\."):
        registry.promote(NAME, 4, "because " * 1000)
    assert content_of(registry, NAME) == before
