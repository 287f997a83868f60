"""The base models that the project knows: names, Hub repositories, pinned revisions, context lengths, pre-training.

No torch here: the data layer needs a model's context to cut windows. `kronos_pipeline.model` loads what is named here.
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
class Pretraining:
    """What is known of the bars that a base model has learned from.

    Attributes:
        told: what it has learned from, to be read after the model's name.
        unseen_from: no bar from this time on, a file's own, is among them; None where no bar of a market is.
    """

    told: str
    unseen_from: datetime | None


@dataclass(frozen=True)
class BaseModelSource:
    """A base model before it is loaded: its two sets of weights, its context, and what it has seen.

    Attributes:
        name: what tables, manifests and plots call it.
        predictor: where the predictor's weights come from.
        tokenizer: where the tokenizer's weights come from.
        context: the number of bars that the predictor attends to.
        demo: True for the embedded demo model, which is no forecaster of real markets.
        pretraining: what it has learned from; None where nobody says.
    """

    name: str
    predictor: WeightsSource
    tokenizer: WeightsSource
    context: int
    demo: bool = False
    pretraining: Pretraining | None = None

    @property
    def label(self) -> str:
        """The name for tables and plots, which says so where it is the embedded demo model."""
        return f"{self.name} (embedded demo model)" if self.demo else self.name

    def contamination(self, first_holdout: datetime) -> str | None:
        """What to say of a holdout that the model may have met in its pre-training, or None where it has not.

        Every table, plot, manifest and tag of numbers on such a holdout carries this sentence.

        Args:
            first_holdout: time of the holdout's first bar, in the file's own local time.
        """
        if self.pretraining is None:
            return f"not known to be unseen in pre-training: nobody says which bars {self.name} has learned from"
        clean = self.pretraining.unseen_from
        if clean is None or first_holdout >= clean:
            return None
        return (
            f"may have been seen in pre-training: {self.name} {self.pretraining.told}, and the holdout begins on "
            f"{first_holdout:%Y-%m-%d}"
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
_PARTNERS = {
    "NeoQuasar/Kronos-mini": ("NeoQuasar/Kronos-Tokenizer-2k", 2048),
    "NeoQuasar/Kronos-small": ("NeoQuasar/Kronos-Tokenizer-base", DEFAULT_CONTEXT),
    "NeoQuasar/Kronos-base": ("NeoQuasar/Kronos-Tokenizer-base", DEFAULT_CONTEXT),
}
"""Each predictor's tokenizer and context in bars."""
_SHAPE = ("s1_bits", "s2_bits", "n_layers", "d_model", "n_heads", "ff_dim")
_SHAPES = {
    "NeoQuasar/Kronos-mini": [10, 10, 4, 256, 4, 512],
    "NeoQuasar/Kronos-small": [10, 10, 8, 512, 8, 1024],
    "NeoQuasar/Kronos-base": [10, 10, 12, 832, 16, 2048],
}
"""What each published predictor's config.json says; a local folder of that shape is a copy of it, or a fine-tune."""
_PUBLISHED = Pretraining("has learned from market bars up to May 2024", datetime(2024, 6, 1))
"""Trained on bars up to February 2024, validated on March to May 2024: their author, upstream issue 204."""
_SIMULATED = Pretraining("has learned from simulated bars alone", None)
_PINNED = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


def find_base_model(model_name: str, tokenizer_name: str | None = None) -> BaseModelSource:
    """Look up a base model by the name that a user gave.

    Args:
        model_name: `kronos-nano`; a published name (`NeoQuasar/Kronos-small`, or `Kronos-small`); a Hub repository with
            a pinned commit (`someone/model@<40 hex digits>`); or a local folder, which holds either `predictor/` and
            `tokenizer/`, or the predictor's `config.json` and `model.safetensors`. Case does not matter in known names.
        tokenizer_name: the same for the tokenizer; by default the one that belongs to the predictor.

    Raises:
        ModelError: the name is none of these, or the folder holds one of `predictor/` and `tokenizer/` alone.
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
        tokenizer, context = _PARTNERS.get(predictor.repository or "", (tokenizer, context))
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


def _local_pretraining(folder: Path) -> Pretraining | None:
    """What a predictor in a local folder has learned from: as its manifest says, else as its shape does."""
    manifest, config = _read(folder / "manifest.json"), _read(folder / "config.json")
    if str(manifest.get("data")).startswith("kronos_pipeline.data.simulate"):  # `kronos pretrain` made it
        return _SIMULATED
    base = _SIMULATED if manifest.get("demo") else None
    for published, shape in _SHAPES.items():
        if [config.get(name) for name in _SHAPE] == shape:
            base = Pretraining(f"has the shape of {published}, which {_PUBLISHED.told}", _PUBLISHED.unseen_from)
    if base is None or "seen_until" not in manifest:
        return base
    # It is a checkpoint of this project's, and has learned from bars that its own base has not.
    try:
        last = max(datetime.fromisoformat(time) for time in manifest["seen_until"].values())
    except (AttributeError, TypeError, ValueError):
        return None
    if base.unseen_from and last < base.unseen_from:
        return base
    return Pretraining(f"was fine-tuned on bars up to {last:%Y-%m-%d}", last + timedelta(microseconds=1))


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none to read: whoever needs the file itself says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
