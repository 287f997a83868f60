"""Adapters of `KronosPredictor`, by name: models, or folders of adapters that were trained on the given model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kronos_pipeline.artifacts import MANIFEST, read_json
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.errors import ArtifactError, ModelError
from kronos_pipeline.model.decode.memory import DeviceMover
from kronos_pipeline.model.devices import FREE_MEMORY, explain_out_of_memory
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.model.lora import load_adapter
from kronos_pipeline.model.predictor.dataframes import InputError


def load_adapters(
    adapters: Mapping[str, Any], model: nn.Module, tokenizer: nn.Module, move: DeviceMover
) -> dict[str, nn.Module]:
    """Load predictors by name, on the model's device.

    Args:
        adapters: PEFT models or other predictors, results of `load_adapter`, or folders of adapters.
        model: the base of the adapters in folders; they share its tensors.
        tokenizer: the tokenizer of the base.
        move: the mover that moved both to their device.

    Raises:
        InputError: a name is no text, or an adapter is neither a model nor a folder.
        ModelError: a folder is damaged, its adapter was trained on another model, or the device has no memory left.
    """
    if not isinstance(adapters, Mapping):
        raise InputError(f"adapters must map names to models or folders, not be of {type(adapters).__name__}.")
    device = next(model.parameters()).device
    bases: dict[tuple[str, str], KronosModel] = {}
    named: dict[str, nn.Module] = {}
    for name, adapter in adapters.items():
        if not isinstance(name, str):
            raise InputError(f"An adapter is called by a text, not {name!r}.")
        if isinstance(adapter, str | Path):
            folder = Path(adapter)
            key = _base_of(folder)
            if key not in bases:
                bases[key] = _check_base(folder, *key, model, tokenizer, device)
            with explain_out_of_memory(f"Loading the adapter {name}", device, FREE_MEMORY):
                named[name] = load_adapter(folder, bases[key]).predictor
        else:
            predictor = getattr(adapter, "predictor", adapter)
            if not isinstance(predictor, nn.Module):
                raise InputError(f"The adapter {name} must be a model or a folder, not {type(adapter).__name__}.")
            named[name] = move(predictor, f"The adapter {name}")
    return named


def _base_of(folder: Path) -> tuple[str, str]:
    """Return the names of the predictor and the tokenizer that an adapter was trained on, from its manifest."""
    try:
        made_on = read_json(folder / MANIFEST)["base_model"]
        return str(made_on["name"]), str(made_on["tokenizer"])
    except (ArtifactError, OSError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} holds no adapter of this project: no {MANIFEST} says on which base model it was trained. Give a "
            "PEFT model in place of the folder, or train it again."
        ) from error


def _check_base(
    folder: Path, name: str, tokenizer_name: str, model: nn.Module, tokenizer: nn.Module, device: torch.device
) -> KronosModel:
    """Check that the given model has the tensors of the base of that name, and return it as that base."""
    base = load_base(find_base_model(name, tokenizer_name), torch.device("cpu"))
    for part, own_part in ((base.predictor, model), (base.tokenizer, tokenizer)):
        expected, actual = part.state_dict(), own_part.state_dict()
        if expected.keys() != actual.keys() or any(
            not torch.equal(actual[key].cpu(), expected[key]) for key in expected
        ):
            raise ModelError(
                f"{folder} was trained on {name}, which is not the model given; load that one in its place."
            )
    return replace(base, predictor=model, tokenizer=tokenizer, device=device)
