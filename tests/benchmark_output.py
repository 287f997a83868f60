"""What the benchmarks print and write, read back."""

from __future__ import annotations

import re
from pathlib import Path


def document(path: Path) -> dict[str, str]:
    """The marked places of a document and what they hold."""
    found = re.findall(r"<!-- ([a-z-]+) -->\n(.*?)<!-- /\1 -->", path.read_text(), re.DOTALL)
    return dict(found)


def rows(text: str, title: str) -> list[dict[str, str]]:
    """The rows of the table of that title, by column."""
    lines = text.split(f"**{title}", 1)[1].split("\n\n")[1].strip().splitlines()
    names, _, *cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(names, row, strict=True)) for row in cells]
