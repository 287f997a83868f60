"""The known pre-training period of base models, and the marks on holdouts that overlap it."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kronos_pipeline.base_models import NANO_FOLDER, find_base_model

MARK = "may have been seen in pre-training"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLEAN = datetime(2024, 6, 1)
"""The published models were trained up to February 2024 and validated on March to May 2024."""

SMALL_SHAPE = {"s1_bits": 10, "s2_bits": 10, "n_layers": 8, "d_model": 512, "n_heads": 8, "ff_dim": 1024}


def local(folder: Path, config: dict[str, Any], manifest: dict[str, Any] | None = None) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps({"context": 512, **manifest}))
    return str(folder)


@pytest.mark.parametrize(
    "name", ["NeoQuasar/Kronos-mini", "kronos-small", "NeoQuasar/Kronos-base", f"NeoQuasar/Kronos-small@{COMMIT}"]
)
def test_a_published_model_may_have_seen_what_lies_before_june_2024(name: str) -> None:
    source = find_base_model(name)
    for first in (datetime(2011, 1, 3), datetime(2024, 3, 1), CLEAN - timedelta(minutes=1)):
        message = source.contamination(first)
        assert message is not None
        assert MARK in message
        assert source.name in message
        assert f"{first:%Y-%m-%d}" in message
    assert source.contamination(CLEAN) is None
    assert source.contamination(datetime(2026, 1, 2, 9, 30)) is None


def test_simulated_bars_alone_give_no_doubt(tmp_path: Path) -> None:
    copy = shutil.copytree(NANO_FOLDER, tmp_path / "mine")  # as `kronos pretrain` writes it
    for name in ("kronos-nano", str(copy), str(copy / "predictor")):
        assert find_base_model(name).contamination(datetime(2011, 1, 3)) is None


@pytest.mark.parametrize("parts", [("predictor", "tokenizer"), ("",)], ids=["both parts", "the predictor alone"])
@pytest.mark.parametrize("dropout", [0.1, 0.25])
def test_a_local_copy_of_a_published_model_is_known_by_its_shape(
    tmp_path: Path, parts: tuple[str, ...], dropout: float
) -> None:
    for part in parts:
        local(tmp_path / "mine" / part, {**SMALL_SHAPE, "ffn_dropout_p": dropout})
    source = find_base_model(str(tmp_path / "mine"))
    message = source.contamination(datetime(2023, 5, 2))
    assert message is not None
    assert MARK in message
    assert "NeoQuasar/Kronos-small" in message
    assert source.contamination(CLEAN) is None


@pytest.mark.parametrize(
    ("published", "millions", "shape"),
    [
        ("NeoQuasar/Kronos-mini", 4.1, {"n_layers": 4, "d_model": 256, "n_heads": 4, "ff_dim": 512}),
        ("NeoQuasar/Kronos-small", 24.7, {}),
        ("NeoQuasar/Kronos-base", 102.3, {"n_layers": 12, "d_model": 832, "n_heads": 16, "ff_dim": 2048}),
    ],
)
def test_the_shapes_have_the_numbers_of_parameters_that_are_published(
    tmp_path: Path, published: str, millions: float, shape: dict[str, int]
) -> None:
    import torch
    from tiny_models import tiny_predictor

    config = SMALL_SHAPE | shape
    with torch.device("meta"):
        layers: dict[str, Any] = {name: config[name] for name in config if not name.endswith("bits")}
        predictor = tiny_predictor(bits=10, **layers)
    assert round(sum(parameter.numel() for parameter in predictor.parameters()) / 1e6, 1) == millions
    message = find_base_model(local(tmp_path / "mine", config)).contamination(datetime(2023, 5, 2))
    assert message is not None
    assert published in message


@pytest.mark.parametrize(
    ("config", "manifest"),
    [
        ({}, None),
        ({**SMALL_SHAPE, "n_layers": 9}, None),
        ({**SMALL_SHAPE, "n_heads": [8]}, None),
        (SMALL_SHAPE, {"seen_until": {"AAPL": None}}),
        (SMALL_SHAPE, {"seen_until": "yesterday"}),
    ],
)
def test_of_another_folder_the_training_bars_are_unknown(
    tmp_path: Path, config: dict[str, Any], manifest: dict[str, Any] | None
) -> None:
    message = find_base_model(local(tmp_path / "mine", config, manifest)).contamination(datetime(2026, 1, 2))
    assert message is not None
    assert message.startswith("not known to be unseen in pre-training")


def test_of_another_hub_repository_the_training_bars_are_unknown() -> None:
    message = find_base_model(f"someone/my-kronos@{COMMIT}").contamination(datetime(2026, 1, 2))
    assert message is not None
    assert f"the training bars of someone/my-kronos@{COMMIT} are unknown" in message


@pytest.mark.parametrize(
    ("config", "manifest", "until", "last_marked"),
    [
        (SMALL_SHAPE, {}, datetime(2025, 3, 7), datetime(2025, 3, 7)),
        (SMALL_SHAPE, {}, datetime(2020, 3, 6), CLEAN - timedelta(minutes=1)),
        ({}, {"demo": True}, datetime(2020, 3, 6, 15, 30), datetime(2020, 3, 6, 15, 30)),
    ],
    ids=["later than the published data", "earlier than the published data", "on the embedded model"],
)
def test_a_checkpoint_of_ones_own_as_a_base_has_seen_what_it_was_trained_on(
    tmp_path: Path, config: dict[str, Any], manifest: dict[str, Any], until: datetime, last_marked: datetime
) -> None:
    seen_until = {"AAPL": "2019-01-02T00:00:00", "MSFT": until.isoformat()}
    source = find_base_model(local(tmp_path / "mine", config, {**manifest, "seen_until": seen_until}))
    for first in (datetime(2019, 1, 2), last_marked):
        assert MARK in str(source.contamination(first))
    assert source.contamination(last_marked + timedelta(minutes=1)) is None
