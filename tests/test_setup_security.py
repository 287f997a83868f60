"""Servers listen on this machine alone, unless a user says otherwise."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
TEXTS = {".cfg", ".html", ".ipynb", ".j2", ".md", ".py", ".sh", ".tpl", ".yaml", ".yml", ""}
SERVER = re.compile(
    r"\b(?:dg|dagster) dev\b|\bdagster[-_]webserver\b|\bmlflow (?:ui|server)\b|\bmodels serve\b|\bmkdocs serve\b"
    r"|-m http\.server\b|\bray start\b|\buvicorn \S+:\S+|\bgunicorn \S+:\S+"
)
HOST = re.compile(r"(?:--(?:host|bind|node-ip-address|dashboard-host)|(?<![\w-])-h)[ =\"',]+([^\s\"',`]+)")
LOCAL = ("127.0.0.1", "localhost", "$(HOST)")
"""Hosts of commands; HOST is the Makefile's variable."""
OPEN = re.compile(r"(?<![\d.])0\.0\.0\.0(?![\d.])")
IN_CONTAINERS = "deploy/"
"""A server in a container listens on the container's network; the files there say what is published, and where."""


def lines() -> list[tuple[str, str]]:
    """Return the lines of the tracked files outside containers, each with its place; continued lines are one line."""
    found = []
    for file in FILES:
        path = ROOT / file
        if path.suffix in TEXTS and path.is_file() and file not in (f"tests/{Path(__file__).name}",):
            text = path.read_text(encoding="utf-8", errors="ignore").replace("\\\n", " ")
            found += [(f"{file}:{number}", line) for number, line in enumerate(text.splitlines(), 1)]
    return found


@pytest.mark.slow
def test_each_command_that_starts_a_server_keeps_it_to_this_machine() -> None:
    outside = [(place, line) for place, line in lines() if not place.startswith(IN_CONTAINERS)]
    commands = [(place, line) for place, line in outside if SERVER.search(line)]
    assert {place.partition(":")[0] for place, _ in commands} >= {"Makefile", "README.md", "benchmarks/ui.py"}
    assert [(place, host) for place, line in commands for host in HOST.findall(line) if host not in LOCAL] == []
    assert re.search(r"^HOST := 127\.0\.0\.1$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [place for place, line in outside if OPEN.search(line)] == []


def published_ports() -> list[tuple[str, str]]:
    """Return the ports that compose files publish, each with its file and service."""
    ports = []
    for file in (file for file in FILES if re.fullmatch(r"(?:.*/)?(?:docker-)?compose[^/]*\.ya?ml", file)):
        services: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())["services"]
        ports += [
            (f"{file}: {name}", str(port)) for name, service in services.items() for port in service.get("ports", [])
        ]
    return ports


def test_compose_files_publish_ports_to_this_machine_alone() -> None:
    local = re.compile(r"(?:127\.0\.0\.1|\$\{\w+:-127\.0\.0\.1\}):")
    assert [(place, port) for place, port in published_ports() if not local.match(port)] == []


@pytest.mark.slow
def test_servers_that_are_given_no_host_listen_on_this_machine() -> None:
    import mlflow.cli
    import mlflow.models.cli
    from dagster_webserver.cli import dagster_webserver

    commands: list[click.Command] = [mlflow.cli.server, mlflow.models.cli.serve, dagster_webserver]
    hosts = [option.default for command in commands for option in command.params if option.name == "host"]
    assert hosts == ["127.0.0.1"] * len(commands)  # `dg dev` starts the webserver
