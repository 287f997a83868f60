"""The documents: valid links, a table of contents, and a first result near the top of the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kronos_pipeline import __version__

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "external/kronos/README.md",
    ROOT / "trainingdata/README.md",
]
# Linked, and written on another branch: empty this set when the document is there.
PENDING = {ROOT / "docs/architecture.md"}


def without_code(text: str) -> str:
    """Remove fenced and indented blocks and inline code, whose brackets and marks are no Markdown."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^    .*$|`[^`\n]+`", "", text, flags=re.MULTILINE)


def anchors(path: Path) -> list[str]:
    """Return the anchors of a document's headings, as GitHub makes them, in order."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.M), re.M)
    return [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]


def links(path: Path) -> list[str]:
    """Return the targets of a document's links and images that lie in the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text()))
    return [target for target in targets if not target.startswith(("https:", "http:"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    for target in links(path):
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists() or file in PENDING, target
        assert not anchor or anchor in anchors(file), target


def test_the_table_of_contents_names_each_section_in_order() -> None:
    text = (ROOT / "README.md").read_text()
    contents = text.split("\n## Contents\n")[1].split("\n## ")[0]
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert re.findall(r"^- \[(.+?)\]", contents, re.MULTILINE) == [name for name in sections if name != "Contents"]


def test_the_readme_shows_a_command_and_its_result_within_thirty_lines() -> None:
    top = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    assert re.search(
        r"^    \$ make demo\n    Made +adapters of 12 tickers, .*\(embedded demo model\)", top, re.MULTILINE
    )
    assert re.search(r"^ +all tickers +[\d.]+ +[\d.]+ +\d+ % ", top, re.MULTILINE)


def test_the_index_names_each_document() -> None:
    index = ROOT / "docs" / "README.md"
    named = {target for target in links(index) if "/" not in target}
    assert {path.name for path in index.parent.glob("*.md")} - {index.name} <= named


def test_each_picture_is_shown_by_a_document_and_loads_quickly() -> None:
    shown = {(path.parent / target).resolve() for path in DOCUMENTS for target in links(path)}
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture in shown, f"{picture.name} is shown nowhere"
        assert picture.stat().st_size <= 200_000, picture.name


def test_no_file_has_the_marks_of_a_conflict_that_was_not_resolved() -> None:
    folders = ("kronos_pipeline", "tests", "docs", "deploy", "benchmarks", ".ci")
    files = [*ROOT.glob("*.*"), ROOT / "Makefile", *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    texts = {path: path.read_bytes() for path in files if path.is_file() and "__pycache__" not in path.parts}
    assert [path for path, text in texts.items() if re.search(rb"^(<{7} |>{7} |={7}$)", text, re.MULTILINE)] == []


def test_the_changelog_has_the_version_that_is_installed() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == __version__
