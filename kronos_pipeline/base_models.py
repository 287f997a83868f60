"""Catalogue of base models: names, Hub repositories, pinned revisions, context lengths, pre-training data.

This module is free of torch, as the data layer needs a model's context to cut windows. `kronos_pipeline.model` loads
the models.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from kronos_pipeline.errors import ModelError

NANO = "kronos-nano"
NANO_FOLDER = Path(__file__).resolve().parent.parent / "external" / "kronos" / "nano"
DEFAULT_CONTEXT = 512
"""Context in bars of a local folder without a manifest; the default of upstream's `KronosPredictor`."""


@dataclass(frozen=True)
class WeightsSource:
    """Source of a set of weights: a Hub repository at a pinned revision, or a local folder.

    Attributes:
        name: the name as the user wrote it, or the published name.
        repository: the Hub repository, or None for a local folder.
        revision: the pinned commit of the Hub repository, or None for a local folder.
        folder: the local folder with config.json and model.safetensors, or None for a Hub repository.
    """

    name: str
    repository: str | None = None
    revision: str | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Pretraining:
    """The known training data of a base model.

    Attributes:
        description: the training data, as a predicate that follows the model's name.
        unseen_from: the training data has no bar from this local time on; None if it has no market bars.
    """

    description: str
    unseen_from: datetime | None


@dataclass(frozen=True)
class BaseModelSource:
    """A base model before loading: its two sets of weights, its context and its training data.

    Attributes:
        name: name in tables, manifests and plots.
        predictor: source of the predictor's weights.
        tokenizer: source of the tokenizer's weights.
        context: context length of the predictor in bars.
        demo: True for the embedded demo model, which cannot forecast real markets.
        pretraining: the training data; None if unknown.
    """

    name: str
    predictor: WeightsSource
    tokenizer: WeightsSource
    context: int
    demo: bool = False
    pretraining: Pretraining | None = None

    @property
    def label(self) -> str:
        """The name for tables and plots, with a mark for the embedded demo model."""
        return f"{self.name} (embedded demo model)" if self.demo else self.name

    def contamination(self, first_holdout: datetime) -> str | None:
        """Return a warning about a holdout that the model may have seen in pre-training, or None if it has not.

        Every table, plot, manifest and tag with scores on such a holdout carries this warning.

        Args:
            first_holdout: time of the holdout's first bar, in the file's local time.
        """
        if self.pretraining is None:
            return f"not known to be unseen in pre-training: the training bars of {self.name} are unknown"
        clean = self.pretraining.unseen_from
        if clean is None or first_holdout >= clean:
            return None
        return (
            f"may have been seen in pre-training: {self.name} {self.pretraining.description}, and the holdout begins "
            f"on {first_holdout:%Y-%m-%d}"
        )


_TOKENIZERS = {
    "NeoQuasar/Kronos-Tokenizer-2k": "26966d0035065a0cae0ebad7af8ece35bc1fb51c",
    "NeoQuasar/Kronos-Tokenizer-base": "0e0117387f39004a9016484a186a908917e22426",
}
_PREDICTORS = {
    "NeoQuasar/Kronos-mini": "f4e68697d9d5aed55cef5c96aabc3376bcad9f81",
    "NeoQuasar/Kronos-small": "901c26c1332695a2a8f243eb2f37243a37bea320",
    "NeoQuasar/Kronos-base": "2b554741eca47781b64468546e77fef3e85130e6",
}
_TOKENIZER_AND_CONTEXT = {
    "NeoQuasar/Kronos-mini": ("NeoQuasar/Kronos-Tokenizer-2k", 2048),
    "NeoQuasar/Kronos-small": ("NeoQuasar/Kronos-Tokenizer-base", DEFAULT_CONTEXT),
    "NeoQuasar/Kronos-base": ("NeoQuasar/Kronos-Tokenizer-base", DEFAULT_CONTEXT),
}
"""Tokenizer and context in bars of each predictor."""
_SHAPE = ("s1_bits", "s2_bits", "n_layers", "d_model", "n_heads", "ff_dim")
_SHAPES = {
    "NeoQuasar/Kronos-mini": [10, 10, 4, 256, 4, 512],
    "NeoQuasar/Kronos-small": [10, 10, 8, 512, 8, 1024],
    "NeoQuasar/Kronos-base": [10, 10, 12, 832, 16, 2048],
}
"""Values of `_SHAPE` in each published predictor's config.json; a local folder of that shape is a copy or fine-tune."""
_PUBLISHED = Pretraining("has learned from market bars up to May 2024", datetime(2024, 6, 1))
"""Trained on bars up to February 2024, validated on March to May 2024: their author, upstream issue 204."""
_SIMULATED = Pretraining("has learned from simulated bars alone", None)
_LARGEST_MANIFEST = 2**26
"""Bytes. The manifest of a checkpoint over 5,000 tickers has 1 MB."""
PINNED = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
"""A Hub repository at a commit: owner/name@<40 hex digits>."""


def find_base_model(model_name: str, tokenizer_name: str | None = None) -> BaseModelSource:
    """Look up a base model by name.

    Args:
        model_name: `kronos-nano`; a published name (`NeoQuasar/Kronos-small`, or `Kronos-small`); a Hub repository with
            a pinned commit (`someone/model@<40 hex digits>`); or a local folder with either `predictor/` and
            `tokenizer/`, or the predictor's `config.json` and `model.safetensors`. Known names are case-insensitive.
        tokenizer_name: the same for the tokenizer; by default the predictor's tokenizer.

    Raises:
        ModelError: the name is unknown, or the folder has only one of `predictor/` and `tokenizer/`.
    """
    demo = model_name.lower() == NANO
    folder = NANO_FOLDER if demo else _folder(model_name)
    tokenizer, context = "NeoQuasar/Kronos-Tokenizer-base", DEFAULT_CONTEXT
    parts = {part for part in ("predictor", "tokenizer") if (folder / part).is_dir()}
    if len(parts) == 1 and not (folder / "config.json").is_file():
        (missing,) = {"predictor", "tokenizer"} - parts
        raise ModelError(
            f"{model_name} holds {parts.pop()}/ and no {missing}/: put that beside it, or name the predictor's own "
            "folder as --model-name and the tokenizer's as --tokenizer-name."
        )
    if demo or len(parts) == 2:
        predictor = WeightsSource(NANO if demo else model_name, folder=folder / "predictor")
        tokenizer, context = NANO if demo else model_name, _local_context(folder / "predictor")
    elif folder.is_dir():
        predictor, context = WeightsSource(model_name, folder=folder), _local_context(folder)
    else:
        predictor = _on_hub(model_name, _PREDICTORS)
        tokenizer, context = _TOKENIZER_AND_CONTEXT.get(predictor.repository or "", (tokenizer, context))
    published = _PUBLISHED if predictor.repository in _PREDICTORS else None
    return BaseModelSource(
        name=predictor.name,
        predictor=predictor,
        tokenizer=_tokenizer(tokenizer_name or tokenizer),
        context=context,
        demo=demo,
        pretraining=_local_pretraining(predictor.folder) if predictor.folder else published,
    )


def _folder(name: str) -> Path:
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - leaves the ~ of an unknown user, where Path raises
    try:
        folder.is_dir()
    except OSError as error:
        raise ModelError(f"{name!r:.60} is no model, and no folder that can be read ({error.strerror}).") from error
    return folder


def _tokenizer(name: str) -> WeightsSource:
    if name.lower() == NANO:
        return WeightsSource(NANO, folder=NANO_FOLDER / "tokenizer")
    folder = _folder(name)
    if not folder.is_dir():
        return _on_hub(name, _TOKENIZERS)
    return WeightsSource(name, folder=folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)


def _on_hub(name: str, published: dict[str, str]) -> WeightsSource:
    for known, revision in published.items():
        if name.lower() in (known.lower(), known.split("/")[1].lower()):
            return WeightsSource(known, repository=known, revision=revision)
    if pinned := PINNED.fullmatch(name):
        return WeightsSource(name, repository=pinned["repository"], revision=pinned["revision"])
    kind = "model" if published is _PREDICTORS else "tokenizer"
    raise ModelError(
        f"No {kind} is called {name!r}, and no folder of that name exists. Use {NANO}, one of {', '.join(published)}, "
        "a local folder, or a Hub repository with its commit: owner/name@<40 hex digits>."
    )


def _local_context(folder: Path) -> int:
    """Return the context in bars from the folder's manifest; upstream's config.json has no such entry."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return DEFAULT_CONTEXT
    try:
        return int(_read_object(manifest)["context"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(f"{manifest}: no readable entry 'context' (bars); repair the file or remove it.") from error


def _local_pretraining(folder: Path) -> Pretraining | None:
    """Return the training data of a predictor in a local folder, from its manifest or else from its shape."""
    manifest, config = _read_object(folder / "manifest.json"), _read_object(folder / "config.json")
    if str(manifest.get("data")).startswith("kronos_pipeline.data.simulate"):  # `kronos pretrain` made it
        return _SIMULATED
    base = _SIMULATED if manifest.get("demo") else None
    for published, shape in _SHAPES.items():
        if [config.get(name) for name in _SHAPE] == shape:
            base = Pretraining(f"has the shape of {published}, which {_PUBLISHED.description}", _PUBLISHED.unseen_from)
    if base is None or "seen_until" not in manifest:
        return base
    # The folder is a checkpoint of this project, trained on bars that its base model has not seen.
    try:
        last = max(datetime.fromisoformat(time) for time in manifest["seen_until"].values())
    except (AttributeError, TypeError, ValueError):
        return None
    if base.unseen_from and last < base.unseen_from:
        return base
    return Pretraining(f"was fine-tuned on bars up to {last:%Y-%m-%d}", last + timedelta(microseconds=1))


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty object for an invalid file, as the loader reports the error."""
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
