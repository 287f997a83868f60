"""`kronos promote` and `kronos rollback`: a person's choice of the champion."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from interrupted_writes import Interrupted, interrupt_before
from registered_models import evidence, made_adapter
from small_trainings import small_recipe

from kronos_pipeline.cli import app as cli
from kronos_pipeline.config import Recipe
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry, registered_name
from kronos_pipeline.tracking.runs import Tracker

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]

_numbers = count()


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_adapter(tmp_path_factory.mktemp("adapter") / "AAPL", small_recipe(tiny_base))


@pytest.fixture
def registry(store: str, tmp_path: Path) -> Registry:
    return Registry(Tracker(store, tmp_path))


@pytest.fixture
def adapter(registry: Registry, folder: Path, store: str, tmp_path: Path) -> str:
    """Register an adapter with two versions and no champion."""
    name = f"P{next(_numbers)}=X"
    with Tracker(store, tmp_path).training_run("made", Recipe()) as run:
        pass
    for _ in range(2):
        registry.register(
            folder, registered_name(name), run.run_id, evidence=EvidenceTable(evidence({"naive": 1.0})), metrics={}
        )
    return name


def champion(registry: Registry, adapter: str) -> int | None:
    version = registry.champion(registered_name(adapter))
    return None if version is None else version.number


def test_a_person_promotes_and_rolls_back(
    registry: Registry, adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output-dir", str(tmp_path)]
    assert cli.main(["promote", adapter, *output]) == 0
    assert champion(registry, adapter) == 2
    printed = capsys.readouterr().out
    assert f"kronos-{adapter} version 2 is the champion" in printed
    assert "it was trained and registered on 20" in printed
    assert "the gate: mean, distribution and volatility: not decided" in printed
    assert cli.main(["promote", adapter, "--version", "1", "--reason", "it is calmer", *output]) == 0
    assert champion(registry, adapter) == 1
    assert registry.version(registered_name(adapter), 1).decision("reason", "mean") == "it is calmer"
    capsys.readouterr()
    assert cli.main(["rollback", adapter, "--reason", "too calm", *output]) == 0
    assert champion(registry, adapter) == 2
    every = "mean, distribution and volatility"
    printed = capsys.readouterr().out
    assert f"kronos-{adapter} version 2 is the champion of {every} again\n" in printed
    assert f"served now: kronos-{adapter} version 2, by `kronos forecast` and at models:/kronos-{adapter}@" in printed
    assert registry.version(registered_name(adapter), 1).decision("reason", "mean") == "too calm"
    assert cli.main(["rollback", adapter, *output]) == 0
    assert champion(registry, adapter) is None
    printed = capsys.readouterr().out
    assert f"kronos-{adapter} has no champion of {every} now\n" in printed
    assert f"nothing at models:/kronos-{adapter}@champion until `kronos promote {adapter}`" in printed
    assert cli.main(["promote", adapter, *output]) == 0, "as the last line advised"
    assert champion(registry, adapter) == 2


def test_a_person_promotes_and_rolls_back_for_one_target(
    registry: Registry, adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, name = ["--output-dir", str(tmp_path)], registered_name(adapter)
    assert cli.main(["promote", adapter, "--target", "volatility", *output]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{name} version 2 is the champion of volatility\nthe gate: volatility: not decided\n")
    assert cli.main(["promote", adapter, "--version", "1", *output]) == 0
    assert {target: version.number for target, version in registry.champions(name).items()} == {
        "mean": 1,
        "distribution": 1,
        "volatility": 1,
    }
    capsys.readouterr()
    assert cli.main(["rollback", adapter, "--target", "volatility", *output]) == 0
    assert f"{name} version 2 is the champion of volatility again\n" in capsys.readouterr().out
    assert cli.main(["rollback", adapter, *output]) == 0
    assert f"{name} has no champion of mean, distribution and volatility now\n" in capsys.readouterr().out, (
        "version 1 was the first of mean and distribution, version 2 of volatility"
    )


def test_a_rollback_that_was_interrupted_is_completed_by_the_same_command_and_says_so(
    registry: Registry, adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, command = registered_name(adapter), ["rollback", adapter, "--output-dir", str(tmp_path)]
    for version in (1, 2):
        registry.promote(name, version, "better")
    with pytest.MonkeyPatch.context() as patch:
        writes = interrupt_before(patch, 8)
        with pytest.raises(Interrupted):
            registry.rollback(name, "worse")
    assert len(writes) == 8
    assert cli.main(command) == 0
    assert "completes the rollback that was interrupted; run the command again to go back" in capsys.readouterr().out
    assert champion(registry, adapter) == 1
    assert cli.main(command) == 0
    assert "completes" not in capsys.readouterr().out
    assert champion(registry, adapter) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["promote"], "ADAPTER"),
        (["promote", "../x"], "No adapter is called '../x': use letters, digits and .-_^= only"),
        (["promote", "x' or '1'='1"], "No adapter is called"),
        (["promote", "NOBODY"], "kronos-NOBODY has no measured version to promote."),
        (["promote", "NOBODY", "--version", "3"], "kronos-NOBODY has no version 3."),
        (["promote", "AAPL", "--target", "price"], "--target: Input should be 'mean', 'distribution' or 'volatility'"),
        (["promote", "NOBODY", "--version", "0"], "--version: Input should be greater than or equal to 1"),
        (["rollback", "NOBODY"], "kronos-NOBODY has no champion to roll back."),
        (["rollback", "all"], "kronos-all has no champion to roll back."),
    ],
)
def test_what_cannot_be_done_is_told(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*flags, *(["--output-dir", str(tmp_path)] if len(flags) > 1 else [])]) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ")
    assert message in output


def test_a_registry_that_cannot_be_reached_promotes_nobody(
    registry: Registry,
    adapter: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://somewhere")
    assert cli.main(["promote", adapter, "--output-dir", str(tmp_path)]) == 2
    assert "The MLflow store nonsense://somewhere cannot be used" in capsys.readouterr().err
    assert champion(registry, adapter) is None
