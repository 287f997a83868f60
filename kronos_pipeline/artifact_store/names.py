"""The artifacts of an output folder that machines share, by group: a ticker or adapter, or `@all` for the others.

    AAPL    bars/AAPL.parquet  adapters/AAPL  adapters/AAPL/sampling/AAPL.json  metrics/AAPL.json  ...
    @all    checkpoints/best_model  metrics/evaluation.json  metrics/leaderboard.json ...

A name is the path below the output folder. `adapters/AAPL` is a published folder without its `sampling/`, which is
written later; all other names are files. The ledger is shared file by file. States of trainings, folds of backtests,
MLflow's files and locks stay on their machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kronos_pipeline.artifacts import SAMPLING
from kronos_pipeline.atomic_writes import VERSIONS
from kronos_pipeline.names import NAME

ALL = "@all"
"""The group of the artifacts that belong to no single ticker; no ticker can have this name."""
_PART = r"(?:seeds/\d{1,10}/)?"
_CHECKPOINT = r"checkpoints/(?:best|last|refit)_model"
_FILES_OF_ALL = re.compile(
    rf"{_PART}(?:metrics/(?:(?:evaluation|leaderboard|seeds)\.json|(?:forecasts|predictions|seeds)\.parquet)"
    r"|backtest/(?:adapter|checkpoint)\.json)"
)
_FOLDERS_OF_ALL = re.compile(rf"{_PART}{_CHECKPOINT}")
LEDGER_FILE = re.compile(r"ledger/month=\d{4}-\d{2}/\d{8}T\d{12}-[0-9a-f]{8}\.parquet")


def is_group(name: str) -> bool:
    """Return whether a text names a group."""
    return name == ALL or NAME.fullmatch(name) is not None


def group_of(name: str) -> str | None:
    """Return the group of an artifact, or None if the name is no artifact's."""
    if _FILES_OF_ALL.fullmatch(name) or _FOLDERS_OF_ALL.fullmatch(name):
        return ALL
    parts = re.sub(rf"^{_PART}", "", name).split("/")
    of_folder = parts[0] in ("adapters", "refits") or (parts[0] == "plots" and len(parts) == 3)
    group = parts[1] if of_folder and len(parts) > 1 else Path(name).stem
    return group if is_group(group) and (is_file(name, group) or is_folder(name, group)) else None


def is_folder(name: str, group: str) -> bool:
    """Return whether a name is a published folder of a group: an adapter, a refit or a checkpoint."""
    if group == ALL:
        return _FOLDERS_OF_ALL.fullmatch(name) is not None
    return re.fullmatch(rf"{_PART}(?:adapters|refits)/{re.escape(group)}", name) is not None


def is_file(name: str, group: str) -> bool:
    """Return whether a name is a file of a group; a pointer of the store may hold anything."""
    if group == ALL:
        return _FILES_OF_ALL.fullmatch(name) is not None
    ticker = re.escape(group)
    pattern = (
        rf"{_PART}(?:(?:bars|windows|forecasts)/{ticker}\.parquet|metrics/{ticker}\.(?:json|parquet)"
        rf"|track_record/{ticker}\.json|plots/{ticker}\.png|plots/{ticker}/[a-z_]{{1,40}}\.png"
        rf"|backtest/(?:adapter|checkpoint)/{ticker}\.(?:json|parquet)"
        rf"|(?:adapters|refits)/{ticker}/{SAMPLING}/{NAME.pattern}\.json"
        rf"|(?:{_CHECKPOINT}|base)/{SAMPLING}/{ticker}\.json)"
        rf"|seeds/ensemble/{SAMPLING}/{ticker}\.json"
    )
    return re.fullmatch(pattern, name) is not None and not is_file(name, ALL)


def local_names(root: Path, group: str) -> list[str]:
    """Return the artifacts of a group that an output folder has, folders first."""
    names = []
    for part in _parts(root):
        prefix = "" if part == root else f"{part.relative_to(root).as_posix()}/"
        names += [f"{prefix}{name}" for name in (_of_all(part) if group == ALL else _of_ticker(part, group))]
    if group != ALL and (root / f"seeds/ensemble/{SAMPLING}/{group}.json").is_file():
        names.append(f"seeds/ensemble/{SAMPLING}/{group}.json")
    return names


def local_groups(root: Path) -> list[str]:
    """Return the groups of which an output folder may have artifacts."""
    found = {ALL}
    folders = ("bars", "windows", "adapters", "refits", "metrics", "forecasts", "track_record", "plots")
    for part in _parts(root):
        for folder in folders:
            for path in _entries(part / folder):
                name = path.name if path.is_dir() else path.stem
                if NAME.fullmatch(name):
                    found.add(name)
    return sorted(name for name in found if name == ALL or local_names(root, name))


def _parts(root: Path) -> Iterator[Path]:
    """Return the output folder, and those of the trainings with other seeds in it."""
    yield root
    yield from (path for path in _entries(root / "seeds") if path.name.isdigit() and path.is_dir())


def _of_all(root: Path) -> Iterator[str]:
    for model in ("best_model", "last_model", "refit_model"):
        if (root / "checkpoints" / model).is_symlink():
            yield f"checkpoints/{model}"
    for folder in ("metrics", "backtest"):
        yield from (name for path in _entries(root / folder) if is_file(name := f"{folder}/{path.name}", ALL))


def _of_ticker(root: Path, group: str) -> Iterator[str]:
    for folder in (f"adapters/{group}", f"refits/{group}"):
        if (root / folder).is_symlink():
            yield folder
            sampling = (f"{folder}/{SAMPLING}/{path.name}" for path in _entries(root / folder / SAMPLING))
            yield from (name for name in sampling if is_file(name, group))
    candidates = [
        f"bars/{group}.parquet",
        f"windows/{group}.parquet",
        f"metrics/{group}.json",
        f"metrics/{group}.parquet",
        f"backtest/adapter/{group}.json",
        f"backtest/adapter/{group}.parquet",
        f"backtest/checkpoint/{group}.json",
        f"backtest/checkpoint/{group}.parquet",
        f"forecasts/{group}.parquet",
        f"track_record/{group}.json",
        f"plots/{group}.png",
        *(f"{folder}/{SAMPLING}/{group}.json" for folder in ("base", "checkpoints/best_model")),
        *(f"checkpoints/{model}_model/{SAMPLING}/{group}.json" for model in ("last", "refit")),
    ]
    yield from (name for name in candidates if is_file(name, group) and (root / name).is_file())
    plots = (f"plots/{group}/{path.name}" for path in _entries(root / "plots" / group))
    yield from (name for name in plots if is_file(name, group))


def _entries(folder: Path) -> list[Path]:
    """List a folder without hidden entries, such as temporary files and `.versions`."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_of(folder: Path) -> list[str]:
    """Return the files of a published folder, relative to it, without its sampling and its unfinished files."""
    return [
        name
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not (name := path.relative_to(folder).as_posix()).startswith((f"{SAMPLING}/", VERSIONS))
        and not path.name.endswith(".tmp")
    ]
