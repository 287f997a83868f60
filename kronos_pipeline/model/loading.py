"""Load base models and checkpoints: from folders or the Hugging Face Hub, strictly, to a device.

Base models on the Hub are loaded at their pinned commits, from the local cache if possible; an unreachable Hub raises
an error within seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from kronos_pipeline.artifacts import MANIFEST, read_json
from kronos_pipeline.base_models import NANO, BaseModelSource, WeightsSource, find_base_model
from kronos_pipeline.checksums import text_hash
from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ArtifactError, ModelError, first_sentence
from kronos_pipeline.model.devices import pick_device
from kronos_pipeline.model.modules import unwrap_peft
from kronos_pipeline.model.weights import (
    CONFIG,
    WEIGHTS,
    check_folder,
    load_predictor,
    load_tokenizer,
    save_predictor,
    weights_hash,
)

_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class KronosModel:
    """A predictor and its tokenizer, ready to forecast.

    Attributes:
        predictor: upstream's predictor, or a PEFT model around one; in eval mode.
        tokenizer: upstream's tokenizer; in eval mode, without gradients.
        source: the base model, or the base model of an adapter or checkpoint.
        device: the device of both.
        weights_hash: SHA-256 of the weights and settings of the predictor and of the tokenizer.
    """

    predictor: Any
    tokenizer: Any
    source: BaseModelSource
    device: torch.device
    weights_hash: str

    @property
    def context(self) -> int:
        """Number of bars that the predictor attends to."""
        return self.source.context


def load_base(source: BaseModelSource, device: torch.device) -> KronosModel:
    """Load a base model, from its local folders or from the Hub at its pinned revisions.

    Raises:
        ModelError: a file is missing, damaged or cannot be fetched, or predictor and tokenizer do not fit each other.
    """
    predictor_folder, tokenizer_folder = find_folders(source)
    model = KronosModel(
        predictor=load_predictor(predictor_folder, device),
        tokenizer=load_tokenizer(tokenizer_folder, device),
        source=source,
        device=device,
        weights_hash=weights_hash(predictor_folder, tokenizer_folder),
    )
    _check_vocabularies(model, f"{source.predictor.name} and {source.tokenizer.name}")
    return model


def load_recipe_base(recipe: Recipe, device: torch.device | None = None) -> KronosModel:
    """Load a recipe's base model to a device, by default the recipe's device.

    Raises:
        ModelError: see `load_base`.
        SettingsError: this machine lacks the device.
    """
    source = find_base_model(recipe.model_name, recipe.tokenizer_name)
    return load_base(source, pick_device(recipe.device) if device is None else device)


def base_identity(base: KronosModel) -> dict[str, Any]:
    """Return the entry `base_model` of the manifest of a checkpoint or an adapter on this base."""
    source = base.source
    return {
        "name": source.name,
        "label": source.label,
        "revision": source.predictor.revision,
        "tokenizer": source.tokenizer.name,
        "tokenizer_revision": source.tokenizer.revision,
        "weights_hash": base.weights_hash,
    }


def check_base(folder: Path, base: KronosModel) -> bool:
    """Return whether a folder's manifest names a base model, and check that it is `base`.

    Raises:
        ModelError: it names another base model, or is damaged.
    """
    if not (folder / MANIFEST).is_file():
        return False
    try:
        manifest = read_json(folder / MANIFEST)
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    trained_on = manifest.get("base_model")
    if not isinstance(trained_on, dict) or "weights_hash" not in trained_on:
        return False
    if trained_on["weights_hash"] != base.weights_hash:
        expected, actual = str(trained_on["weights_hash"])[:12], base.weights_hash[:12]
        raise ModelError(
            f"{folder} was trained on another base model: {trained_on.get('name')} (weights {expected}), not "
            f"{base.source.name} (weights {actual}). Set --model-name to that model, or train again on this one."
        )
    return True


def save_checkpoint(folder: Path, predictor: Any) -> None:
    """Write a fully trained predictor as upstream does: `config.json` and `model.safetensors`.

    The files are read back and compared with the predictor.

    Raises:
        ModelError: the files differ from the predictor.
    """
    save_predictor(folder, predictor)
    saved = load_predictor(folder, torch.device("cpu")).state_dict()
    if changed := [name for name, value in predictor.state_dict().items() if not torch.equal(value.cpu(), saved[name])]:
        raise ModelError(f"{folder}: {', '.join(changed[:5])} came back changed from the disk; check it and run again.")


def load_checkpoint(folder: Path, base: KronosModel) -> KronosModel:
    """Load a fully trained predictor in place of the base model's predictor.

    Args:
        folder: contains `config.json` and `model.safetensors`.
        base: the base model of the training; its tokenizer is used.

    Raises:
        ModelError: a file is missing or damaged, or the checkpoint is of another base model.
    """
    check_base(folder, base)
    model = replace(
        base,
        predictor=load_predictor(folder, base.device),
        weights_hash=checkpoint_hash(folder, base.weights_hash),
    )
    _check_vocabularies(model, f"{folder} and {base.source.tokenizer.name}")
    return model


def checkpoint_hash(folder: Path, base_hash: str) -> str:
    """Return the `weights_hash` of a checkpoint, without loading it, for a base model of the given hash."""
    return text_hash(base_hash, weights_hash(folder))


def _check_vocabularies(model: KronosModel, names: str) -> None:
    predictor, tokenizer = unwrap_peft(model.predictor), model.tokenizer
    sizes = [(part.s1_bits, part.s2_bits) for part in (predictor, tokenizer)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"{names} do not belong together: the predictor has tokens of {sizes[0]} bits, the tokenizer of "
            f"{sizes[1]}. Choose the tokenizer that the predictor was trained with."
        )


def is_on_this_machine(source: BaseModelSource) -> bool:
    """Return whether a base model loads without a request to the Hub."""
    return all(
        weights.folder is not None or all(_cached(weights, file) for file in (CONFIG, WEIGHTS))
        for weights in (source.predictor, source.tokenizer)
    )


def find_folders(source: BaseModelSource) -> tuple[Path, Path]:
    """Return the folders of predictor and tokenizer; files on the Hub are fetched unless they are cached.

    Raises:
        ModelError: a local folder lacks a file, or the Hub has no such model or cannot be reached; raised within
            seconds.
    """
    for part in (source.predictor, source.tokenizer):
        if part.folder is not None:
            check_folder(part.folder)  # before a download for the other part
    return _find(source.predictor, source), _find(source.tokenizer, source)


def _find(weights: WeightsSource, source: BaseModelSource) -> Path:
    commands = " && ".join(download_command(part) for part in (source.predictor, source.tokenizer) if part.repository)
    ways_out = (
        "Three ways out: --model-name with a local folder that holds predictor/ and tokenizer/; fetch it beforehand, "
        f"where there is a network, with `{commands}`; or --model-name {NANO}, the embedded demo model."
    )
    return find_folder(weights, ways_out, f"{NANO} needs no Hub.")


def find_folder(weights: WeightsSource, ways_out: str, hint: str = "") -> Path:
    """Return the folder of a set of weights; files on the Hub are fetched unless they are cached.

    Args:
        weights: the source of the weights.
        ways_out: the end of the error's text if the Hub cannot be reached.
        hint: the end of the error's text if the Hub has no such weights.

    Raises:
        ModelError: the Hub has no such model, or cannot be reached; raised within seconds.
    """
    if weights.folder is not None:
        return weights.folder
    files = [_cached(weights, file) or _fetch(weights, file, ways_out, hint) for file in (CONFIG, WEIGHTS)]
    return files[0].parent


def download_command(weights: WeightsSource) -> str:
    """Return the command that fetches a Hub repository's weights into this machine's cache."""
    return f"hf download {weights.repository} {CONFIG} {WEIGHTS} --revision {weights.revision}"


def _cached(weights: WeightsSource, file: str) -> Path | None:
    """Return the file in the Hub's cache, if any. A commit never changes, so no request is needed."""
    try:
        return Path(hf_hub_download(str(weights.repository), file, revision=weights.revision, local_files_only=True))
    except EntryNotFoundError:
        return None


def _fetch(weights: WeightsSource, file: str, ways_out: str, hint: str) -> Path:
    try:
        # Without a network the download would retry for minutes; one request with a timeout shows it.
        get_hf_file_metadata(
            hf_hub_url(str(weights.repository), file, revision=weights.revision), timeout=_TIMEOUT_SECONDS
        )
        return Path(hf_hub_download(str(weights.repository), file, revision=weights.revision))
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        raise ModelError(
            f"{constants.ENDPOINT} has no {file} in {weights.repository} at commit {weights.revision}, or does not "
            f"show it to you: check the name, or log in with `hf auth login`. {hint}".rstrip()
        ) from error
    except Exception as error:  # the Hub library changes its HTTP client, and so its errors, between versions
        raise ModelError(
            f"{weights.name} is not in this machine's cache, and {constants.ENDPOINT} does not give it "
            f"({_reason(error)}). {ways_out}"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the reason of a failed download, without the library's advice."""
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else first_sentence(error)
