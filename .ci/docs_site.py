"""Hooks of mkdocs: pages from files outside docs/, and the references of the commands, the settings and Python.

The generated pages exist in the site only, so they cannot be out of date.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "README.md": "project.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "external/kronos/README.md": "model.md",
    "trainingdata/README.md": "tickers.md",
}
"""Documents outside docs/, and their pages."""
_SOURCES = {page: document for document, page in OUTSIDE.items()}
_CODE_OR_LINK = re.compile(
    r"^```.*?^```$|!?\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)|`[^`\n]+`", re.DOTALL | re.MULTILINE
)
"""A fenced block, a link or an image, or inline code."""
_FOREIGN = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")
"""Something that a browser would load from another host."""
_WIDE = """\
.md-grid { max-width: 76rem; }
.md-typeset table:not([class]) { font-size: 0.68rem; }
.md-typeset table:not([class]) :is(td, th) { padding: 0.6em 0.8em; min-width: 0; }
.md-typeset td:first-child code { white-space: nowrap; }
"""
"""Room for wide tables."""
_LAST_FOUND = ("architecture.md", "changelog.md", "contributing.md")
"""Pages that name every word; the search lists them last."""
_RESULTS = ("kronos_pipeline.training.publish.TrainingResult", "kronos_pipeline.pipeline.evaluate.Evaluation")
"""Classes that public functions return."""
_HELP_COLUMNS = 100
"""Width of the help texts."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the anchors of headings as GitHub makes them, so that links work in both places."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = _anchor
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    pages = {page: (ROOT / document).read_text(encoding="utf-8") for page, document in _SOURCES.items()}
    pages |= {"cli.md": command_page(), "settings.md": settings_page(), "api.md": api_page(), "wide.css": _WIDE}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to the pages of the site, and make a link to a file without a page plain text."""
    if page.file.src_uri in _LAST_FOUND:
        page.meta["search"] = {"boost": 0.2}
    source = _SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    markdown = re.sub(r"^```bash offline$", "```bash", markdown, flags=re.MULTILINE)  # CI's mark of a block to run

    def lead(match: re.Match[str]) -> str:
        target = match["target"]
        if not target or re.match(r"[a-z]+:|#", target):
            return match[0]
        path, anchor, heading = target.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if page_of := OUTSIDE.get(place) or place.removeprefix("docs/") * place.startswith("docs/"):
            return match[0].replace(f"]({target})", f"]({page_of}{anchor}{heading})")
        return match["text"] if match["text"] else match[0]

    return _CODE_OR_LINK.sub(lead, markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that loads anything from another host."""
    if foreign := _FOREIGN.findall(re.sub(r"<link[^>]*rel=.canonical.[^>]*>", "", output)):
        raise PluginError(f"{page.file.src_uri} would load {', '.join(foreign)}")
    return output


def command_page() -> str:
    """Return the help of each command, from `--help` itself."""
    from kronos_pipeline.cli.overview import SUBCOMMANDS

    parts = [
        "# Command line\n\nThe text of `kronos --help`, and of `--help` of each command.\n",
        "## kronos\n",
        _help(),
    ]
    for name, (_, _, line) in SUBCOMMANDS.items():
        parts += [f"## kronos {name}\n", f"{line[0].upper()}{line[1:]}.\n", _help(name)]
    return "\n".join(parts)


def settings_page() -> str:
    """Return a table of the settings, which are arguments of `KronosTrainingConfig` and flags of `kronos train`."""
    from kronos_pipeline.config import KronosTrainingConfig

    rows = [
        f"| `{name}` | `{field.default!r}` | {_cell(field.description or '')} |"
        for name, field in KronosTrainingConfig.model_fields.items()
    ]
    head = (
        "# Settings\n\nThe arguments of `KronosTrainingConfig`, the fields of Dagster's launchpad, and with hyphens "
        "the flags of `kronos train`. A flag or an argument overrides the environment, which overrides the default.\n\n"
        "| Setting | Default | Meaning |\n| --- | --- | --- |\n"
    )
    return head + "\n".join(rows) + "\n"


def api_page() -> str:
    """Return the reference of the public names, which mkdocstrings fills from their docstrings."""
    import kronos_pipeline

    text = "# Python\n\nAll names are imported from `kronos_pipeline`.\n"
    order = ["KronosTrainingConfig", "KronosTrainer", "evaluate", "forecast", "KronosPredictor"]
    for name in [*order, *sorted(set(kronos_pipeline.__all__) - set(order))]:
        text += f"\n::: {getattr(kronos_pipeline, name).__module__}.{name}\n    options:\n      heading_level: 2\n"
        if name == "KronosTrainingConfig":
            text += "      members: [recipe]\n\nThe arguments are the [settings](settings.md).\n"
    for home in _RESULTS:
        text += f"\n::: {home}\n    options:\n      heading_level: 2\n"
    return text


def _help(*command: str) -> str:
    """Return the help of a command as a block of text, without the settings of this shell."""
    from kronos_pipeline.cli import app

    environment = {name: value for name, value in os.environ.items() if not name.startswith("KRONOS_")}
    environment |= {"COLUMNS": str(_HELP_COLUMNS), "NO_COLOR": "1"}
    with mock.patch.dict(os.environ, environment, clear=True), contextlib.redirect_stdout(io.StringIO()) as text:
        status = app.main([*command, "--help"])
    if status:
        raise SystemExit(f"kronos {' '.join(command)} --help ended with {status}")
    return f"```text\n{text.getvalue().strip()}\n```\n"


def _anchor(heading: str, separator: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", separator)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
