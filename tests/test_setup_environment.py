"""`source env.sh`: the variables of the shell afterwards, from any working directory."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import dagster as dg
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
VARIABLES = ("DAGSTER_MODULE_NAME", "DAGSTER_HOME", "KRONOS_BASE_MODEL", "VIRTUAL_ENV", "KRONOS_GPUS")
SHELLS = [
    "bash",
    pytest.param("zsh", marks=pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")),
]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a checkout with the files that env.sh reads and no GPU; the developer's own DAGSTER_HOME stays untouched."""
    root = tmp_path / "a check-out"
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    fake_nvidia_smi(tmp_path, "echo 'NVIDIA-SMI has failed'; exit 9")
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "activate").write_text(
        f"VIRTUAL_ENV='{root}/.venv'; PATH='{root}/.venv/bin':$PATH; export VIRTUAL_ENV PATH\n"
    )
    settings = Path("kronos_pipeline/orchestration/dagster.yaml")
    (root / settings).parent.mkdir(parents=True)
    shutil.copy(ROOT / settings, root / settings)
    shutil.copy(ROOT / "env.sh", root)
    return root


def fake_nvidia_smi(folder: Path, script: str) -> None:
    path = folder / "bin" / "nvidia-smi"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


PRINT_VARIABLES = f"for name in {' '.join(VARIABLES)}; do printenv $name; done"


def source(
    shell: str, file: str, working_directory: Path, command: str = PRINT_VARIABLES, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Source a file in a shell without start-up files, and then print the variables that it sets, one a line."""
    script = f"source '{file}' || exit 1; {command}"
    flags = ["--norc", "--noprofile", "-u"] if shell == "bash" else ["-f", "-u"]
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    return subprocess.run(
        [shell, *flags, "-c", script], cwd=working_directory, env=clean | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("location", ["root", "elsewhere", "below"])
def test_variables_name_the_checkout_wherever_it_is_sourced_from(
    shell: str, location: str, checkout: Path, tmp_path: Path
) -> None:
    file, directory = {
        "root": ("./env.sh", checkout),
        "elsewhere": (str(checkout / "env.sh"), tmp_path),
        "below": ("../env.sh", checkout / "kronos_pipeline"),
    }[location]
    result = source(shell, file, directory, CDPATH=str(tmp_path))
    home = checkout / ".dagster_home" / "trainingdata"
    expected = ["kronos_pipeline.definitions", str(home), "kronos-nano", str(checkout / ".venv"), "1"]
    assert (result.returncode, result.stderr, result.stdout.splitlines()) == (0, "", expected)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_dagster_home_has_the_tracked_settings_and_no_telemetry(shell: str, checkout: Path) -> None:
    tracked = (ROOT / "kronos_pipeline/orchestration/dagster.yaml").read_text()
    home = checkout / ".dagster_home" / "trainingdata"
    for gpus in ("8", "1"):
        assert source(shell, "./env.sh", checkout, KRONOS_GPUS=gpus).returncode == 0
    assert [path.name for path in home.iterdir()] == ["dagster.yaml"]
    assert (home / "dagster.yaml").read_text() == tracked
    assert (checkout / "kronos_pipeline/orchestration/dagster.yaml").read_text() == tracked
    content = yaml.safe_load(tracked)
    assert content["telemetry"] == content["nux"] == {"enabled": False}


@pytest.mark.parametrize("shell", SHELLS)
def test_each_data_folder_has_its_own_instance_and_a_users_own_stays(
    shell: str, checkout: Path, tmp_path: Path
) -> None:
    data = [tmp_path / "my data", tmp_path / "other" / "my data"]
    for folder in (*data, checkout / "mine"):
        folder.mkdir(parents=True)
    home = "printenv DAGSTER_HOME"
    homes = [
        source(shell, "./env.sh", checkout, f"{home}; source ./env.sh; {home}", KRONOS_DATA_DIR=str(folder)).stdout
        for folder in (*data, "mine")
    ]
    names = [Path(first).relative_to(checkout / ".dagster_home") for first in (text.splitlines()[0] for text in homes)]
    assert len(set(names)) == 3
    assert str(names[2]) == "mine"
    assert all(len(set(text.splitlines())) == 1 for text in homes), "sourced again, it chooses the same folder"

    own = tmp_path / "own"
    own.mkdir()
    (own / "dagster.yaml").write_text("# mine\n")
    result = source(shell, "./env.sh", checkout, home, DAGSTER_HOME=str(own), KRONOS_DATA_DIR=str(data[0]))
    assert result.stdout.splitlines() == [str(own)]
    assert (own / "dagster.yaml").read_text() == "# mine\n"


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("listed", "variables", "gpus", "trainings"),
    [
        ("exit 9", {}, 1, 1),
        ("printf 'GPU 0: A (UUID: a)\\nGPU 1: A (UUID: b)\\n'", {}, 2, 2),
        ("printf 'GPU 0: A (UUID: a)\\n  MIG 1g.10gb Device 0: (UUID: b)\\n'", {"KRONOS_GPUS": ""}, 1, 1),
        ("echo 'GPU 0: A (UUID: a)'", {"KRONOS_GPUS": "12"}, 12, 12),
        ("exit 9", {"KRONOS_GPUS": "2", "KRONOS_TRAININGS_PER_GPU": "3"}, 2, 6),
    ],
)
def test_as_many_trainings_run_at_once_as_there_are_gpus_or_as_the_user_says(
    shell: str, listed: str, variables: dict[str, str], gpus: int, trainings: int, checkout: Path, tmp_path: Path
) -> None:
    fake_nvidia_smi(tmp_path, listed)
    result = source(shell, "./env.sh", checkout, **variables)
    assert (result.returncode, result.stderr, result.stdout.splitlines()[-1]) == (0, "", str(gpus))
    with dg.DagsterInstance.from_config(str(checkout / ".dagster_home" / "trainingdata")) as instance:
        assert instance.global_op_concurrency_default_limit == trainings
        instance.event_log_storage.initialize_concurrency_limit_to_default("gpu")
        assert instance.event_log_storage.get_concurrency_info("gpu").slot_count == trainings
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        assert queue.max_concurrent_runs == trainings + 3, "and three runs that need no GPU"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("gpus", ["0", "-1", "two", "1000", "1/p"])
def test_a_number_of_gpus_that_dagster_cannot_take_is_refused(shell: str, gpus: str, checkout: Path) -> None:
    result = source(shell, "./env.sh", checkout, KRONOS_GPUS=gpus)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"error: KRONOS_GPUS is '{gpus}', and a whole number from 1 to 999 is needed" in result.stderr
    assert not (checkout / ".dagster_home").exists()
    result = source(shell, "./env.sh", checkout, KRONOS_TRAININGS_PER_GPU=gpus)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"error: KRONOS_TRAININGS_PER_GPU is '{gpus}', and a whole number from 1 to 64 is needed" in result.stderr


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("command", ["dagster", "dg"])
def test_the_ui_gets_its_target_from_the_workspace_and_all_else_from_the_module(
    shell: str, command: str, checkout: Path
) -> None:
    """With the module's name exported, the servers of `dev` refuse their workspace file, and `dev` hangs."""
    fake = checkout / ".venv" / "bin" / command
    fake.write_text('#!/bin/sh\necho "$*: ${DAGSTER_MODULE_NAME:-none}"\n')
    fake.chmod(0o755)
    result = source(shell, "./env.sh", checkout, f"{command} dev -v; {command} asset list; {command}")
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "dev --log-level warning -v: none",
        "asset list: kronos_pipeline.definitions",
        ": kronos_pipeline.definitions",
    ]


def test_a_base_model_that_the_user_chose_stays(checkout: Path) -> None:
    result = source("bash", "./env.sh", checkout, KRONOS_BASE_MODEL="NeoQuasar/Kronos-small")
    assert result.stdout.splitlines()[2] == "NeoQuasar/Kronos-small"


@pytest.mark.parametrize("shell", SHELLS)
def test_without_an_installation_it_says_what_to_run_and_the_shell_lives_on(shell: str, checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    result = source(shell, "./env.sh", checkout)
    assert (result.returncode, result.stdout) == (1, "")
    assert "run 'make venv'" in result.stderr


def test_no_file_makes_the_repository_root_a_dagster_home() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "kronos_pipeline/orchestration/dagster.yaml" in tracked
    assert not {"dagster.yaml", "dagster.yml", ".env"} & set(tracked)


@pytest.mark.parametrize("shell", SHELLS)
def test_dagster_waits_longer_for_its_code_server_than_a_busy_machine_takes_or_as_the_user_says(
    shell: str, checkout: Path
) -> None:
    timeout = "printenv DAGSTER_GRPC_TIMEOUT_SECONDS"
    assert int(source(shell, "./env.sh", checkout, timeout, DAGSTER_GRPC_TIMEOUT_SECONDS="").stdout) > 60
    assert source(shell, "./env.sh", checkout, timeout, DAGSTER_GRPC_TIMEOUT_SECONDS="90").stdout == "90\n"
