"""Run parts of a benchmark in separate processes, so that a failed part does not stop the others.

After an error of a CUDA kernel a process cannot use its GPU any more, and a crash or a hang ends a process. So the
parent starts a child per part, waits for a limited time, and never uses the GPU itself. The child rewrites a JSON file
after each table, so finished tables survive any end of the child.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from speed.table import NOT_MEASURED, Goal, Report, Table

MEASURED = "measured"
_LENGTH = 200
"""Maximum of characters of an error message in a table."""


@dataclass(frozen=True)
class Found:
    """Result of a part.

    Attributes:
        reports: in the order of measurement; incomplete if the part failed.
        end: "measured", or the reason why reports are missing.
        code: exit status of the process; None if the process was stopped or never started.
    """

    reports: Sequence[Report]
    end: str
    code: int | None = None


def run(command: Sequence[str], file: Path, limit: float) -> Found:
    """Run a part in a process of its own, and end the process before the function returns or raises.

    Args:
        command: command of a process that calls `carry_out` with the same file; its output goes to standard error.
        file: file to which the process writes its reports.
        limit: seconds after which the process is ended.
    """
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _end(process)
    too_late = f"{NOT_MEASURED}: the time was up after {limit:.0f} s"
    return read(file, too_late if code is None else f"failed: {_status(code)}", code)


def read(file: Path, end: str, code: int | None = None) -> Found:
    """Read the reports that a process has written.

    Args:
        file: file of the process; it may be missing.
        end: end of the process, for a file that does not record it.
        code: exit status of the process.
    """
    if not file.exists():
        return Found([], end, code)
    content = json.loads(file.read_text(encoding="utf-8"))
    reports = [
        Report([Table(**table) for table in report["tables"]], [Goal(**goal) for goal in report["goals"]])
        for report in content["reports"]
    ]
    return Found(reports, content["end"] or end, code)


def carry_out(part: Callable[[], Iterable[Report]], file: Path) -> None:
    """Measure a part in the child: write each report to the file, and an error to the file and to standard error.

    Raises:
        SystemExit: the part failed.
    """
    _end_with_parent()
    reports: list[Report] = []

    def write(end: str | None) -> None:
        new = file.with_suffix(".new")
        new.write_text(json.dumps({"reports": [asdict(report) for report in reports], "end": end}), encoding="utf-8")
        new.replace(file)

    try:
        for report in part():
            reports.append(report)
            write(None)
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0][:_LENGTH].replace("|", "/")
        write(f"failed: {type(error).__name__}: {first}".rstrip(": "))
        raise SystemExit(1) from None
    write(MEASURED)


def _end_with_parent() -> None:
    """End this process when the parent ends, even by SIGKILL: its end closes the pipe of standard input."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # does nothing to a process that has ended
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        print(f"Process {process.pid} does not end; it waits for its device.", file=sys.stderr)
    if process.stdin is not None:
        process.stdin.close()


def _status(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit status {code}"
    try:
        return f"its process was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was ended by signal {-code}"
