"""The files of deploy/: what can be checked of them without containers or a cluster."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
PROGRAMS = Path(sys.executable).parent


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def dockerfile() -> list[list[str]]:
    """Return the instructions of the Dockerfile, words each."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_image_copies_what_exists_and_what_the_ignore_file_lets_through() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    sources = [
        source
        for word, *rest in dockerfile()
        if word == "COPY" and not rest[0].startswith("--from")
        for source in rest[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), source
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "kronos_pipeline/definitions.py" in tracked
    assert not [path for path in tracked if path.startswith("deploy/secrets")]


def test_the_image_runs_without_rights_and_its_packages_are_pinned() -> None:
    instructions = dockerfile()
    assert [rest for word, *rest in instructions if word == "USER"][-1] == ["kronos"]
    installs = [" ".join(rest) for word, *rest in instructions if word == "RUN" and "pip install" in " ".join(rest)]
    packages = "-r pyproject.toml --extra postgres --extra s3 ${RAY:+--extra ray} -c constraints.txt"
    assert any(packages in command for command in installs)
    stages = [rest for word, *rest in instructions if word == "FROM"]
    assert [stage[0] for stage in stages] == ["${BASE}", "${BASE}"], "a virtual environment belongs to its base"


def test_only_the_two_interfaces_are_published_and_on_this_machine_alone() -> None:
    compose = load("compose.yaml")
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(published) == {"mlflow", "webserver"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert compose["networks"]["inside"]["internal"] is True
    assert compose["services"]["postgres"]["networks"] == ["inside"]
    assert compose["services"]["daemon"]["networks"] == ["inside"]


def test_every_service_has_a_user_a_health_check_and_a_command_that_exists() -> None:
    compose = load("compose.yaml")
    for name, service in compose["services"].items():
        assert service["user"] in ("10001:10001", "postgres"), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["healthcheck"]["test"], name
        assert set(service.get("depends_on", ())) <= set(compose["services"])
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            exists = (DEPLOY / source).is_file() if source.startswith("./") else source in compose["volumes"]
            assert exists or source.startswith("${KRONOS_DATA"), volume
        if name != "postgres":
            for command in (service["command"], service["healthcheck"]["test"][1:]):
                assert (PROGRAMS / command[0]).is_file(), command
    gpu = load("compose.gpu.yaml")
    assert set(gpu["services"]) <= set(compose["services"])
    user = next(" ".join(rest) for word, *rest in dockerfile() if "useradd" in rest)
    assert "--uid 10001" in user


@pytest.mark.parametrize("name", [path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*.yaml")])
def test_no_file_holds_a_password(name: str) -> None:
    text = (DEPLOY / name).read_text()
    assert not re.search(r"://[^\s/@]*:[^\s/@]*@", text)
    values = re.findall(r"^ *\w*password\w*: *(\S+)", text, re.IGNORECASE | re.MULTILINE)
    assert set(values) <= {"/run/secrets/postgres_password", "dagster-postgresql-secret", "false"}, values


def test_several_machines_have_the_settings_of_one_and_a_storage() -> None:
    one = yaml.safe_load((ROOT / "kronos_pipeline" / "orchestration" / "dagster.yaml").read_text())
    several = load("dagster.yaml")
    storage = several.pop("storage")["postgres"]["postgres_db"]
    assert several == one
    assert storage.pop("scheme") == "postgresql+psycopg2"
    assert all(list(value) == ["env"] for value in storage.values())


def test_a_ray_cluster_has_these_settings_too_and_a_launcher_whose_shares_fill_the_pool() -> None:
    several, ray = load("dagster.yaml"), load("ray/dagster.yaml")
    launcher = ray.pop("run_launcher")
    assert ray["run_monitoring"].pop("max_resume_run_attempts") == 3
    pools, runs = ray["concurrency"]["pools"], ray["concurrency"]["runs"]
    share = launcher["config"]["ray"]["num_gpus"]
    assert pools.pop("default_limit") * share == 2, "two GPUs, as the file says"
    assert runs.pop("max_concurrent_runs") == 11
    assert several["concurrency"]["pools"].pop("default_limit") + 3 == several["concurrency"]["runs"].pop(
        "max_concurrent_runs"
    )
    assert ray == several
    stop_seconds = launcher["config"]["ray"]["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(stop_seconds) < ray["run_monitoring"]["cancel_timeout_seconds"]


def test_the_pods_of_a_ray_cluster_have_a_token_no_rights_and_gpus_for_workers_alone() -> None:
    cluster = load("ray/raycluster.yaml")["spec"]
    head, (worker,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert (head["serviceType"], head["rayStartParams"]["num-cpus"]) == ("ClusterIP", "0")
    (values,) = load("k8s/values.yaml")["dagster-user-deployments"]["deployments"]
    for group in (head, worker):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert (pod["volumes"], container["volumeMounts"]) == (values["volumes"], values["volumeMounts"])
        assert [entry for entry in container["env"] if not entry["name"].startswith("RAY_")] == values["env"]
        variables = {entry["name"]: entry for entry in container["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in variables["RAY_AUTH_TOKEN"]["valueFrom"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (group is worker)


def test_the_entrypoint_reads_the_password_of_a_file_and_writes_the_limits(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("word\n")
    environment = {"PATH": "/usr/bin:/bin", "DAGSTER_HOME": str(tmp_path / "home"), "KRONOS_GPUS": "2"}
    environment["KRONOS_TRAININGS_PER_GPU"] = "3"
    command = [str(DEPLOY / "entrypoint.sh"), "sh", "-c", "echo $PGPASSWORD"]
    secret = {"PGPASSWORD_FILE": str(tmp_path / "secret")}
    result = subprocess.run(command, env={**environment, **secret}, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("word\n", "")
    concurrency = yaml.safe_load((tmp_path / "home" / "dagster.yaml").read_text())["concurrency"]
    assert concurrency["pools"]["default_limit"] == 6
    assert concurrency["runs"]["max_concurrent_runs"] == 9
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["dagster.yaml"]
    for variable in ("KRONOS_GPUS", "KRONOS_TRAININGS_PER_GPU"):
        wrong = subprocess.run(command, env={**environment, variable: "two"}, capture_output=True, text=True)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert f"{variable} is 'two'" in wrong.stderr


def test_a_run_in_a_cluster_takes_a_gpu_a_claim_and_no_rights() -> None:
    values = load("k8s/values.yaml")
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    run = values["runLauncher"]["config"]["k8sRunLauncher"]
    assert run["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert run["runK8sConfig"]["podSpecConfig"]["nodeSelector"]
    assert run["runK8sConfig"]["containerConfig"]["securityContext"]["runAsNonRoot"] is True
    assert run["volumes"] == deployment["volumes"]
    mounts = {mount["name"] for mount in run["volumeMounts"]}
    assert mounts == {volume["name"] for volume in run["volumes"]}
    (password,) = (entry for entry in deployment["env"] if entry["name"] == "PGPASSWORD")
    assert password["valueFrom"]["secretKeyRef"]["name"] == values["global"]["postgresqlSecretName"]
