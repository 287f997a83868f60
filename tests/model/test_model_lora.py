"""An adapter loads on its own base model, gives the logits of its training, and is in PEFT's format."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from tiny_models import save_tiny_base

from kronos_pipeline.artifacts import read_json, write_manifest
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.errors import ModelError, SettingsError
from kronos_pipeline.model.loading import KronosModel, base_identity, load_base
from kronos_pipeline.model.lora import add_lora, load_adapter, save_adapter
from kronos_pipeline.model.losses import teacher_forced_logits
from kronos_pipeline.model.upstream import Kronos

TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "w1", "w2", "w3"]
LAYERS_WITH_LORA = 2 * (4 + 3) + 4  # attention and feed-forward of two blocks, and the cross-attention


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> KronosModel:
    return load_base(find_base_model(str(tiny_base)), torch.device("cpu"))


def adapted(base: KronosModel, *, r: int = 4, targets: list[str] = TARGETS, train_base: bool = False) -> Any:
    """Return a PEFT model with changed matrices and, on request, a changed base."""
    torch.manual_seed(2)
    model = add_lora(copy.deepcopy(base.predictor), r=r, alpha=8.0, dropout=0.1, targets=targets)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or train_base:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def saved(folder: Path, base: KronosModel, **changes: Any) -> Any:
    """Write an adapter as the trainer does."""
    model = adapted(base, **changes)
    save_adapter(folder, model, base, with_base=changes.get("train_base", False))
    write_manifest(folder, {"base_model": base_identity(base)})
    return model.eval()


def logits(predictor: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    s1, s2 = (torch.randint(0, 16, (3, 15), generator=generator) for _ in range(2))
    stamps = torch.randint(0, 7, (3, 15, 5), generator=generator)
    with torch.no_grad():
        return torch.cat(teacher_forced_logits(predictor, s1, s2, stamps), dim=-1)


def test_at_the_start_it_is_the_base_and_only_its_matrices_train(base: KronosModel) -> None:
    model = add_lora(copy.deepcopy(base.predictor), r=4, alpha=8.0, dropout=0.0, targets=TARGETS)
    assert torch.equal(logits(model.eval()), logits(base.predictor))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * LAYERS_WITH_LORA
    assert all("lora_" in name for name in trained)


def test_a_dotted_target_leaves_the_cross_attention_out(base: KronosModel) -> None:
    model = add_lora(copy.deepcopy(base.predictor), r=2, alpha=4.0, dropout=0.0, targets=["self_attn.q_proj"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2
    assert not any("cross_attn" in name for name in trained)


@pytest.mark.parametrize("target", ["query", "proj", "norm1", "self_attn", ""])
def test_a_target_that_is_no_linear_module_is_told_with_those_that_are(base: KronosModel, target: str) -> None:
    with pytest.raises(SettingsError, match=r"--adapter-targets.*choose from .*emb_s1.*q_proj.*w3") as caught:
        add_lora(copy.deepcopy(base.predictor), r=4, alpha=8.0, dropout=0.0, targets=["q_proj", target])
    assert f"module {target};" in str(caught.value)


def test_a_fractional_alpha_scales_the_update(base: KronosModel) -> None:
    model = add_lora(copy.deepcopy(base.predictor), r=4, alpha=1.5, dropout=0.0, targets=["w1"])
    assert model.transformer[0].ffn.w1.scaling["default"] == pytest.approx(1.5 / 4)


@pytest.mark.parametrize("train_base", [False, True], ids=["frozen base", "trained base"])
def test_what_is_loaded_gives_the_logits_that_were_saved(base: KronosModel, tmp_path: Path, train_base: bool) -> None:
    model = saved(tmp_path / "AAPL", base, train_base=train_base)
    loaded = load_adapter(tmp_path / "AAPL", base)
    assert torch.equal(logits(loaded.predictor), logits(model))
    assert not torch.allclose(logits(loaded.predictor), logits(base.predictor), atol=1e-2)
    assert not any(part.training for part in loaded.predictor.modules())
    assert not any(parameter.requires_grad for parameter in loaded.predictor.parameters())
    assert loaded.tokenizer is base.tokenizer
    assert loaded.weights_hash != base.weights_hash
    assert (tmp_path / "AAPL" / "base").exists() is train_base


@pytest.mark.parametrize("targets", [TARGETS, ["emb_s1", "proj_s2", "cross_attn.q_proj"]], ids=["default", "others"])
@pytest.mark.filterwarnings("error")
def test_plain_peft_on_upstreams_class_gives_the_same_logits(
    base: KronosModel, tiny_base: Path, tmp_path: Path, targets: list[str]
) -> None:
    saved(tmp_path / "AAPL", base, targets=targets)
    peft_model = peft.PeftModel.from_pretrained(
        Kronos.from_pretrained(str(tiny_base / "predictor")), str(tmp_path / "AAPL")
    )
    assert torch.equal(logits(peft_model.eval()), logits(load_adapter(tmp_path / "AAPL", base).predictor))


@pytest.mark.filterwarnings("error")
def test_plain_peft_on_a_trained_base_gives_the_same_logits(base: KronosModel, tmp_path: Path) -> None:
    saved(tmp_path / "AAPL", base, train_base=True)
    peft_model = peft.PeftModel.from_pretrained(
        Kronos.from_pretrained(str(tmp_path / "AAPL" / "base"), strict=True), str(tmp_path / "AAPL")
    )
    assert torch.equal(logits(peft_model.eval()), logits(load_adapter(tmp_path / "AAPL", base).predictor))


def test_the_torch_file_holds_the_same_tensors_and_no_code(base: KronosModel, tmp_path: Path) -> None:
    saved(tmp_path, base)
    by_torch = torch.load(tmp_path / "adapter.pt", weights_only=True)
    by_safetensors = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    assert by_torch.keys() == by_safetensors.keys()
    assert len(by_torch) == 2 * LAYERS_WITH_LORA
    assert all(torch.equal(value, by_safetensors[name]) for name, value in by_torch.items())


def test_equal_adapters_are_equal_bytes(base: KronosModel, tmp_path: Path) -> None:
    for name in ("one", "two"):
        saved(tmp_path / name, base)
    for file in ("adapter_config.json", "adapter_model.safetensors", "adapter.pt"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_settings_name_the_base_as_the_user_did(base: KronosModel, tiny_base: Path, tmp_path: Path) -> None:
    saved(tmp_path, base)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tiny_base)
    assert settings["inference_mode"] is True
    assert settings["target_modules"] == sorted(TARGETS)
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)


def test_saving_and_loading_leave_the_base_and_the_random_generator_alone(base: KronosModel, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in base.predictor.state_dict().items()}
    model = adapted(base)
    state = torch.get_rng_state()
    save_adapter(tmp_path, model, base, with_base=False)
    write_manifest(tmp_path, {"base_model": base_identity(base)})
    load_adapter(tmp_path, base)
    assert torch.equal(torch.get_rng_state(), state)
    after = base.predictor.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_many_adapters_take_the_memory_of_one_base(base: KronosModel, tmp_path: Path) -> None:
    saved(tmp_path, base)
    first, second = (load_adapter(tmp_path, base).predictor for _ in range(2))
    base_pointers = {tensor.data_ptr() for tensor in base.predictor.parameters()}
    for loaded in (first, second):
        apart = [name for name, tensor in loaded.named_parameters() if tensor.data_ptr() not in base_pointers]
        assert apart
        assert all("lora_" in name for name in apart)
    assert all(tensor.requires_grad for tensor in base.predictor.parameters()), "the base can still be trained"


def test_a_model_still_in_training_is_saved_and_stays_so(base: KronosModel, tmp_path: Path) -> None:
    model = adapted(base).train()
    save_adapter(tmp_path, model, base, with_base=False)
    assert all(part.training for part in model.modules())


def test_a_trained_base_that_is_not_saved_with_it_is_noticed(base: KronosModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="other logits"):
        save_adapter(tmp_path, adapted(base, train_base=True), base, with_base=False)


def test_another_base_is_refused_with_both_names(base: KronosModel, tmp_path: Path) -> None:
    saved(tmp_path / "AAPL", base)
    other = load_base(find_base_model(str(save_tiny_base(tmp_path / "other", seed=1))), torch.device("cpu"))
    with pytest.raises(ModelError, match="trained on another base model") as caught:
        load_adapter(tmp_path / "AAPL", other)
    for part in (base.source.name, base.weights_hash[:12], other.source.name, other.weights_hash[:12]):
        assert part in str(caught.value)


@pytest.mark.parametrize("manifest", [None, "{}", '{"base_model": {"name": "x"}}'])
def test_an_adapter_that_does_not_say_its_base_is_refused(
    base: KronosModel, tmp_path: Path, manifest: str | None
) -> None:
    save_adapter(tmp_path, adapted(base), base, with_base=False)
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ModelError, match="says which base model"):
        load_adapter(tmp_path, base)


def test_no_folder_is_no_adapter(base: KronosModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no adapter"):
        load_adapter(tmp_path / "nowhere", base)


def test_missing_tensors_file_is_named(base: KronosModel, tmp_path: Path) -> None:
    saved(tmp_path, base)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        load_adapter(tmp_path, base)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "base/model.safetensors"])
@pytest.mark.parametrize("with_manifest", [True, False], ids=["hash known", "hash unknown"])
def test_damaged_tensors_are_told(base: KronosModel, tmp_path: Path, file: str, with_manifest: bool) -> None:
    saved(tmp_path, base, train_base=True)
    if not with_manifest:
        (tmp_path / "manifest.json").write_text(json.dumps({"base_model": base_identity(base)}))
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match=rf"{file} (is|was edited or) damaged"):
        load_adapter(tmp_path, base)


def change_settings(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))
    manifest = read_json(folder / "manifest.json")
    write_manifest(folder, {"base_model": manifest["base_model"]})  # as if the adapter had been trained so


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda settings: settings.update(r=8), "of another shape"),
        (lambda settings: settings["target_modules"].remove("w1"), "unexpected"),
        (lambda settings: settings["target_modules"].append("fusion_proj"), "2 missing"),
        (lambda settings: settings.update(target_modules=["nothing"]), "adapter_config.json does not fit"),
        (lambda settings: settings.update(target_modules="(.*)*q_proj"), "is of no adapter of this project.*list"),
        (lambda settings: settings.update(target_modules=["(q|q)*_proj"]), "is of no adapter of this project"),
        (lambda settings: settings.update(rank_pattern={"(q|q)*$": 9}), "sets rank_pattern, which no adapter"),
        (lambda settings: settings.update(layer_replication=[[0, 10**6]]), "sets layer_replication, which no adapter"),
        (lambda settings: settings.update(r=10**9), "r is 1,000,000,000, and no tensor"),
        (lambda settings: settings.update(peft_type="PROPHET"), "is of no adapter of this project"),
        (lambda settings: settings.pop("peft_type"), "is of no adapter of this project"),
    ],
)
def test_settings_that_do_not_fit_the_tensors_are_refused(
    base: KronosModel, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    saved(tmp_path, base)
    change_settings(tmp_path, change)
    with pytest.raises(ModelError, match=message):
        load_adapter(tmp_path, base)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_settings_that_are_no_json_object_are_told(base: KronosModel, tmp_path: Path, text: str) -> None:
    saved(tmp_path, base)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        load_adapter(tmp_path, base)


def test_an_adapter_of_a_larger_model_is_refused(base: KronosModel, tmp_path: Path) -> None:
    saved(tmp_path / "AAPL", base)
    path = tmp_path / "AAPL" / "adapter_model.safetensors"
    wider = {
        name: torch.zeros(*(2 * size for size in value.shape))
        for name, value in safetensors.torch.load_file(path).items()
    }
    safetensors.torch.save_file(wider, path)
    (tmp_path / "AAPL" / "manifest.json").write_text(json.dumps({"base_model": base_identity(base)}))
    with pytest.raises(ModelError, match=rf"{2 * LAYERS_WITH_LORA} of another shape"):
        load_adapter(tmp_path / "AAPL", base)


def test_an_adapter_is_not_taken_for_one_on_another_adapter(base: KronosModel, tmp_path: Path) -> None:
    saved(tmp_path / "AAPL", base)
    shutil.copytree(tmp_path / "AAPL", tmp_path / "MSFT")
    with pytest.raises(ModelError, match="another base model"):
        load_adapter(tmp_path / "MSFT", load_adapter(tmp_path / "AAPL", base))
