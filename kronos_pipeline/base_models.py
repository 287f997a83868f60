"""The base models that the project knows: names, Hub repositories, pinned revisions, context lengths.

No torch here: the data layer needs a model's context to cut windows. `kronos_pipeline.model` loads what is named here.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from kronos_pipeline.errors import ModelError

NANO = "kronos-nano"
NANO_FOLDER = Path(__file__).resolve().parent.parent / "external" / "kronos" / "nano"
DEFAULT_CONTEXT = 512
"""Bars; what upstream's `KronosPredictor` assumes, for a local folder that does not say."""


@dataclass(frozen=True)
class WeightsSource:
    """Where one set of weights comes from: a Hub repository at a pinned revision, or a local folder.

    Attributes:
        name: as the user wrote it, or the published name.
        repository: the Hub repository, or None for a local folder.
        revision: the pinned commit of the Hub repository, or None for a local folder.
        folder: the local folder with config.json and model.safetensors, or None for a Hub repository.
    """

    name: str
    repository: str | None = None
    revision: str | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class BaseModelSource:
    """A base model before it is loaded: its two sets of weights and its context.

    Attributes:
        name: what tables, manifests and plots call it.
        predictor: where the predictor's weights come from.
        tokenizer: where the tokenizer's weights come from.
        context: the number of bars that the predictor attends to.
        demo: True for the embedded demo model, which is no forecaster of real markets.
    """

    name: str
    predictor: WeightsSource
    tokenizer: WeightsSource
    context: int
    demo: bool = False

    @property
    def label(self) -> str:
        """The name for tables and plots, which says so where it is the embedded demo model."""
        return f"{self.name} (embedded demo model)" if self.demo else self.name


_TOKENIZERS = {
    "NeoQuasar/Kronos-Tokenizer-2k": "26966d0035065a0cae0ebad7af8ece35bc1fb51c",
    "NeoQuasar/Kronos-Tokenizer-base": "0e0117387f39004a9016484a186a908917e22426",
}
_PREDICTORS = {
    "NeoQuasar/Kronos-mini": "f4e68697d9d5aed55cef5c96aabc3376bcad9f81",
    "NeoQuasar/Kronos-small": "901c26c1332695a2a8f243eb2f37243a37bea320",
    "NeoQuasar/Kronos-base": "2b554741eca47781b64468546e77fef3e85130e6",
}
_PARTNERS = {
    "NeoQuasar/Kronos-mini": ("NeoQuasar/Kronos-Tokenizer-2k", 2048),
    "NeoQuasar/Kronos-small": ("NeoQuasar/Kronos-Tokenizer-base", DEFAULT_CONTEXT),
    "NeoQuasar/Kronos-base": ("NeoQuasar/Kronos-Tokenizer-base", DEFAULT_CONTEXT),
}
"""Each predictor's tokenizer and context in bars."""
_PINNED = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


def find_base_model(model_name: str, tokenizer_name: str | None = None) -> BaseModelSource:
    """Look up a base model by the name that a user gave.

    Args:
        model_name: `kronos-nano`; a published name (`NeoQuasar/Kronos-small`, or `Kronos-small`); a Hub repository with
            a pinned commit (`someone/model@<40 hex digits>`); or a local folder, which holds either `predictor/` and
            `tokenizer/`, or the predictor's `config.json` and `model.safetensors`. Case does not matter in known names.
        tokenizer_name: the same for the tokenizer; by default the one that belongs to the predictor.

    Raises:
        ModelError: the name is none of these.
    """
    demo = model_name.lower() == NANO
    folder = NANO_FOLDER if demo else _folder(model_name)
    tokenizer, context = "NeoQuasar/Kronos-Tokenizer-base", DEFAULT_CONTEXT
    if demo or ((folder / "predictor").is_dir() and (folder / "tokenizer").is_dir()):
        predictor = WeightsSource(NANO if demo else model_name, folder=folder / "predictor")
        tokenizer, context = NANO if demo else model_name, _local_context(folder / "predictor")
    elif folder.is_dir():
        predictor, context = WeightsSource(model_name, folder=folder), _local_context(folder)
    else:
        predictor = _on_hub(model_name, _PREDICTORS)
        tokenizer, context = _PARTNERS.get(predictor.repository or "", (tokenizer, context))
    return BaseModelSource(
        name=predictor.name,
        predictor=predictor,
        tokenizer=_tokenizer(tokenizer_name or tokenizer),
        context=context,
        demo=demo,
    )


def _folder(name: str) -> Path:
    return Path(os.path.expanduser(name))  # noqa: PTH111 - leaves the ~ of an unknown user, where Path raises


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
    if pinned := _PINNED.fullmatch(name):
        return WeightsSource(name, repository=pinned["repository"], revision=pinned["revision"])
    what = "model" if published is _PREDICTORS else "tokenizer"
    raise ModelError(
        f"No {what} is called {name!r}, and no folder of that name exists. Use {NANO}, one of {', '.join(published)}, "
        "a local folder, or a Hub repository with its commit: owner/name@<40 hex digits>."
    )


def _local_context(folder: Path) -> int:
    """Bars, from the folder's manifest; upstream's config.json does not hold it."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return DEFAULT_CONTEXT
    try:
        return int(json.loads(manifest.read_text(encoding="utf-8"))["context"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{manifest}: no readable entry 'context' (bars); repair the file or remove it.") from error
