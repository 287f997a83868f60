"""Adapters, checkpoints and refits as versions of registered models: the content of a version, and its name."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from registered_models import CHAMPION, GOOD, aliases, base_of, evidence, made_checkpoint, number, promotions
from safetensors.numpy import load_file

from kronos_pipeline.artifacts import MANIFEST
from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.names import NAME
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry, registered_name
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.store import TrackingError

pytestmark = pytest.mark.slow

SCORES = {"holdout/adapter/mae": 0.5}


def files_of(registry: Registry, name: str, version: int) -> Path:
    """Return the folder in which MLflow keeps a version's files."""
    uri = MlflowClient(registry.uri).get_model_version_download_uri(name, str(version))
    return Path(uri.removeprefix("file://"))


def test_a_version_says_what_it_is_and_arrives_as_challenger(
    registry: Registry, adapter: Path, name: str, run_id: str, recipe: Recipe
) -> None:
    tags = {"dagster.partition": "AAPL"}
    first = registry.register(adapter, name, run_id, evidence=EvidenceTable(evidence(GOOD)), metrics=SCORES, tags=tags)

    version = registry.version(name, first)
    assert (version.number, version.run_id, version.aliases, version.measured) == (1, run_id, ("challenger",), True)
    tags_of_version = {key: version.tags[key] for key in ("kind", "trained_on", "base_hash", "dagster.partition")}
    base_hash = base_of(recipe).weights_hash
    assert tags_of_version == {
        "kind": "adapter",
        "trained_on": "AAPL",
        "base_hash": base_hash,
        "dagster.partition": "AAPL",
    }
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
    version = registry.version(
        name, registry.register(adapter, name, run_id, evidence=EvidenceTable(predictions), metrics=SCORES)
    )

    folder = registry.fetch(version, tmp_path)
    assert (folder / MANIFEST).read_bytes() == (adapter / MANIFEST).read_bytes()
    stored, expected = (load_file(path / "adapter_model.safetensors") for path in (folder, adapter))
    assert stored.keys() == expected.keys()
    assert all((stored[key] == expected[key]).all() for key in expected)
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
    name = registered_name(ticker)
    first = registry.register(adapter, name, run_id, evidence=EvidenceTable(evidence(GOOD)), metrics={})
    registry.record_decision(name, first, promotions())
    champion = registry.champion(name)
    assert champion is not None
    assert (champion.name, champion.number) == (f"kronos-{ticker}", 1)
    assert registry.fetch(champion, tmp_path).is_dir()
    assert name in registry.names()
    registry.register_refit(adapter, name, run_id, refit_of=1)
    assert number(registry.refit_of(champion)) == 2


def test_an_adapter_called_all_and_the_checkpoint_do_not_meet(
    registry: Registry, adapter: Path, recipe: Recipe, run_id: str, tmp_path: Path
) -> None:
    checkpoint = made_checkpoint(tmp_path / "checkpoint", recipe, ["AAPL", "MSFT"])
    for folder, adapter_name in ((checkpoint, None), (adapter, "all"), (adapter, "ALL")):
        registry.register(
            folder, registered_name(adapter_name), run_id, evidence=EvidenceTable(evidence(GOOD)), metrics={}
        )
    kinds = {
        adapter_name: [version.tags["kind"] for version in registry.versions(adapter_name)]
        for adapter_name in registry.names()
    }
    assert kinds["kronos-all"] == ["checkpoint"]
    assert kinds["kronos-all~adapter"] == kinds["kronos-ALL~adapter"] == ["adapter"]
    [version] = registry.versions("kronos-all")
    assert version.covers("MSFT")
    assert (registry.fetch(version, tmp_path / "fetched") / "model.safetensors").is_file()


@settings(max_examples=30)
@given(st.lists(st.from_regex(NAME, fullmatch=True), min_size=1, unique_by=str.casefold))
def test_no_two_adapters_share_a_registered_model_and_none_the_checkpoints(adapters: list[str]) -> None:
    """Registered names differ in more than case, so a store that ignores case keeps them apart."""
    names = [registered_name(adapter).casefold() for adapter in (*adapters, None)]
    assert len(set(names)) == len(names)


def test_a_refit_is_labelled_and_never_champion(
    registry: Registry, adapter: Path, name: str, run_id: str, register: Callable[[], int]
) -> None:
    registry.record_decision(name, register(), promotions())
    first, second = (registry.register_refit(adapter, name, run_id, refit_of=1) for _ in range(2))
    assert aliases(registry, name) == {1: CHAMPION, second: ("refit",)}
    champion = registry.champion(name)
    assert champion is not None
    refit = registry.refit_of(champion)
    assert refit is not None
    assert (refit.number, refit.measured, refit.tags["measured"]) == (second, False, "no")
    assert number(registry.refit_of(registry.version(name, first))) is None
    for use in (
        lambda: registry.promote(name, second, "it is newer"),
        lambda: registry.record_decision(name, second, promotions()),
        lambda: registry.evidence(refit),
    ):
        with pytest.raises(TrackingError, match=f"version {second} was not itself measured.*refit of version 1: promo"):
            use()
    assert aliases(registry, name) == {1: CHAMPION, second: ("refit",)}


def test_a_training_is_a_version_and_its_evaluation_adds_the_evidence(
    registry: Registry, tracker: Tracker, adapter: Path, name: str, tmp_path: Path
) -> None:
    with tracker.training_run("registered", Recipe()) as run:
        pass
    assert registry.register_trained(adapter, name, run.run_id) == 1
    assert registry.register_trained(adapter, name, run.run_id) == 1, "a training is one version"
    version = registry.version(name, 1)
    assert (version.measured, version.aliases) == (False, ())
    with pytest.raises(TrackingError, match=f"{name} version 1 was trained, but has not been evaluated; materialise"):
        registry.promote(name, 1, "it is new")
    with pytest.raises(TrackingError, match=r"has no measured version to promote. Its versions are 1\."):
        registry.promote(name, None, "it is new")

    evaluated = shutil.copytree(adapter, tmp_path / "evaluated")
    (evaluated / "sampling").mkdir()
    (evaluated / "sampling/AAPL.json").write_text("{}")
    predictions = evidence(GOOD)
    assert registry.measure(version, evaluated, EvidenceTable(predictions), SCORES, {"evidence": "holdout"}) == 1
    measured = registry.version(name, 1)
    assert (measured.measured, measured.aliases, measured.tags["evidence"]) == (True, ("challenger",), "holdout")
    pd.testing.assert_frame_equal(registry.evidence(measured), predictions)
    assert (registry.fetch(measured, tmp_path) / "sampling/AAPL.json").read_text() == "{}"
    assert MlflowClient(registry.uri).get_run(run.run_id).data.metrics == SCORES
    assert number(registry.promote(name, None, "it is good")) == 1


def test_a_refit_of_nothing_is_refused_and_leaves_nothing(
    registry: Registry, adapter: Path, name: str, run_id: str
) -> None:
    with pytest.raises(TrackingError, match=f"{name} has no version 7"):
        registry.register_refit(adapter, name, run_id, refit_of=7)
    assert registry.versions(name) == []


def test_what_is_no_training_is_not_registered(
    registry: Registry, adapter: Path, name: str, run_id: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read"):
        registry.register(tmp_path, name, run_id, evidence=EvidenceTable(evidence(GOOD)), metrics={})
    with pytest.raises(ArtifactError, match="has no column mean"):
        registry.register(
            adapter, name, run_id, evidence=EvidenceTable(evidence(GOOD).drop(columns="mean")), metrics={}
        )
    with pytest.raises(TrackingError, match="0123456789abcdef0123456789abcdef"):
        registry.register(adapter, name, "0123456789abcdef" * 2, evidence=EvidenceTable(evidence(GOOD)), metrics={})
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
