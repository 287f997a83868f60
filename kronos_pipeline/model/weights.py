"""Read and write `config.json` and `model.safetensors` in upstream's format, with strict checks."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kronos_pipeline.artifacts import MANIFEST, file_hash, read_json, text_hash, write_file, write_json
from kronos_pipeline.errors import ArtifactError, ModelError, enumerate_some
from kronos_pipeline.model.devices import FREE_MEMORY, explain_out_of_memory
from kronos_pipeline.model.modules import move
from kronos_pipeline.model.upstream import Kronos, KronosTokenizer

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_predictor(folder: Path, predictor: Any) -> None:
    """Write a predictor's `config.json` and `model.safetensors`; upstream's own `from_pretrained` loads them."""
    config = {name: getattr(predictor, name) for name in _parameters(Kronos)}
    _save(folder, predictor, config)


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer's `config.json` and `model.safetensors`; upstream's own `from_pretrained` loads them."""
    homes = (tokenizer, tokenizer.tokenizer.bsq)
    config = {
        name: next(getattr(home, attribute) for home in homes if hasattr(home, attribute))
        for name in _parameters(KronosTokenizer)
        for attribute in (name.removeprefix("n_") if name.endswith("c_layers") else name,)
    }
    _save(folder, tokenizer, config)


def load_predictor(folder: Path, device: torch.device) -> Any:
    """Load a predictor strictly, in eval mode.

    Raises:
        ModelError: a file is missing or damaged, or holds other tensors than the architecture; or the device is full.
    """
    return _put(_load(folder, Kronos, "predictor"), folder, device)


def load_tokenizer(folder: Path, device: torch.device) -> Any:
    """Load a tokenizer strictly, in eval mode and without gradients; raises as `load_predictor` does."""
    return _put(_load(folder, KronosTokenizer, "tokenizer").requires_grad_(False), folder, device)


def weights_hash(*folders: Path) -> str:
    """Return a SHA-256 of the settings and weights in some folders, in order, however config.json is laid out."""
    parts: list[str] = []
    for folder in folders:
        parts += [json.dumps(_read_config(folder), sort_keys=True), file_hash(folder / WEIGHTS)]
    return text_hash(*parts)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        ModelError: it is missing, damaged, differs from its folder's manifest, or holds NaN or infinity.
    """
    try:
        _check_against_manifest(path)
        tensors = safetensors.torch.load_file(path, device="cpu")
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: a model folder holds {CONFIG} and {WEIGHTS}.") from error
    except (SafetensorError, OSError, ArtifactError) as error:
        raise ModelError(f"{path} is damaged or unreadable ({error}); fetch or make it again.") from error
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ModelError(f"{path} holds NaN or infinity in {enumerate_some(broken)}; fetch or make it again.")
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, atomically and sorted, so that equal tensors give equal bytes."""
    content = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    write_file(path, lambda handle: handle.write(safetensors.torch.save(content, {"format": "pt"})))


def check_tensors(path: Path, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare the tensors of a file with those of a model.

    Raises:
        ModelError: a tensor is missing, unexpected or of another shape; all of them are named or counted.
    """
    shapes = [
        f"{name} {tuple(actual[name].shape)} in place of {tuple(expected[name].shape)}"
        for name in sorted(actual.keys() & expected.keys())
        if actual[name].shape != expected[name].shape
    ]
    differences = {
        "missing": sorted(expected.keys() - actual.keys()),
        "unexpected": sorted(actual.keys() - expected.keys()),
        "of another shape": shapes,
    }
    message = "; ".join(
        f"{len(names)} {difference}: {enumerate_some(names)}" for difference, names in differences.items() if names
    )
    if message:
        raise ModelError(f"{path} does not fit the model that its folder's settings describe. Tensors {message}.")


def _save(folder: Path, module: nn.Module, config: Mapping[str, Any]) -> None:
    write_json(folder / CONFIG, dict(config))
    write_tensors(folder / WEIGHTS, module.state_dict())


def _load(folder: Path, architecture: Any, role: str) -> Any:
    config = _read_config(folder)
    wanted = _parameters(architecture)
    if missing := [name for name in wanted if name not in config]:
        others = sorted(config.keys() - set(wanted))
        hint = f"; it has {enumerate_some(others)}, which no {role} has" if others else ""
        raise ModelError(f"{folder / CONFIG} describes no Kronos {role}: it lacks {enumerate_some(missing)}{hint}.")
    tensors = read_tensors(folder / WEIGHTS)
    # The module draws random weights before they are replaced; the caller's generator must not change.
    with torch.random.fork_rng(devices=[]):
        try:
            module = architecture(**{name: config[name] for name in wanted})
        except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
            raise ModelError(f"{folder / CONFIG} describes a {role} that cannot be built: {error}.") from error
    check_tensors(folder / WEIGHTS, tensors, module.state_dict())
    module.load_state_dict(tensors)
    return module.eval()


def _put(module: nn.Module, folder: Path, device: torch.device) -> nn.Module:
    with explain_out_of_memory(f"Loading {folder}", device, FREE_MEMORY):
        return move(module, device)


def _parameters(architecture: Any) -> list[str]:
    return [name for name in inspect.signature(architecture.__init__).parameters if name != "self"]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{path} is missing: a model folder holds {CONFIG} and {WEIGHTS}.")
    try:
        return read_json(path)
    except ArtifactError as error:
        raise ModelError(str(error)) from error


def _check_against_manifest(path: Path) -> None:
    """Check a file against the hash in its folder's manifest, if the manifest has one."""
    for folder in list(path.parents)[:2]:
        manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
        recorded = manifest.get("files", {}).get(path.relative_to(folder).as_posix())
        if recorded is not None and recorded != file_hash(path):
            raise ArtifactError(f"its hash is not the one in {folder / MANIFEST}")
