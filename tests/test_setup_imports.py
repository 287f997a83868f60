"""Imports: the contract of the layers, and the modules that load without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINT = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINT, "--no-cache"], cwd=folder, capture_output=True, text=True)


def test_the_import_contract_holds() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("evaluation/report.py", "import kronos_pipeline.tracking.runs", "imports point one way"),
        ("errors.py", "import kronos_pipeline.config", "imports point one way"),
        ("a_new_module.py", "", "imports point one way"),
        ("data/csv_file.py", "import kronos_pipeline.data.csv_table", "no circles of modules or folders"),
        (
            "evaluation/scoring/gate.py",
            "import kronos_pipeline.evaluation.reports.plots",
            "no circles of modules or folders",
        ),
        ("tracking/runs.py", "import dagster", "only definitions and orchestration import dagster"),
        ("training/spy.py", "import dagster_pandera", "only definitions and orchestration import dagster"),
        ("evaluation/report.py", "from mlflow import MlflowClient", "only tracking imports mlflow"),
        ("orchestration/spy.py", "import mlflow", "only tracking imports mlflow"),
        ("orchestration/spy.py", "import pandera.pandas", "only data imports pandera"),
        ("training/spy.py", "from sktime.libs.kronos import Kronos", "only model.upstream imports sktime"),
        ("data/spy.py", "def late() -> None:\n    import torch", "data and what lies below it do without torch"),
        ("artifacts.py", "import peft", "data and what lies below it do without torch"),
    ],
)
def test_a_forbidden_import_breaks_the_contract(module: str, line: str, broken: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("kronos_pipeline", "kronostraining"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "kronos_pipeline" / module
    file.write_text((file.read_text() if file.exists() else "") + f"\n{line}\n")
    result = lint(tmp_path)
    assert result.returncode == 1
    assert f"{broken} BROKEN" in result.stdout


@pytest.mark.slow
def test_settings_artifacts_and_data_load_without_torch() -> None:
    script = """
import importlib, pkgutil, sys
import kronos_pipeline.data
for name in ("errors", "base_models", "config", "artifacts", "data"):
    importlib.import_module(f"kronos_pipeline.{name}")
for module in pkgutil.iter_modules(kronos_pipeline.data.__path__, "kronos_pipeline.data."):
    importlib.import_module(module.name)
print(sorted({"torch", "dagster", "mlflow", "sktime", "peft"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_a_subcommand_imports_no_other_subcommand() -> None:
    script = """
import sys
from kronos_pipeline.cli import main
assert main(["forecast", "--help"]) == 0
prefix = "kronos_pipeline.cli."
print(sorted(name.removeprefix(prefix) for name in sys.modules if name.startswith(prefix)))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    imported = str(["ages", "app", "command", "forecast", "help", "overview", "tickers"])
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, imported), result.stderr


@pytest.mark.slow
def test_the_trainer_loads_no_package_that_a_checkpoint_does_not_need() -> None:
    script = """
import sys
import kronos_pipeline.training.trainer
late = "mlflow dagster sklearn peft transformers matplotlib scipy arch statsmodels torch._dynamo".split()
print(sorted(sys.modules.keys() & set(late)))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


@pytest.mark.slow
def test_public_names_are_found_where_the_package_says() -> None:
    script = """
import sys, kronos_pipeline
assert "torch" not in sys.modules
print(*(getattr(kronos_pipeline, name).__name__ for name in kronos_pipeline.__all__))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    names = ["KronosMultiTickerDataset", "KronosPredictor", "KronosTrainer", "KronosTrainingConfig"]
    names += ["evaluate", "forecast", "run_pipeline"]
    assert result.stdout.split() == names, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments", "start"),
    [("cli", [], "Fine-tune"), ("cli", ["train", "--help"], "usage: "), ("run_training", ["--help"], "usage: ")],
)
def test_help_is_told_without_anything_heavy(module: str, arguments: list[str], start: str) -> None:
    script = f"""
import sys
from kronos_pipeline.{module} import main
assert main({arguments}) == 0
heavy = "torch pandas numpy pyarrow scipy matplotlib mlflow dagster sktime peft accelerate rich".split()
print(sorted(sys.modules.keys() & set(heavy)))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.startswith(start)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "[]"), result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "begin",
    ["from kronos_pipeline.cli.app import main; main(['train', '--help'])", "import kronos_pipeline.definitions"],
    ids=["command", "code location"],
)
def test_what_is_imported_is_not_searched_for_garbage_again_and_again(begin: str, tmp_path: Path) -> None:
    script = f"""
import atexit, gc
atexit.register(lambda: print("kept out of the last search:", gc.get_freeze_count() > 10_000))  # runs after later ones
{begin}
print("objects made between two searches:", gc.get_threshold()[0])
"""
    environment = {**os.environ, "KRONOS_DATA_DIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    expected = ["objects made between two searches: 10000", "kept out of the last search: True"]
    assert result.stdout.splitlines()[-2:] == expected, result.stderr
