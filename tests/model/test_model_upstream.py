"""The import of upstream's model: the same module as by its public name, without the rest of sktime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *folders: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT]))}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.slow
def test_upstreams_model_is_the_one_of_the_public_import_and_loads_no_scikit_learn() -> None:
    script = """
import sys
from kronos_pipeline.model import upstream
print(sorted({"sklearn", "scipy", "sktime", "sktime.utils"} & set(sys.modules)))
from sktime.libs.kronos import Kronos, KronosTokenizer
import sktime.libs.kronos as library
import sktime, sktime.utils
print(Kronos is upstream.Kronos is library.Kronos, KronosTokenizer is upstream.KronosTokenizer)
print(sktime.show_versions.__name__, sktime.utils.plot_series.__name__)
"""
    assert run(script).splitlines() == ["[]", "True True", "show_versions plot_series"]


@pytest.mark.parametrize("model", ["from sktime import named as Kronos", "import sktime; Kronos = sktime.named"])
def test_a_sktime_whose_model_needs_its_packages_is_imported_as_a_whole(model: str, tmp_path: Path) -> None:
    library = tmp_path / "sktime" / "libs"
    library.mkdir(parents=True)
    (library.parent / "__init__.py").write_text("named = 'a model'\n")
    (library / "kronos.py").write_text(f"{model}\nKronosTokenizer = 'a tokenizer'\n")
    script = """
from kronos_pipeline.model.upstream import Kronos, KronosTokenizer
import sktime
print(Kronos, KronosTokenizer, sktime.named, sep=", ")
"""
    assert run(script, tmp_path) == "a model, a tokenizer, a model"
