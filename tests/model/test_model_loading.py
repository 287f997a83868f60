"""Loaded weights equal saved weights, in eval mode; a mismatch raises an error that names the file and the tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_models import save_tiny_base, tiny_predictor, tiny_tokenizer

from kronos_pipeline.artifacts import write_manifest
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.errors import ModelError, SettingsError
from kronos_pipeline.model.devices import pick_device
from kronos_pipeline.model.loading import (
    KronosModel,
    base_identity,
    find_folders,
    load_base,
    load_checkpoint,
    save_checkpoint,
)
from kronos_pipeline.model.upstream import Kronos, KronosTokenizer
from kronos_pipeline.model.weights import save_tokenizer

CPU = torch.device("cpu")


def load(folder: Path) -> KronosModel:
    return load_base(find_base_model(str(folder)), CPU)


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """Return a copy of a base model for a test to damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def change_config(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_a_base_model_is_loaded_as_it_was_saved_and_in_eval_mode(tiny_base: Path) -> None:
    model = load(tiny_base)
    for loaded, original in ((model.predictor, tiny_predictor()), (model.tokenizer, tiny_tokenizer())):
        assert not any(part.training for part in loaded.modules())
        expected = original.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.tokenizer.parameters())
    assert all(parameter.requires_grad for parameter in model.predictor.parameters())
    assert model.context == 512
    assert model.device == CPU


def test_loading_leaves_the_random_generator_alone(tiny_base: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(tiny_base)
    assert torch.equal(torch.rand(3), expected)


def test_the_hash_is_of_weights_and_settings_not_of_layout(folder: Path) -> None:
    before = load(folder).weights_hash
    change_config(folder / "predictor" / "config.json", dict)  # writes it without the line breaks
    assert load(folder).weights_hash == before
    change_config(folder / "predictor" / "config.json", lambda config: config.update(ffn_dropout_p=0.5))
    assert load(folder).weights_hash != before


@pytest.mark.parametrize("part", ["predictor", "tokenizer"])
def test_other_weights_have_another_hash(folder: Path, part: str) -> None:
    before = load(folder).weights_hash
    change_tensors(folder / part / "model.safetensors", lambda tensors: next(iter(tensors.values())).add_(1))
    assert load(folder).weights_hash != before


@pytest.mark.parametrize("part", ["predictor", "tokenizer"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, part: str, file: str) -> None:
    (folder / part / file).unlink()
    with pytest.raises(ModelError, match=rf"{part}/{file} is missing"):
        load(folder)


def test_a_folder_without_a_model_is_told_before_a_tokenizer_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing: a model folder holds"):
        find_folders(find_base_model(str(tmp_path)))


def test_missing_unexpected_and_misshapen_tensors_are_all_named(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["norm.weight"]
        tensors["transformer.9.norm1.weight"] = torch.ones(16)
        tensors["head.proj_s1.bias"] = torch.ones(8)

    path = folder / "predictor" / "model.safetensors"
    change_tensors(path, change)
    with pytest.raises(ModelError) as caught:
        load(folder)
    text = str(caught.value)
    assert str(path) in text
    assert "1 missing: norm.weight;" in text
    assert "1 unexpected: transformer.9.norm1.weight;" in text
    assert "1 of another shape: head.proj_s1.bias (8,) in place of (16,)" in text


def test_a_long_list_of_tensors_is_cut_and_counted(folder: Path) -> None:
    change_tensors(folder / "predictor" / "model.safetensors", lambda tensors: [tensors.popitem() for _ in range(9)])
    with pytest.raises(ModelError, match=r"9 missing: .* and 4 more"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 7, 60, 5000])
def test_a_truncated_file_is_damaged(folder: Path, keep: int) -> None:
    path = folder / "predictor" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"predictor/model\.safetensors is damaged"):
        load(folder)


def test_weights_that_are_not_finite_are_named(folder: Path) -> None:
    path = folder / "tokenizer" / "model.safetensors"
    change_tensors(path, lambda tensors: tensors["head.bias"].fill_(float("nan")))
    with pytest.raises(ModelError, match=r"model.safetensors holds NaN or infinity in head\.bias"):
        load(folder)


@pytest.mark.parametrize("manifest_in", [".", "predictor"])
def test_a_flipped_bit_is_found_where_a_manifest_has_the_hash(folder: Path, manifest_in: str) -> None:
    write_manifest(folder / manifest_in, {"context": 64})
    load(folder)
    path = folder / "predictor" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model.safetensors was edited or damaged"):
        load(folder)


def test_settings_of_another_kind_of_model_are_told_apart(folder: Path) -> None:
    shutil.copy(folder / "tokenizer" / "config.json", folder / "predictor" / "config.json")
    with pytest.raises(ModelError, match=r"describes no Kronos predictor: it lacks n_layers, .*; it has beta"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("d_model"), "lacks d_model"),
        (lambda config: config.update(d_model="wide"), "d_model is no possible size"),
        (lambda config: config.update(n_layers=10**6), "describes a model of .* parameters or more"),
        (lambda config: config.update(d_model=10**9), "describes a model of .* parameters or more"),
        (lambda config: config.update(s1_bits=10**9), "s1_bits is no possible size"),
        (lambda config: config.update(ffn_dropout_p=2.0), "cannot be built"),
        (lambda config: config.update(s1_bits=-1), "s1_bits is no possible size"),
        (lambda config: config.update(n_heads=4), "of another shape: .*inv_freq"),
        (lambda config: config.update(n_layers=3), "missing: transformer.2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_config(folder / "predictor" / "config.json", change)
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\udcff"])
def test_settings_that_are_no_json_object_are_damaged(folder: Path, text: str) -> None:
    path = folder / "predictor" / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"config\.json"):
        load(folder)


def test_a_tokenizer_of_another_vocabulary_is_refused(folder: Path) -> None:
    save_tokenizer(folder / "tokenizer", tiny_tokenizer(bits=6))
    with pytest.raises(ModelError, match=r"do not belong together.*\(4, 4\) bits.*\(6, 6\)"):
        load(folder)


def test_a_checkpoint_is_read_by_upstreams_own_loader(tmp_path: Path) -> None:
    predictor = tiny_predictor(seed=3)
    save_checkpoint(tmp_path / "checkpoint", predictor)
    upstream = Kronos.from_pretrained(str(tmp_path / "checkpoint"), strict=True)
    assert upstream.token_dropout_p == predictor.token_dropout_p
    assert all(torch.equal(value, upstream.state_dict()[name]) for name, value in predictor.state_dict().items())


def test_a_saved_tokenizer_is_read_by_upstreams_own_loader(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(seed=3, beta=0.25, zeta=0.5)
    save_tokenizer(tmp_path / "tokenizer", tokenizer)
    upstream = KronosTokenizer.from_pretrained(str(tmp_path / "tokenizer"), strict=True)
    bars = torch.randn(2, 9, 6)
    assert torch.equal(torch.stack(upstream.encode(bars, half=True)), torch.stack(tokenizer.encode(bars, half=True)))
    assert (upstream.tokenizer.bsq.beta, upstream.tokenizer.bsq.zeta) == (0.25, 0.5)


@pytest.mark.parametrize("part", ["predictor", "tokenizer"])
def test_settings_are_written_as_upstream_writes_them(tiny_base: Path, tmp_path: Path, part: str) -> None:
    model = load(tiny_base)
    if part == "predictor":
        save_checkpoint(tmp_path, model.predictor)
    else:
        save_tokenizer(tmp_path, model.tokenizer)
    written, upstreams = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tiny_base / part))
    assert written == upstreams


def test_equal_weights_are_written_as_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_checkpoint(tmp_path / name, tiny_predictor())
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_a_checkpoint_takes_the_predictors_place(tiny_base: Path, tmp_path: Path) -> None:
    base = load(tiny_base)
    save_checkpoint(tmp_path / "checkpoint", tiny_predictor(seed=3))
    write_manifest(tmp_path / "checkpoint", {"base_model": base_identity(base)})
    model = load_checkpoint(tmp_path / "checkpoint", base)
    assert torch.equal(model.predictor.norm.weight, tiny_predictor(seed=3).norm.weight)
    assert torch.equal(model.predictor.head.proj_s1.weight, tiny_predictor(seed=3).head.proj_s1.weight)
    assert model.tokenizer is base.tokenizer
    assert model.weights_hash != base.weights_hash
    assert not model.predictor.training


def test_a_checkpoint_of_another_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    other = load(save_tiny_base(tmp_path / "other", seed=1))
    save_checkpoint(tmp_path / "checkpoint", tiny_predictor(seed=3))
    write_manifest(tmp_path / "checkpoint", {"base_model": base_identity(other)})
    base = load(tiny_base)
    with pytest.raises(ModelError) as caught:
        load_checkpoint(tmp_path / "checkpoint", base)
    for part in (other.source.name, other.weights_hash[:12], base.source.name, base.weights_hash[:12]):
        assert part in str(caught.value)


def test_a_damaged_manifest_is_told(tiny_base: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_predictor())
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ModelError, match=r"manifest\.json cannot be read"):
        load_checkpoint(tmp_path, load(tiny_base))


def test_the_identity_names_both_parts_and_holds_the_hash(tiny_base: Path) -> None:
    base = load(tiny_base)
    identity = base_identity(base)
    assert identity["name"] == str(tiny_base)
    assert identity["weights_hash"] == base.weights_hash
    assert json.loads(json.dumps(identity)) == identity


def test_auto_takes_a_device_that_works() -> None:
    torch.ones(1, device=pick_device("auto"))
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda:99", "warp", "cpu:x"])
def test_a_device_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(SettingsError, match=f"--device {name}"):
        pick_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_gpu_is_told() -> None:
    with pytest.raises(SettingsError, match="finds 0 CUDA devices"):
        pick_device("cuda")
