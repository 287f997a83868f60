"""Folders that tests publish."""

from __future__ import annotations

from pathlib import Path

from kronos_pipeline.atomic_writes import publish_folder


class BrokenOffError(Exception):
    """Error that ends a write in these tests."""


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def publish(path: Path, text: str) -> None:
    with publish_folder(path) as folder:
        (folder / "weights").write_text(text)
        (folder / "base").mkdir()
        (folder / "base" / "weights").write_text(text)


def read_published(path: Path) -> tuple[str, str]:
    return (path / "weights").read_text(), (path / "base" / "weights").read_text()
