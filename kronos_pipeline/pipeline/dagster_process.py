"""Questions to the Dagster instance, answered by a process: the command line does not import Dagster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kronos_pipeline.errors import KronosError, enumerate_some


class DagsterError(KronosError):
    """Dagster instance that does not answer."""


def ask_dagster(*arguments: str) -> subprocess.Popen[str] | None:
    """Start `orchestration.instance` with some arguments; None if DAGSTER_HOME names no instance."""
    home = os.environ.get("DAGSTER_HOME")
    if not home or not (Path(home) / "dagster.yaml").is_file():
        return None
    command = [sys.executable, "-m", "kronos_pipeline.orchestration.instance", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)  # noqa: S603 - a module of the project


def answer_of(process: subprocess.Popen[str], seconds: float | None = None) -> dict[str, Any]:
    """Return the answer of a process that `ask_dagster` started.

    Args:
        process: the process.
        seconds: the longest time to wait; None waits without limit.

    Raises:
        DagsterError: the instance cannot be read, or does not answer in time.
    """
    try:
        answer, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise DagsterError(f"it did not answer within {seconds:.0f} seconds") from error
    if process.returncode:
        last = errors.strip().splitlines()[-1:]
        raise DagsterError(enumerate_some(last) or "its process was killed")
    found: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return found
