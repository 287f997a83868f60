"""Base models on the Hugging Face Hub: at their pinned commits, from the cache first, answered in seconds."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from kronos_pipeline.base_models import NANO, BaseModelSource, WeightsSource
from kronos_pipeline.errors import ModelError
from kronos_pipeline.model.weights import CONFIG, WEIGHTS

_SECONDS = 5.0


def find_folders(source: BaseModelSource) -> tuple[Path, Path]:
    """The folders with the predictor's and the tokenizer's files; those on the Hub are fetched unless they are cached.

    Raises:
        ModelError: the Hub has no such model, or cannot be reached, which is told within seconds.
    """
    return _find(source.predictor, source), _find(source.tokenizer, source)


def _find(weights: WeightsSource, source: BaseModelSource) -> Path:
    if weights.folder is not None:
        return weights.folder
    files = [_cached(weights, file) or _fetch(weights, file, source) for file in (CONFIG, WEIGHTS)]
    return files[0].parent


def _cached(weights: WeightsSource, file: str) -> Path | None:
    """The file in the Hub's cache. A commit never changes, so the network has nothing to add."""
    try:
        return Path(hf_hub_download(str(weights.repository), file, revision=weights.revision, local_files_only=True))
    except EntryNotFoundError:
        return None


def _fetch(weights: WeightsSource, file: str, source: BaseModelSource) -> Path:
    try:
        # The download itself would retry for minutes where there is no network; one question tells.
        get_hf_file_metadata(hf_hub_url(str(weights.repository), file, revision=weights.revision), timeout=_SECONDS)
        return Path(hf_hub_download(str(weights.repository), file, revision=weights.revision))
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        raise ModelError(
            f"{constants.ENDPOINT} has no {file} in {weights.repository} at commit {weights.revision}, or does not "
            f"show it to you: check the name, or log in with `hf auth login`. {NANO} needs no Hub."
        ) from error
    except Exception as error:  # the Hub library changes its HTTP client, and so its errors, between versions
        commands = " && ".join(
            f"hf download {part.repository} {CONFIG} {WEIGHTS} --revision {part.revision}"
            for part in (source.predictor, source.tokenizer)
            if part.repository
        )
        raise ModelError(
            f"{weights.name} is not in this machine's cache, and {constants.ENDPOINT} does not give it "
            f"({_reason(error)}). Three ways out: --model-name with a local folder that holds predictor/ and "
            f"tokenizer/; fetch it beforehand, where there is a network, with `{commands}`; or --model-name {NANO}, "
            "the embedded demo model."
        ) from error


def _reason(error: BaseException) -> str:
    """The first sentence of what lies at the bottom, without the library's advice."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    return re.split(r"\.?\s*\n|\.\s", str(error).strip() or type(error).__name__, maxsplit=1)[0].rstrip(".")
