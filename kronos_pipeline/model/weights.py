"""Read and write `config.json` and `model.safetensors` in upstream's format, with strict checks."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kronos_pipeline.artifacts import check_file, write_json
from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.checksums import LARGEST_SETTINGS, file_hash, read_json_bytes, text_hash
from kronos_pipeline.errors import ArtifactError, ModelError, enumerate_some
from kronos_pipeline.model.devices import FREE_MEMORY, explain_out_of_memory
from kronos_pipeline.model.modules import move
from kronos_pipeline.model.upstream import Kronos, KronosTokenizer

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_SIZES = (
    *("d_in", "d_model", "ff_dim", "n_heads", "n_layers", "n_enc_layers", "n_dec_layers"),
    *("s1_bits", "s2_bits", "group_size"),
)
_LARGEST_SIZE = {"s1_bits": 32, "s2_bits": 32, "group_size": 16}
"""Bits; published models have 10, 10 and 4. A group has a table of 2 to their power rows, which is in no file."""


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
        parts += [json.dumps(_read_config(folder), sort_keys=True), checked_hash(folder / WEIGHTS)]
    return text_hash(*parts)


def checked_hash(path: Path) -> str:
    """Return the SHA-256 of a file of weights, after a comparison with the folder's manifest.

    Raises:
        ModelError: the file is missing, or is not as it was written.
    """
    try:
        check_file(path)
        return file_hash(path)
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); fetch or make it again.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        ModelError: it is missing, damaged, differs from its folder's manifest, or holds NaN or infinity.
    """
    try:
        check_file(path)
        tensors = safetensors.torch.load_file(path, device="cpu")
    except FileNotFoundError as error:
        raise _missing(path) from error
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged or unreadable ({error}); fetch or make it again.") from error
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ModelError(f"{path} holds NaN or infinity in {enumerate_some(broken)}; fetch or make it again.")
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, atomically and sorted, so that equal tensors give equal bytes."""
    content = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    write_file(path, lambda handle: handle.write(safetensors.torch.save(content, {"format": "pt"})))


class _CheckedFile:
    """File for `torch.save` that keeps the error of a write."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.flush = file, file.flush
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise


def save_torch(value: object, file: IO[bytes]) -> None:
    """Write a value as `torch.save` does.

    Raises:
        OSError: the file cannot be written; PyTorch would replace it by a RuntimeError that does not name the cause.
    """
    checked: Any = _CheckedFile(file)  # torch asks for less than its type hints say
    try:
        torch.save(value, checked)
    except RuntimeError as error:
        raise (checked.error or error) from None


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
    write_json(folder / CONFIG, dict(config), checksum=False)
    write_tensors(folder / WEIGHTS, module.state_dict())


def _load(folder: Path, architecture: Any, role: str) -> Any:
    config = _read_config(folder)
    wanted = _parameters(architecture)
    if missing := [name for name in wanted if name not in config]:
        others = sorted(config.keys() - set(wanted))
        hint = f"; it has {enumerate_some(others)}, which no {role} has" if others else ""
        raise ModelError(f"{folder / CONFIG} describes no Kronos {role}: it lacks {enumerate_some(missing)}{hint}.")
    tensors = read_tensors(folder / WEIGHTS)
    _check_size(folder, config, tensors)
    # The module draws random weights before they are replaced; the caller's generator must not change.
    with torch.random.fork_rng(devices=[]):
        try:
            module = architecture(**{name: config[name] for name in wanted})
        except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
            raise ModelError(f"{folder / CONFIG} describes a {role} that cannot be built: {error}.") from error
    check_tensors(folder / WEIGHTS, tensors, module.state_dict())
    module.load_state_dict(tensors)
    return module.eval()


def _check_size(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse settings of a far larger model than that of the tensors, before memory is taken for the model.

    Raises:
        ModelError: a size is no whole number, or the sizes are too large.
    """
    sizes: dict[str, int] = dict.fromkeys(_SIZES, 0)
    for name in sizes.keys() & config.keys():
        if type(config[name]) is not int or not 0 < config[name] <= _LARGEST_SIZE.get(name, 2**31):
            raise ModelError(f"{folder / CONFIG}: {name} is no possible size (found {config[name]!r:.40}).")
        sizes[name] = config[name]
    width, bits = sizes["d_model"], (sizes["s1_bits"], sizes["s2_bits"])
    if sizes["n_layers"]:  # a predictor, with an attention after its blocks and two tables of tokens
        blocks, tokens, others = sizes["n_layers"], 2 * sum(2**number for number in bits), 4 * width**2
    else:  # a tokenizer, with a block less in each of its two stacks
        blocks, tokens, others = sizes["n_enc_layers"] + sizes["n_dec_layers"] - 2, sum(bits), width * sizes["d_in"]
    expected = blocks * (4 * width**2 + 3 * width * sizes["ff_dim"]) + width * tokens + others
    if expected > 2 * (held := sum(tensor.numel() for tensor in tensors.values())):
        raise ModelError(
            f"{folder / CONFIG} describes a model of {expected:,} parameters or more, and {WEIGHTS} beside it holds "
            f"{held:,}; fetch or make both again."
        )


def check_folder(folder: Path) -> None:
    """Check that a folder has the files of a model.

    Raises:
        ModelError: a file is missing.
    """
    for path in (folder / CONFIG, folder / WEIGHTS):
        if not path.is_file():
            raise _missing(path)


def _missing(path: Path) -> ModelError:
    return ModelError(f"{path} is missing: a model folder holds {CONFIG} and {WEIGHTS}.")


def _put(module: nn.Module, folder: Path, device: torch.device) -> nn.Module:
    with explain_out_of_memory(f"Loading {folder}", device, FREE_MEMORY):
        return move(module, device)


def _parameters(architecture: Any) -> list[str]:
    return [name for name in inspect.signature(architecture.__init__).parameters if name != "self"]


def _read_config(folder: Path) -> dict[str, Any]:
    check_folder(folder)
    return read_settings(folder / CONFIG)


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a model or an adapter, and compare the file with its hash in the folder's manifest.

    Raises:
        ModelError: the file is damaged or too large, or is not as it was written.
    """
    try:
        check_file(path)
        return read_json_bytes(path, LARGEST_SETTINGS)
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); fetch or make it again.") from error
