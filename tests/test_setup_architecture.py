"""docs/architecture.md is true: its tree lists every module, and each file and name that it mentions exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kronos_pipeline"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def files_of_tree() -> list[str]:
    """Return the files of the indented tree as paths from the root; two spaces of indentation are one folder."""
    lines = PAGE[PAGE.index("\n    kronos_pipeline/\n") : PAGE.index("## Asset graph")].splitlines()
    folders: list[str] = []
    files = []
    for line in filter(None, lines):
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip()) - 4) // 2
        folders = [*folders[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            files.append("/".join(folders))
    return files


def mentions() -> list[str]:
    """Return each `file` and each `file:name` in backquotes, without repetition."""
    return sorted(set(re.findall(r"`([\w./]+\.(?:py|yaml|toml)(?::\w+)?)`", PAGE)))


def test_the_tree_lists_every_module_once() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    others = [PACKAGE / "orchestration" / "dagster.yaml"]
    expected = sorted(str(path.relative_to(ROOT)) for path in (*modules, *others))
    assert sorted(files_of_tree()) == expected


@pytest.mark.parametrize("mention", mentions())
def test_a_file_or_name_that_the_page_mentions_exists(mention: str) -> None:
    path, _, name = mention.partition(":")
    file = next((root / path for root in (PACKAGE, ROOT) if (root / path).is_file()), None)
    assert file is not None, f"{path} does not exist"
    if name:
        defined = {
            node.name for node in ast.parse(file.read_text()).body if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        }
        assert name in defined, f"{path} defines no {name}"
