"""Readers of the tables and documents that the benchmarks write."""

from __future__ import annotations

import re
from pathlib import Path


def document(path: Path) -> dict[str, str]:
    """Return the marked places of a document with their content."""
    sections = re.findall(r"<!-- ([a-z-]+) -->\n(.*?)<!-- /\1 -->", path.read_text(), re.DOTALL)
    return dict(sections)


def rows(text: str, title: str) -> list[dict[str, str]]:
    """Return the rows of the table with a title, by column."""
    lines = text.split(f"**{title}", 1)[1].split("\n\n")[1].strip().splitlines()
    names, _, *cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(names, row, strict=True)) for row in cells]
