"""Parsers of settings, manifests, the ledger and adapters, on any input: a value, or a sentence of the project.

`make fuzz` looks for new examples for longer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kronos_pipeline.artifacts import ArtifactLayout, check_folder, read_json, read_manifest, write_parquet
from kronos_pipeline.checksums import LARGEST_SETTINGS
from kronos_pipeline.config import KronosTrainingConfig, Recipe
from kronos_pipeline.errors import KronosError, ModelError
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.model.lora import _read_lora_config
from kronos_pipeline.model.weights import WEIGHTS, load_predictor

pytestmark = pytest.mark.slow

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""Settings of properties whose examples share a folder."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["1e999", "\0", "../x", "CON"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
MANIFEST: dict[str, Any] = {
    "artifact": "adapters/AAPL",
    "key": "k",
    "base_model": {"name": "kronos-nano", "weights_hash": "0", "label": "kronos-nano", "revision": None},
    "data": {"AAPL": "0"},
    "seen_until": {"AAPL": "2024-01-01T00:00:00"},
    "config": {"lookback": 16},
    "training": {"steps": 1},
    "files": {"adapter.pt": "0"},
    "mlflow_run": None,
    "code_version": "1",
    "contamination": None,
    "context": 64,
}
ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4.0,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj"],
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "modules_to_save": None,
}
PREDICTOR: dict[str, Any] = {
    **dict.fromkeys(("s1_bits", "s2_bits"), 4),
    **{"n_layers": 1, "d_model": 8, "n_heads": 2, "ff_dim": 8, "learn_te": True},
    **dict.fromkeys(("ffn_dropout_p", "attn_dropout_p", "resid_dropout_p", "token_dropout_p"), 0.0),
}


@contextmanager
def value_or_sentence(*names: str) -> Iterator[None]:
    """Accept an error of the project or of the settings that names one of some files; any other error escapes."""
    text = names[0]
    try:
        yield
    except (KronosError, ValidationError) as error:
        text = str(error)
    assert any(name in text for name in names)


def changed(content: dict[str, Any], values: st.SearchStrategy[Any] = VALUES) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with some entries of `content` replaced, and sometimes others added."""
    names = st.one_of(st.sampled_from(sorted(content)), st.text(max_size=10))
    return st.dictionaries(names, values, max_size=4).map(lambda changes: {**content, **changes})


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Return bytes with some places overwritten or cut off."""
    places = st.lists(st.tuples(st.integers(0, len(content) - 1), st.binary(min_size=1, max_size=8)), max_size=5)

    def damage(drawn: tuple[list[tuple[int, bytes]], int]) -> bytes:
        text = bytearray(content)
        for place, new in drawn[0]:
            text[place : place + len(new)] = new
        return bytes(text[: len(text) - drawn[1]])

    return st.tuples(places, st.sampled_from([0, 0, 0, 1, 9, len(content) // 2])).map(damage)


@given(
    st.dictionaries(
        st.one_of(st.sampled_from([*KronosTrainingConfig.model_fields, "from"]), st.text(max_size=10)),
        VALUES,
        max_size=5,
    )
)
@example({"model_name": "\0"})
@example({"model_name": "x" * 5000})
@example({"adapter_name": "../x"})
@example({"lookback": 10**400})
@example({"learning_rate": math.nan})
def test_any_settings_are_valid_or_refused_in_a_sentence(arguments: dict[str, Any]) -> None:
    with value_or_sentence(""):
        config = KronosTrainingConfig.model_validate(arguments)
        assert Recipe.model_validate(config.recipe.model_dump(mode="json")) == config.recipe
        assert config.used_lookback >= 2


@given(changed(MANIFEST))
@example({**MANIFEST, "data": "all of them"})
@example({**MANIFEST, "seen_until": {"AAPL": "yesterday"}})
@SHARED
def test_any_manifest_has_entries_of_their_types_or_is_refused(tmp_path: Path, manifest: dict[str, Any]) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    with value_or_sentence("manifest.json"):
        read = read_json(path)
        check_folder(tmp_path)
        if "kind" not in read:
            assert isinstance(read["base_model"].get("name", ""), str)
            assert all(pd.Timestamp(until) for until in read["seen_until"].values() if until)
            assert all(isinstance(value, str) for value in read["data"].values())


@given(st.one_of(st.binary(max_size=60), damaged(json.dumps(MANIFEST).encode())))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"9" * 10_000)
@example(b'{"checksum": "kronos-sha256:')
@SHARED
def test_any_bytes_are_an_object_or_refused_with_the_file_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evaluation.json"
    path.write_bytes(content)
    with value_or_sentence("evaluation.json"):
        assert isinstance(read_json(path), dict)


@given(changed(ADAPTER))
@example({**ADAPTER, "target_modules": "(a+)+$"})
@example({**ADAPTER, "target_modules": ["(a+)+$"]})
@example({**ADAPTER, "rank_pattern": {"(a+)+$": 3}})
@example({**ADAPTER, "auto_mapping": {"parent_library": "os"}})
@SHARED
def test_any_adapter_settings_are_plain_names_and_numbers_or_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(content))
    with value_or_sentence("adapter_config.json"):
        config = _read_lora_config(path, {"a": torch.zeros(2, 8)})
        assert config.r <= 8
        assert all(name.replace(".", "").replace("_", "").isalnum() for name in config.target_modules or ())
        assert not config.rank_pattern
        assert not config.modules_to_save


@given(changed(PREDICTOR, st.one_of(VALUES, st.integers(1, 10**6), st.integers(1, 10**18))))
@example({**PREDICTOR, "d_model": 10**5})
@example({**PREDICTOR, "ff_dim": 10**9})
@SHARED
def test_any_model_settings_fit_their_tensors_or_are_refused(tiny_weights: Path, content: dict[str, Any]) -> None:
    (tiny_weights / "config.json").write_text(json.dumps(content))
    with value_or_sentence("config.json", WEIGHTS):
        load_predictor(tiny_weights, torch.device("cpu"))


@given(st.data())
@SHARED
def test_any_bytes_in_the_ledger_leave_its_other_files_readable(tmp_path: Path, ledger_file: bytes, data: Any) -> None:
    folder = tmp_path / "ledger" / "month=2026-03"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "20260302T230114000000-1f2e3d4c.parquet").write_bytes(data.draw(damaged(ledger_file)))
    (folder / "20260303T230114000000-1f2e3d4c.parquet").write_bytes(ledger_file)
    read = ledger.read(ArtifactLayout(tmp_path))
    assert len(read.rows) == 1
    assert set(read.rows["unique_id"]) == {"AAPL"}


@given(st.data())
@SHARED
def test_any_bytes_of_a_table_are_read_or_refused(tmp_path: Path, ledger_file: bytes, data: Any) -> None:
    path = tmp_path / "AAPL.parquet"
    path.write_bytes(data.draw(damaged(ledger_file.replace(b"kronos-sha256:", b"no---checksum:"))))
    with value_or_sentence("AAPL.parquet"):
        assert isinstance(read_manifest(path), dict)


@pytest.fixture(scope="module")
def ledger_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of the ledger with one forecast of one bar."""
    row: dict[str, Any] = {name: [1.0] for name in ledger.COLUMNS}
    row |= {name: [pd.Timestamp("2026-03-02")] for name in ("cutoff", "ds")} | {"step": [1], "replay": [False]}
    row |= {"issued": [pd.Timestamp("2026-03-02 23:01", tz="UTC")], "unique_id": ["AAPL"]}
    row |= {name: ["x"] for name in ("model", "version", "recipe", "bars_hash")}
    frame = pd.DataFrame(row)
    table = pa.Table.from_pandas(frame, schema=ledger.SCHEMA, preserve_index=False)
    path = tmp_path_factory.mktemp("ledger") / "one.parquet"
    write_parquet(path, table.to_pandas(), {"code_version": "1", "rows_hash": ledger.rows_hash(table)})
    return path.read_bytes()


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from kronos_pipeline.model.upstream import Kronos
    from kronos_pipeline.model.weights import save_predictor

    folder = tmp_path_factory.mktemp("tiny")
    save_predictor(folder, Kronos(**PREDICTOR))
    return folder


def test_settings_of_a_model_have_a_largest_size(tiny_weights: Path) -> None:
    (tiny_weights / "config.json").write_text(json.dumps(PREDICTOR) + " " * LARGEST_SETTINGS)
    with pytest.raises(ModelError, match=r"config\.json cannot be read \(.* are the limit\)"):
        load_predictor(tiny_weights, torch.device("cpu"))
