"""The documents as a site, and the notebook among them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import kronos_pipeline
from kronos_pipeline.cli.overview import SUBCOMMANDS
from kronos_pipeline.config import KronosTrainingConfig

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; a dead link or anchor, and a request to another host, would end the build."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_the_site_refers_to_each_command_setting_and_public_name(site: Path) -> None:
    commands, settings, names = ((site / page).read_text() for page in ("cli.html", "settings.html", "api.html"))
    assert all(f'id="kronos-{name}"' in commands for name in SUBCOMMANDS)
    assert "--data-dir" in commands
    assert all(f"<code>{name}</code>" in settings for name in KronosTrainingConfig.model_fields)
    assert all(re.search(rf'id="kronos_pipeline\.[\w.]*\.{name}"', names) for name in kronos_pipeline.__all__)


@pytest.mark.slow
def test_the_site_has_the_documents_outside_docs_with_links_between_pages(site: Path) -> None:
    assert 'href="project.html"' in (site / "index.html").read_text()
    project = (site / "project.html").read_text()
    assert 'href="evaluation.html#rivals-that-you-ask-for"' in project
    assert "bash offline" not in project
    assert "META" in (site / "quickstart.html").read_text()


@pytest.mark.slow
def test_the_notebook_runs_from_the_first_to_the_last_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "trainingdata").symlink_to(ROOT / "trainingdata")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    folder = {"metadata": {"path": str(tmp_path / "docs")}}
    NotebookClient(notebook, timeout=250, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    (table,) = (output["data"]["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {}))
    assert "1 symbol: 80 bars from 8 cutoffs." in table


def test_the_notebook_is_small_and_names_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 100_000
    assert not re.search(r'"\S*/(home|root|tmp|work|Users)/', text)
