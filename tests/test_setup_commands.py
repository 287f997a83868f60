"""The make targets, the old name of the command, and the README's commands, as CI runs them."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
IN_TWO = "-n 2 --dist loadfile --no-loadscope-reorder"
TARGETS = [
    "venv",
    "demo",
    "format",
    "check",
    "test",
    "durations",
    "floors",
    "audit",
    "fuzz",
    "faults",
    "nights",
    "soak",
    "test-gpu",
    "lint",
    "docs",
    "dev",
    "plain",
    "readme",
    "bench",
    "bench-gpu",
    "screenshots",
    "clean",
]


def make(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=inherited | environment, capture_output=True, text=True, check=False
    )


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout with the Makefile and a python3 that only records how it and uv are called."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    executable(tmp_path / "uv", 'echo "uv $* UV_FIND_LINKS=$UV_FIND_LINKS" >> calls')
    executable(tmp_path / "python", 'case "$*" in *"config get"*) cat pip-links;; esac')
    install = "mkdir -p .venv/bin; cp uv python .venv/bin/"
    executable(tmp_path / "bin" / "python3", f'case "$*" in *"-m venv"*) {install};; esac')
    (tmp_path / "pip-links").write_text("")
    return tmp_path


def install(checkout: Path, **environment: str) -> str:
    """Run `make venv` there, and return the single call of uv."""
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    result = make("venv", folder=checkout, **({"PIP_FIND_LINKS": ""} | environment | {"PATH": path}))
    assert result.returncode == 0, result.stderr
    (call,) = (checkout / "calls").read_text().splitlines()
    return call


def test_help_names_each_target_and_what_it_does() -> None:
    lines = make("help").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["help", *TARGETS]
    assert all(len(line.split()) >= 3 for line in lines)
    assert make().stdout.splitlines() == lines


def test_an_installation_obeys_the_pins(checkout: Path) -> None:
    assert "pip install --compile-bytecode --python .venv/bin/python -e .[dev] -c constraints.txt" in install(checkout)


@pytest.mark.parametrize(
    ("of_pip", "environment", "links"),
    [
        ("", {}, ""),
        ("/wheels\n", {}, "/wheels"),
        ("/wheels\n/more\n", {}, "/wheels,/more"),
        ("/wheels\n", {"PIP_FIND_LINKS": "/other /more"}, "/other,/more"),
        ("/wheels\n", {"UV_FIND_LINKS": "/own"}, "/own"),
    ],
)
def test_a_folder_of_wheels_that_pip_knows_is_passed_on(
    of_pip: str, environment: dict[str, str], links: str, checkout: Path
) -> None:
    (checkout / "pip-links").write_text(of_pip)
    assert install(checkout, **({"UV_FIND_LINKS": ""} | environment)).endswith(f"UV_FIND_LINKS={links}")


def test_an_installation_is_not_repeated_until_its_pins_change(checkout: Path) -> None:
    install(checkout)
    assert "UV_FIND_LINKS" in install(checkout), "one call, as before"
    newer = (checkout / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(checkout / "constraints.txt", (newer, newer))
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    assert make("venv", folder=checkout, PATH=path).returncode == 0
    assert len((checkout / "calls").read_text().splitlines()) == 2


def test_an_unfit_python_is_told_before_anything_is_made(checkout: Path) -> None:
    executable(checkout / "bin" / "python3", 'case "$*" in *--version*) echo Python 3.9.1;; *) exit 1;; esac')
    result = make("venv", folder=checkout, PATH=f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert result.returncode != 0
    assert "error: python3 is Python 3.9.1; Python 3.11 or 3.12 is needed." in result.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "selected"),
    [
        ([], IN_TWO),
        (["FILE=tests/data"], f"{IN_TWO} tests/data"),
        (["FILE=tests/data/test_data_bars.py"], "tests/data/test_data_bars.py"),
        (
            ["FILE=tests/data", "K=bars and not 'slow'"],
            f"{IN_TWO} tests/data -k bars and not 'slow'",
        ),
    ],
    ids=str,
)
def test_the_tests_of_a_folder_a_file_or_a_name_are_run_alone(
    arguments: list[str], selected: str, checkout: Path
) -> None:
    install(checkout)
    executable(checkout / ".venv/bin/python", 'echo "$*" > tested')
    assert make("test", *arguments, folder=checkout).returncode == 0
    assert (checkout / "tested").read_text() == f"-m pytest {selected}\n"


def test_check_runs_lint_and_the_fast_tests(checkout: Path) -> None:
    install(checkout)
    for tool in ("ruff", "mypy", "lint-imports", "python"):
        executable(checkout / ".venv/bin" / tool, f'echo "{tool} $*" >> used')
    assert make("check", folder=checkout).returncode == 0
    used = (checkout / "used").read_text().splitlines()
    lint = ["ruff check", "ruff format --check", "mypy ", "lint-imports "]
    assert used == [*lint, f"python -m pytest {IN_TWO} -m not slow"]


def test_format_fixes_and_formats(checkout: Path) -> None:
    install(checkout)
    shutil.copy(Path(sys.executable).with_name("ruff"), checkout / ".venv/bin/ruff")
    (checkout / "untidy.py").write_text("import sys\nimport os\nprint( os.name,sys.path )\n")
    assert make("format", folder=checkout).returncode == 0
    assert (checkout / "untidy.py").read_text() == "import os\nimport sys\n\nprint(os.name, sys.path)\n"


def test_clean_removes_what_make_made_and_nothing_of_the_user(checkout: Path) -> None:
    install(checkout)
    generated = [".venv", "artifacts-demo", ".mypy_cache", ".pytest_cache", "tests/data/__pycache__", "x.egg-info"]
    user_folders = ["artifacts", "artifacts-mine", ".dagster_home", "trainingdata", "tests/data", "kronos_pipeline"]
    for folder in [*generated, *user_folders, ".ci", "benchmarks", "kronostraining"]:
        (checkout / folder).mkdir(parents=True, exist_ok=True)
    for folder in user_folders:
        (checkout / folder / "file").touch()
    assert make("clean", folder=checkout).returncode == 0
    assert [folder for folder in generated if (checkout / folder).exists()] == []
    assert [folder for folder in user_folders if not (checkout / folder / "file").exists()] == []


def test_the_commands_of_the_readme_run_in_a_shell_that_ends_at_the_first_failure(checkout: Path) -> None:
    install(checkout)
    executable(checkout / ".venv/bin/python", f'exec {sys.executable} "$@"')
    (checkout / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "readme_commands.py", checkout / ".ci")
    (checkout / "README.md").write_text("```bash offline\ntouch first\nfalse\ntouch second\n```\n")
    assert make("readme", folder=checkout).returncode != 0
    assert (checkout / "first").exists()
    assert not (checkout / "second").exists()


@pytest.fixture
def run_test_gpu(checkout: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run `make test-gpu` with a shell command in place of torch's answer; pytest only records its call."""
    install(checkout)

    def run(has_cuda: str) -> subprocess.CompletedProcess[str]:
        executable(checkout / ".venv/bin/python", f'case "$*" in -c*) {has_cuda};; *) echo "$*" > tested;; esac')
        return make("test-gpu", folder=checkout)

    return run


def test_the_tests_of_a_gpu_are_those_that_are_marked(
    run_test_gpu: Callable[[str], subprocess.CompletedProcess[str]], checkout: Path
) -> None:
    assert run_test_gpu("exit 0").returncode == 0
    assert (checkout / "tested").read_text() == "-m pytest -m cuda tests/cuda\n"
    for path in (ROOT / "tests").rglob("test_*.py"):
        marked = re.search(r"^ *(pytestmark = \[?)?pytest\.mark\.cuda,", path.read_text(), re.MULTILINE)
        assert bool(marked) == (path.parent.name == "cuda"), path


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_tests_fail_with_one_sentence(
    run_test_gpu: Callable[[str], subprocess.CompletedProcess[str]], checkout: Path
) -> None:
    result = run_test_gpu(f'exec {sys.executable} "$@"')
    assert result.returncode != 0
    (message,) = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert message.startswith("error: torch finds no CUDA device here; ")
    assert not (checkout / "tested").exists()


def test_the_ci_script_can_be_run() -> None:
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("failing", [None, "lint", "plain", "test", "docs", "demo", "readme"])
def test_each_part_of_ci_shows_its_output_and_fails_the_script(failing: str | None, tmp_path: Path) -> None:
    """Run the script with a Makefile of dummy targets."""
    parts = ["lint", "plain", "test", "docs", "demo", "readme"]
    recipes = [f"{part}:\n\t@echo the output of {part}; exit {int(part == failing)}\n" for part in parts]
    (tmp_path / "Makefile").write_text("".join(recipes))
    executable(tmp_path / ".ci" / "run", "")
    (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    inherited = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    result = subprocess.run([tmp_path / ".ci" / "run"], env=inherited, capture_output=True, text=True, check=False)
    assert (result.returncode != 0) == (failing is not None), result.stderr
    printed = [part for part in parts if f"the output of {part}\n" in result.stdout]
    assert printed == parts if failing is None else failing in printed


def readme_commands(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / ".ci" / "readme_commands.py", path], capture_output=True, text=True, check=False
    )


def test_only_the_commands_that_run_as_they_stand_are_run_in_ci(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "# A\n```bash offline\nmake demo\n\nls\n```\ntext\n```bash\nneeds a GPU\n```\n```bash offline\nmore\n```\n"
    )
    result = readme_commands(tmp_path / "README.md")
    assert (result.returncode, result.stdout) == (0, "make demo\n\nls\nmore\n")


def test_a_readme_without_such_commands_fails_ci(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("```bash\nmake demo\n```\n")
    assert readme_commands(tmp_path / "README.md").returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--horizon", "0"], ["--data-dir", "no-such-folder", "--model-name", "kronos-nano"]],
    ids=str,
)
def test_the_old_name_of_the_command_does_the_same(arguments: list[str], tmp_path: Path) -> None:
    outputs = []
    for package in ("kronos_pipeline", "kronostraining"):
        result = subprocess.run(
            [sys.executable, "-m", f"{package}.run_training", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        outputs.append((result.returncode, result.stdout, result.stderr))
    assert outputs[0] == outputs[1]
    assert outputs[0][0] == (0 if arguments == ["--help"] else 2)
    assert outputs[0][1 if arguments == ["--help"] else 2] != ""
