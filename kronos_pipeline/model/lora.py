"""LoRA adapters (Hu et al., 2021, arXiv 2106.09685) by PEFT: add them, save them, and load them on their own base.

LoRA adds a trained map of low rank r to a frozen linear map W x; B starts at zero, so training starts at the base:

    x --+--- W (frozen, out x in) ------------------+--> W x + (alpha / r) B A x
        +--- A (r x in) --- B (out x r) * alpha / r -+

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors` in PEFT's format, `adapter.pt` with the
same tensors, and, if the base was trained too, that base in `base/`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError
from torch import Tensor, nn

from kronos_pipeline.artifacts import MANIFEST, write_json
from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.checksums import text_hash
from kronos_pipeline.errors import ModelError, SettingsError, enumerate_some
from kronos_pipeline.model.devices import exact_products
from kronos_pipeline.model.loading import KronosModel, check_base, load_checkpoint
from kronos_pipeline.model.losses import teacher_forced_logits
from kronos_pipeline.model.modules import copy_sharing_weights, eval_mode, unwrap_peft
from kronos_pipeline.model.weights import (
    check_tensors,
    checked_hash,
    load_predictor,
    read_settings,
    read_tensors,
    save_predictor,
    save_torch,
    weights_hash,
    write_tensors,
)

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel  # takes a second to import, and checkpoints do not need it

CONFIG, WEIGHTS, TORCH_FILE, BASE = "adapter_config.json", "adapter_model.safetensors", "adapter.pt", "base"
_OWN_SETTINGS = {"target_modules", "base_model_name_or_path", "revision", "inference_mode", "peft_version"}
"""Settings of `_settings` that are checked already, or of no effect."""


def add_lora(predictor: nn.Module, r: int, alpha: float, dropout: float, targets: Sequence[str]) -> PeftModel:
    """Add LoRA matrices to a predictor and freeze its other weights.

    Args:
        predictor: upstream's predictor; it is changed in place, so pass a copy if it is used elsewhere.
        r: rank of the matrices.
        alpha: scale; the update is multiplied by alpha / r.
        dropout: dropout on the input of the matrices, in training.
        targets: names of linear or embedding modules, or ends of dotted names: `q_proj` matches every attention, the
            s2 head's cross-attention included; `self_attn.q_proj` excludes the latter.

    Raises:
        SettingsError: a target matches no module.
    """
    from peft import LoraConfig, get_peft_model

    names = [name for name, part in predictor.named_modules() if type(part) in (nn.Linear, nn.Embedding)]
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unknown:
        known = sorted({name.rpartition(".")[2] for name in names})
        raise SettingsError(
            f"--adapter-targets: the model has no linear module {', '.join(unknown)}; choose from {', '.join(known)}."
        )
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it by r, so it may be a fraction
        lora_dropout=dropout,
        target_modules=sorted(set(targets)),
    )
    return get_peft_model(predictor, config)


def save_adapter(folder: Path, peft_model: PeftModel, base: KronosModel, *, with_base: bool) -> None:
    """Write an adapter, load it again, and compare the logits.

    The caller writes the folder's manifest, with `base_identity` of the base under `base_model`.

    Args:
        folder: target folder; it is created.
        peft_model: from `add_lora`, trained, on the base's device.
        base: the base model of the adapter.
        with_base: whether to write the base too, as it was trained with the adapter.

    Raises:
        ModelError: the loaded adapter gives other logits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in sorted(_adapter_tensors(peft_model).items())}
    write_tensors(folder / WEIGHTS, tensors)
    write_file(folder / TORCH_FILE, lambda handle: save_torch(tensors, handle))
    write_json(folder / CONFIG, _settings(peft_model, base), checksum=False)
    if with_base:
        save_predictor(folder / BASE, copy.deepcopy(peft_model).unload())
    _check_same(folder, peft_model, _assemble(folder, base))


def load_adapter(folder: Path, base: KronosModel) -> KronosModel:
    """Load an adapter on its base model; the adapter shares the tensors of the base's predictor.

    Raises:
        ModelError: a file is missing or damaged, the tensors do not fit the base, the adapter was trained on another
            base model, or its manifest names no base model.
    """
    if not is_adapter(folder):
        raise ModelError(f"{folder} holds no adapter: {CONFIG} is missing; train it, or name another folder.")
    if not check_base(folder, base):
        raise ModelError(
            f"{folder}: no {MANIFEST} says which base model the adapter was trained on, so it may give nonsense on "
            f"{base.source.name}; train it again."
        )
    predictor = _assemble(folder, base).requires_grad_(False)
    return replace(base, predictor=predictor, weights_hash=adapter_hash(folder, base.weights_hash))


def is_adapter(folder: Path) -> bool:
    """Return whether a folder of trained weights is an adapter, and not a checkpoint."""
    return (folder / CONFIG).is_file()


def load_trained(folder: Path, base: KronosModel) -> KronosModel:
    """Load the adapter or the checkpoint in a folder on its base model.

    Raises:
        ModelError: it was trained on another base model, or is damaged.
    """
    return load_adapter(folder, base) if is_adapter(folder) else load_checkpoint(folder, base)


def adapter_hash(folder: Path, base_hash: str) -> str:
    """Return the `weights_hash` of an adapter, without loading it, for a base model of the given hash."""
    trained_base = [weights_hash(folder / BASE)] if (folder / BASE).is_dir() else []
    return text_hash(base_hash, checked_hash(folder / WEIGHTS), *trained_base)


def _assemble(folder: Path, base: KronosModel) -> PeftModel:
    """Build the adapter in a folder on the trained base in the folder, or else on the tensors of `base`'s predictor."""
    from peft import get_peft_model, set_peft_model_state_dict

    trained_base = folder / BASE
    predictor = (
        load_predictor(trained_base, base.device) if trained_base.is_dir() else copy_sharing_weights(base.predictor)
    )
    tensors = read_tensors(folder / WEIGHTS)
    config = _read_lora_config(folder / CONFIG, tensors)
    try:
        with torch.random.fork_rng(devices=[]):  # PEFT draws random matrices before they are replaced
            peft_model: PeftModel = get_peft_model(predictor, config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{folder / CONFIG} does not fit {base.source.name} or is damaged: {error}") from error
    check_tensors(folder / WEIGHTS, tensors, _adapter_tensors(peft_model))
    set_peft_model_state_dict(peft_model, tensors)
    peft_model.eval()
    return peft_model


def _read_lora_config(path: Path, tensors: Mapping[str, Tensor]) -> LoraConfig:
    """Read the settings that `add_lora` sets, and refuse any other and any that costs more than the tensors.

    PEFT takes a text as a regular expression, imports modules by name and copies layers, as its settings ask.

    Raises:
        ModelError: a setting is missing, of another kind or not used by this project.
    """
    from peft import LoraConfig

    content = read_settings(path)
    try:
        own = _LoraSettings.model_validate(content)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
        raise ModelError(f"{path} is of no adapter of this project ({wrong[0]}); train it again.") from error
    if own.r > (largest := max((size for value in tensors.values() for size in value.shape), default=0)):
        raise ModelError(f"{path}: r is {own.r:,}, and no tensor of the adapter has more than {largest:,} rows.")
    config = LoraConfig(**own.model_dump(exclude={"peft_type"}), inference_mode=True)
    defaults: dict[str, Any] = vars(config)
    foreign = [name for name, value in content.items() if value and value != defaults.get(name)]
    if foreign := [name for name in foreign if name not in _OWN_SETTINGS]:
        raise ModelError(
            f"{path} sets {enumerate_some(foreign)}, which no adapter of this project does; train it again."
        )
    return config


class _LoraSettings(BaseModel):
    """The settings of PEFT that `add_lora` sets."""

    model_config = ConfigDict(strict=True, extra="ignore")

    peft_type: Literal["LORA"]
    r: PositiveInt
    lora_alpha: FiniteFloat
    lora_dropout: float = Field(ge=0, lt=1)
    target_modules: list[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")]] = Field(min_length=1, max_length=1000)


def _adapter_tensors(peft_model: PeftModel) -> Mapping[str, Tensor]:
    from peft import get_peft_model_state_dict

    tensors: Mapping[str, Tensor] = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return tensors


def _settings(peft_model: PeftModel, base: KronosModel) -> dict[str, Any]:
    """Return PEFT's settings with the name of the base; sets are sorted, so that equal adapters give equal bytes."""
    settings = peft_model.peft_config["default"].to_dict()
    settings |= {
        "base_model_name_or_path": base.source.predictor.name,
        "revision": base.source.predictor.revision,
        "inference_mode": True,
    }
    return {
        key: sorted(value) if isinstance(value, set | frozenset) else value for key, value in sorted(settings.items())
    }


def _check_same(folder: Path, trained: PeftModel, loaded: PeftModel) -> None:
    """Compare the logits of two models on one device."""
    generator = torch.Generator().manual_seed(0)
    core = unwrap_peft(trained)
    device = core.head.proj_s1.weight.device
    s1, s2 = (torch.randint(0, 2**bits, (2, 12), generator=generator) for bits in (core.s1_bits, core.s2_bits))
    tokens = s1.to(device), s2.to(device), torch.randint(0, 7, (2, 12, 5), generator=generator).to(device)

    def logits(model: PeftModel) -> Tensor:
        with eval_mode(model), torch.no_grad(), exact_products():
            return torch.cat(teacher_forced_logits(model, *tokens), dim=-1)

    before, after = logits(trained), logits(loaded)
    # Weights are equal and products are in float32, but a GPU's library may choose another order of sums.
    same = torch.equal(before, after) if device.type == "cpu" else torch.allclose(before, after, rtol=1e-4, atol=1e-4)
    if not same:
        raise ModelError(f"{folder}: the adapter gives other logits once it is loaded again; it is not kept.")
