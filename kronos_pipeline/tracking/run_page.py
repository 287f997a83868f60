"""Name, tags, description and datasets of a run, as MLflow's pages show them.

    adapter META 2026-11-28 15:56      name: kind, ticker, time
    kind ticker night command bars     tags, to group and search by
    META bars (43e86ee1d3b8)           dataset, with its hash and span

A night lasts from noon to noon, in the local time zone, so that the runs of one night's schedule have one tag.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from kronos_pipeline.checksums import text_hash
from kronos_pipeline.data.bars import FEATURES

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

    from kronos_pipeline.data.windows import WindowSet

KIND, TICKER, COMMAND, BARS = "kind", "ticker", "command", "bars"
NOTE = "mlflow.note.content"
"""Tag that MLflow shows as the description of a run or experiment."""
_SOURCE = "mlflow.source.name"
_HALF_DAY = timedelta(hours=12)
_MOST_DATASETS = 20
_DIGEST = 12


def run_name(kind: str, subject: str = "", now: datetime | None = None) -> str:
    """Return a name such as "adapter META 2026-11-28 15:56", in the local time zone."""
    return " ".join(filter(None, [kind, subject, f"{now or datetime.now():%Y-%m-%d %H:%M}"]))


def process_tags(now: datetime | None = None) -> dict[str, str]:
    """Return the tags that the runs of a process share: night, and command and source if a person started it."""
    tags = {"night": f"{(now or datetime.now()) - _HALF_DAY:%Y-%m-%d}"}
    if words := _command():
        tags |= {COMMAND: shlex.join(words), _SOURCE: " ".join(words[:3] if words[0] == "python" else words[:2])}
    return tags


def model_tags(kind: str, windows: Sequence[WindowSet]) -> dict[str, str]:
    """Return the tags of a training: kind, ticker or number of tickers, and span of the bars.

    Args:
        kind: "adapter", "checkpoint" or "refit".
        windows: the windows of each ticker of the training.
    """
    if not windows:
        return {KIND: kind}
    of_tickers = {TICKER: windows[0].ticker} if len(windows) == 1 else {"tickers": str(len(windows))}
    return {KIND: kind, **of_tickers, BARS: _span(windows)}


def describe_run(subject: str, tags: dict[str, str]) -> str:
    """Return the description of a training: what was trained, on which bars, and by which command."""
    bars = f"\n\nBars: {tags[BARS]}." if BARS in tags else ""
    command = f"\n\nCommand: `{tags[COMMAND]}`" if COMMAND in tags else ""
    return f"Training of the {subject}.{bars}{command}"


def dataset_inputs(windows: Sequence[WindowSet]) -> list[DatasetInput]:
    """Return the bars of a training as MLflow datasets, one for each ticker, or one for all if there are many."""
    if len(windows) > _MOST_DATASETS:
        digest = text_hash(*(ticker_windows.bars.content_hash for ticker_windows in windows))
        return [_dataset(f"bars of {len(windows)} tickers", digest, windows)]
    return [_dataset(f"{one.ticker} bars", one.bars.content_hash, [one]) for one in windows]


def _dataset(name: str, digest: str, windows: Sequence[WindowSet]) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    columns = [{"name": "timestamps", "type": "datetime"}, *({"name": name, "type": "double"} for name in FEATURES)]
    profile = {"tickers": len(windows), "bars": sum(len(one.bars) for one in windows), "span": _span(windows)}
    dataset = Dataset(
        name=name,
        digest=digest[:_DIGEST],
        source_type="local",
        source=json.dumps({"uri": ", ".join(one.bars.source for one in windows[:_MOST_DATASETS])}),
        schema=json.dumps({"mlflow_colspec": columns}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _span(windows: Sequence[WindowSet]) -> str:
    """Return the span of the bars, and the start of the holdout, which no training reads."""
    first = min(one.bars.frame["timestamps"].iloc[0] for one in windows)
    last = max(one.bars.frame["timestamps"].iloc[-1] for one in windows)
    held = [
        one.bars.frame["timestamps"].iloc[one.holdout_start] for one in windows if one.holdout_start < len(one.bars)
    ]
    holdout = f", holdout from {min(held):%Y-%m-%d}" if held else ", no holdout"
    return f"{first:%Y-%m-%d} to {last:%Y-%m-%d}{holdout}"


def _command() -> list[str]:
    """Return the words of the command that a person typed; empty if it is not one of this project."""
    words = sys.orig_argv[1:]
    while words and words[0].startswith("-") and words[0] != "-m":  # options of the interpreter
        words = words[1:]
    if words[:1] == ["-m"]:
        return ["python", *words] if words[1].startswith("kronos") else []
    script = Path(words[0]).name if words else ""
    return [script, *words[1:]] if script == "kronos" else []
